"""What a router may see: one column per fact, one entry per replica.

Heuristics, Python routers and learned policies use these columns and no others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.engine.state import State

COLUMNS: dict[str, str] = {
    "outstanding": "requests waiting or running",
    "waiting": "requests queued",
    "running": "requests holding KV",
    "pending_prefill_tokens": "prompt tokens not yet computed, queued or running",
    "expected_decode_tokens": "output tokens expected of outstanding requests",
    "kv_used": "KV blocks in use",
    "kv_free": "KV blocks free",
    "accepting": "1 where this request may go, 0 where the replica is down, draining, its breaker is open "
    "or it serves another model",
    "prefix_hit_tokens": "tokens of this request's prompt that the replica's prefix cache holds",
    "speed": "relative to the fleet's fastest replica, (0, 1]",
    "group": "index of the replica group",
    "age_of_signal": "seconds since these facts were read; 0 when signals are fresh",
}


class RouterView:
    """A read-only look at the cluster at the moment a request arrives.

    Columns are NumPy arrays of length ``num_replicas`` (see ``COLUMNS``): as the router that the request
    came to sees them, which with stale signals is a snapshot and what it dispatched since. ``now`` is in
    seconds. ``prefill_tokens``, ``expected_decode``, ``session``, ``klass`` describe the request. The
    output length is not among them: a router knows what ``router.knows`` says, as ``expected_decode``.
    """

    def __init__(self, state: State):
        self._table = (state.seen if state.control["stale"][0] else state.replicas).view()
        self._table.flags.writeable = False
        self._matches = state.replicas["match"].view()
        self._matches.flags.writeable = False
        self._accepting = state.replicas["accepting"]  # health checks have a delay of their own
        self._requests = state.requests
        self._control = state.control
        self.request = 0
        self.num_replicas = len(state.replicas)

    @property
    def now(self) -> float:
        return float(self._control["now"][0])

    @property
    def prefill_tokens(self) -> int:
        return int(self._requests["prefill_tokens"][self.request])

    @property
    def expected_decode(self) -> float:
        return float(self._requests["expected_decode"][self.request])

    @property
    def session(self) -> int:
        return int(self._requests["session"][self.request])

    @property
    def klass(self) -> int:
        return int(self._requests["klass"][self.request])

    @property
    def outstanding(self) -> NDArray[np.int64]:
        return self._column("outstanding")

    @property
    def waiting(self) -> NDArray[np.int64]:
        return self._column("waiting")

    @property
    def running(self) -> NDArray[np.int64]:
        return self._column("running")

    @property
    def pending_prefill_tokens(self) -> NDArray[np.int64]:
        return self._column("pending_prefill")

    @property
    def expected_decode_tokens(self) -> NDArray[np.float64]:
        return self._column("expected_decode")

    @property
    def kv_used(self) -> NDArray[np.int64]:
        return self._column("kv_used")

    @property
    def kv_free(self) -> NDArray[np.int64]:
        free: NDArray[np.int64] = self._column("kv_total") - self._column("kv_used")
        return free

    @property
    def accepting(self) -> NDArray[np.int64]:
        mine = np.zeros(self.num_replicas, np.int64)
        first, last = int(self._control["first"][0]), int(self._control["last"][0])
        mine[first:last] = self._accepting[first:last]
        mine.flags.writeable = False
        return mine

    @property
    def prefix_hit_tokens(self) -> NDArray[np.int64]:
        return self._matches

    @property
    def speed(self) -> NDArray[np.float64]:
        return self._column("speed")

    @property
    def group(self) -> NDArray[np.int64]:
        return self._column("group")

    @property
    def age_of_signal(self) -> NDArray[np.float64]:
        return np.broadcast_to(np.float64(self._control["signal_age"][0]), self.num_replicas)

    def _column(self, name: str) -> NDArray[Any]:
        first = int(self._control["seen_at"][0])
        column: NDArray[Any] = self._table[name][first : first + self.num_replicas]
        return column
