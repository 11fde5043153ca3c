"""Seconds of single kernels: a smooth roofline with measured efficiencies.

Every function is vectorised over its first arguments and returns float64 seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import unknown
from trimtab.hardware.catalogue import read_catalogue
from trimtab.hardware.devices import Device, Node

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Efficiency:
    """Fractions of the published peaks that kernels reach; see data/hardware/efficiency.yaml."""

    compute: float
    memory: float
    blend: float
    launch_us: float
    norm: float
    act: float
    rope: float
    add: float
    element_us: float
    prefill_compute: float
    prefill_us: float
    decode_memory: float
    decode_us: float
    link: float
    cross: float
    collective_us: float
    send: float
    network: float
    send_us: float


def get_efficiency(name: str) -> Efficiency:
    entries = read_catalogue("efficiency")
    if name not in entries:
        raise unknown("efficiency", name, entries)
    return Efficiency(**entries[name])


@dataclass(frozen=True)
class Kernels:
    """Kernel times on one device in one node. ``weight_bytes`` is per weight; activations are bf16."""

    device: Device
    node: Node
    efficiency: Efficiency
    weight_bytes: float = 2.0

    @property
    def matrix_peak(self) -> float:
        """FLOP/s of matrix products; the fp8 rate for fp8 weights where the device has it."""
        if self.weight_bytes == 1 and self.device.fp8_tflops:
            return self.device.fp8_tflops * 1e12
        return self.device.peak_flops

    def roof(self, flops: Array, num_bytes: Array) -> Array:
        """Matrix-product time: close to the larger bound, above it where both are near each other."""
        eff = self.efficiency
        compute = flops / (self.matrix_peak * eff.compute)
        memory = num_bytes / (self.device.bandwidth * eff.memory)
        blended = (compute**eff.blend + memory**eff.blend) ** (1 / eff.blend)
        return np.asarray(blended + eff.launch_us * 1e-6, dtype=np.float64)

    def matrix_product(self, tokens: Array, inputs: float, outputs: float) -> Array:
        """``tokens`` rows through an (inputs x outputs) weight matrix."""
        flops = 2 * tokens * inputs * outputs
        return self.roof(flops, self.weight_bytes * inputs * outputs + 2 * tokens * (inputs + outputs))

    def element_wise(self, kind: str, num_bytes: Array) -> Array:
        """``kind``: norm, act, rope or add; bytes read and written."""
        eff = self.efficiency
        seconds = num_bytes / (self.device.bandwidth * getattr(eff, kind)) + eff.element_us * 1e-6
        return np.asarray(seconds, dtype=np.float64)

    def attention_prefill(self, flops: Array, num_bytes: Array) -> Array:
        eff = self.efficiency
        compute = flops / (self.device.peak_flops * eff.prefill_compute)
        memory = num_bytes / (self.device.bandwidth * eff.memory)
        return np.asarray(np.hypot(compute, memory) + eff.prefill_us * 1e-6, dtype=np.float64)

    def attention_decode(self, flops: Array, num_bytes: Array) -> Array:
        """Memory-bound for plain and grouped attention; compute counts for latent attention."""
        eff = self.efficiency
        compute = flops / (self.device.peak_flops * eff.prefill_compute)
        memory = num_bytes / (self.device.bandwidth * eff.decode_memory)
        return np.asarray(np.hypot(compute, memory) + eff.decode_us * 1e-6, dtype=np.float64)

    def all_reduce(self, num_bytes: Array, devices: int) -> Array:
        """Ring all-reduce inside a node: NVLink within a link group, the slower bus across groups."""
        return self._collective(2 * (devices - 1) / devices * num_bytes, devices)

    def reduce_scatter(self, num_bytes: Array, devices: int) -> Array:
        """Half of an all-reduce; the other half, an all-gather, takes as long."""
        return self._collective((devices - 1) / devices * num_bytes, devices)

    def all_to_all(self, num_bytes: Array, devices: int) -> Array:
        """Every device keeps 1/devices of ``num_bytes`` and exchanges the rest. Not measured: the share
        of the link that all-reduces reach is taken."""
        return self._collective((devices - 1) / devices * num_bytes, devices)

    def _collective(self, moved: Array, devices: int) -> Array:
        """``moved`` bytes out of (and into) each device."""
        if devices == 1:
            return np.zeros_like(moved, dtype=np.float64)
        eff = self.efficiency
        inside = devices <= self.node.link_group
        rate = self.device.link_gb_s * eff.link if inside else self.node.cross_gb_s * eff.cross
        # Published link figures sum both directions; a ring uses each direction once.
        return np.asarray(moved / (rate / 2 * 1e9) + eff.collective_us * 1e-6, dtype=np.float64)

    def send(self, num_bytes: Array, devices: int) -> Array:
        """To the next pipeline stage of a replica of ``devices`` devices: by link, bus or network."""
        eff = self.efficiency
        if devices > self.node.devices:
            rate = self.node.network_gb_s * eff.network
        elif devices <= self.node.link_group:
            rate = self.device.link_gb_s / 2 * eff.send
        else:
            rate = self.node.cross_gb_s / 2 * eff.send
        return np.asarray(num_bytes / (rate * 1e9) + eff.send_us * 1e-6, dtype=np.float64)
