"""Folders that are either there and whole, or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trimtab.errors import TrimtabError


@contextmanager
def replacing(directory: str | Path, marker: str) -> Iterator[Path]:
    """A temporary sibling to fill; on success it becomes ``directory``, on any failure it vanishes.

    An existing ``directory`` is replaced only if it is empty or holds ``marker`` (so is one of ours).

    Raises
    ------
    TrimtabError
        where ``directory`` is a file, is somebody else's folder, or cannot be written.
    """
    target = Path(os.path.abspath(directory))
    _refuse_foreign(target, marker)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise TrimtabError(f"cannot write to {target.parent}: {error.strerror}") from None
    try:
        draft.chmod(0o755)  # mkdtemp makes it private
        yield draft
        _swap(draft, target)
    except OSError as error:
        raise TrimtabError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _refuse_foreign(target: Path, marker: str) -> None:
    if not os.path.lexists(target):
        return
    if not target.is_dir() or target.is_symlink():
        raise TrimtabError(f"{target} exists and is not a folder; give another output folder")
    if any(target.iterdir()) and not (target / marker).is_file():
        raise TrimtabError(
            f"{target} exists and holds no {marker}, so it is not replaced; give another folder"
        )


def _swap(draft: Path, target: Path) -> None:
    if not target.exists():
        draft.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    target.rename(old)
    try:
        draft.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
