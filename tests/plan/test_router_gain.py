"""What a router saves: paired ratios of loads, and replicas."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from trimtab.cli import main
from trimtab.errors import TrimtabError
from trimtab.plan.bounds import parse_bounds
from trimtab.plan.capacity import Capacity, greatest_load
from trimtab.plan.router_gain import (
    RouterLoads,
    ratio_of_loads,
    router_loads,
    router_sizes,
    same_work,
    saved_replicas,
    say_loads,
    say_sizes,
    with_routers,
)
from trimtab.report.bootstrap import Interval
from trimtab.scenario import load_scenario

SCENARIO = load_scenario("azure-conv", {"replicas.count": 2})
LEVELS = parse_bounds("e2e:mean<8s", SCENARIO)
PAIR = "least-outstanding,random"
WIDE = 0.1  # as a tolerance: quick


@pytest.fixture(scope="module")
def loads() -> RouterLoads:
    return router_loads(SCENARIO, LEVELS, PAIR, tolerance=WIDE)


def test_each_router_gets_the_answer_it_would_get_alone(loads: RouterLoads) -> None:
    assert list(loads.answers) == ["least-outstanding", "random"] and loads.first == "least-outstanding"
    together = loads.answers["random"]
    alone = greatest_load(with_routers(SCENARIO, PAIR)["random"], LEVELS, WIDE, together.requests)
    assert alone.load.low <= together.load.value <= alone.load.high
    assert len({answer.requests for answer in loads.answers.values()}) == 1
    assert len({answer.replications for answer in loads.answers.values()}) == 1


def test_the_ratio_is_that_of_the_loads_and_surer_than_they_are(loads: RouterLoads) -> None:
    one, other = (loads.answers[name].load for name in ("least-outstanding", "random"))
    ratio = loads.ratios["random"]
    assert ratio.value == pytest.approx(one.value / other.value, rel=1e-9)
    assert 1 < ratio.low < ratio.value < ratio.high  # counting requests is better than dice
    unpaired = np.hypot(np.log(one.high / one.low), np.log(other.high / other.low))
    assert np.log(ratio.high / ratio.low) < unpaired


def test_a_router_carries_exactly_as_much_as_itself(loads: RouterLoads) -> None:
    for answer in loads.answers.values():
        assert ratio_of_loads(answer, answer) == Interval(1.0, 1.0, 1.0)


def answer_of(values: NDArray[np.float64]) -> Capacity:
    nothing = Interval(1.0, 1.0, 1.0)
    return Capacity(SCENARIO, LEVELS, nothing, LEVELS[0], 1.0, {}, 0, len(values), 0, True, (), values)


@given(st.integers(0, 10**6), st.integers(16, 64), st.floats(0.5, 2.0))
def test_turned_around_the_ratio_is_its_inverse(seed: int, count: int, factor: float) -> None:
    rng = np.random.default_rng(seed)
    shared = rng.gamma(0.5, 0.1, count)
    answer = answer_of(shared)
    other = answer_of(shared + np.log(factor) + rng.normal(0, 0.01, count))
    one, back = ratio_of_loads(answer, other), ratio_of_loads(other, answer)
    assert one.value * back.value == pytest.approx(1) and one.low * back.high == pytest.approx(1)
    scaled = ratio_of_loads(answer_of(shared + np.log(factor)), answer)
    assert scaled.low == pytest.approx(factor) and scaled.high == pytest.approx(factor)


@given(st.floats(0.2, 5.0).filter(lambda ratio: abs(ratio - 1) > 1e-3))
def test_whole_replicas_say_the_ratio(ratio: float) -> None:
    few, many = same_work(ratio)
    assert (few < many) == (ratio > 1) or few == many
    assert float(Fraction(many, few)) == pytest.approx(ratio, rel=0.04)
    assert same_work(16 / 15) == (15, 16) and same_work(1.5) == (2, 3) and same_work(1 / 1.02) == (51, 50)


def test_sizes_say_who_saves() -> None:
    sizes = router_sizes(SCENARIO, parse_bounds("tpot:p99<50ms", SCENARIO), PAIR, 40.0)
    one, other = sizes.answers["least-outstanding"], sizes.answers["random"]
    assert one.replicas < other.replicas and one.requests == other.requests
    least, most = sizes.saved["random"]
    assert 0 < least <= other.replicas - one.replicas <= most
    assert f"it saves {other.replicas - one.replicas}" in say_sizes(sizes, "random")
    assert saved_replicas(one, one) == (one.low - one.high, one.high - one.low)


def test_the_sentence_says_what_is_sure(loads: RouterLoads) -> None:
    said = say_loads(loads, "random")
    assert said.startswith("least-outstanding carries 1.") and "the work of" in said
    level = replace(loads, ratios={"random": Interval(1.0, 0.98, 1.02)})
    assert "cannot be told apart" in say_loads(level, "random")


def test_the_command_compares(loads: RouterLoads, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["capacity", "azure-conv", "--replicas", "2", "--slo", "e2e:mean<8s"]
    arguments += ["--tolerance", str(WIDE)]
    assert main([*arguments, "--routers", PAIR, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ratios"]["random"] == loads.ratios["random"]._asdict()  # the same seed: the same answer
    assert found["headline"] == [say_loads(loads, "random")]
    assert main([*arguments, "--routers", PAIR, "--load", "40"]) == 0
    said = capsys.readouterr().out
    assert "least-outstanding saves" in said and "the same trials of" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["azure-conv", "--routers", "random,leest-outstanding"], "Did you mean 'least-outstanding'"),
        (["azure-conv", "--routers", "random"], "two routers or more"),
        (["azure-conv", "--routers", "random,random"], "given twice"),
        (["azure-conv", "--routers", PAIR, "--router", "random"], "not both"),
        (["autoscaled", "--routers", PAIR], "autoscaled"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["capacity", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_routers_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(TrimtabError, match="unknown router"):
        router_loads(SCENARIO, LEVELS, ["random", "nobody"])
