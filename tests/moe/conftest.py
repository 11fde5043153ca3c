"""One small corpus and one briefly trained model for all tests of gates."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from trimtab.moe.language_model import Shape
from trimtab.moe.text import Corpus, load_corpus
from trimtab.moe.training import Recipe, Trained, train

SMALL = Shape(hidden=32, layers=2, heads=2, experts=8, top_k=2, expert_width=16, context=64)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order; several workers on few cores are slow besides."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    return load_corpus(0.03)


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    return Recipe(shape=SMALL, steps=100, sequences=16, learning_rate=1e-2, strength=0.5)


@pytest.fixture(scope="session")
def trained(recipe: Recipe, corpus: Corpus) -> Trained:
    return train(recipe, corpus)
