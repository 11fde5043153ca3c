"""Who asks, when, and how long: a workload description becomes one table of requests."""

from trimtab.workload.build import build_requests, build_traffic
from trimtab.workload.content import Traffic
from trimtab.workload.expectation import expected_outputs
from trimtab.workload.fit import fit_mix
from trimtab.workload.mix import Mix, load_mix
from trimtab.workload.trace import Trace, read_trace

__all__ = [
    "Mix",
    "Trace",
    "Traffic",
    "build_requests",
    "build_traffic",
    "expected_outputs",
    "fit_mix",
    "load_mix",
    "read_trace",
]
