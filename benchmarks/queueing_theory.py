"""The engine against queueing theory: simulated means and the exact ones, loads 0.5, 0.8 and 0.95.

Schedulers are made degenerate until a replica is a queue with a known solution: one sequence at a
time, and execution-time tables by hand. Each case is repeated independently; the 99 % interval is
Student's t over the repetitions. docs/background/queueing.md has the models and formulas.

    python benchmarks/queueing_theory.py [--quick] [--seed N]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import factorial
from typing import Any

import numpy as np
from scipy import stats

from trimtab.cluster import Fleet, prepare, run
from trimtab.cluster.run import Ask
from trimtab.engine.dtypes import NONE, REQUEST, Scheduler
from trimtab.engine.state import State
from trimtab.exectime.tables import ExecTables
from trimtab.routers import Router

LOADS = (0.5, 0.8, 0.95)
CONFIDENCE = 0.99
SERVERS = 4
FINE = 1e-6  # s per prompt token: service times of the exponential cases are whole multiples
COARSE = 0.05  # s per iteration of the cases that decode
MANY = 1 << 20  # sequences, blocks, tokens: no limit
STATES = 1000  # of the embedded chains; the probability beyond is below 1e-15


# --- one queue, by hand ---------------------------------------------------------------------------


def tables(seconds: float, per_token: bool = True) -> ExecTables:
    """An iteration takes ``seconds``, for each token or (``per_token`` False) however many there are."""
    tokens = np.arange(2.0) if per_token else np.minimum(np.arange(MANY + 1.0), 1.0)
    nothing = np.zeros_like(tokens)
    return ExecTables(
        token_s=tokens * seconds,
        kv_write_s=nothing,
        decode_s=np.zeros((2, 2)),
        prefill_s=np.zeros((2, 2)),
        send_s=nothing,
        cpu_s=np.zeros(2),
        token_round=1,
    )


def replicas(
    seconds: float,
    count: int = 1,
    max_seqs: int = 1,
    per_token: bool = True,
    scheduler: Scheduler = Scheduler.VLLM_V1,
) -> Fleet:
    """``count`` replicas without any limit but ``max_seqs`` requests at a time."""
    reserves = scheduler in (Scheduler.ORCA, Scheduler.FASTER_TRANSFORMER)
    return Fleet(
        name="queue",
        scheduler=scheduler,
        tables=tables(seconds, per_token),
        count=count,
        num_blocks=1 << 50,
        max_seqs=max_seqs,
        token_budget=1 << 50,
        block_size=1,
        reserve_blocks=1 << 40 if reserves else 0,
    )


def requests(arrivals: np.ndarray, prompts: Any = 1, outputs: Any = 1) -> np.ndarray:
    """REQUEST (N,) with the given arrival times and lengths."""
    table = np.zeros(len(arrivals), REQUEST)
    for name in ("session", "next_turn", "next_waiting", "replica"):
        table[name] = NONE
    table["arrival"] = arrivals
    table["prefill_tokens"] = table["target"] = prompts
    table["decode_tokens"] = outputs
    return table


def least_work_left(services: np.ndarray, count: int) -> Ask:
    """A router that knows every service time: single servers behind it are one queue for all.

    (Kiefer and Wolfowitz: first come, first served by the first free server is the same as sending
    each request where the work runs out first.)
    """
    free = [0.0] * count
    known = services.tolist()

    def ask(state: State, request: int) -> int:
        earliest = min(free)
        replica = free.index(earliest)
        free[replica] = max(earliest, float(state.control["now"][0])) + known[request]
        return replica

    return ask


# --- what theory says -----------------------------------------------------------------------------


def pollaczek_khinchine(rate: float, mean: float, second_moment: float) -> tuple[float, float]:
    """M/G/1: (mean wait in s, mean number in system)."""
    wait = rate * second_moment / (2.0 * (1.0 - rate * mean))
    return wait, rate * (wait + mean)


def erlang_c(rate: float, servers: int) -> tuple[float, float]:
    """M/M/c with mean service 1 s: (mean wait, mean number in system)."""
    rho = rate / servers
    last = rate**servers / factorial(servers) / (1.0 - rho)
    waits = last / (sum(rate**k / factorial(k) for k in range(servers)) + last)
    wait = waits / (servers - rate)
    return wait, rate * (wait + 1.0)


def embedded_chain(
    rate: float, leave: float, servers: int, seconds: Callable[[int], float]
) -> tuple[float, float]:
    """One replica that iterates: exact (mean wait, mean number in system), no limit of small steps.

    With y requests present an iteration serves k = min(y, ``servers``) of them for ``seconds(k)``; each
    of the k leaves at its end with probability ``leave``, and Poisson arrivals wait for its end (or, where
    nobody is present, start one at once). The number present at ends of iterations is a Markov chain.
    """
    present = np.maximum(np.arange(STATES), 1)
    served = np.minimum(present, servers)
    lasts = np.array([seconds(int(k)) for k in served])
    move = np.zeros((STATES, STATES))
    for row, (y, k, tau) in enumerate(zip(present, served, lasts, strict=True)):
        left = stats.binom.pmf(np.arange(k + 1), k, leave)[::-1]  # of those served, how many stay
        came = stats.poisson.pmf(np.arange(STATES), rate * tau)
        after = np.convolve(left, came)[: STATES - (y - k)]
        move[row, y - k : y - k + len(after)] = after
    move[:, -1] += 1.0 - move.sum(axis=1)
    system = np.vstack([move.T - np.eye(STATES), np.ones(STATES)])[1:]
    share = np.linalg.solve(system, np.eye(STATES)[-1])
    idle = share[0] / rate
    length = share @ lasts + idle
    arriving = rate * lasts**2 / 2.0  # request-seconds of those who come during an iteration
    waiting = share @ ((present - served) * lasts + arriving) / length
    in_system = share @ (present * lasts + arriving) / length
    return float(waiting / rate), float(in_system)


# --- cases ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One queue at one load. ``build(rng, arrivals)`` gives requests, replicas and the router."""

    name: str
    rho: float
    servers: int
    build: Callable[[np.random.Generator, np.ndarray], tuple[np.ndarray, Fleet, Ask | None]]
    exact: Callable[[], tuple[float, float]]
    cost: float = 1.0  # per request, relative to the cheapest case

    @property
    def rate(self) -> float:
        """Arrivals per second; the mean service is 1 s."""
        return self.rho * self.servers


