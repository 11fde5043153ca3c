"""Where the points of a sweep are computed: processes of this machine, or a Ray cluster. One interface.

A point is a pure function of its payload, so that one whose worker died is simply computed again.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

from trimtab.errors import TrimtabError, unknown

Json = dict[str, Any]
Function = Callable[[Json], Json]
NAMES = ("processes", "ray")
AHEAD = 4  # points under way per worker: none waits for the next
ATTEMPTS = 3  # of a point whose worker dies
REACH_S = 3.0  # to find out whether anybody listens


class Executor(Protocol):
    """Computes ``function`` of every payload, in whatever order; yields (index, result) as they come."""

    def run(self, function: Function, payloads: Sequence[Json]) -> Iterator[tuple[int, Json]]: ...


def make_executor(
    name: str = "processes", workers: int | None = None, address: str | None = None
) -> Executor:
    """The executor called ``name``; ``address`` is a Ray cluster's.

    Raises
    ------
    TrimtabError
        for an unknown name, no workers, an address without Ray, and a cluster that cannot be reached.
    """
    if workers is not None and workers < 1:
        raise TrimtabError(f"--workers must be 1 or more, got {workers}")
    if name not in NAMES:
        raise unknown("executor", name, NAMES)
    if name == "ray":
        return Ray(address)
    if address is not None:
        raise TrimtabError(f"--address {address} needs --executor ray")
    return Processes(workers or os.cpu_count() or 1)


class Processes:
    """Processes of this machine, kept from one run to the next; one that dies is replaced, and its point
    computed again."""

    def __init__(self, workers: int):
        self.workers = workers
        self.pool: ProcessPoolExecutor | None = None

    def run(self, function: Function, payloads: Sequence[Json]) -> Iterator[tuple[int, Json]]:
        """As ``Executor.run``. A point whose worker dies three times raises TrimtabError."""
        attempts = dict.fromkeys(range(len(payloads)), 0)
        while attempts:
            with contextlib.suppress(BrokenProcessPool):
                yield from self._round(function, payloads, attempts)
            if any(count >= ATTEMPTS for count in attempts.values()):
                raise TrimtabError(
                    f"a worker died {ATTEMPTS} times on one of the points under way (out of memory?);"
                    " fewer --workers may do"
                )

    def _round(
        self, function: Function, payloads: Sequence[Json], attempts: dict[int, int]
    ) -> Iterator[tuple[int, Json]]:
        """Until all is done or a worker dies; ``attempts`` loses what is done, and counts what was begun."""
        if self.pool is None:
            context = multiprocessing.get_context("spawn")
            dies = (signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches workers too: no traceback of each
            self.pool = ProcessPoolExecutor(self.workers, context, signal.signal, dies)
        waiting = list(reversed(attempts))
        jobs: dict[Future[Json], int] = {}
        try:
            while waiting or jobs:
                while waiting and len(jobs) < AHEAD * self.workers:
                    index = waiting.pop()
                    attempts[index] += 1
                    jobs[self.pool.submit(function, payloads[index])] = index
                for job in wait(jobs, return_when=FIRST_COMPLETED).done:
                    result = job.result()
                    index = jobs.pop(job)
                    del attempts[index]
                    yield index, result
        finally:
            if waiting or jobs:  # a worker died, or nobody wants the rest
                self.pool.shutdown(wait=False, cancel_futures=True)
                self.pool = None


class Ray:
    """The nodes of a Ray cluster, or this machine's where no address is given.

    Ray starts a task again when its worker or node dies.
    """

    def __init__(self, address: str | None = None):
        try:
            import ray
        except ImportError:
            raise TrimtabError("--executor ray needs ray: pip install 'trimtab[ray]'") from None
        _reach(address)
        self.ray: Any = ray
        if ray.is_initialized():
            return
        try:
            self.ray.init(
                address=address,
                logging_level="ERROR",
                log_to_driver=False,
                include_dashboard=False if address is None else None,
            )
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise TrimtabError(
                f"cannot join the Ray cluster at {address or 'this machine'}: {first}"
            ) from None

    def run(self, function: Function, payloads: Sequence[Json]) -> Iterator[tuple[int, Json]]:
        """As ``Executor.run``; one task per point, a few under way per CPU of the cluster."""
        ray = self.ray
        remote = ray.remote(max_retries=ATTEMPTS, num_cpus=1)(function)
        waiting = list(range(len(payloads)))[::-1]
        jobs: dict[Any, int] = {}
        while waiting or jobs:
            most = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
            while waiting and len(jobs) < most:
                index = waiting.pop()
                jobs[remote.remote(payloads[index])] = index
            done, _ = ray.wait(list(jobs), num_returns=1)
            for reference in done:
                index = jobs.pop(reference)
                try:
                    yield index, ray.get(reference)
                except ray.exceptions.WorkerCrashedError:
                    raise TrimtabError(
                        f"a Ray worker died {ATTEMPTS + 1} times on one point (out of memory?)"
                    ) from None


def _reach(address: str | None) -> None:
    """Ray itself tries for a minute; a closed port is known at once."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host:
        if address not in (None, "auto", "local"):
            raise TrimtabError(f"--address {address!r} must read HOST:PORT, ray://HOST:PORT or auto")
        return
    try:
        socket.create_connection((host, int(port)), REACH_S).close()
    except (OSError, ValueError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise TrimtabError(
            f"no Ray cluster answers at {address}: {why}; `ray start --head` starts one"
        ) from None
