"""The compiled cluster: the event loop that joins engine, schedulers and routers."""

from trimtab.cluster.run import Fleet, Signals, prepare, run

__all__ = ["Fleet", "Signals", "prepare", "run"]
