"""The sequential test: wrong as seldom as it says however often one looks, and it finds differences."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.balance import ABTest
from trimtab.errors import TrimtabError


def stopped_early(difference: float, seed: int, pairs: int = 300, alpha: float = 0.05) -> ABTest:
    """A test that is looked at after every pair and stopped at its first verdict."""
    generator = np.random.default_rng(seed)
    test = ABTest(alpha=alpha)
    for _ in range(pairs):
        test.observe("A", float(generator.beta(8, 2)))
        test.observe("B", float(generator.beta(8, 2)) + difference)
        if test.verdict() != "undecided":
            break
    return test


def test_two_equal_laws_are_seldom_told_apart() -> None:
    """A/A, 300 times, a look after each of 300 pairs: false verdicts at most at the rate promised.

    With alpha 0.05 more than 24 of 300 would have a probability below 1 %.
    """
    verdicts = [stopped_early(0.0, seed).verdict() for seed in range(300)]
    assert sum(verdict != "undecided" for verdict in verdicts) <= 24


@pytest.mark.parametrize(("difference", "winner"), [(0.08, "B"), (-0.08, "A")])
def test_a_difference_is_found(difference: float, winner: str) -> None:
    tests = [stopped_early(difference, seed) for seed in range(20)]
    assert [test.verdict() for test in tests].count(winner) >= 18
    assert np.median([test.num_pairs for test in tests]) < 150


def test_the_interval_covers_at_all_times() -> None:
    """The true difference stays inside from the first pair to the last, in all but alpha of the runs."""
    missed = 0
    for seed in range(60):
        generator = np.random.default_rng(1000 + seed)
        test, outside = ABTest(), False
        for i in range(200):
            test.observe("A", float(generator.beta(4, 4)))
            test.observe("B", float(generator.beta(5, 3)))
            if i % 20 == 19:
                low, high = test.interval()
                outside |= not low <= 0.125 <= high
        missed += outside
        assert high - low < 0.35
    assert missed <= 8  # of 60; more than 8 has a probability below 1 % at 5 %


def test_units_direction_and_pairs() -> None:
    test = ABTest(0.0, 10.0, higher_is_better=False)  # latency in seconds
    for _ in range(60):
        test.observe("A", 9.0)
        test.observe("A", 9.0)
        test.observe("B", 4.0)
    assert test.num_pairs == 60  # the other 60 of A wait for their partners
    assert test.difference == pytest.approx(-5.0)
    assert test.verdict() == "B"
    low, high = test.interval()
    assert low <= -5.0 <= high < 0


def test_assignment_is_stable_and_split() -> None:
    test = ABTest(share=0.3)
    arms = [test.assign(f"request-{i}") for i in range(10_000)]
    assert arms == [test.assign(f"request-{i}") for i in range(10_000)]
    assert arms.count("B") / len(arms) == pytest.approx(0.3, abs=0.02)
    assert arms != [ABTest(share=0.3, seed=1).assign(f"request-{i}") for i in range(10_000)]


def test_what_it_refuses() -> None:
    test = ABTest()
    for arm, value, says in (("C", 0.5, "unknown arm 'C'"), ("A", float("nan"), "finite")):
        with pytest.raises(TrimtabError, match=says):
            test.observe(arm, value)
    assert not test.waiting_a and test.verdict() == "undecided" and test.p_value == 1.0
    for low, high, alpha in ((1.0, 0.0, 0.05), (0.0, float("inf"), 0.05), (0.0, 1.0, 1.5)):
        with pytest.raises(TrimtabError, match="an A/B test needs"):
            ABTest(low, high, alpha=alpha)
