"""Monitor, guard and the whole balancer beside a simulated gate."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from trimtab.balance import (
    AdaptiveLoadBalancer,
    AdaptiveThreshold,
    DomainDetector,
    Guard,
    HybridBias,
    LoadMonitor,
    TaskTypeClassifier,
    law,
    load_of,
)
from trimtab.balance.measures import max_violation
from trimtab.errors import TrimtabError

TRAINED = np.array([[5.0, 5.1, 4.9, 5.0], [0.1, -0.1, -0.0, 0.0]], dtype=np.float32)


# --- monitor --------------------------------------------------------------------------------------

SAMPLE = re.compile(r'^([a-z_]+)(?:\{([a-z]+)="((?:[^"\\\n]|\\["\\n])*)"\})? ([-+0-9.einfa]+)$')


def parsed(text: str) -> dict[tuple[str, str], float]:
    """Prometheus text -> (name, label value) -> value; asserts the grammar line by line."""
    assert text.endswith("\n")
    samples, families = {}, []
    for line in text.splitlines():
        if line.startswith("# "):
            _, word, name, *_rest = line.split(" ", 3)
            assert word in ("HELP", "TYPE")
            families += [name] if word == "TYPE" else []
            continue
        found = SAMPLE.match(line)
        assert found, line
        assert any(found[1].startswith(family) for family in families[-1:]), line
        samples[found[1], found[3] or ""] = float(found[4])
    return samples


def recorded() -> LoadMonitor:
    monitor = LoadMonitor(window=3)
    for i, kind in enumerate(["prose", "code", "code", 'say "hi"\n']):
        monitor.record([[70, 20, 5, 5], [25, 25, 25, 25]], kind, latency_s=0.02 * (i + 1))
    return monitor


def test_the_window() -> None:
    monitor = recorded()
    assert monitor.get_current_loads().tolist() == [[210, 60, 15, 15], [75, 75, 75, 75]]
    assert monitor.task_mix() == {"code": pytest.approx(2 / 3), 'say "hi"\n': pytest.approx(1 / 3)}
    assert monitor.latency(0.5) == pytest.approx(0.06) and monitor.latency(1.0) == pytest.approx(0.08)
    assert monitor.load_variance() == pytest.approx(np.var([0.7, 0.2, 0.05, 0.05]) / 2)


def test_prometheus_text() -> None:
    samples = parsed(recorded().prometheus())
    assert samples["trimtab_moe_max_violation", ""] == pytest.approx(1.8 / 2)
    assert samples["trimtab_moe_batches_total", ""] == 4
    assert samples["trimtab_moe_task_batches_total", "prose"] == 1
    assert samples["trimtab_moe_task_batches_total", r"say \"hi\"\n"] == 1
    buckets = [v for (name, _), v in samples.items() if name == "trimtab_moe_batch_latency_seconds_bucket"]
    assert buckets == sorted(buckets) and buckets[-1] == 4
    assert samples["trimtab_moe_batch_latency_seconds_bucket", "0.05"] == 2
    assert samples["trimtab_moe_batch_latency_seconds_bucket", "+Inf"] == 4
    assert samples["trimtab_moe_batch_latency_seconds_count", ""] == 4
    assert samples["trimtab_moe_batch_latency_seconds_sum", ""] == pytest.approx(0.2)


class Lines:
    """A writer that is not TensorBoard's."""

    def __init__(self) -> None:
        self.told: dict[str, tuple[float, int]] = {}

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.told[tag] = scalar_value, global_step


def test_any_writer() -> None:
    writer = Lines()
    recorded().write(writer, step=7)
    assert writer.told["moe/balancedness"][1] == 7
    assert writer.told["moe/task_mix/code"][0] == pytest.approx(2 / 3)
    assert writer.told["moe/latency_s/p99"][0] == pytest.approx(0.08)
    assert {"moe/share_variance", "moe/max_violation_floor"} <= set(writer.told)


def test_what_a_monitor_refuses() -> None:
    monitor = LoadMonitor()
    with pytest.raises(TrimtabError, match="no load yet"):
        monitor.prometheus()
    monitor.record([1, 2])
    for bad, seconds in (([1, 2, 3], None), ([0, 0], None), ([1, 2], -1.0), ([1, 2], math.nan)):
        with pytest.raises(TrimtabError):
            monitor.record(bad, "code", seconds)
    assert monitor.num_batches == 1 and not monitor.mix
    with pytest.raises(TrimtabError, match="latency quantile"):
        monitor.latency()


