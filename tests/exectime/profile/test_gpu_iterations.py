"""benchmarks/gpu_iterations.py and its decoder, on a CPU with tiny models."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import deque
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="profiling is optional: pip install 'trimtab[profile]'")

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from _decoder import PADDING, Decoder, Piece, graph_of, pack  # noqa: E402
from _serving import Live, Load, form, make_load  # noqa: E402

from trimtab.exectime.profile.shapes import TINY, shard_of  # noqa: E402
from trimtab.hardware import get_model  # noqa: E402


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "gpu_iterations.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_whole_path() -> None:
    done = call("--cpu")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["name"] == "gpu_iterations"
    assert figures["device"] == "cpu"
    for name in ("iteration_median_error", "iteration_p99_error", "ttft_error", "tpot_error", "e2e_error"):
        assert np.isfinite(figures[name]), name
    assert figures["iterations"] == 18


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_is_skipped() -> None:
    done = call()
    assert done.returncode == 0
    assert json.loads(done.stdout.splitlines()[-1]) == {"name": "gpu_iterations", "skipped": "no CUDA GPU"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "lama"], "error: unknown model"),
        (["--calibration", "there.json"], "error: no calibration 'there.json'"),
        (["--model", "llama-3-70b"], "error: llama-3-70b leaves room for"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str) -> None:
    done = call("--cpu", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("experts", [False, True])
def test_chunks_and_decodes_give_the_logits_of_the_whole(experts: bool, mixture: Path) -> None:
    """A prompt at once, in chunks with another sequence's beside it, or token by token: the same model."""
    shard = shard_of(get_model(mixture) if experts else TINY, 1)
    decoder = Decoder(shard, cells=100, positions=64, device=torch.device("cpu"))
    with torch.inference_mode():
        whole = decoder.logits(decoder.pack([], [Piece(1, 0, 12)]))[0].float()
        decoder.logits(decoder.pack([], [Piece(60, 0, 5), Piece(20, 0, 7)]))
        decoder.logits(decoder.pack([Piece(60, 5, 1)], [Piece(20, 7, 3)]))
        decoder.logits(decoder.pack([Piece(20, 10, 1)], []))
        last = decoder.logits(decoder.pack([Piece(60, 6, 1), Piece(20, 11, 1)], []))[1].float()
    torch.testing.assert_close(last, whole, rtol=0.05, atol=0.02)
    assert whole.std() > 0.1  # or anything would be close


def test_padding_changes_nothing() -> None:
    """A graph's batch has rows that belong to nobody, and a bound on contexts instead of their maximum."""
    decoder = Decoder(shard_of(TINY, 1), cells=50, positions=64, device=torch.device("cpu"))
    pieces = [Piece(1, 4, 1), Piece(20, 9, 1)]
    with torch.inference_mode():
        decoder.logits(decoder.pack([], [Piece(1, 0, 4), Piece(20, 0, 9)]))
        alone = decoder.logits(decoder.pack(pieces, []))
        padded = decoder.logits(pack([*pieces, PADDING, PADDING], [], TINY.vocab, longest=256))
    assert torch.equal(alone, padded[:2])


def test_packed_inputs_by_hand() -> None:
    packed = pack([Piece(40, 7, 1)], [Piece(3, 2, 3), Piece(10, 0, 1)], vocab=1000)
    assert packed.rows[1].tolist() == [7, 2, 3, 4, 0]
    assert packed.rows[2].tolist() == [47, 5, 6, 7, 10]
    assert packed.last.tolist() == [0, 3, 4]
    decodes, prompts = packed.decodes, packed.prompts
    assert decodes is not None
    assert prompts is not None
    assert (decodes.query_ends.tolist(), decodes.used.tolist(), decodes.most_used) == ([0, 1], [8], 8)
    assert (prompts.query_ends.tolist(), prompts.used.tolist()) == ([0, 3, 4], [5, 1])
    assert (prompts.starts.tolist()[:2], prompts.most_queries, prompts.most_used) == ([3, 10], 3, 5)
    assert pack([Piece(1, 1, 1)], [], 1000).prompts is None
    assert pack([], [Piece(1, 0, 2)], 1000).decodes is None


def test_batches_are_formed_as_vllm_does() -> None:
    load = Load(np.zeros(3), np.array([5, 20, 4]), np.array([2, 2, 2]), max_num_seqs=2, token_budget=8)
    waiting, running, slots = deque(range(3)), list[Live](), deque([1, 100])
    decodes, prompts = form(load, waiting, running, slots, 0.0)
    assert (decodes, [tokens for _, tokens in prompts]) == ([], [5, 3])
    for live, tokens in prompts:
        live.done += tokens
    decodes, prompts = form(load, waiting, running, slots, 0.0)
    assert [tokens for _, tokens in decodes] == [1]
    assert [tokens for _, tokens in prompts] == [7]  # no slot for the third


def test_requests_are_the_seeds() -> None:
    one, two = (make_load(10, 5.0, 64, 16, 4, 32, seed=3) for _ in range(2))
    assert (one.arrivals == two.arrivals).all()
    assert (one.prompts == two.prompts).all()
    assert one.arrivals[0] == 0
    assert one.outputs.min() >= 2


def test_graphs_by_size_and_context() -> None:
    assert graph_of(1, 1) == (1, 256)
    assert graph_of(33, 257) == (48, 512)
    assert graph_of(256, 16384) == (256, 16384)
