"""A run on disk: tables, figures, trace, plots and a page to look at, written whole or not at all."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from trimtab.engine import dtypes
from trimtab.engine.dtypes import ITL_BINS, Status
from trimtab.errors import TrimtabError
from trimtab.report.atomic import replacing
from trimtab.report.classes import class_rows
from trimtab.report.metrics import itl_centres_ms, replica_rows, summarize
from trimtab.result import REQUEST_COLUMNS, Group, Result
from trimtab.scenario import Scenario, parse

if TYPE_CHECKING:
    from trimtab.plan.regret import Decision

FORMAT = 1
MARKER = "summary.json"
WORDS = tuple(status.name.lower() for status in Status)


def save(
    result: Result,
    directory: str | Path,
    *,
    summary: dict[str, float] | None = None,
    plots: bool = True,
    trace: bool = True,
    decisions: Sequence[Decision] = (),
) -> Path:
    """Write a run folder; an earlier run folder at ``directory`` is replaced in one step.

    ``summary`` saves computing it again; ``plots`` and ``trace`` can be left out for speed. ``decisions``
    are the run's routing decisions that were judged (see ``plan.regret``).

    Raises
    ------
    TrimtabError
        where ``directory`` is something else than an earlier run folder, or cannot be written.
    """
    from trimtab.report.html import run_page

    summary = summarize(result) if summary is None else summary
    with replacing(directory, MARKER) as draft:
        (draft / "scenario.yaml").write_text(scenario_yaml(result.scenario))
        write_json(draft / MARKER, summary)
        write_json(draft / "run.json", _facts(result))
        _write_tables(result, draft)
        _write_csv(draft / "replicas.csv", replica_rows(result))
        if result.scenario.classes:
            _write_csv(draft / "classes.csv", class_rows(result))
        if trace:
            from trimtab.report.trace import write_trace

            write_trace(result, draft / "trace.json")
        if plots:
            from trimtab.report.plots import write_plots

            write_plots(result, draft / "plots")
        if decisions:
            from trimtab.report.regret import write_decisions

            write_decisions(decisions, draft)
        (draft / "index.html").write_text(run_page(result, summary, decisions), encoding="utf-8")
    return Path(directory)


def load(directory: str | Path) -> Result:
    """Read a run folder back; the engine's working fields, which no report reads, are zero.

    Raises
    ------
    TrimtabError
        where the folder or one of its files is missing or is not what ``save`` wrote.
    """
    folder = Path(directory)
    if not (folder / MARKER).is_file():
        raise TrimtabError(f"{folder} is not a run folder: it holds no {MARKER}")
    facts = _read_facts(folder)
    itl = np.zeros(ITL_BINS, np.int64)
    bins = _read(folder, "itl", ("bin", "tokens"))
    itl[bins["bin"]] = bins["tokens"]
    samples = _read(folder, "samples", ("time", *(dtypes.SAMPLE.names or ())))
    replicas = _structured(_read(folder, "replicas", dtypes.REPLICA.names or ()), dtypes.REPLICA)
    requests = _read(folder, "requests", REQUEST_COLUMNS)
    requests["status"] = np.array([WORDS.index(word) for word in requests["status"].tolist()], dtype=np.int8)
    scenario = _read_scenario(folder)
    return Result(
        scenario=scenario,
        provenance=facts["provenance"],
        groups=tuple(Group(**group) for group in facts["groups"]),
        requests=_structured(requests, dtypes.REQUEST),
        replicas=replicas,
        iterations=_structured(_read(folder, "iterations", dtypes.ITERATION.names or ()), dtypes.ITERATION),
        sample_times=samples["time"][:: max(len(replicas), 1)].astype(np.float64),
        samples=_structured(samples, dtypes.SAMPLE).reshape(-1, max(len(replicas), 1)),
        itl_counts=itl,
        cpu_seconds=float(facts["cpu_seconds"]),
        scalings=_read_scalings(folder, scenario),
    )


def scenario_yaml(scenario: Scenario) -> str:
    """The scenario as YAML, with only what differs from the defaults."""
    data = scenario.model_dump(mode="json", exclude_defaults=True)
    data["workload"] = scenario.workload.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump({"name": scenario.name, **data}, sort_keys=False)


def write_json(path: Path, data: Any) -> None:
    """Write JSON that every reader takes: NaN and infinities become null."""
    path.write_text(json.dumps(plain(data), indent=1, allow_nan=False) + "\n")


def plain(data: Any) -> Any:
    """``data`` with NumPy values as Python's and what JSON cannot say as None."""
    if isinstance(data, dict):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain(value) for value in data]
    if isinstance(data, np.ndarray):
        return plain(data.tolist())
    if isinstance(data, np.generic):
        return plain(data.item())
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data if isinstance(data, (str, int, float, bool, type(None))) else str(data)


