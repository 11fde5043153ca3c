"""The adaptive threshold: acts on imbalance and not on chance, and where the first sketch never would."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from trimtab.balance import AdaptiveThreshold, literal
from trimtab.balance.literal import dynamic_correction_step, online_bias_increment, variance_threshold
from trimtab.errors import TrimtabError

EXAMPLE = np.array([70, 20, 5, 3, 1, 1, 0, 0])


@pytest.mark.parametrize("measure", ["cv2", "max_violation"])
def test_it_acts_on_the_worked_example(measure: str) -> None:
    assert AdaptiveThreshold(measure=measure).should_adjust_bias(EXAMPLE)
    assert AdaptiveThreshold(measure=measure).should_adjust_bias(EXAMPLE / 100, draws=100)


def test_the_sketch_does_not() -> None:
    """Variance .0584 of the example, below the sketch's 0.1; and below 0.05 for any 21 experts or more."""
    adjust, threshold = variance_threshold([], EXAMPLE / 100)
    assert not adjust and threshold == 0.1
    one_takes_all = np.eye(21)[0]
    assert not variance_threshold([], one_takes_all, threshold=0.05)[0]
    assert AdaptiveThreshold(0.2).should_adjust_bias(one_takes_all * 4096)
    history: list[float] = []
    lasting = np.array([0.95, 0.05, 0, 0])  # variance .22: it acts on that at first, and gets used to it
    acted = [variance_threshold(history, lasting)[0] for _ in range(300)]
    ours = AdaptiveThreshold()
    assert acted[0] and all(ours.should_adjust_bias(lasting * 1000) for _ in range(300))
    assert variance_threshold(history, lasting)[1] == 0.2


@pytest.mark.parametrize(("experts", "tokens"), [(8, 512), (64, 4096), (256, 4096)])
def test_chance_is_not_acted_on(experts: int, tokens: int) -> None:
    """A balanced gate with small batches: CV^2 by chance is .062 at 256 experts, above the threshold."""
    threshold = AdaptiveThreshold(0.06)
    draws = np.random.default_rng(0).multinomial(tokens, np.full(experts, 1 / experts), size=300)
    assert sum(threshold.should_adjust_bias(load) for load in draws) == 0
    assert threshold.threshold == 0.05  # calm traffic has brought it down to its floor


def load_with(cv2: float) -> np.ndarray:
    """Two experts whose counts have this CV^2; a million tokens, so that chance is nothing."""
    return 500_000 * np.array([1 + cv2**0.5, 1 - cv2**0.5])


def test_hysteresis_and_cool_down() -> None:
    threshold = AdaptiveThreshold(0.1, release=0.5, cool_down=3, window=1000)
    measured = [0.09, 0.11, 0.09, 0.06, 0.04, 0.5, 0.5, 0.5, 0.5, 0.04]
    acted = [threshold.should_adjust_bias(load_with(value)) for value in measured]
    #        below  above  held  held  done   resting: 3 batches   again
    assert acted == [False, True, True, True, False, False, False, False, True, False]


def test_the_threshold_follows_calm_traffic_only() -> None:
    threshold = AdaptiveThreshold(0.1, window=20, cool_down=0)
    for _ in range(50):
        threshold.should_adjust_bias(load_with(0.08))
    assert threshold.threshold == pytest.approx(0.12, abs=1e-4)
    for _ in range(500):
        assert threshold.should_adjust_bias(load_with(0.5))
    assert threshold.threshold == pytest.approx(0.12, abs=1e-4)


def test_bad_settings_and_loads() -> None:
    with pytest.raises(TrimtabError, match="unknown measure 'cv'"):
        AdaptiveThreshold(measure="cv")
    with pytest.raises(TrimtabError, match="low and high"):
        AdaptiveThreshold(low=0.3)
    with pytest.raises(TrimtabError, match="release"):
        AdaptiveThreshold(release=2)
    threshold = AdaptiveThreshold()
    with pytest.raises(TrimtabError, match="all zero"):
        threshold.should_adjust_bias([0, 0])
    assert not threshold.calm


def test_the_sketchs_other_snippets_are_as_audited() -> None:
    """Windup without end, first averages a tenth of the load, steps that grow with the batch."""
    bias, loads = np.zeros(8), deque[np.ndarray](maxlen=1000)
    for _ in range(2000):
        bias = dynamic_correction_step(bias, loads, EXAMPLE, 0.01)
    assert bias[0] == pytest.approx(2000 * 0.01 * (0.125 - 0.7))
    average, step = online_bias_increment(np.zeros(8), EXAMPLE.astype(float), 0.001)
    np.testing.assert_allclose(average, 0.1 * EXAMPLE)
    np.testing.assert_allclose(online_bias_increment(np.zeros(8), 10.0 * EXAMPLE, 0.001)[1], 10 * step)
    assert literal.__doc__ is not None and "comparison" in literal.__doc__
