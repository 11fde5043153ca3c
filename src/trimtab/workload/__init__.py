"""Who asks, when, and how long: a workload description becomes one table of requests."""

from trimtab.workload.build import build_requests
from trimtab.workload.fit import fit_mix
from trimtab.workload.mix import Mix, load_mix
from trimtab.workload.trace import Trace, read_trace

__all__ = ["Mix", "Trace", "build_requests", "fit_mix", "load_mix", "read_trace"]