def constant(rho: float) -> Case:
    """M/D/1: every request is one iteration of 1 s."""
    return Case(
        "M/D/1",
        rho,
        1,
        lambda rng, arrivals: (requests(arrivals), replicas(1.0), None),
        lambda: pollaczek_khinchine(rho, 1.0, 1.0),
        cost=2.0,
    )


def exponential(rho: float) -> Case:
    """M/M/1: prompts of a geometric number of tokens of a microsecond, one iteration each."""
    return Case(
        "M/M/1",
        rho,
        1,
        lambda rng, arrivals: (
            requests(arrivals, prompts=rng.geometric(FINE, len(arrivals))),
            replicas(FINE, scheduler=Scheduler.VLLM),
            None,
        ),
        lambda: (rho / (1.0 - rho), rho / (1.0 - rho)),
    )


def decoding(rho: float) -> Case:
    """M/G/1 with geometric service: one request at a time, an iteration per output token."""
    second_moment = 2.0 - COARSE  # of a geometric variable in steps of COARSE s with mean 1 s
    return Case(
        "M/Geo/1 decode",
        rho,
        1,
        lambda rng, arrivals: (
            requests(arrivals, outputs=rng.geometric(COARSE, len(arrivals))),
            replicas(COARSE, scheduler=Scheduler.SARATHI),
            None,
        ),
        lambda: pollaczek_khinchine(rho, 1.0, second_moment),
        cost=2.5,
    )


def many_replicas(rho: float) -> Case:
    """M/M/c: c single servers behind a router that sees the work left."""

    def build(rng: np.random.Generator, arrivals: np.ndarray) -> tuple[np.ndarray, Fleet, Ask | None]:
        prompts = rng.geometric(FINE, len(arrivals))
        return (
            requests(arrivals, prompts=prompts),
            replicas(FINE, count=SERVERS),
            least_work_left(prompts * FINE, SERVERS),
        )

    return Case(f"M/M/{SERVERS}", rho, SERVERS, build, lambda: erlang_c(rho * SERVERS, SERVERS), cost=8.0)


def one_batch(rho: float) -> Case:
    """c servers as c sequences of one replica, whose iterations take the same time however full."""
    return Case(
        f"Geo/{SERVERS} batch",
        rho,
        SERVERS,
        lambda rng, arrivals: (
            requests(arrivals, outputs=rng.geometric(COARSE, len(arrivals))),
            replicas(COARSE, max_seqs=SERVERS, per_token=False),
            None,
        ),
        lambda: embedded_chain(rho * SERVERS, COARSE, SERVERS, lambda k: COARSE),
        cost=2.5,
    )