# --- guard ----------------------------------------------------------------------------------------


def test_steps_are_gradual() -> None:
    guard = Guard(TRAINED, max_step=0.01)
    goal = TRAINED.astype(np.float64)
    goal[:, 0] += 0.1
    before = guard.bias
    for step in range(200):
        bias = guard.step(goal + 3.0)  # a common offset is no change at all
        assert bias.dtype == np.float32
        assert np.abs(bias - before).max() <= 0.01 + 1e-6, step
        before = bias
    difference = (bias - goal).astype(np.float64)
    np.testing.assert_allclose(difference - difference.mean(axis=-1, keepdims=True), 0, atol=1e-5)


def test_quality_holds_the_bias_and_then_brings_the_trained_one_back_to_the_bit() -> None:
    harm = {"per_unit": 1 / 11}

    def quality(bias: np.ndarray) -> float:
        return harm["per_unit"] * float(np.abs(bias - TRAINED).max())

    guard = Guard(TRAINED, quality=quality, max_step=0.05, patience=2, cool_down=3)
    goal = TRAINED + np.array([0.5, -0.5, 0, 0], dtype=np.float32)
    served = [guard.step(goal) for _ in range(5)]
    assert not np.array_equal(served[0], TRAINED)  # 0.05 away: a loss of 0.005 is allowed
    assert all(np.array_equal(bias, served[0]) for bias in served)  # the next step would not be: held
    assert guard.num_rollbacks == 0 and "quality" in guard.reason
    harm["per_unit"] = 1.0  # the traffic turns, and what is in force does harm
    assert np.array_equal(guard.step(goal), served[0])
    assert guard.step(goal).tobytes() == TRAINED.tobytes()
    assert guard.num_rollbacks == 1
    harm["per_unit"] = 0.0
    assert all(guard.step(goal).tobytes() == TRAINED.tobytes() for _ in range(3))  # cooling down
    assert not np.array_equal(guard.step(goal), TRAINED)  # and another try


def test_the_default_step_fits_the_trained_biases() -> None:
    for scale in (0.01, 1.0):
        trained = 5.0 + scale * np.array([[1.0, -1.0, 1.0, -1.0]] * 3)  # a common offset of 5 is no spread
        moved = Guard(trained).step(trained + scale * np.array([4.0, -4.0, 0.0, 0.0])) - trained
        np.testing.assert_allclose(moved[0], scale * np.array([0.25, -0.25, 0.0, 0.0]), atol=1e-9)
    assert np.abs(Guard(np.zeros(4)).step(np.array([1.0, -1.0, 0.0, 0.0]))).max() == 0.01


