"""Predicted iterations against a real generation loop, and a short serving run against its simulation.

A decoder with random weights (_decoder.py) runs prompt chunks, decodes and mixtures of both on the GPU;
each iteration's wall time, from its packed inputs to its tokens, is compared with what the execution tables
say. Then requests arrive at random, are batched continuously (_serving.py), and their mean TTFT, TPOT and
E2E are compared with trimtab's simulation of the same requests. Needs a GPU and torch; without one it says
so and is skipped. `--cpu` runs a tiny model, to try the path: its errors mean nothing.

    trimtab profile --model llama-3-8b --out h200.csv
    trimtab calibrate h200.csv --out h200.json
    python benchmarks/gpu_iterations.py --model llama-3-8b --calibration h200.json [--quick]

Errors are |predicted - measured| / measured. One device (tp=1): no collectives.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trimtab.errors import TrimtabError
from trimtab.exectime import ExecTables, build_tables
from trimtab.exectime.profile.run import require_torch, this_cpu, this_gpu
from trimtab.exectime.profile.shapes import shard_of
from trimtab.hardware import Model, default_node, get_device, get_model
from trimtab.scenario import ReplicaGroup

if TYPE_CHECKING:
    from _decoder import Decoder
    from _serving import Load

TINY_CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 256,
    "max_position_embeddings": 4096,
}
KV_SHARE = 0.8  # of the memory that is free beside the weights


@dataclass(frozen=True)
class Plan:
    """What is run. Decodes: every batch at every context that fits; chunks: after every past."""

    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    chunks: tuple[int, ...]
    pasts: tuple[int, ...]
    mixtures: tuple[tuple[int, int, int], ...]  # decodes, their context, a chunk
    repeats: int
    requests: int
    qps: float
    prompt: int  # tokens, median
    output: int
    max_num_seqs: int = 64
    token_budget: int = 2048


FULL = Plan(
    batches=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    contexts=(128, 512, 1024, 2048, 4096, 8192, 16384),
    chunks=(128, 512, 2048, 8192),
    pasts=(0, 2048, 8192),
    mixtures=((8, 1024, 504), (32, 1024, 480), (64, 2048, 448), (128, 512, 384)),
    repeats=10,
    requests=128,
    qps=8.0,
    prompt=512,
    output=96,
)
QUICK = Plan(
    batches=(1, 8, 64),
    contexts=(128, 1024, 4096),
    chunks=(128, 2048),
    pasts=(0, 2048),
    mixtures=((32, 1024, 480),),
    repeats=5,
    requests=32,
    qps=8.0,
    prompt=512,
    output=48,
)
TINY = Plan(
    batches=(1, 4),
    contexts=(16, 64),
    chunks=(16, 32),
    pasts=(0, 32),
    mixtures=((2, 16, 14),),
    repeats=2,
    requests=6,
    qps=50.0,
    prompt=24,
    output=4,
    max_num_seqs=4,
    token_budget=32,
)


def batches_of(plan: Plan, cells: int) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """(contexts of the decodes, (past, tokens) of the chunks) of every iteration that fits ``cells``."""
    found: list[tuple[list[int], list[tuple[int, int]]]] = []
    found += [([kv] * batch, []) for batch in plan.batches for kv in plan.contexts]
    found += [([], [(past, chunk)]) for chunk in plan.chunks for past in plan.pasts]
    found += [([kv] * count, [(0, chunk)]) for count, kv, chunk in plan.mixtures]
    return [(decodes, chunks) for decodes, chunks in found if cells_of(decodes, chunks) <= cells]


def cells_of(decodes: list[int], chunks: list[tuple[int, int]]) -> int:
    """One for padding, and what the sequences hold after the step."""
    return 1 + sum(kv + 1 for kv in decodes) + sum(past + chunk for past, chunk in chunks)


def measure(decoder: Decoder, decodes: list[int], chunks: list[tuple[int, int]], repeats: int) -> list[float]:
    """Seconds of each repetition of one iteration, after two that do not count."""
    from _decoder import Piece

    pieces, start = [], 1
    for past, tokens in [*((kv, 1) for kv in decodes), *chunks]:
        pieces.append(Piece(start, past, tokens))
        start += past + tokens
    packed = decoder.pack(pieces[: len(decodes)], pieces[len(decodes) :])
    seconds = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        decoder.run(packed)
        seconds.append(time.perf_counter() - began)
    return seconds[2:]


def compare_iterations(decoder: Decoder, tables: ExecTables, plan: Plan, cells: int) -> list[dict[str, Any]]:
    """One row per iteration shape: measured median and prediction, milliseconds; the error of each run."""
    rows = []
    for decodes, chunks in batches_of(plan, cells):
        measured = np.array(measure(decoder, decodes, chunks, plan.repeats))
        predicted = tables.stage_seconds(decodes, chunks)
        row = {
            "decodes": len(decodes),
            "context": decodes[0] if decodes else 0,
            "past": chunks[0][0] if chunks else 0,
            "chunk": chunks[0][1] if chunks else 0,
            "measured_ms": 1000 * float(np.median(measured)),
            "predicted_ms": 1000 * predicted,
            "errors": (np.abs(predicted - measured) / measured).tolist(),
        }
        rows.append(row)
        print(
            f"{row['decodes']:4} decodes at {row['context']:5}, chunk {row['chunk']:4} after "
            f"{row['past']:4}: {row['measured_ms']:9.3f} ms, predicted {row['predicted_ms']:9.3f}",
            flush=True,
        )
    return rows


def exectime_of(calibration: Path | None) -> dict[str, Any]:
    """The scenario's ``exectime``."""
    if calibration is None:
        return {"kind": "roofline"}
    if not calibration.is_file():
        raise TrimtabError(f"no calibration {str(calibration)!r}; make one with: trimtab calibrate PROFILE")
    return {"kind": "roofline", "path": str(calibration.resolve())}