def sharing(rho: float) -> Case:
    """Processor sharing: all decode at once, and an iteration takes as long as its batch is big."""
    return Case(
        "PS batch",
        rho,
        1,
        lambda rng, arrivals: (
            requests(arrivals, outputs=rng.geometric(COARSE, len(arrivals))),
            replicas(COARSE, max_seqs=4096),
            None,
        ),
        lambda: embedded_chain(rho, COARSE, STATES, lambda k: k * COARSE),
        cost=2.0,
    )


KINDS = (constant, exponential, decoding, many_replicas, one_batch, sharing)


# --- measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """One mean with its interval beside the exact value."""

    simulated: float
    half_width: float
    exact: float

    @property
    def interval(self) -> tuple[float, float]:
        return self.simulated - self.half_width, self.simulated + self.half_width

    @property
    def inside(self) -> bool:
        return abs(self.simulated - self.exact) <= self.half_width


def repeat_once(case: Case, rng: np.random.Generator, count: int, warm_up: int) -> tuple[float, float]:
    """Mean wait and (Little) mean number in system of ``count`` requests after ``warm_up`` others."""
    arrivals = np.cumsum(rng.exponential(1.0 / case.rate, warm_up + count))
    table, fleet, ask = case.build(rng, arrivals)
    router = Router.ROUND_ROBIN if ask is None else Router.OUTSIDE
    state = prepare(table, [fleet], router, max_iterations=0)
    run(state, ask)
    served = state.requests[warm_up:]
    wait = float((served["scheduled"] - served["arrival"]).mean())
    return wait, case.rate * float((served["finished"] - served["arrival"]).mean())


def measure(
    case: Case, seed: int, repetitions: int, count: int, warm_up: int, confidence: float = CONFIDENCE
) -> dict[str, Figure]:
    """``wait`` (s) and ``in_system`` (requests) over independent repetitions."""
    streams = np.random.SeedSequence(seed).spawn(repetitions)
    runs = np.array([repeat_once(case, np.random.default_rng(one), count, warm_up) for one in streams])
    reach = stats.t.ppf(0.5 + confidence / 2.0, repetitions - 1) / np.sqrt(repetitions)
    return {
        name: Figure(float(values.mean()), float(reach * values.std(ddof=1)), exact)
        for name, values, exact in zip(("wait", "in_system"), runs.T, case.exact(), strict=True)
    }


def sizes(case: Case, quick: bool) -> tuple[int, int, int]:
    """(repetitions, requests each, warm-up): busy queues forget slowly and need more of both."""
    repetitions = 10 if quick else 40
    total = {0.5: 2_000_000, 0.8: 5_000_000, 0.95: 30_000_000}[case.rho] / case.cost
    relaxation = 1.0 / (1.0 - case.rho**0.5) ** 2  # of an M/M/c queue, in requests
    return repetitions, int(total / repetitions / (25 if quick else 1)), int(12 * relaxation)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes; wider intervals")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.process_time()
    print(f"{'queue':16}{'load':>5}  {'':10}{'simulated':>10}{'+- 99 %':>9}{'exact':>10}  inside   requests")
    cases: dict[str, Any] = {}
    for number, (kind, rho) in enumerate((kind, rho) for kind in KINDS for rho in LOADS):
        case = kind(rho)
        repetitions, count, warm_up = sizes(case, options.quick)
        figures = measure(case, 1000 * options.seed + number, repetitions, count, warm_up)
        for name, figure in figures.items():
            print(
                f"{case.name:16}{rho:5.2f}  {name:10}{figure.simulated:10.4f}{figure.half_width:9.4f}"
                f"{figure.exact:10.4f}  {'yes' if figure.inside else 'NO':6}{repetitions * count:11,}"
            )
        wait = figures["wait"]
        cases[f"{case.name}, load {rho}"] = {
            "simulated": round(wait.simulated, 5),
            "interval": [round(end, 5) for end in wait.interval],
            "exact": round(wait.exact, 5),
            "inside": wait.inside,
        }
    print(f"{time.process_time() - started:.0f} CPU-seconds")
    inside = sum(case["inside"] for case in cases.values())
    print(json.dumps({"name": "queueing_theory", "cases": len(cases), "inside": inside, **cases}))


if __name__ == "__main__":
    main()
