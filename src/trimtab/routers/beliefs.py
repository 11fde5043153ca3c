"""What the learned router believes of a replica whose facts are old: the last snapshot, worked off since.

A snapshot to which a router adds what it dispatches only grows until the next one comes, however much of
that was computed meanwhile. Here each router keeps a ledger per replica: it starts from every snapshot,
gains what the router sends, and drains by one second of work per second: prompts first, and decoding in
what they leave. Only what the router itself did enters (compare van der Boor, Borst and van Leeuwaarden 2019,
"Hyper-scalable JSQ with sparse feedback").
"""

from __future__ import annotations

from trimtab.engine.jit import jit
from trimtab.engine.ranking import Table
from trimtab.engine.state import State

PROMPTS = 0.8  # share of a replica's time that goes to prompts while any are queued


@jit
def believe(state: State, table: Table, base: int) -> None:
    """Bring the ledger of every replica of the pool up to now."""
    control, groups, beliefs = state.control, state.groups, state.beliefs
    now, view = control["now"][0], control["view"][0]
    newest = state.views["shown"][view] + 1
    for replica in range(control["first"][0], control["last"][0]):
        row = base + replica
        group = table["group"][row]
        mine = view * len(state.replicas) + replica
        if beliefs["shown"][mine] != newest:
            beliefs["shown"][mine] = newest
            beliefs["at"][mine] = now - control["signal_age"][0]
            beliefs["prompts"][mine] = table["pending_prefill"][row] * groups["prefill_s"][group]
            beliefs["decodes"][mine] = table["expected_decode"][row] * groups["decode_s"][group]
        passed = now - beliefs["at"][mine]
        beliefs["at"][mine] = now
        drained = min(beliefs["prompts"][mine], PROMPTS * passed)
        beliefs["prompts"][mine] -= drained
        beliefs["decodes"][mine] = max(0.0, beliefs["decodes"][mine] - (passed - drained))


@jit
def expect(state: State, table: Table, base: int, replica: int, request: int) -> None:
    """The request goes there."""
    mine = state.control["view"][0] * len(state.replicas) + replica
    group = table["group"][base + replica]
    prompt = state.requests["prefill_tokens"][request]
    if state.control["matching"][0]:
        prompt -= state.replicas["match"][replica]
    expected = state.requests["expected_decode"][request]
    state.beliefs["prompts"][mine] += prompt * state.groups["prefill_s"][group]
    state.beliefs["decodes"][mine] += expected * state.groups["decode_s"][group]
