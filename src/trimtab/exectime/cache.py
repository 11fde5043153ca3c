"""Arrays kept in the user's cache folder under a hash of everything that they depend on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
MOST_FILES = 64  # of one kind; the ones used longest ago go first
SOURCES = ("exectime", "hardware")


def cache_folder() -> Path:
    """``$TRIMTAB_CACHE``, or ``trimtab`` in the user's cache folder (``~/.cache``)."""
    chosen = os.environ.get("TRIMTAB_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "trimtab"


def cache_path(kind: str, parameters: Any, files: list[Path] | None = None) -> Path:
    """Where arrays that follow from ``parameters`` (JSON values) and the contents of ``files`` are kept."""
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True, default=str).encode())
    for path in files or []:
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return cache_folder() / kind / f"{digest.hexdigest()[:24]}.npz"


@lru_cache(maxsize=1)
def source_digest() -> str:
    """Changes when the code that makes tables does."""
    digest = hashlib.sha256()
    for package in SOURCES:
        for path in sorted((Path(__file__).parent.parent / package).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def load_arrays(path: Path) -> Arrays | None:
    """The cached arrays; None if absent or damaged (they are then made again)."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        os.utime(path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return arrays


def save_arrays(path: Path, arrays: Arrays) -> None:
    """Write to a temporary name and rename, so that no reader sees half a file."""
    # A cache that cannot be written only costs time.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
            try:
                np.savez(part, **arrays)  # type: ignore[arg-type]
                part.close()
                os.replace(part.name, path)
            finally:
                Path(part.name).unlink(missing_ok=True)
        kept = sorted(path.parent.glob("*.npz"), key=lambda file: file.stat().st_mtime, reverse=True)
        for old in kept[MOST_FILES:]:
            old.unlink(missing_ok=True)
