"""Questions to a store in SQL, answered by DuckDB over its Parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trimtab.errors import TrimtabError
from trimtab.plan.store import Store

COLUMNS = ("key", "status", "device", "tp", "scheduler", "router", "roles", "replicas", "load", "ttft_p90",
           "tpot_p99", "rung")  # fmt: skip


def ask(store: Store, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """(column names, rows) of ``sql``, in which the points are the table ``runs``, one row per key.

    Raises
    ------
    TrimtabError
        without duckdb, for an empty store, and for SQL that DuckDB refuses: its first line.
    """
    try:
        import duckdb
    except ImportError:
        raise TrimtabError("trimtab runs needs DuckDB: pip install 'trimtab[sql]'") from None
    parts = [str(part) for part in store.parts()]
    if not parts:
        raise TrimtabError(f"{store.folder} holds no runs yet; `trimtab search` fills it")
    with duckdb.connect() as connection:
        files = ", ".join("'" + part.replace("'", "''") + "'" for part in parts)
        try:
            connection.execute(
                f"create view runs as select * exclude (filename) from"
                f" read_parquet([{files}], union_by_name = true, filename = true)"
                f" qualify row_number() over (partition by key order by filename desc) = 1"
            )
            found = connection.execute(sql)
            return [column[0] for column in found.description or []], found.fetchall()
        except duckdb.Error as error:
            raise TrimtabError(f"SQL: {str(error).strip().splitlines()[0]}") from None


def select(where: str | None, sort: str, limit: int, columns: Sequence[str] = COLUMNS) -> str:
    """The SQL of a listing."""
    condition = f" where {where}" if where else ""
    return f"select {', '.join(columns)} from runs{condition} order by {sort} limit {limit}"


def keys_where(store: Store, where: str) -> list[str]:
    """Keys of the runs that a condition holds for."""
    return [str(row[0]) for row in ask(store, f"select key from runs where {where}")[1]]


def compare(store: Store, keys: Sequence[str]) -> list[tuple[str, list[Any]]]:
    """(column, the value of each run) of whatever differs between runs; keys may be shortened.

    Raises
    ------
    TrimtabError
        for a key that no run, or several, begin with.
    """
    rows = store.read()
    chosen = []
    for key in keys:
        fitting = [each for each in rows if each.startswith(key)]
        if len(fitting) != 1:
            raise TrimtabError(f"{len(fitting)} runs have a key that begins with {key!r}; see `trimtab runs`")
        chosen.append(rows[fitting[0]])
    names = dict.fromkeys(name for row in chosen for name in row if name != "tried")
    lines = [(name, [row.get(name) for row in chosen]) for name in names]
    return [(name, values) for name, values in lines if any(value != values[0] for value in values)]
