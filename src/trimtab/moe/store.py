"""Trained models on disk by what made them, so that a study which was interrupted goes on where it was."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import from_numpy

from trimtab import balance
from trimtab.moe import gate, language_model, losses, training
from trimtab.moe.language_model import MoELanguageModel
from trimtab.moe.text import Corpus
from trimtab.moe.training import Recipe, Trained, train

MAKERS = (
    gate,
    language_model,
    losses,
    training,
    balance.laws,
    balance.limits,
    balance.quantile,
    balance.prices,
)
HISTORY = ("losses", "loads")


def recall(
    recipe: Recipe, corpus: Corpus, folder: str | Path, told: Callable[[int, float], None] | None = None
) -> Trained:
    """What `train` gives, from ``folder`` where it is there, else trained and put there, whole or not at all.

    The name is a hash of the recipe, of the text and of the source of whatever takes part: a stored model
    is never one that today's code would not have made.
    """
    path = Path(folder) / f"{recipe.method}-{recipe.seed}-{key(recipe, corpus)}.safetensors"
    if path.is_file():
        try:
            stored = load_file(path)
        except (SafetensorError, OSError):
            stored = {}  # cut short or foreign: made again
        if set(HISTORY) <= set(stored):
            history = [stored.pop(name).numpy() for name in HISTORY]
            model = MoELanguageModel(recipe.shape, recipe.seed)
            model.load_state_dict(stored)
            return Trained(model.eval(), *history)
    trained = train(recipe, corpus, told)
    tensors = {name: tensor.contiguous() for name, tensor in trained.model.state_dict().items()}
    tensors |= {name: from_numpy(getattr(trained, name)) for name in HISTORY}
    with whole_file(path) as draft:
        save_file(tensors, draft, {"recipe": json.dumps(recipe.as_dict())})
    return trained


@dataclass(frozen=True)
class Parts:
    """Finished parts of a study in ``folder``: tables of arrays, each by its name and the study's ``key``."""

    folder: Path
    key: str

    def load(self, name: str) -> dict[str, Any] | None:
        """The part of this name; None where it is not there or was cut short."""
        try:
            with np.load(self.path(name)) as stored:
                return dict(stored)
        except (OSError, ValueError, zipfile.BadZipFile):
            return None

    def save(self, name: str, part: dict[str, Any]) -> None:
        """Keep a part, whole or not at all."""
        with whole_file(self.path(name)) as draft, open(draft, "wb") as file:
            np.savez(file, **part)

    def path(self, name: str) -> Path:
        """Where a part is kept."""
        return self.folder / f"{re.sub(r'[^a-z0-9.]+', '-', name)}-{self.key}.npz"


@contextmanager
def whole_file(path: Path) -> Iterator[str]:
    """A name to write to, which becomes ``path`` if nothing fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    try:
        yield draft
        os.chmod(draft, 0o644)  # mkstemp makes it private
        os.replace(draft, path)
    finally:
        Path(draft).unlink(missing_ok=True)


def key(recipe: Recipe, corpus: Corpus) -> str:
    """12 hexadecimal digits that stand for a recipe, its text and the code that trains."""
    return digest(json.dumps(recipe.as_dict(), sort_keys=True), corpus.digest(), *map(source, MAKERS))


def digest(*parts: str) -> str:
    """12 hexadecimal digits that stand for all of these."""
    found = hashlib.blake2b(digest_size=6)
    for part in parts:
        found.update(part.encode() + b"\0")
    return found.hexdigest()


def source(module: Any) -> str:
    """What a module says, without its comments and layout."""
    return ast.dump(ast.parse(Path(module.__file__).read_text(encoding="utf-8")))