def _facts(result: Result) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "provenance": result.provenance,
        "groups": [dataclasses.asdict(group) for group in result.groups],
        "cpu_seconds": result.cpu_seconds,
    }


def _write_tables(result: Result, folder: Path) -> None:
    requests = {name: result.requests[name] for name in REQUEST_COLUMNS}
    _write(folder, "requests", requests | _request_extras(result), words={"status": WORDS})
    _write(folder, "iterations", _columns(result.iterations))
    _write(folder, "replicas", _columns(result.replicas))
    if result.autoscaled:
        _write(folder, "scalings", _columns(result.scalings))
    replicas = len(result.replicas)
    samples = {
        "time": np.repeat(result.sample_times, replicas),
        "replica": np.tile(np.arange(replicas), len(result.sample_times)),
    }
    _write(folder, "samples", samples | _columns(result.samples.reshape(-1)))
    used = np.flatnonzero(result.itl_counts)
    middle = itl_centres_ms()[used]
    _write(folder, "itl", {"bin": used, "middle_ms": middle, "tokens": result.itl_counts[used]})


def _request_extras(result: Result) -> dict[str, NDArray[Any]]:
    """Latencies that readers of the table would compute first; NaN where a request did not finish."""
    table = result.requests
    done = table["status"] == Status.FINISHED

    def known(values: NDArray[Any], where: NDArray[np.bool_]) -> NDArray[Any]:
        return np.where(where, values, np.nan)

    with np.errstate(invalid="ignore"):
        gaps = np.maximum(table["decode_tokens"] - 1, 1)
        decoding = table["finished"] - table["first_token"]
        return {
            "ttft_ms": known(1e3 * (table["first_token"] - table["arrival"]), done),
            "tpot_ms": known(1e3 * decoding / gaps, done & (table["decode_tokens"] > 1)),
            "e2el_ms": known(1e3 * (table["finished"] - table["arrival"]), done),
        }


def _columns(table: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {name: table[name] for name in table.dtype.names or ()}


def _write(
    folder: Path,
    name: str,
    columns: dict[str, NDArray[Any]],
    words: dict[str, tuple[str, ...]] | None = None,
) -> None:
    import pyarrow
    import pyarrow.parquet

    arrays: dict[str, Any] = {}
    for column, values in columns.items():
        array = pyarrow.array(np.ascontiguousarray(values))
        if words and column in words:
            array = pyarrow.DictionaryArray.from_arrays(array, list(words[column]))
        arrays[column] = array
    path = folder / f"{name}.parquet"
    pyarrow.parquet.write_table(pyarrow.table(arrays), path, compression="zstd", use_dictionary=["status"])


def _read(folder: Path, name: str, columns: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    import pyarrow
    import pyarrow.parquet

    path = folder / f"{name}.parquet"
    try:
        table = pyarrow.parquet.read_table(path, columns=list(columns))
    except OSError as error:
        raise TrimtabError(f"cannot read {path}: {error.strerror or 'not there'}") from None
    except pyarrow.ArrowInvalid:
        raise TrimtabError(f"{path} is not a Parquet file; was the run folder changed?") from None
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise TrimtabError(f"{path} lacks the column {missing[0]!r}; was it written by another version?")
    return {column: table[column].to_numpy() for column in columns}


def _structured(columns: dict[str, NDArray[Any]], dtype: np.dtype[Any]) -> NDArray[Any]:
    length = len(next(iter(columns.values())))
    table = np.zeros(length, dtype)
    for name in dtype.names or ():
        if name in columns:
            table[name] = columns[name]
    return table


def _read_facts(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    try:
        facts: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        raise TrimtabError(f"cannot read {path}: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise TrimtabError(f"{path} is not JSON at line {error.lineno}, column {error.colno}") from None
    if facts.get("format") != FORMAT:
        given = facts.get("format")
        raise TrimtabError(f"{path}: format {given!r} is not known; this version reads {FORMAT}")
    return facts


def _read_scenario(folder: Path) -> Scenario:
    path = folder / "scenario.yaml"
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise TrimtabError(f"cannot read {path}: {error.strerror}") from None
    except yaml.YAMLError:
        raise TrimtabError(f"{path} is not valid YAML") from None
    scenario: Scenario = parse(Scenario, data, str(path))
    return scenario


def _read_scalings(folder: Path, scenario: Scenario) -> NDArray[Any]:
    if not any(group.autoscale for group in scenario.replicas):
        return np.zeros(0, dtypes.SCALING)
    return _structured(_read(folder, "scalings", dtypes.SCALING.names or ()), dtypes.SCALING)


def _write_csv(path: Path, columns: dict[str, Any]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))
