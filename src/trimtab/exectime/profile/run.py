"""The main path of a profile: which device, which points, measure what is missing, append."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.errors import TrimtabError, unknown
from trimtab.exectime.profile.journal import Journal
from trimtab.exectime.profile.points import (
    COLLECTIVES,
    ORDER,
    Grid,
    Point,
    collective_points,
    cpu_grid,
    full_grid,
    points,
    quick_grid,
)
from trimtab.exectime.profile.shapes import Shard, shard_of
from trimtab.hardware.devices import get_device, list_devices
from trimtab.hardware.memory import weight_bytes
from trimtab.hardware.models import Model

if TYPE_CHECKING:
    from trimtab.exectime.profile.timing import Sample, Timer

Progress = Callable[[int, int, str], None]
Record = Callable[[Point, "Sample"], None]
Failures = dict[tuple[str, bool], str]  # (operator, from a graph) -> torch's reason
OLDEST_TORCH = (2, 10)  # grouped products
CPU_MEMORY = 1 << 30  # bytes that a CPU stands in for
WEIGHTS_LEAVE = 0.1  # of the memory for KV, at least, whatever the weights take
MEMORY_TOLERANCE = 0.15  # between the catalogue and what the driver reports


@dataclass(frozen=True)
class Profile:
    """What a run did: ``measured`` now, ``kept`` from earlier runs; ``notes`` say what was left out."""

    device: str
    measured: int
    kept: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Machine:
    """The device to measure. ``device`` is its catalogue name, or what its driver calls it."""

    device: str
    memory: float  # bytes
    count: int  # of such devices
    graphs: bool = True  # kernels can be captured
    grouped_graphs: bool = True  # the grouped product, too
    note: str = ""


def profile(
    model: Model,
    tp: int,
    out: Path,
    operators: tuple[str, ...] = ORDER,
    quick: bool = False,
    cpu: bool = False,
    fresh: bool = False,
    progress: Progress = lambda done, total, latest: None,
) -> Profile:
    """Measure one shard of ``model`` on this machine; append to the CSV ``out`` what it lacks.

    ``progress(done, total, operator)`` is called after each point. Stopped at any moment, it goes on
    from there when it is called again.

    Raises
    ------
    TrimtabError
        without torch or (unless ``cpu``) a GPU; for an unknown operator, a degree that the model does
        not divide by, or a file that is no profile.
    """
    for name in operators:
        if name not in ORDER:
            raise unknown("operator", name, ORDER)
    shard = shard_of(model, tp)
    require_torch()
    machine = this_cpu() if cpu else this_gpu()
    grid = cpu_grid() if cpu else quick_grid() if quick else full_grid()
    journal = Journal(out, machine.device, model.name, tp, fresh)
    wanted = [point for point in _wanted(model, shard, grid, machine) if point.operator in operators]
    missing = [point for point in wanted if not journal.has(point)]
    kept = done = len(wanted) - len(missing)

    def record(point: Point, sample: Sample) -> None:
        nonlocal done
        journal.append(point, sample.median_ms, sample.min_ms, sample.repeats)
        done += 1
        progress(done, len(wanted), point.operator)

    progress(done, len(wanted), "")
    failures = _measure(shard, missing, grid.repeats, cpu, record)
    if failures:
        reasons = [
            f"{name}{' from a graph' if graph else ''} ({reason})"
            for (name, graph), reason in failures.items()
        ]
        raise TrimtabError(f"could not be measured: {'; '.join(reasons)}; all else is in {out}")
    return Profile(machine.device, done - kept, kept, _notes(model, shard, machine, operators))


def _wanted(model: Model, shard: Shard, grid: Grid, machine: Machine) -> list[Point]:
    """All points that this machine can measure, collectives last."""
    found = points(shard, grid, kv_capacity(model, shard.tp, machine.memory), graphs=machine.graphs)
    if not machine.grouped_graphs:
        eager = [replace(point, graph=False) if point.operator == "moe_grouped" else point for point in found]
        found = list(dict.fromkeys(eager))
    return [*found, *collective_points(shard, grid, machine.count)]


def _notes(model: Model, shard: Shard, machine: Machine, operators: tuple[str, ...]) -> tuple[str, ...]:
    """What a reader of the file should know."""
    notes = [machine.note] if machine.note else []
    there = {point.operator for point in collective_points(shard, quick_grid(), machine.count)}
    absent = [name for name in COLLECTIVES if name in operators and name not in there]
    absent = [name for name in absent if name == "send_recv" or shard.tp > 1]
    absent = [name for name in absent if name != "all_to_all" or shard.experts]
    if absent:
        needed = max(2, shard.tp)
        notes.append(f"not measured: {', '.join(absent)}; that takes {needed} GPUs, here: {machine.count}")
    if model.dtype_bytes != 2 or model.kv_dtype_bytes != 2:
        notes.append(f"{model.name} is quantised, but everything was measured in bf16")
    if model.sliding_layers:
        notes.append(
            f"{model.sliding_layers} layers of {model.name} have a window; full attention was measured"
        )
    return tuple(notes)


def _measure(shard: Shard, missing: list[Point], repeats: int, cpu: bool, record: Record) -> Failures:
    """Record the missing points in their order, collectives last; what could not run, and why."""
    import torch

    from trimtab.exectime.profile.cases import Workbench, build, largest_operand
    from trimtab.exectime.profile.collectives import measure_collectives
    from trimtab.exectime.profile.host import measure_overhead
    from trimtab.exectime.profile.timing import CpuTimer, CudaTimer

    single = [point for point in missing if point.operator not in COLLECTIVES]
    failures: Failures = {}
    if single:
        threads = torch.get_num_threads()
        timer: Timer = CpuTimer() if cpu else CudaTimer()
        if cpu:
            torch.set_num_threads(1)  # tiny operators are not worth sharing out
        with torch.inference_mode():
            if isinstance(timer, CudaTimer):
                timer.warm_up()
            bench = Workbench(shard, timer, largest_operand(single, shard))
            for point in single:
                what = (point.operator, point.graph)
                if what in failures:
                    continue
                try:
                    if point.operator == "cpu_overhead":
                        sample = measure_overhead(timer, point, repeats)
                    else:
                        sample = timer.measure(build(bench, point), point.graph, repeats)
                except RuntimeError as error:  # torch's, for a shape or a device that a kernel does not do
                    failures[what] = str(error).strip().split("\n")[0]
                    continue
                record(point, sample)
            del bench
        if cpu:
            torch.set_num_threads(threads)
        else:
            torch.cuda.empty_cache()
    apart = [point for point in missing if point.operator in COLLECTIVES]
    if apart:
        measure_collectives(apart, "gloo" if cpu else "nccl", repeats, record)
    return failures


# --- this machine -------------------------------------------------------------------------------


def require_torch() -> None:
    """A TrimtabError that says what to install, where torch is missing or too old."""
    if importlib.util.find_spec("torch") is None:
        raise TrimtabError("profiling needs torch: pip install 'trimtab[profile]'")
    here = importlib.metadata.version("torch")
    if tuple(int(part) for part in here.split(".")[:2]) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise TrimtabError(f"profiling needs torch {oldest} or later, here is {here}: pip install -U torch")


def this_cpu() -> Machine:
    return Machine("cpu", CPU_MEMORY, 0, graphs=False, grouped_graphs=False)


def this_gpu() -> Machine:
    """The current CUDA device, by its catalogue name where it is known.

    Raises
    ------
    TrimtabError
        without a CUDA device: one line with what to do.
    """
    import torch

    if not torch.cuda.is_available():
        built = "this torch has no CUDA" if torch.version.cuda is None else "torch sees no CUDA GPU"
        raise TrimtabError(
            f"{built}; run this on a machine with one (nvidia-smi lists it, torch with CUDA installed), "
            f"or try the path with --cpu"
        )
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    known = known_device(properties.name, properties.total_memory, properties.multi_processor_count)
    note = ""
    if known is None:
        note = (
            f"{properties.name} is not in the device catalogue ({', '.join(list_devices())}); its rows carry "
            f"the name {slug(properties.name)}: add it to devices.yaml before calibrating"
        )
    return Machine(
        known or slug(properties.name),
        float(properties.total_memory),
        torch.cuda.device_count(),
        # Before Hopper, torch multiplies group by group and waits for the device to say where each ends.
        grouped_graphs=properties.major >= 9,
        note=note,
    )


def known_device(name: str, memory: float, units: int) -> str | None:
    """The catalogue's name of a device that its driver calls ``name``, or None.

    Variants share a first word ("H100 PCIe", "A100-SXM4-40GB"), so memory (bytes) and multiprocessors
    have to agree, too.

    >>> known_device("NVIDIA H200", 150e9, 132)
    'h200'
    >>> known_device("NVIDIA H100 PCIe", 85e9, 114) is None
    True
    """
    words = slug(name).split("-")
    for count in range(len(words), 0, -1):
        try:
            device = get_device("-".join(words[:count]))
        except TrimtabError:
            continue
        near = abs(memory / device.memory_bytes - 1) <= MEMORY_TOLERANCE
        return device.name if near and units == device.units else None
    return None


def slug(name: str) -> str:
    """A driver's name as ours are written, without its maker.

    >>> slug("NVIDIA A100-SXM4-80GB")
    'a100-sxm4-80gb'
    """
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-").split("-")
    return "-".join(word for word in words if word not in ("nvidia", "amd", "instinct", "tesla"))


def kv_capacity(model: Model, tp: int, memory: float) -> int:
    """Tokens that a replica of ``tp`` such devices can cache."""
    left = max(memory * 0.9 - weight_bytes(model, tp, 1), memory * WEIGHTS_LEAVE)
    return int(left / model.kv_bytes_per_token(tp))
