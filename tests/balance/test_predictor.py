"""Classifier, detector and predictor: on real text, split by file, and at the first batch of a switch."""

from __future__ import annotations

import argparse
import ast
import configparser
import csv
import dataclasses
import email.parser
import inspect
import json.decoder
import pydoc_data.topics
import textwrap
import tokenize
import typing
from types import ModuleType

import numpy as np
import pytest

from trimtab.balance import DomainDetector, LoadPredictor, TaskTypeClassifier
from trimtab.errors import TrimtabError

LEARNED: tuple[ModuleType, ...] = (argparse, ast, configparser, csv, dataclasses, textwrap, typing)
HELD_OUT: tuple[ModuleType, ...] = (tokenize, json.decoder, email.parser)


def pieces(text: str, size: int = 2000) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text) - size, size)]


def prose() -> list[str]:
    """Python's language reference, whole topics in order of their names."""
    topics = pydoc_data.topics.topics
    return [piece for name in sorted(topics) for piece in pieces(topics[name])]


def code(modules: tuple[ModuleType, ...]) -> list[str]:
    return [piece for module in modules for piece in pieces(inspect.getsource(module))]


def trained() -> TaskTypeClassifier:
    classifier = TaskTypeClassifier(["code", "prose"])
    for piece in code(LEARNED):
        classifier.update(piece, "code")
    for piece in prose()[:100]:
        classifier.update(piece, "prose")
    return classifier


def test_real_text_of_files_not_seen() -> None:
    """Prose about Python against Python: 2,000 characters are enough nine times in ten."""
    classifier = trained()
    held = code(HELD_OUT)
    assert np.mean([classifier(piece) == "code" for piece in held]) > 0.9
    assert np.mean([classifier(piece) == "prose" for piece in prose()[-50:]]) > 0.9


def test_inputs_of_every_kind() -> None:
    classifier = TaskTypeClassifier(["a", "b"])
    classifier.update(np.array([[1, 2], [3, 4]]), "a")
    classifier.update([7, 8, 9], "b")
    assert classifier([1, 2, 3]) == "a"
    assert classifier(np.array([8, 9], dtype=np.int32)) == "b"
    assert classifier(b"\x01\x02\x03") == "a"
    assert classifier([[7, 8], [8, 9]]) == "b"
    assert sum(classifier.probabilities([7]).values()) == pytest.approx(1.0)
    torch = pytest.importorskip("torch")
    assert classifier(torch.tensor([1, 2, 3])) == "a"


def test_the_detector_has_inertia() -> None:
    classifier = TaskTypeClassifier(["a", "b"])
    classifier.update([1, 1, 1], "a")
    classifier.update([2, 2, 2], "b")
    detector = DomainDetector(classifier, patience=2)
    seen = [detector.detect([token]) for token in (1, 2, 1, 2, 2, 1)]
    assert seen == ["a", "a", "a", "a", "b", "b"]


def stream(seed: int, batches: int) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(type, tokens, load): two vocabularies that overlap, two load patterns, random switches."""
    generator = np.random.default_rng(seed)
    shares = {"a": generator.dirichlet(np.full(16, 0.5)), "b": generator.dirichlet(np.full(16, 0.5))}
    kind, found = "a", []
    for _ in range(batches):
        if generator.random() < 0.2:
            kind = "b" if kind == "a" else "a"
        tokens = generator.integers(0, 60, 100) + (40 if kind == "b" else 0)
        found.append((kind, tokens, generator.multinomial(2048, shares[kind])))
    return found


def test_it_knows_at_the_first_batch_of_a_switch() -> None:
    """L1 error of predicted shares, against the last batch's load and the mean so far."""
    predictor = LoadPredictor(["a", "b"], 16)
    errors: dict[str, list[float]] = {"predictor": [], "last": [], "mean": []}
    last, summed, before = np.zeros(16), np.zeros(16), ""
    for i, (kind, tokens, load) in enumerate(stream(0, 300)):
        share = load / load.sum()
        if i > 50 and kind != before:
            guesses = {"predictor": predictor.predict_load(tokens), "last": last, "mean": summed / i}
            for name, guess in guesses.items():
                errors[name].append(float(np.abs(guess - share).sum()))
        predictor.update(tokens, load, kind if i < 20 else None)  # labels at the beginning only
        last, summed, before = share, summed + share, kind
    assert len(errors["last"]) > 20
    assert np.mean(errors["predictor"]) < 0.2 * np.mean(errors["last"])
    assert np.mean(errors["predictor"]) < 0.3 * np.mean(errors["mean"])


def test_the_first_batches_are_averaged_exactly() -> None:
    predictor = LoadPredictor(["a"], (2, 3), rate=0.1)
    loads = np.random.default_rng(1).integers(1, 9, (5, 2, 3))
    for load in loads:
        predictor.update([1], load, "a")
    shares = loads / loads.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(predictor.predict_load([1]), shares.mean(axis=0))


def test_bad_input_changes_nothing() -> None:
    predictor = LoadPredictor(["code", "prose"], 4)
    before = repr(predictor.state_dict())
    for tokens, load, kind, says in (
        ([1], [1, 2, 3, 4], "cod", "Did you mean 'code'"),
        ([1], [1, 2, 3], "code", "shape"),
        ([], [1, 2, 3, 4], "code", "text or token ids"),
        ([-1], [1, 2, 3, 4], "code", "text or token ids"),
        ([1], [1, 2, 3, 4], None, "learned nothing yet"),
        ([1], [0, 0, 0, 0], "code", "all zero"),
    ):
        with pytest.raises(TrimtabError, match=says):
            predictor.update(tokens, load, kind)
    assert repr(predictor.state_dict()) == before
    with pytest.raises(TrimtabError, match="different task types"):
        TaskTypeClassifier(["a", "a"])
    with pytest.raises(TrimtabError, match="patience"):
        DomainDetector(TaskTypeClassifier(["a"]), patience=0)
    with pytest.raises(TrimtabError, match="experts must be above 0"):
        LoadPredictor(["a"], 0)
