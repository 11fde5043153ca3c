"""The compiled cluster: the event loop that joins engine, schedulers and routers."""

from trimtab.cluster.run import Fleet, prepare, run

__all__ = ["Fleet", "prepare", "run"]
