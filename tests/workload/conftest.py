"""Where the reference data lies: TRIMTAB_SHARED, or ../shared beside the repository."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

SHARED = Path(os.environ.get("TRIMTAB_SHARED", Path(__file__).parents[2] / ".." / "shared"))


def shared_file(*parts: str) -> Path:
    path = SHARED.joinpath("data", *parts)
    if not path.is_file():
        pytest.skip(f"reference data {'/'.join(parts)} is not there; set TRIMTAB_SHARED to its folder")
    return path


@pytest.fixture
def case():
    """Requests of a reference run of Vidur as a structured array."""

    def load(name: str):
        path = shared_file("vidur", "cases", name, "requests.csv")
        return np.genfromtxt(path, delimiter=",", names=True)

    return load


@pytest.fixture
def trace_file():
    """Path of a real trace: ``trace_file("azure_conv_2023")``."""
    return lambda name: shared_file("traces", f"{name}.csv")
