"""Speculative decoding: the engine equals the oracle, the law is Leviathan's, off is off."""

from __future__ import annotations

from dataclasses import replace
from types import FunctionType
from typing import Any

import numpy as np
import pytest
from cluster import test_faults
from cluster.conftest import run_engine
from cluster.test_against_oracle import assert_equal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import OracleConditions, OracleReplica, Request, loop, request_table
from oracle.parts import Entry, drafts_accepted, requests_of
from oracle.schedulers import VllmV1
from pydantic import ValidationError
from strategies import Cluster, clusters, plain_tables, random_tables, speculating_clusters, troubled

import trimtab
from trimtab.engine import speculation as compiled
from trimtab.engine.dtypes import ITERATION, REQUEST, Status
from trimtab.errors import TrimtabError
from trimtab.report.metrics import itl_centres_ms
from trimtab.scenario import Speculation

many = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
SURE = 1 - 1e-12  # an acceptance of practically one

# --- against the oracle -------------------------------------------------------------------------


@given(cluster=speculating_clusters())
@many
def test_the_engine_equals_the_oracle(cluster: Cluster) -> None:
    assert_equal(cluster)


@given(drawn=troubled(peaceful=speculating_clusters()))
@many
def test_under_faults_and_impatient_clients_too(drawn: tuple[Cluster, OracleConditions]) -> None:
    test_faults.assert_equal(*drawn)


@given(cluster=speculating_clusters())
@many
def test_all_are_served_and_all_blocks_come_back(cluster: Cluster) -> None:
    state = run_engine(cluster.requests, cluster.replicas, cluster.router, cluster.traffic)
    requests, replicas = state.requests, state.replicas
    assert (requests["status"] == Status.FINISHED).all()
    assert (replicas["kv_used"] == 0).all()
    assert state.control["tokens"][0] == requests["decode_tokens"].sum()  # each is out once
    assert replicas["decode_done"].sum() <= requests["decode_tokens"].sum()
    speculating = np.array([one.speculation is not None for one in cluster.replicas])
    assert (replicas["decode_steps"] <= replicas["decode_done"])[speculating].all()
    assert (replicas["decode_steps"] == 0)[~speculating].all()


@given(seed=st.integers(0, 2**62 - 1), replica=st.integers(0, 5000), number=st.integers(0, 2**31 - 1))
@many
def test_what_is_drawn_is_what_the_oracle_draws(seed: int, replica: int, number: int) -> None:
    scramble, uniform_of = (
        getattr(function, "py_func", function) for function in (compiled.scramble, compiled.uniform_of)
    )
    plain = FunctionType(uniform_of.__code__, vars(compiled) | {"scramble": scramble})
    tossed = plain(seed, replica, number)
    for acceptance in (0.1, 0.5, 0.9):
        law = Speculation(tokens=8, acceptance=acceptance)
        reached = [tossed < acceptance ** (count + 1) for count in range(8)]
        assert drafts_accepted(law, seed, replica, number) == sum(reached)


# --- the law ------------------------------------------------------------------------------------


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.7, 0.95])
def test_drafts_are_accepted_in_a_row_as_often_as_they_should(acceptance: float) -> None:
    """At least j of k with probability a^j: within 4.5 sigma, over batches, replicas and seeds."""
    law = Speculation(tokens=5, acceptance=acceptance)
    for keys in (
        [(0, 0, number) for number in range(20_000)],
        [(7, replica, 3) for replica in range(20_000)],
        [(seed, 1, 1) for seed in range(20_000)],
    ):
        accepted = np.array([drafts_accepted(law, *key) for key in keys])
        for least in range(1, 6):
            share, expected = float((accepted >= least).mean()), acceptance**least
            assert abs(share - expected) <= 4.5 * (expected * (1 - expected) / len(keys)) ** 0.5
        if acceptance:
            lagged = float(np.corrcoef(accepted[1:], accepted[:-1])[0, 1])
            assert abs(lagged) < 4.5 / len(keys) ** 0.5


@pytest.mark.parametrize(("tokens", "acceptance"), [(1, 0.5), (3, 0.7), (5, 0.9), (4, 0.0)])
def test_a_request_alone_steps_by_the_formula(tokens: int, acceptance: float) -> None:
    """The mean of what a step yields is (1 - a^(k+1)) / (1 - a), within 4.5 standard errors."""
    law = Speculation(tokens=tokens, acceptance=acceptance)
    output = 40_000
    row = {"arrival": 0.0, "prefill_tokens": 10, "decode_tokens": output}
    replica = OracleReplica(plain_tables(), num_blocks=4000, speculation=law)
    state = run_engine(request_table([row]), [replica], "round_robin")
    steps = int(state.replicas["decode_steps"][0])
    assert state.replicas["decode_done"][0] == output - 1
    chances = acceptance ** np.arange(tokens + 2)
    chances[-1] = 0.0
    mass = chances[:-1] - chances[1:]
    yields = np.arange(1, tokens + 2)
    mean = float(mass @ yields)
    assert law.tokens_per_step == pytest.approx(mean)
    spread = float(mass @ (yields - mean) ** 2) ** 0.5
    assert abs((output - 1) / steps - mean) <= 4.5 * spread / steps**0.5 + (tokens + 1) / steps


