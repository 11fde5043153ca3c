"""Serving with moving biases: what is causal, what is restored, and that every strategy does its work."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trimtab.balance import law, load_of
from trimtab.balance.measures import max_violation, noise_floor
from trimtab.errors import TrimtabError
from trimtab.moe.adaptation import ByLaw, Bytes, Fixed, Floats, Record, Seen, serve
from trimtab.moe.gate import TopKGate
from trimtab.moe.shift import PREFILL, Stream, back, figures, ground_of, lag, layer_seconds, verdicts
from trimtab.moe.strategies import STRATEGIES, Ground, adapter_of
from trimtab.moe.text import Corpus
from trimtab.moe.training import Recipe, Trained

WORKED = np.array([0.70, 0.20, 0.05, 0.03, 0.01, 0.01, 0.0, 0.0])


@pytest.fixture(scope="module")
def ground(trained: Trained, corpus: Corpus, recipe: Recipe) -> Ground:
    return ground_of(trained, corpus, recipe, batches=2)


@pytest.fixture(scope="module")
def texts(corpus: Corpus, recipe: Recipe) -> list[Bytes]:
    return Stream(2, 6, 2, 3).texts(corpus, recipe)


class Spy(Fixed):
    """Serves one bias after the other and writes down what came when."""

    def __init__(self, served: list[Floats]) -> None:
        super().__init__(served[0])
        self.served, self.events = served, []

    def biases(self, text: Bytes) -> Floats:
        self.events.append("asked")
        return self.served[self.events.count("asked") - 1]

    def record(self, seen: Seen) -> None:
        self.events.append("told")
        assert np.array_equal(load_of(seen.scores, self.served[self.events.count("told") - 1], 2), seen.load)


def test_a_batch_is_served_before_it_is_seen(ground: Ground, texts: list[Bytes]) -> None:
    """Loads are those of the biases that were given, each from before its batch; then all is as before."""
    before = ground.model.biases()
    generator = np.random.default_rng(0)
    # Eighths are exact in float32, so that the gate and the probe add the same numbers.
    spy = Spy([generator.integers(-2, 3, ground.base.shape) / 8 for _ in texts])
    serve(ground.model, spy, texts)
    assert spy.events == ["asked", "told"] * len(texts)
    assert torch.equal(ground.model.biases(), before)


def test_biases_come_back_after_a_failure(ground: Ground, texts: list[Bytes]) -> None:
    before = ground.model.biases()
    with pytest.raises(TrimtabError):
        serve(ground.model, Fixed(np.full(ground.base.shape, np.nan)), texts)
    assert torch.equal(ground.model.biases(), before)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_serves(name: str, ground: Ground, texts: list[Bytes]) -> None:
    record = serve(ground.model, adapter_of(name, ground), texts)
    fixed = serve(ground.model, adapter_of("fixed", ground), texts)
    assert record.loads.shape == (10, 1, 8) and np.isfinite(record.losses).all()
    early = record.loads[0] == fixed.loads[0]  # nothing was learned yet
    assert early.all() or name in ("predictor", "domain, calibrated")
    assert np.array_equal(record.loads, fixed.loads) == (name in ("fixed",)) or name == "threshold"


def test_half_strength_is_half_way(ground: Ground, texts: list[Bytes]) -> None:
    whole, half = adapter_of("quantile", ground), adapter_of("quantile x 0.5", ground)
    serve(ground.model, whole, texts[:3])
    serve(ground.model, half, texts[:1])
    for adapter in (whole, half):
        assert isinstance(adapter, ByLaw)
    half.law = whole.law  # type: ignore[union-attr,attr-defined]
    moved = whole.biases(texts[0]) - ground.base
    np.testing.assert_allclose(half.biases(texts[0]) - ground.base, 0.5 * moved, atol=1e-12)


def test_unknown_strategies_are_named() -> None:
    with pytest.raises(TrimtabError, match="quantile"):
        adapter_of("quantiles", None)  # type: ignore[arg-type]


def test_the_worked_example_is_balanced_by_a_gate() -> None:
    """70/20/5/3/1/1/0/0: a gate with exactly these loads, evened at lag one; weights keep to raw scores."""
    generator = np.random.default_rng(0)
    gate = TopKGate(8, 8, 1, normalise=False)
    with torch.no_grad():
        gate.weight.copy_(torch.eye(8))
    adapting, loads = law("quantile", 1), []
    for _ in range(12):
        logits = np.log(np.maximum(WORKED, 1e-4)) + generator.gumbel(size=(4096, 8))
        routing = gate(torch.from_numpy(logits).float())
        assert torch.equal(routing.weights, routing.scores.gather(-1, routing.choices))
        loads.append(routing.load().numpy())
        gate.set_bias(adapting.update(routing.scores.detach().numpy()))
    assert max_violation(loads[0]) == pytest.approx(4.6, abs=0.15)
    assert max_violation(np.array(loads[6:])).mean() - noise_floor(8, 4096) < 0.1


def test_time_follows_the_busiest_rank_where_arithmetic_binds() -> None:
    worked, even = layer_seconds(WORKED, PREFILL), layer_seconds(np.ones(8), PREFILL)
    assert 4.5 < worked / even < 6.0  # MaxVio 4.6: the busiest rank has 5.6 times the mean
    assert layer_seconds(WORKED, 64) / layer_seconds(np.ones(8), 64) < 1.2  # weights are read either way


def record_of(violation: list[float], loss: float = 2.0) -> Record:
    """One layer of eight experts, the first so far above the mean; 1e6 tokens, so that chance is nothing."""
    loads = np.array([[[1 + v, *[1 - v / 7] * 7]] for v in violation]) * 125_000
    return Record(loads, np.full(len(violation), loss), np.full(len(violation), 0.01))


def test_lag_and_return_are_counted_from_the_changes() -> None:
    """Removed from the fifth batch of code on, and too much for three batches after the flip back."""
    stream = Stream(3, 20, 10, 8)
    fixed = record_of([0.0] * 3 + [1.0] * 20 + [0.0] * 10)
    adapted = record_of([0.0] * 3 + [1.0] * 5 + [0.1] * 15 + [0.8] * 3 + [0.0] * 7, 2.01)
    assert lag(adapted, fixed, stream) == 5
    assert lag(fixed, fixed, stream) == math.inf
    returned = back(adapted, fixed, stream)
    assert returned["back_excess"] == pytest.approx(0.48, abs=0.01) and returned["back_batches"] == 3
    found = figures(adapted, fixed, stream)
    assert found["removed_global"] == pytest.approx(0.9, abs=0.01) == found["removed_batch"]
    assert found["loss_increase_percent"] == pytest.approx(0.5)


def test_the_verdict_needs_evidence() -> None:
    stream = Stream(0, 200, 0, 200)
    fixed, better = record_of([1.0] * 200), record_of([0.1] * 200)
    assert verdicts(better, fixed, stream) == {"balancedness": "B", "loss": "undecided"}
    assert verdicts(fixed, fixed, stream)["balancedness"] == "undecided"
