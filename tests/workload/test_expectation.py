"""What a router may assume about output lengths."""

from __future__ import annotations

import numpy as np
import pytest
from oracle.parts import request_table

from trimtab.simulation import simulate
from trimtab.workload import expected_outputs

TABLE = request_table([{"decode_tokens": n, "klass": k} for n, k in ((10, 0), (30, 0), (100, 7), (300, 7))])


def test_by_hand() -> None:
    assert expected_outputs(TABLE, "none", 0.5, 0).tolist() == [110.0] * 4
    assert expected_outputs(TABLE, "class-mean", 0.5, 0).tolist() == [20.0, 20.0, 200.0, 200.0]
    assert expected_outputs(TABLE, "oracle", 0.5, 0).tolist() == [10.0, 30.0, 100.0, 300.0]
    assert expected_outputs(TABLE, "predictor", 0.0, 0).tolist() == [10.0, 30.0, 100.0, 300.0]


def test_the_predictor_errs_as_told() -> None:
    """Median right, log-error of the given sigma (20,000 draws: 3 % is five standard errors)."""
    table = request_table([{"decode_tokens": 1000}]).repeat(20_000)
    logs = np.log(expected_outputs(table, "predictor", 0.7, seed=3) / 1000)
    assert abs(np.median(logs)) < 0.03
    assert logs.std() == pytest.approx(0.7, rel=0.03)


def test_the_predictor_expects_a_token_at_least_and_follows_the_seed() -> None:
    table = request_table([{"decode_tokens": 1}]).repeat(100)
    assert expected_outputs(table, "predictor", 2.0, seed=1).min() == 1.0
    one, same, other = (expected_outputs(TABLE, "predictor", 0.5, seed) for seed in (1, 1, 2))
    assert (one == same).all() and (one != other).any()


def test_knowledge_reaches_the_router_and_changes_nothing_else() -> None:
    overrides = {"workload.num_requests": 200, "router.name": "least-work"}
    none = simulate("azure-conv", overrides=overrides).requests
    oracle = simulate("azure-conv", overrides=overrides | {"router.knows": "oracle"}).requests
    assert len(np.unique(none["expected_decode"])) == 1
    assert (oracle["expected_decode"] == oracle["decode_tokens"]).all()
    assert (none["decode_tokens"] == oracle["decode_tokens"]).all()
    assert (none["replica"] != oracle["replica"]).any()
