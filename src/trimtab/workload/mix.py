"""Fitted mixes: the joint law of prompt and output lengths of a real trace, in a few kilobytes.

A law of whole numbers is kept as a broken line through its cumulative distribution, in which the
count v fills [v - 1/2, v + 1/2). A repeated length is then simply a steep piece of the line, so spikes
need no special case. The prompt has one line; the output has one per range of prompt lengths.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import TrimtabError, unknown

BUNDLED = Path(__file__).parent.parent / "data" / "workloads"
FORMAT = "trimtab-mix-1"
UNIT = 100_000  # cumulative shares are stored as whole numbers of 1/UNIT


@dataclass(frozen=True)
class Line:
    """A broken line through a cumulative distribution of whole numbers.

    ``at`` (K,) whole numbers v that stand for the abscissa v + 1/2, increasing; ``cumulative`` (K,)
    shares of UNIT not above it, from 0 to UNIT.
    """

    at: NDArray[np.int64]
    cumulative: NDArray[np.int64]

    def __post_init__(self) -> None:
        if len(self.at) < 2 or len(self.at) != len(self.cumulative):
            raise TrimtabError(
                f"a cumulative line has {len(self.at)} and {len(self.cumulative)} points; wanted 2+"
            )
        if np.any(np.diff(self.at) <= 0) or np.any(np.diff(self.cumulative) < 0) or self.at[0] < 0:
            raise TrimtabError("a cumulative line must start at 0 or above and never fall")
        if self.cumulative[0] != 0 or self.cumulative[-1] != UNIT:
            raise TrimtabError(f"a cumulative line must go from 0 to {UNIT}")

    def mean(self) -> float:
        """Tokens; exact for the numbers that ``Mix.sample`` draws."""
        middle = (self.at[1:] + self.at[:-1]) / 2 + 0.5
        return float(np.diff(self.cumulative) @ middle / UNIT)


@dataclass(frozen=True)
class ArrivalFacts:
    """What the trace's own arrivals were like (information; a mix draws lengths only)."""

    duration_s: float
    rate_per_s: float
    gap_cv: float  # coefficient of variation of the gaps; 1 = Poisson
    dispersion_60s: float  # variance / mean of the counts per minute; 1 = Poisson


@dataclass(frozen=True)
class Mix:
    """Joint law of (prompt, output) tokens.

    ``up_to`` (B,) the largest prompt of each range, increasing, the last at least the largest prompt;
    ``output`` B lines.
    """

    name: str
    source: str
    requests: int
    prefill: Line
    up_to: NDArray[np.int64]
    output: tuple[Line, ...]
    arrivals: ArrivalFacts | None = None

    def sample(self, rng: np.random.Generator, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """``count`` pairs (prompt, output) in tokens; row i depends on the rng's first i rows only."""
        uniforms = rng.random((count, 2))
        prefill = _inverse(uniforms[:, 0] * UNIT, self.prefill.cumulative, self.prefill.at)
        # one search for all ranges: the line of range b is laid over [b, b + 1) * UNIT
        ranges = np.searchsorted(self.up_to[:-1], prefill)
        cumulative = np.concatenate([line.cumulative + b * UNIT for b, line in enumerate(self.output)])
        at = np.concatenate([line.at for line in self.output])
        decode = _inverse((ranges + uniforms[:, 1] * (1 - 1e-9)) * UNIT, cumulative, at)
        return np.maximum(prefill, 1), np.maximum(decode, 1)

    def save(self, path: Path) -> None:
        """Write JSON; see docs/reference/traces.md for the keys."""
        data: dict[str, Any] = {
            "format": FORMAT,
            "name": self.name,
            "source": self.source,
            "requests": self.requests,
            "arrivals": None if self.arrivals is None else asdict(self.arrivals),
            "prefill": _as_lists(self.prefill),
            "output": [
                {"up_to": int(v), **_as_lists(line)} for v, line in zip(self.up_to, self.output, strict=True)
            ],
        }
        path.write_text(_one_line_per_range(data))


def bundled_mixes() -> list[str]:
    """Names of the mixes that ship with the package."""
    return sorted(path.stem for path in BUNDLED.glob("*.json"))


def load_mix(name: str, base_dir: Path | None = None) -> Mix:
    """A bundled mix by name, or a ``.json`` file written by ``trimtab workload fit``.

    Raises
    ------
    TrimtabError
        for an unknown name and for a file that is not a mix.
    """
    if Path(name).suffix == ".json":
        path = Path(base_dir, name) if base_dir is not None else Path(name)
    else:
        path = BUNDLED / f"{name}.json"
        if not path.is_file():
            raise unknown("fitted mix", name, [*bundled_mixes(), "or a .json file"])
    try:
        return _read(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise TrimtabError(f"cannot read mix {str(path)!r}: {error.strerror}") from None


@lru_cache(maxsize=8)
def _read(path: Path, _mtime: int) -> Mix:
    """Many runs in one process draw from the same mix; the file is read once."""
    try:
        data = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise TrimtabError(f"{path} is not valid JSON") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise TrimtabError(
            f"{path} is not a fitted mix; `trimtab workload fit TRACE --out FILE.json` makes one"
        )
    try:
        return _from_json(data)
    except (KeyError, TypeError, ValueError) as error:
        raise TrimtabError(f"{path} is a damaged mix: {error}") from None


def _from_json(data: dict[str, Any]) -> Mix:
    up_to = np.array([part["up_to"] for part in data["output"]], np.int64)
    if len(up_to) == 0 or np.any(np.diff(up_to) <= 0):
        raise ValueError("'up_to' must increase")
    facts = data["arrivals"]
    return Mix(
        name=str(data["name"]),
        source=str(data["source"]),
        requests=int(data["requests"]),
        prefill=_from_lists(data["prefill"]),
        up_to=up_to,
        output=tuple(_from_lists(part) for part in data["output"]),
        arrivals=None if facts is None else ArrivalFacts(**{key: float(facts[key]) for key in facts}),
    )


def _inverse(
    level: NDArray[np.float64], cumulative: NDArray[np.int64], at: NDArray[np.int64]
) -> NDArray[np.int64]:
    # at stands for at + 1/2, and v owns [v - 1/2, v + 1/2): rounding up undoes both halves
    return np.ceil(np.interp(level, cumulative, at)).astype(np.int64)


def _as_lists(line: Line) -> dict[str, list[int]]:
    return {"at": line.at.tolist(), "cumulative": line.cumulative.tolist()}


def _from_lists(part: dict[str, Any]) -> Line:
    return Line(np.array(part["at"], np.int64), np.array(part["cumulative"], np.int64))


def _one_line_per_range(data: dict[str, Any]) -> str:
    """JSON that a person can page through and a diff can show."""
    compact = {key: json.dumps(value, separators=(",", ":")) for key, value in data.items()}
    ranges = ",\n  ".join(json.dumps(part, separators=(",", ":")) for part in data["output"])
    compact["output"] = f"[\n  {ranges}\n ]"
    return "{\n " + ",\n ".join(f'"{key}": {value}' for key, value in compact.items()) + "\n}\n"