class OwnLuck(VllmV1):
    """Every decode tosses for itself, as in reality."""

    rng = np.random.default_rng(0)

    def next_entry(self, request: Request) -> Entry:
        entry, law = super().next_entry(request), self.settings.speculation
        if entry.decode and law:
            accepted = np.cumprod(self.rng.random(law.tokens) < law.acceptance)
            entry.tokens = 1 + int(accepted.sum())
        return entry


def latencies(table: Any, scheduler: type[VllmV1], seed: int) -> tuple[float, float]:
    """Mean s to the first and to the last token, on one replica that is busy most of the time."""
    law = Speculation(tokens=4, acceptance=0.7)
    tables = plain_tables(fixed=0.01, per_token=2e-4).with_drafting(4 * 0.05)
    cluster = loop.Cluster(requests_of(table), [OracleReplica(tables, speculation=law)], "round_robin")
    cluster.seed = seed
    cluster.replicas[0].scheduler = scheduler(cluster.replicas[0].settings)
    cluster.run()
    first = np.mean([request.first_token - request.arrival for request in cluster.requests])
    return float(first), float(np.mean([request.finished - request.arrival for request in cluster.requests]))


def test_sharing_luck_moves_means_little() -> None:
    """One draw per batch against one per decode: means within 3 %, at about ten decodes per batch."""
    OwnLuck.rng = np.random.default_rng(0)
    shared, own = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        arrivals = np.cumsum(rng.exponential(1 / 8.0, 1000))
        prompts, outputs = rng.integers(50, 300, 1000), rng.integers(20, 200, 1000)
        rows = [
            {"arrival": at, "prefill_tokens": prompt, "decode_tokens": output}
            for at, prompt, output in zip(arrivals, prompts, outputs, strict=True)
        ]
        shared.append(latencies(request_table(rows), VllmV1, seed))
        own.append(latencies(request_table(rows), OwnLuck, seed))
    ratios = np.mean(shared, axis=0) / np.mean(own, axis=0)
    assert (np.abs(ratios - 1) < 0.03).all(), ratios


# --- by hand ------------------------------------------------------------------------------------


def one_request(law: Speculation, output: int) -> Any:
    row = {"arrival": 0.0, "prefill_tokens": 5, "decode_tokens": output}
    tables = plain_tables().with_drafting(law.tokens * law.draft_cost)
    replica = OracleReplica(tables, speculation=law)
    return run_engine(request_table([row]), [replica], "round_robin")


def test_a_step_by_hand() -> None:
    """Prefill 10 + 5 s; then 2 x 0.5 x 11 s of drafting, and 13 s for the decode and its two drafts."""
    state = one_request(Speculation(tokens=2, acceptance=SURE, draft_cost=0.5), output=4)
    assert state.requests["first_token"][0] == 15.0
    assert state.requests["finished"][0] == 15.0 + 24.0
    assert state.requests["execution"][0] == 39.0
    gaps = np.repeat(itl_centres_ms() / 1e3, state.itl)  # three tokens at one instant
    np.testing.assert_allclose(gaps, [0.0, 0.0, 24.0], rtol=2e-3, atol=2e-6)


@given(
    seed=st.integers(0, 2**16),
    share=st.floats(0.0, 3.0),
    count=st.integers(0, 7),
    kv=st.integers(1, 100),
    prefills=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40)), max_size=3),
)
@many
def test_drafting_costs_its_share_of_a_plain_iteration(
    seed: int, share: float, count: int, kv: int, prefills: list[tuple[int, int]]
) -> None:
    """Inside the tables; beyond their end everything goes on in proportion."""
    tables = random_tables(seed)
    rows, columns = tables.decode_s.shape
    decodes = [min(kv, (columns - 1) * tables.kv_step)] * min(count, rows - 1)
    plain = tables.stage_seconds(decodes, prefills)
    alone = tables.stage_seconds(decodes, [])
    drafting = tables.with_drafting(share)
    assert drafting.stage_seconds(decodes, prefills) == pytest.approx(plain + share * alone)
    assert drafting.stage_seconds([], prefills) == tables.stage_seconds([], prefills)


def test_an_answer_ends_inside_a_step() -> None:
    """Nine tokens after the first by four at a time: three steps, the last cut short."""
    state = one_request(Speculation(tokens=3, acceptance=SURE), output=10)
    assert state.replicas["decode_steps"][0] == 3
    assert state.replicas["decode_done"][0] == 9
    assert state.requests["finished"][0] == 15.0 + 3 * 14.0


