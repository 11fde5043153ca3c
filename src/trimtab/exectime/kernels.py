"""Seconds of single kernels: a smooth roofline with measured efficiencies.

Where a calibration holds a surface for a group of operators, times are the roofline's corrected by it;
otherwise efficiencies are constants. Every function is vectorised over its first arguments and returns
float64 seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import unknown
from trimtab.exectime.calibration import Calibration, load_calibration, shipped
from trimtab.exectime.curves import Base, Lattice
from trimtab.hardware.catalogue import read_catalogue
from trimtab.hardware.devices import Device, Node

Array = NDArray[np.float64]
COLLECTIVES = ("all_reduce", "all_to_all", "send_recv")
ELEMENT_WISE = ("norm", "act", "rope", "add")
CPU_OVERHEAD_S = 1e-3  # the guess that a measured host overhead corrects


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
    calibration: Calibration | None = None
    lattices: dict[str, Lattice | None] = field(default_factory=dict, repr=False, compare=False)

    @property
    def calibration_digest(self) -> str:
        """Tells calibrations apart, by their contents."""
        return self.calibration.digest if self.calibration else ""

    def lattice(self, group: str) -> Lattice | None:
        """The calibrated times of a group of operators; None if it was not measured."""
        if group not in self.lattices:
            surface = self.calibration.surfaces.get(group) if self.calibration else None
            if group in COLLECTIVES and self.calibration and self.calibration.node != self.node.name:
                surface = None  # measured on other links
            self.lattices[group] = None if surface is None else Lattice(surface, self.base(group))
        return self.lattices[group]

    def factor(self, group: str, key: Sequence[float], grid: Sequence[Array]) -> Array:
        """Calibrated over analytic time; ones where the group was not measured."""
        lattice = self.lattice(group)
        if lattice is None:
            return np.ones(np.broadcast_shapes(*(np.shape(column) for column in grid)))
        return np.asarray(lattice.seconds(key, grid) / self.base(group)([np.float64(x) for x in key], grid))  # type: ignore[misc]

    def base(self, group: str) -> Base:
        """The analytic seconds of a group of operators, as a function of key and grid (see curves.py)."""
        bases: dict[str, Base] = {
            "matrix": lambda key, grid: self._matrix(grid[0], key[0], key[1]),
            "grouped": lambda key, grid: self._matrix(grid[0], key[0], key[1]),
            "decode": lambda key, grid: self.attention_decode(
                grid[0] * (grid[1] + 1) * key[0], grid[0] * (grid[1] + 1) * key[1]
            ),
            "prefill": lambda key, grid: self.attention_prefill(
                (grid[0] * grid[1] + grid[0] * grid[0] / 2) * key[0], np.zeros(1)
            ),
            "all_reduce": lambda key, grid: self._ring(2 * (key[0] - 1) / key[0] * grid[0], key[0]),
            "all_to_all": lambda key, grid: self._ring((key[0] - 1) / key[0] * grid[0], key[0]),
            "send_recv": lambda key, grid: self._send(grid[0], key[0]),
            "cpu_overhead": lambda key, grid: key[0] * CPU_OVERHEAD_S + 0.0 * grid[0],
        }
        return bases.get(group) or (lambda key, grid: self._element(group, grid[0], key[0]))

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
        lattice = self.lattice("matrix")
        if lattice is not None:
            return lattice.seconds((inputs, outputs), (tokens,))
        return self._matrix(tokens, inputs, outputs)

    def _matrix(self, tokens: Array, inputs: Any, outputs: Any) -> Array:
        flops = 2 * tokens * inputs * outputs
        return self.roof(flops, self.weight_bytes * inputs * outputs + 2 * tokens * (inputs + outputs))

    def element_wise(self, kind: str, tokens: Array, size: float) -> Array:
        """``kind``: norm, act, rope, add, kv_save; ``size``: bytes read and written for one token."""
        lattice = self.lattice(kind)
        if lattice is not None:
            return lattice.seconds((size,), (tokens,))
        return self._element(kind, tokens, size)

    def _element(self, kind: str, rows: Array, size: Any) -> Array:
        eff = self.efficiency
        fraction = getattr(eff, kind) if kind in ELEMENT_WISE else 1.0
        return np.asarray(rows * size / (self.device.bandwidth * fraction) + eff.element_us * 1e-6)

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
        return self._exchange("all_reduce", num_bytes, devices)

    def reduce_scatter(self, num_bytes: Array, devices: int) -> Array:
        """Half of an all-reduce; the other half, an all-gather, takes as long."""
        return self.all_reduce(num_bytes / 2, devices)

    def all_to_all(self, num_bytes: Array, devices: int) -> Array:
        """Every device keeps 1/devices of ``num_bytes`` and exchanges the rest. Where it was not measured
        it is given the share of the link that all-reduces reach."""
        return self._exchange("all_to_all", num_bytes, devices)

    def _exchange(self, group: str, num_bytes: Array, devices: int) -> Array:
        if devices == 1:
            return np.zeros_like(num_bytes, dtype=np.float64)
        lattice = self.lattice(group)
        if lattice is not None:
            return lattice.seconds((float(devices),), (num_bytes,))
        return np.asarray(self.base(group)([np.float64(devices)], [num_bytes]))  # type: ignore[list-item]

    def _ring(self, moved: Array, devices: Any) -> Array:
        """``moved`` bytes out of (and into) each device."""
        eff = self.efficiency
        link, cross = self.device.link_gb_s * eff.link, self.node.cross_gb_s * eff.cross
        rate = np.where(devices <= self.node.link_group, link, cross)
        # Published link figures sum both directions; a ring uses each direction once.
        return np.asarray(moved / (rate / 2 * 1e9) + eff.collective_us * 1e-6, dtype=np.float64)

    def send(self, num_bytes: Array, devices: int) -> Array:
        """To the next pipeline stage of a replica of ``devices`` devices: by link, bus or network."""
        lattice = self.lattice("send_recv")
        if lattice is not None and devices <= self.node.link_group:
            return lattice.seconds((2.0,), (num_bytes,))
        return self._send(num_bytes, devices)

    def _send(self, num_bytes: Array, devices: Any) -> Array:
        eff = self.efficiency
        within = np.where(devices <= self.node.link_group, self.device.link_gb_s, self.node.cross_gb_s)
        rate = np.where(
            devices > self.node.devices, self.node.network_gb_s * eff.network, within / 2 * eff.send
        )
        return np.asarray(num_bytes / (rate * 1e9) + eff.send_us * 1e-6, dtype=np.float64)


def kernels_for(device: Device, node: Node, weight_bytes: float = 2.0, path: str | None = None) -> Kernels:
    """Kernels with the calibration at ``path``, by default the one that ships for the device, if any."""
    if path is None:
        return _shipped_kernels(device, node, weight_bytes)
    return _calibrated(device, node, weight_bytes, load_calibration(Path(path)))


@lru_cache(maxsize=16)
def _shipped_kernels(device: Device, node: Node, weight_bytes: float) -> Kernels:
    return _calibrated(device, node, weight_bytes, shipped(device.efficiency))


def _calibrated(device: Device, node: Node, weight_bytes: float, calibration: Calibration | None) -> Kernels:
    efficiency = get_efficiency(device.efficiency)
    if calibration is not None:
        efficiency = replace(efficiency, **calibration.efficiency)
    return Kernels(device, node, efficiency, weight_bytes, calibration)


def forget_kernels() -> None:
    """Read shipped calibrations anew, as a new process would."""
    _shipped_kernels.cache_clear()
    shipped.cache_clear()
