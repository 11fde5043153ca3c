"""A calibration: what one kind of device reaches of its peaks, as measured; a JSON file of some 50 KB.

``efficiency`` replaces constants of data/hardware/efficiency.yaml, ``surfaces`` holds the residual of
each group of operators (see curves.py), ``errors`` what was found on held-out shapes when it was fitted.
The package ships one per profiled entry of efficiency.yaml, under data/calibrations.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.errors import TrimtabError
from trimtab.exectime.curves import Surface

FOLDER = Path(__file__).parent.parent / "data" / "calibrations"
FORMAT = 1
RESOLUTION = 1e-3  # residuals are kept in tenths of a per cent


@dataclass(frozen=True)
class Calibration:
    """See the module's docstring. ``node`` is where collectives were measured, ``models`` what was."""

    device: str
    source: str = ""
    node: str = ""
    models: tuple[str, ...] = ()
    efficiency: dict[str, float] = field(default_factory=dict)
    surfaces: dict[str, Surface] = field(default_factory=dict)
    errors: dict[str, Any] = field(default_factory=dict)
    digest: str = ""  # of the file


def shipped_calibrations() -> list[str]:
    """Entries of efficiency.yaml that come with a calibration."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


@lru_cache(maxsize=16)
def shipped(efficiency: str) -> Calibration | None:
    """The calibration that ships for an entry of efficiency.yaml, if there is one."""
    path = FOLDER / f"{efficiency}.json"
    return load_calibration(path) if path.is_file() else None


def load_calibration(path: Path) -> Calibration:
    """Raises TrimtabError for a file that cannot be read or is no calibration."""
    try:
        text = path.read_bytes()
        data = json.loads(text.decode("utf-8"))
        if data["format"] != FORMAT:
            raise TrimtabError(f"{path}: calibration of format {data['format']}, this version reads {FORMAT}")
        surfaces = {name: _surface(entry) for name, entry in data["surfaces"].items()}
        words = {key: data[key] for key in ("device", "source", "node", "efficiency", "errors")}
    except OSError as error:
        raise TrimtabError(f"cannot read calibration {str(path)!r}: {error.strerror}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise TrimtabError(
            f"{path} is not a calibration; make one with: trimtab calibrate PROFILE ({type(error).__name__})"
        ) from None
    digest = hashlib.sha256(text).hexdigest()[:16]
    return Calibration(models=tuple(data.get("models", ())), surfaces=surfaces, digest=digest, **words)


def save_calibration(calibration: Calibration, path: Path) -> int:
    """Write it; returns the bytes."""
    surfaces = {
        name: {
            "predictor": surface.predictor,
            "keys": [[_short(size) for size in key] for key in surface.keys],
            "knots": [[_short(knot) for knot in axis] for axis in surface.knots],
            "residual": np.rint(surface.residual / RESOLUTION).astype(int).tolist(),
        }
        for name, surface in calibration.surfaces.items()
    }
    content = {
        "format": FORMAT,
        "device": calibration.device,
        "source": calibration.source,
        "node": calibration.node,
        "models": list(calibration.models),
        "efficiency": {name: _short(value, 5) for name, value in calibration.efficiency.items()},
        "errors": calibration.errors,
        "surfaces": surfaces,
    }
    # One line per part: differences between two calibrations can be read.
    text = json.dumps(content, separators=(",", ":")).replace("},", "},\n") + "\n"
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise TrimtabError(f"cannot write {str(path)!r}: {error.strerror}") from None
    return len(text)


def _short(value: float, digits: int = 7) -> float | int:
    short = float(f"{value:.{digits}g}")
    return int(short) if short == int(short) else short


def _surface(entry: dict[str, Any]) -> Surface:
    return Surface(
        keys=np.array(entry["keys"], dtype=np.float64),
        knots=tuple(np.array(axis, dtype=np.float64) for axis in entry["knots"]),
        residual=np.array(entry["residual"], dtype=np.float64) * RESOLUTION,
        predictor=entry["predictor"],
    )
