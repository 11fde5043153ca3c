"""Training on real text: the loss falls, gates get even, one seed gives the same bits, parts are kept."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from trimtab.errors import TrimtabError
from trimtab.moe import store
from trimtab.moe.language_model import MoELanguageModel
from trimtab.moe.store import Parts, recall
from trimtab.moe.text import DOMAINS, Corpus, mixture_batch
from trimtab.moe.training import (
    METHODS,
    MIXTURE,
    Recipe,
    Trained,
    excess,
    held_out_figures,
    steps_until_balanced,
    train,
    unigram_loss,
)


def test_no_text_is_on_both_sides(corpus: Corpus) -> None:
    """Every file of the held-out side differs from every file of the training side, whatever the domain."""
    marks: list[set[bytes]] = []
    for side in (corpus.train, corpus.held_out):
        assert set(side) == set(DOMAINS)
        parts = [
            part.text[a:b] for part in side.values() for a, b in zip(part.edges, part.edges[1:], strict=False)
        ]
        marks.append({hashlib.blake2b(part.tobytes()).digest() for part in parts})
    assert not marks[0] & marks[1]


def test_the_text_is_what_it_says(corpus: Corpus) -> None:
    code = bytes(corpus.train["code"].text).decode()
    prose = bytes(corpus.train["prose"].text).decode()
    assert code.count("def ") > 20 * max(1, prose.count("\ndef "))
    assert ">>> " not in prose
    assert b"#include" in bytes(corpus.train["c"].text)


def test_a_mixture_has_its_shares(corpus: Corpus) -> None:
    text, labels = mixture_batch(corpus.train, MIXTURE, 4000, 9, np.random.default_rng(0))
    assert text.shape == (4000, 9)
    for name, share in MIXTURE.items():
        assert labels.count(name) / 4000 == pytest.approx(share, abs=0.03)


def test_training_leaves_the_unigram_level(trained: Trained, corpus: Corpus, recipe: Recipe) -> None:
    assert trained.losses[:5].mean() > 4.0
    assert held_out_figures(trained.model, corpus, recipe, 4)["loss"] < unigram_loss(corpus, MIXTURE) - 0.2


def test_the_quantile_law_evens_the_gates(trained: Trained, corpus: Corpus, recipe: Recipe) -> None:
    left_alone = train(replace(recipe, method="none"), corpus)
    even, uneven = excess(trained.loads[-20:]), excess(left_alone.loads[-20:])
    assert even["excess_global"] < 0.5 * uneven["excess_global"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method: str, corpus: Corpus, recipe: Recipe) -> None:
    done = train(replace(recipe, method=method, strength=None, steps=12), corpus)
    assert done.losses[-1] < done.losses[0]
    moved = done.model.biases().abs().sum() > 0
    assert moved == (method in ("sign", "proportional", "quantile"))


def test_same_seed_same_bits(corpus: Corpus, recipe: Recipe) -> None:
    short = replace(recipe, steps=6)
    first, second, other = train(short, corpus), train(short, corpus), train(replace(short, seed=1), corpus)
    assert np.array_equal(first.losses, second.losses) and not np.array_equal(first.losses, other.losses)
    for one, two in zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_the_loss_of_a_sequence_does_not_depend_on_the_batch(trained: Trained, corpus: Corpus) -> None:
    text = torch.from_numpy(corpus.held_out["prose"].text[: 6 * 64].reshape(6, 64).astype(np.int64))
    with torch.no_grad():
        together, alone = trained.model(text).logits, trained.model(text[2:3]).logits
    torch.testing.assert_close(together[2:3], alone, rtol=1e-4, atol=1e-4)


def test_a_model_is_trained_once(tmp_path: Path, corpus: Corpus, recipe: Recipe) -> None:
    short = replace(recipe, steps=4)
    told: list[int] = []
    first = recall(short, corpus, tmp_path, lambda step, loss: told.append(step))
    again = recall(short, corpus, tmp_path, lambda step, loss: told.append(step))
    assert told == [0, 1, 2, 3]
    assert np.array_equal(first.loads, again.loads)
    assert torch.equal(first.model.biases(), again.model.biases())
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:1000])  # cut short
    assert np.array_equal(recall(short, corpus, tmp_path).losses, first.losses)
    assert store.key(short, corpus) != store.key(replace(short, seed=1), corpus)


def test_parts_are_whole_or_not_there(tmp_path: Path) -> None:
    parts = Parts(tmp_path, "abc")
    assert parts.load("window 1000") is None
    parts.save("window 1000", {"losses": np.arange(3.0)})
    found = parts.load("window 1000")
    assert found is not None and found["losses"].tolist() == [0, 1, 2]
    parts.path("window 1000").write_bytes(b"PK\3\4 cut")
    assert parts.load("window 1000") is None
    assert Parts(tmp_path, "other").load("window 1000") is None


def test_steps_until_balanced() -> None:
    """200 uneven batches, then even ones: a window of 20 must have left them, and 20 more must agree."""
    loads = np.tile(np.array([3.0, 1.0, 0.0, 0.0]) * 1000, (200, 1, 1))
    even = np.full((100, 1, 4), 1000.0)
    found = steps_until_balanced(np.concatenate([loads, even]))
    assert 200 < found <= 221
    assert steps_until_balanced(loads) == -1


def test_bad_input_is_one_line(corpus: Corpus, recipe: Recipe) -> None:
    with pytest.raises(TrimtabError, match="auxiliary"):
        train(replace(recipe, method="auxilary"), corpus)
    with pytest.raises(TrimtabError, match="multiple of heads"):
        MoELanguageModel(replace(recipe.shape, heads=5))
    with pytest.raises(TrimtabError, match="at most 64 tokens"):
        MoELanguageModel(recipe.shape)(torch.zeros(1, 65, dtype=torch.int64))
    with pytest.raises(TrimtabError, match="biases for 1 gates"):
        MoELanguageModel(recipe.shape).set_biases(np.zeros((2, 8)))


def test_biases_are_moved_in_training_and_trained_without_it(corpus: Corpus, recipe: Recipe) -> None:
    """Without a law the biases end at exactly zero, though every batch was served with others."""
    still = train(replace(recipe, method="none", steps=4), corpus)
    moved = train(replace(recipe, method="none", steps=4, jitter=0.3), corpus)
    assert not still.model.biases().any() and not moved.model.biases().any()
    assert (still.loads[0] != moved.loads[0]).any()  # the same weights and text, other choices
    assert (moved.losses != still.losses).all()
    again = train(replace(recipe, method="none", steps=4, jitter=0.3), corpus)
    np.testing.assert_array_equal(moved.losses, again.losses)
    balanced = train(replace(recipe, steps=4, jitter=0.3), corpus).model.biases().numpy()
    assert np.abs(balanced.mean(axis=-1)).max() < 1e-6  # the law's, which are centred; noise is not