def test_drafts_take_budget_and_the_tokens_kept_take_blocks() -> None:
    """Three decodes of width four do not fit a budget of eleven: the last one waits."""
    rows = [{"arrival": 0.0, "prefill_tokens": 1, "decode_tokens": 5} for _ in range(3)]
    law = Speculation(tokens=3, acceptance=SURE)
    tables = plain_tables(per_token=0.0)
    for budget, decodes, kv_used in ((12, [0, 3], [3, 15]), (11, [0, 2, 1], [3, 11, 5])):
        replica = OracleReplica(tables, token_budget=budget, block_size=1, speculation=law)
        state = run_engine(request_table(rows), [replica], "round_robin")
        count = int(state.control["iterations"][0])
        assert state.iterations["decodes"][:count].tolist() == decodes
        assert state.iterations["kv_used"][:count].tolist() == kv_used


def test_a_decode_taken_back_returns_its_drafts_too() -> None:
    """Two of three decodes fit the budget. The first is preempted for the second: the third goes along."""
    first = {"arrival": 0.0, "prefill_tokens": 1, "decode_tokens": 4, "priority": 1}
    others = [{"arrival": 1.0, "prefill_tokens": 1, "decode_tokens": 2} for _ in range(2)]
    requests = request_table([first, *others])
    replica = OracleReplica(
        plain_tables(per_token=0.0),
        token_budget=4,
        block_size=1,
        num_blocks=5,
        policy="priority",
        speculation=Speculation(tokens=1, acceptance=0.0),
    )
    state = run_engine(requests, [replica], "round_robin")
    assert state.iterations["decodes"][:3].tolist() == [0, 1, 2]
    assert state.requests["preemptions"].tolist() == [1, 0, 0]
    assert_equal(Cluster(requests, [replica], "round_robin"))


# --- off is off ---------------------------------------------------------------------------------


@given(cluster=clusters(("vllm_v1",), most_stages=1))
@many
def test_drafts_that_cost_nothing_and_never_help_change_nothing(cluster: Cluster) -> None:
    """With time and budget to spare, acceptance 0 is plain decoding, bit for bit."""
    flat = plain_tables(per_token=0.0)
    plain = [replace(replica, tables=flat, token_budget=4096) for replica in cluster.replicas]
    hopeless = [replace(one, speculation=Speculation(tokens=4, acceptance=0.0)) for one in plain]
    before = run_engine(cluster.requests, plain, cluster.router)
    after = run_engine(cluster.requests, hopeless, cluster.router)
    for name in REQUEST.names or ():
        assert before.requests[name].tobytes() == after.requests[name].tobytes(), name
    rows = int(before.control["iterations"][0])
    for name in ITERATION.names or ():
        assert before.iterations[name][:rows].tobytes() == after.iterations[name][:rows].tobytes(), name
    assert before.itl.tobytes() == after.itl.tobytes()


def speculate(law: dict[str, float] | None, requests: int, **more: Any) -> dict[str, float]:
    scenario = {
        "workload": {
            "num_requests": requests,
            "arrivals": {"kind": "static"},
            "lengths": {"kind": "fixed", "prefill": 100, "decode": 200},
        },
        "replicas": {"model": "llama-3-8b", "device": "a100-80", "speculation": law} | more,
    }
    summary: dict[str, float] = trimtab.simulate(scenario).summary()
    return summary


def test_speculation_pays_while_decodes_wait_for_memory_and_costs_when_they_compute() -> None:
    """The roofline of an A100: one request gains nearly the tokens per step, 256 together lose."""
    law = {"tokens": 4, "acceptance": 0.6, "draft_cost": 0.05}
    gains = {}
    for requests in (1, 256):
        on, off = speculate(law, requests), speculate(None, requests)
        assert np.isnan(off["tokens_per_step"])
        gains[requests] = off["mean_tpot_ms"] / on["mean_tpot_ms"]
        assert on["tokens_per_step"] == pytest.approx(Speculation(**law).tokens_per_step, rel=0.2)
    assert gains[1] > 1.5
    assert gains[256] < 0.9
    better = speculate(law | {"acceptance": 0.9}, 1)["mean_tpot_ms"]
    assert better < speculate(law, 1)["mean_tpot_ms"]


def test_the_seed_decides() -> None:
    law = {"tokens": 4, "acceptance": 0.6}
    scenario = {
        "workload": {"num_requests": 5, "arrivals": {"kind": "static"}, "lengths": {"kind": "fixed"}},
        "replicas": {"speculation": law},
    }
    runs = [trimtab.simulate(scenario, seed=seed).requests["finished"].tobytes() for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


# --- what is wrong is said ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"scheduler": {"name": "sarathi"}},
            "speculation works with scheduler vllm_v1 and pp 1, got sarathi",
        ),
        ({"pp": 2}, "and pp 2"),
        (
            {"scheduler": {"token_budget": 4}},
            "speculation.tokens must be less than the token budget 4, got 4",
        ),
    ],
)
def test_what_cannot_speculate_is_one_line(more: dict[str, Any], message: str) -> None:
    with pytest.raises(TrimtabError, match=message) as caught:
        speculate({"tokens": 4, "acceptance": 0.6}, 1, **more)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values", [{"tokens": 0}, {"acceptance": 1.0}, {"acceptance": -0.1}, {"draft_cost": -1}]
)
def test_values_have_bounds(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Speculation(**({"tokens": 3, "acceptance": 0.5} | values))
