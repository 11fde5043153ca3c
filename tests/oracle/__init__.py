"""A slow, obvious cluster simulator in plain Python: what the compiled engine must equal.

Nothing here is clever. ``parts`` says what a request, a batch and a replica are, ``schedulers`` how a
replica forms its next batch, ``loop`` what happens when, ``faults`` what goes wrong, ``scaling`` who is
called and sent away, ``disaggregation`` how prefill and decode are kept apart. See ``loop`` for the order
of events that fall on the same instant.
"""

from oracle.disaggregation import simulate_split
from oracle.faults import OracleClass, OracleConditions, OracleFault, simulate_faults
from oracle.loop import Deadlock, simulate
from oracle.parts import Entry, Iteration, OracleReplica, Request, request_table
from oracle.scaling import OracleScaler, simulate_scaled

__all__ = [
    "Deadlock",
    "Entry",
    "Iteration",
    "OracleClass",
    "OracleConditions",
    "OracleFault",
    "OracleReplica",
    "OracleScaler",
    "Request",
    "request_table",
    "simulate",
    "simulate_faults",
    "simulate_scaled",
    "simulate_split",
]
