"""Results of sweeps as a folder of Parquet files: a row per point, under the hash of what it depends on."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import trimtab
from trimtab.engine.jit import CACHE_DIRECTORY
from trimtab.errors import TrimtabError

FORMAT = 1
MARKER = "store.json"
MOST_PARTS = 32  # files; then they become one

Json = dict[str, Any]


def key_of(payload: Json) -> str:
    """Sixteen hex digits that change with the payload, the package and the compiled sources."""
    content = [FORMAT, trimtab.__version__, Path(CACHE_DIRECTORY).name, payload]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class Store:
    """Rows by key. Every file is written under another name first: it is there and whole, or not there."""

    def __init__(self, folder: str | Path):
        """Opens or makes the store.

        Raises
        ------
        TrimtabError
            for a folder that is something else, or a store of another version.
        """
        self.folder = Path(folder)
        marker = self.folder / MARKER
        if marker.is_file():
            _check_version(marker)
            return
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise TrimtabError(
                f"{self.folder} exists and holds no {MARKER}; give another folder for the store"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(marker, json.dumps({"format": FORMAT, "trimtab": trimtab.__version__}).encode())

    def parts(self) -> list[Path]:
        """The Parquet files."""
        return sorted(self.folder.glob("*.parquet"))

    def read(self, keys: Collection[str] | None = None) -> dict[str, Json]:
        """Rows by key, of ``keys`` or all; of a key that was written twice, the later file's."""
        from pyarrow import parquet

        rows: dict[str, Json] = {}
        for part in self.parts():
            table = parquet.read_table(part)
            for row in table.to_pylist():
                if keys is None or row["key"] in keys:
                    rows[row["key"]] = {name: value for name, value in row.items() if value is not None}
        return rows

    def append(self, rows: Iterable[Json]) -> None:
        """Add rows, each with its ``key``; many small files become one."""
        rows = list(rows)
        if rows:
            self._save(rows)
        if len(self.parts()) > MOST_PARTS:
            self.compact()

    def compact(self) -> None:
        """One file instead of many."""
        old = self.parts()
        self._save(list(self.read().values()))
        for part in old:
            part.unlink(missing_ok=True)

    def delete(self, keys: Collection[str]) -> int:
        """Forget rows; how many there were."""
        old, rows = self.parts(), self.read()
        kept = [row for key, row in rows.items() if key not in keys]
        if len(kept) < len(rows):
            if kept:
                self._save(kept)
            for part in old:
                part.unlink(missing_ok=True)
        return len(rows) - len(kept)

    def _save(self, rows: list[Json]) -> None:
        import pyarrow
        from pyarrow import parquet

        names = list(dict.fromkeys(name for row in rows for name in row))
        table = pyarrow.Table.from_pylist([{name: row.get(name) for name in names} for row in rows])
        sink = pyarrow.BufferOutputStream()
        parquet.write_table(table, sink)
        last = max([int(part.stem.split("-")[0]) for part in self.parts()], default=0)
        unique = hashlib.sha256("".join(row["key"] for row in rows).encode()).hexdigest()[:8]
        _write(self.folder / f"{last + 1:06d}-{unique}.parquet", sink.getvalue().to_pybytes())


def _check_version(marker: Path) -> None:
    try:
        found = json.loads(marker.read_text())
        version = found["format"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise TrimtabError(f"{marker} is damaged; delete the store or give another") from None
    if version != FORMAT:
        raise TrimtabError(
            f"{marker.parent} is a store of format {version} (trimtab {found.get('trimtab', '?')}); this"
            f" version reads format {FORMAT}: give another folder"
        )


def _write(path: Path, content: bytes) -> None:
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(draft, 0o644)
        os.replace(draft, path)
    finally:
        Path(draft).unlink(missing_ok=True)