def gate_scores(skew: np.ndarray, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return 1 / (1 + np.exp(-skew - generator.normal(size=(1024, skew.size))))


def test_a_reversed_law_serves_no_batch() -> None:
    skew = np.linspace(-1, 1, 8)
    trained = np.zeros(8)
    wrong, served_worse = law("proportional", 0.05), 0
    current = {"scores": gate_scores(skew, 0)}
    guard = Guard(
        trained,
        load=lambda bias: float(max_violation(load_of(current["scores"], bias, 2))),
        max_step=0.05,
        patience=3,
    )
    for batch in range(10):
        current["scores"] = gate_scores(skew, batch)
        load = load_of(current["scores"], guard.bias, 2)
        served_worse += float(max_violation(load)) > 0.2 + float(
            max_violation(load_of(current["scores"], trained, 2))
        )
        guard.step(-wrong.update(load))
    assert "imbalance" in guard.reason
    assert served_worse == 0
    assert guard.bias.tobytes() == trained.tobytes()


def test_nan_is_refused_and_a_probe_that_fails_counts() -> None:
    guard = Guard(TRAINED, quality=lambda bias: math.nan, patience=1)
    for bad, says in ((np.full((2, 4), np.nan), "finite"), (np.zeros(4), "shape"), ("x", "array of numbers")):
        with pytest.raises(TrimtabError, match=says):
            guard.step(bad)
    assert guard.num_steps == 0
    assert guard.step(TRAINED + 1).tobytes() == TRAINED.tobytes()
    assert guard.num_rollbacks == 1 and "nan" in guard.reason
    with pytest.raises(TrimtabError, match="max_step"):
        Guard(TRAINED, max_step=0)
    with pytest.raises(TrimtabError, match="patience"):
        Guard(TRAINED, patience=0)


def test_a_guarded_torch_bias() -> None:
    torch = pytest.importorskip("torch")
    trained = torch.from_numpy(TRAINED.copy())
    guard = Guard(trained, max_step=0.01)
    moved = guard.step(trained + torch.tensor([0.5, -0.5, 0.0, 0.0]))
    assert moved.dtype == torch.float32
    assert not torch.equal(moved, trained)
    assert torch.equal(guard.rollback(), trained)
    expected = Guard(TRAINED, max_step=0.01).step(TRAINED + np.array([0.5, -0.5, 0, 0], np.float32))
    np.testing.assert_array_equal(moved.numpy(), expected)


# --- the whole ------------------------------------------------------------------------------------


def detector() -> DomainDetector:
    classifier = TaskTypeClassifier(["code", "prose"])
    classifier.update("def f(x): return x[0] + 1", "code")
    classifier.update("It was the best of times, it was the worst of times", "prose")
    return DomainDetector(classifier)


SKEW = {"code": np.linspace(-1, 1, 8), "prose": np.zeros(8)}
INPUT = {"code": "def g(y): return y[1]", "prose": "the age of wisdom, the times"}


def serve(balancer: AdaptiveLoadBalancer, kind: str, batch: int) -> tuple[float, bool]:
    """(MaxVio of the batch, whether it was adjusted for)."""
    bias = balancer.get_correction_bias(INPUT[kind])
    load = load_of(gate_scores(SKEW[kind], batch), bias, 2)
    return float(max_violation(load)), balancer.record(load, latency_s=0.01)


def test_it_leaves_even_traffic_alone_and_evens_a_shift() -> None:
    trained = np.zeros(8, np.float32)
    adjuster = HybridBias(trained, ["code", "prose"], law=lambda start: law("ewma", 0.05, 0.5, start=start))
    balancer = AdaptiveLoadBalancer(trained, detector(), adjuster=adjuster, threshold=AdaptiveThreshold(0.06))
    calm = [serve(balancer, "prose", i) for i in range(20)]
    assert not any(adjusted for _, adjusted in calm)
    assert balancer.get_correction_bias(INPUT["prose"]).tobytes() == trained.tobytes()
    shifted = [serve(balancer, "code", 100 + i) for i in range(100)]
    assert shifted[0][0] > 1.2 and shifted[0][1]
    assert np.mean([violation for violation, _ in shifted[-20:]]) < 0.45
    assert balancer.load_monitor.task_mix()["code"] == 1.0
    assert balancer.guard.rollback().tobytes() == trained.tobytes()


def test_the_balancer_goes_on_from_its_state() -> None:
    def made() -> AdaptiveLoadBalancer:
        return AdaptiveLoadBalancer(np.zeros(8), detector(), threshold=AdaptiveThreshold())

    whole, first, second = made(), made(), made()
    expected = [serve(whole, "code", i) for i in range(20)][10:]
    for i in range(10):
        serve(first, "code", i)
    second.load_state_dict(first.state_dict())
    assert [serve(second, "code", i) for i in range(10, 20)] == expected
    with pytest.raises(TrimtabError, match="not in use here"):
        AdaptiveLoadBalancer(np.zeros(8), detector()).load_state_dict(first.state_dict())


def test_what_the_balancer_refuses() -> None:
    balancer: Any = AdaptiveLoadBalancer(np.zeros(8), detector())
    with pytest.raises(TrimtabError, match="call get_correction_bias"):
        balancer.record(np.ones(8))
    balancer.get_correction_bias(INPUT["code"])
    before = repr(balancer.state_dict())
    for load, target, seconds in (
        (np.zeros(8), None, None),
        (np.ones(7), None, None),
        (np.ones(8), np.zeros(8), None),
        (np.ones(8), None, -1.0),
    ):
        with pytest.raises(TrimtabError):
            balancer.record(load, target, seconds)
    assert repr(balancer.state_dict()) == before
    with pytest.raises(TrimtabError, match="the adjuster has no bias for"):
        AdaptiveLoadBalancer(np.zeros(8), detector(), adjuster=HybridBias(np.zeros(8), ["code"]))
    with pytest.raises(TrimtabError, match="base_bias has shape"):
        AdaptiveLoadBalancer(np.zeros(4), detector(), adjuster=HybridBias(np.zeros(8), ["code", "prose"]))
