"""Teachers are recorded as they are, and the clone learns what can be learnt from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra `learn` is not installed")
pytest.importorskip("safetensors", reason="the extra `learn` is not installed")

from learning import SMALL, always, silent, tiny
from scipy import stats

from trimtab.learn.clone import clone, hold_out, rank_agreement
from trimtab.learn.demonstrations import (
    VARIANTS,
    Demonstrations,
    check_teachers,
    demonstrate,
    digest,
    join,
    limits_of,
    load_demonstrations,
    save_demonstrations,
)
from trimtab.learn.given import source, with_load
from trimtab.learn.policy import unpack
from trimtab.learn.presets import TrainConfig, get_preset, override
from trimtab.learn.scenarios import FIRST_SEED, HARD, MOST, build_episode, stream
from trimtab.routers.features import CONTEXT, FEATURES, LONG
from trimtab.scenario import load_scenario
from trimtab.simulation import simulate

RUNNING, WAITING = list(FEATURES).index("running"), list(FEATURES).index("waiting")


def config(**changes: object) -> TrainConfig:
    return override(
        get_preset("lossfree"), SMALL | {f"clone.{name}": value for name, value in changes.items()}
    )


def shown(teacher: str, number: int = 0, **changes: object) -> Demonstrations:
    return demonstrate(teacher, number, config(**changes), always(tiny()), silent)


@pytest.mark.parametrize("teacher", ["round-robin", "least-outstanding", "lmetric", "preble", "random"])
def test_a_demonstration_is_the_routers_own_run(teacher: str) -> None:
    """Every decision of the first scenario, against a run with that router."""
    found = shown(teacher, include_imbalanced=False, steps_per_policy=480)
    first = found.rows[found.scenario == found.scenario[0]]
    rng = stream("demonstrations", 0, 0, 0)
    alone = simulate(always(tiny())(rng, HARD), router=teacher).requests
    assert len(first) == len(alone)
    assert (first[:, 0] == alone["replica"]).all()
    prompts = np.log1p(alone["prefill_tokens"] / LONG) / 4
    np.testing.assert_allclose(first[:, 2 + list(CONTEXT).index("prompt")], prompts, rtol=1e-5)


def test_the_look_ahead_teacher_takes_the_cheapest() -> None:
    found = shown("look-ahead", steps_per_policy=40)
    assert len(found) == 40
    accepting = unpack(found.rows).accepting.numpy()
    assert (np.isfinite(found.costs) == accepting).all()
    each, chosen = np.arange(len(found)), found.rows[:, 0].astype(int)
    assert (found.costs[each, chosen] == np.nanmin(found.costs, axis=1)).all()
    assert (np.ptp(found.costs, axis=1) > 0).mean() > 0.5


def test_imbalanced_scenarios_are_imbalanced() -> None:
    """A skewed start: the first recorded decision finds one replica with all there is."""
    scenario = tiny([{"device": "h100", "count": 3}], requests=600, qps=100.0)
    found = demonstrate("least-outstanding", 0, config(steps_per_policy=8 * 600), always(scenario), silent)
    features = unpack(found.rows).features.numpy()
    busy = np.expm1(4 * (features[:, :, WAITING])) + np.expm1(4 * features[:, :, RUNNING])
    first = [np.flatnonzero(found.scenario == one)[0] for one in np.unique(found.scenario)]
    skewed = [busy[at] for index, at in enumerate(first) if VARIANTS[index % 4] == "skewed start"]
    plain = [busy[at] for index, at in enumerate(first) if VARIANTS[index % 4] == "half load"]
    assert all(one[0] > 2 * one[1:].max() + 1 for one in skewed), skewed
    assert all(one[0] <= one[1:].max() + 1 for one in plain), plain


def test_kept_as_they_are(tmp_path: Path) -> None:
    found = join([shown("lmetric"), shown("look-ahead", 1, steps_per_policy=16)])
    path, mark = tmp_path / "demonstrations.npz", digest(config(), None)
    save_demonstrations(found, path, mark)
    again = load_demonstrations(path, mark)
    assert again is not None
    assert again.teachers == ("lmetric", "look-ahead")
    for name in ("rows", "costs", "teacher", "scenario"):
        np.testing.assert_array_equal(getattr(found, name), getattr(again, name))
    assert load_demonstrations(path, digest(config(every=2), None)) is None
    path.write_bytes(path.read_bytes()[:-100])
    assert load_demonstrations(path, mark) is None


def test_same_seed_same_demonstrations() -> None:
    one, other = shown("preble"), shown("preble")
    np.testing.assert_array_equal(one.rows, other.rows)
    assert (one.rows != demonstrate("preble", 1, config(), always(tiny()), silent).rows).any()


def test_teachers_have_names() -> None:
    check_teachers(("look-ahead", "lmetric", "random"))
    with pytest.raises(ValueError, match="Did you mean 'lmetric'"):
        check_teachers(("lmetrc",))
    (line,) = limits_of(("random", "preble"))
    assert line.startswith("random decides by what a router's view does not hold")


def test_a_clone_agrees_with_its_teacher() -> None:
    settings = config(steps_per_policy=1600, epochs=30, batch_size=64, every=2)
    found = demonstrate("least-outstanding", 0, settings, always(tiny(qps=40.0)), silent)
    first, (agreement,) = clone(found, settings, silent)
    again, _ = clone(found, settings, silent)
    assert (first.flat() == again.flat()).all()
    assert agreement.accuracy > 0.75, agreement.line()
    assert agreement.chance < 0.6
    held_out = hold_out(found, 0)
    assert 0.05 < held_out.mean() < 0.2
    assert not set(found.scenario[held_out]) & set(found.scenario[~held_out])


def test_a_clone_of_costs_avoids_regret() -> None:
    settings = config(steps_per_policy=400, epochs=30)
    scenario = tiny([{"device": "h100", "count": 1}, {"device": "a40", "count": 1}])
    found = demonstrate("look-ahead", 0, settings, always(scenario), silent)
    _, (agreement,) = clone(found, settings, silent)
    assert agreement.regret is not None
    assert agreement.kendall is not None
    assert agreement.regret < 0.5, agreement.line()
    assert agreement.kendall > 0.3, agreement.line()


def test_rank_agreement_is_scipys() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        one, other = rng.integers(0, 4, (2, 6)).astype(float)  # with ties
        tau, rho = rank_agreement(one[None], other[None])
        assert tau == pytest.approx(stats.kendalltau(one, other).statistic)
        assert rho == pytest.approx(stats.spearmanr(one, other).statistic)
    masked = np.array([[1.0, 2.0, -np.inf, 3.0]])
    assert rank_agreement(masked, np.array([[1.0, 2.0, 9.0, 3.0]])) == pytest.approx((1.0, 1.0))


# --- a scenario that was given ------------------------------------------------------------------


def test_a_given_scenario_is_varied_and_shortened() -> None:
    draw = source(load_scenario(tiny(), {"workload.num_requests": 9_000}))
    drawn = [draw(np.random.default_rng(seed), HARD) for seed in range(20)]
    assert len({one.seed for one in drawn}) == 20
    assert min(one.seed for one in drawn) >= FIRST_SEED
    rates = [one.workload.arrivals.qps for one in drawn]  # type: ignore[union-attr]
    assert 6.0 <= min(rates) < 9.0
    assert 16.0 < max(rates) <= 24.0
    assert len(build_episode(drawn[0])[0].requests) == MOST


def test_load_is_scaled_whatever_the_arrivals() -> None:
    users = load_scenario(tiny(), {"workload.users": 4})
    assert with_load(users, 2.0).workload.users == 8
    steps = load_scenario(tiny(), {"workload.arrivals": {"kind": "step", "steps": [[0, 5], [9, 8]]}})
    assert with_load(steps, 0.5).workload.arrivals.steps == [(0, 2.5), (9, 4)]  # type: ignore[union-attr]
    at_once = load_scenario(tiny(), {"workload.arrivals": {"kind": "static"}})
    assert with_load(at_once, 2.0) == at_once
