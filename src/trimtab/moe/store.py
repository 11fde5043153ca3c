"""Trained models on disk by what made them, so that a study which was interrupted goes on where it was."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import from_numpy

from trimtab import balance
from trimtab.moe import gate, language_model, losses, training
from trimtab.moe.language_model import MoELanguageModel
from trimtab.moe.text import Corpus
from trimtab.moe.training import Recipe, Trained, train

MAKERS = (gate, language_model, losses, training, balance.laws, balance.limits, balance.quantile)
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
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    try:
        save_file(tensors, draft, {"recipe": json.dumps(recipe.as_dict())})
        os.replace(draft, path)
    finally:
        Path(draft).unlink(missing_ok=True)
    return trained


def key(recipe: Recipe, corpus: Corpus) -> str:
    """12 hexadecimal digits that stand for a recipe, its text and the code that trains."""
    found = hashlib.blake2b(digest_size=6)
    found.update(json.dumps(recipe.as_dict(), sort_keys=True).encode())
    found.update(corpus.digest().encode())
    for module in MAKERS:
        found.update(source(module))
    return found.hexdigest()


def source(module: Any) -> bytes:
    """What a module says, without its comments and layout."""
    return ast.dump(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))).encode()
