"""Accelerators and the nodes they sit in, as data."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from pathlib import Path

import yaml

from trimtab.errors import TrimtabError, unknown
from trimtab.hardware.catalogue import index_names, read_catalogue


@dataclass(frozen=True)
class Device:
    """One accelerator. Published peaks; what is reached in practice is ``efficiency``'s business."""

    name: str
    memory_gib: float
    tflops: float  # dense bf16/fp16 TFLOP/s
    hbm_tb_s: float  # TB/s
    link_gb_s: float  # GB/s to peers, both directions summed
    units: int  # streaming multiprocessors or compute units
    price: float  # USD per hour
    efficiency: str  # entry of efficiency.yaml
    fp8_tflops: float | None = None  # dense
    profile: str = ""  # folder of Vidur's compute profiles
    aliases: tuple[str, ...] = ()
    source: str = ""
    price_source: str = ""
    node_devices: int = 8  # of a device from a file: how many in its server, all linked
    node_network_gb_s: float = 25.0  # and GB/s per device between servers, one direction

    @property
    def peak_flops(self) -> float:
        """FLOP/s, dense bf16."""
        return self.tflops * 1e12

    @property
    def bandwidth(self) -> float:
        """Bytes per second of device memory."""
        return self.hbm_tb_s * 1e12

    @property
    def memory_bytes(self) -> float:
        return self.memory_gib * 2**30


@dataclass(frozen=True)
class Node:
    """A server: ``devices`` of one kind, fully linked in groups of ``link_group``."""

    name: str
    device: str
    devices: int
    link_group: int
    cross_gb_s: float  # GB/s per device between groups, both directions summed
    network_gb_s: float  # GB/s per device between nodes, one direction
    default: bool = False
    source: str = ""


def list_devices() -> list[str]:
    return sorted(_devices())


def list_nodes() -> list[str]:
    return sorted(_nodes())


def get_device(name: str) -> Device:
    """A device by name or alias, case-insensitive, or from a YAML file with one entry like those of
    data/hardware/devices.yaml.

    Raises
    ------
    TrimtabError
        for an unknown name, and for a file with missing, unknown or impossible values.
    """
    if name.endswith((".yaml", ".yml")):
        return _read_device(Path(name))
    index = index_names({device.name: device.aliases for device in _devices().values()})
    found = index.get(name.lower())
    if found is None:
        raise unknown("device", name, list_devices())
    return _devices()[found]


def get_node(name: str) -> Node:
    """A node type by name, case-insensitive. Raises TrimtabError for an unknown one."""
    found = _nodes().get(name.lower().replace("-", "_"))
    if found is None:
        raise unknown("node", name, list_nodes())
    return found


def default_node(device: Device) -> Node:
    """The node that this device is usually bought in."""
    for node in _nodes().values():
        if node.device == device.name and node.default:
            return node
    count = device.node_devices
    return Node(
        f"{device.name}_node",
        device.name,
        count,
        count,
        device.link_gb_s,
        device.node_network_gb_s,
        default=True,
    )


def node_for(device: Device, name: str | None) -> Node:
    """The named node, or the device's default one. A node of another device is refused."""
    node = default_node(device) if name is None else get_node(name)
    if node.device != device.name:
        fitting = [other.name for other in _nodes().values() if other.device == device.name]
        raise TrimtabError(
            f"node {node.name!r} holds {node.device}, not {device.name}; allowed: {', '.join(fitting)}"
        )
    return node


def _read_device(path: Path) -> Device:
    try:
        entry = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrimtabError(f"cannot read device {str(path)!r}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise TrimtabError(f"{path} is not valid YAML") from None
    known = {field.name: field for field in fields(Device)}
    needed = [name for name, field in known.items() if field.default is MISSING]
    if not isinstance(entry, dict):
        raise TrimtabError(f"{path} must hold a mapping with {', '.join(needed)}")
    entry = {"name": path.stem, "price": 0.0, **entry}
    for key in entry:
        if key not in known:
            raise unknown(f"device key in {path}", str(key), known)
    missing = [name for name in needed if name not in entry]
    if missing:
        raise TrimtabError(f"{path}: missing {', '.join(missing)}")
    for key in ("memory_gib", "tflops", "hbm_tb_s", "link_gb_s", "units"):
        if not isinstance(entry[key], (int, float)) or not entry[key] > 0:
            raise TrimtabError(f"{path}: {key} must be a positive number, got {entry[key]!r}")
    return Device(**{**entry, "aliases": tuple(entry.get("aliases", ()))})


@lru_cache(maxsize=1)
def _devices() -> dict[str, Device]:
    entries = read_catalogue("devices")
    return {
        name: Device(name=name, **{**entry, "aliases": tuple(entry.get("aliases", ()))})
        for name, entry in entries.items()
    }


@lru_cache(maxsize=1)
def _nodes() -> dict[str, Node]:
    return {name: Node(name=name, **entry) for name, entry in read_catalogue("nodes").items()}