@dataclass(frozen=True)
class Setup:
    """Everything that a run needs but the decoder itself. ``cells``: tokens of cache."""

    plan: Plan
    model: Model
    group: dict[str, Any]  # of the scenario
    device: str  # what is measured
    tables: ExecTables
    load: Load
    cells: int
    positions: int


def prepare(options: argparse.Namespace, folder: Path) -> Setup:
    """Sizes and tables; a TrimtabError where the device is unknown or has not enough memory."""
    from _serving import make_load

    plan = TINY if options.cpu else QUICK if options.quick else FULL
    name = options.model or (str(tiny_config(folder)) if options.cpu else "llama-3-8b")
    model, machine = get_model(name), this_cpu() if options.cpu else this_gpu()
    if machine.note:
        raise TrimtabError(machine.note)
    load = make_load(
        plan.requests, plan.qps, plan.prompt, plan.output, plan.max_num_seqs, plan.token_budget, options.seed
    )
    free = KV_SHARE * (machine.memory - 2 * model.parameters)
    wanted = max(cells_of(decodes, chunks) for decodes, chunks in batches_of(plan, 1 << 60))
    serving = 1 + load.max_num_seqs * load.slot_tokens
    cells = max(0, min(int(free / model.kv_bytes_per_token()), max(wanted, serving)))
    if cells < serving:
        raise TrimtabError(f"{model.name} leaves room for {cells} cached tokens, serving needs {serving}")
    positions = max(max(plan.contexts) + 2, max(plan.pasts) + max(plan.chunks), load.slot_tokens)
    # The tiny run's tables are another device's: there are none for a CPU.
    device = get_device("h200" if options.cpu else machine.device)
    group = {"model": name, "device": device.name, "exectime": exectime_of(options.calibration)}
    most_tokens = max(*plan.chunks, plan.token_budget)
    tables = build_tables(
        ReplicaGroup(**group), model, device, default_node(device), max(plan.batches), most_tokens, positions
    )
    return Setup(plan, model, group, machine.device, tables, load, cells, positions)


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    require_torch()
    import torch
    from _decoder import Decoder
    from _serving import serve, simulate

    setup = prepare(options, folder)
    if options.cpu:
        torch.set_num_threads(1)
    with torch.inference_mode():
        torch_device = torch.device("cpu" if options.cpu else "cuda")
        decoder = Decoder(shard_of(setup.model, 1), setup.cells, setup.positions, torch_device, options.seed)
        rows = compare_iterations(decoder, setup.tables, setup.plan, setup.cells)
        served = serve(decoder, setup.load)
    errors = np.concatenate([row["errors"] for row in rows])
    predicted = simulate(setup.load, setup.group, folder)
    found = {
        "name": "gpu_iterations",
        "date": str(datetime.date.today()),
        "model": setup.model.name,
        "device": setup.device,
        "tables": setup.tables.source,
        "iterations": len(errors),
        "iteration_median_error": float(np.median(errors)),
        "iteration_p99_error": float(np.quantile(errors, 0.99)),
    }
    for figure, measured in served.items():
        real, ours = float(measured.mean()), float(predicted[figure].mean())
        print(f"{figure}: measured mean {real:.4f} s, simulated {ours:.4f} s")
        found[f"{figure}_error"] = abs(ours - real) / real
    return found


def tiny_config(folder: Path) -> Path:
    path = folder / "tiny.json"
    path.write_text(json.dumps(TINY_CONFIG))
    return path


def why_not() -> str:
    """What is missing for a run on a GPU, or nothing."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    import torch

    return "" if torch.cuda.is_available() else "no CUDA GPU"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="name or config.json; by default llama-3-8b")
    parser.add_argument(
        "--calibration", type=Path, help="file of `trimtab calibrate`; else the roofline's own"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cpu", action="store_true", help="a tiny model on the CPU, to try the path")
    options = parser.parse_args()
    missing = "" if options.cpu else why_not()
    if missing:
        print(f"skipped: {missing}; --cpu tries the path with a tiny model")
        print(json.dumps({"name": "gpu_iterations", "skipped": missing}))
        return 0
    try:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(run(options, Path(folder))))
    except TrimtabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
