"""Load balancing for the whole LLM stack: simulated, then learned, then deployed.

>>> import trimtab as tt
>>> result = tt.simulate("azure-conv", router="least-outstanding")  # doctest: +SKIP

Importing this compiles nothing and loads nothing: names are fetched when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.comparison import Comparison, compare
    from trimtab.errors import TrimtabError
    from trimtab.report.metrics import summarize
    from trimtab.report.run_folder import load, save
    from trimtab.result import Result
    from trimtab.scenario import Scenario, bundled_scenarios, load_scenario
    from trimtab.simulation import simulate

__version__ = "0.1.0"

_WHERE = {
    "simulate": "trimtab.simulation",
    "compare": "trimtab.comparison",
    "Comparison": "trimtab.comparison",
    "Result": "trimtab.result",
    "Scenario": "trimtab.scenario",
    "load_scenario": "trimtab.scenario",
    "bundled_scenarios": "trimtab.scenario",
    "summarize": "trimtab.report.metrics",
    "save": "trimtab.report.run_folder",
    "load": "trimtab.report.run_folder",
    "TrimtabError": "trimtab.errors",
}

__all__ = [
    "Comparison",
    "Result",
    "Scenario",
    "TrimtabError",
    "bundled_scenarios",
    "compare",
    "load",
    "load_scenario",
    "save",
    "simulate",
    "summarize",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'trimtab' has no attribute {name!r}")
    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value  # also where a submodule of that name has just been imported
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
