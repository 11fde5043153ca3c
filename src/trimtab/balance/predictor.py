"""What kind of text is this, and which experts will it want: learned online from counts, with NumPy only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from trimtab.balance.arrays import as_load
from trimtab.balance.state import Stateful
from trimtab.errors import TrimtabError, unknown

_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads neighbouring tokens over buckets
_SMOOTHING = 0.5  # pseudo-count per bucket: unseen features are unlikely, not impossible


def features(tokens: Any, buckets: int) -> np.ndarray:
    """Counts (buckets,) of the hashed single tokens and neighbouring pairs of a text or of token ids."""
    ids = token_ids(tokens)
    pairs = ids[:-1] * np.uint64(1_000_003) + ids[1:] + np.uint64(1 << 40)
    hashed = (np.concatenate([ids, pairs]) * _MIX) >> np.uint64(40)  # uint64 wraps around, as meant
    return np.bincount((hashed % np.uint64(buckets)).astype(np.int64), minlength=buckets).astype(np.float64)


def token_ids(tokens: Any) -> np.ndarray:
    """(n,) uint64 of a string (its UTF-8 bytes), bytes, token ids of any shape, or a list of those."""
    if isinstance(tokens, str):
        tokens = tokens.encode()
    if isinstance(tokens, bytes):
        return np.frombuffer(tokens, dtype=np.uint8).astype(np.uint64)
    if isinstance(tokens, Sequence) and tokens and not isinstance(tokens[0], (int, np.integer)):
        return np.concatenate([token_ids(part) for part in tokens])
    ids = np.asarray(tokens.detach().cpu() if hasattr(tokens, "detach") else tokens)
    if ids.size == 0 or ids.dtype.kind not in "iu" or int(ids.min()) < 0:
        raise TrimtabError("input must be text or token ids of at least 0; given neither, or nothing")
    return ids.reshape(-1).astype(np.uint64)


class TaskTypeClassifier(Stateful):
    """Naive Bayes over hashed tokens and pairs: learned in one pass, one count table, no learning rate.

    Its probabilities are too sure of themselves, as those of naive Bayes are; its order is what counts.
    """

    state = ("counts", "num_batches")

    def __init__(self, task_types: Iterable[str], buckets: int = 4096) -> None:
        self.task_types = tuple(task_types)
        if not self.task_types or len(set(self.task_types)) < len(self.task_types) or buckets < 2:
            raise TrimtabError(
                "a classifier needs different task types and at least 2 buckets; "
                f"given {list(self.task_types)} and {buckets}"
            )
        self.counts = np.zeros((len(self.task_types), buckets))
        self.num_batches = np.zeros(len(self.task_types))

    def update(self, input_tokens: Any, task_type: str) -> None:
        """Learn that ``input_tokens`` (text or token ids) are of ``task_type``."""
        row, found = self.index(task_type), features(input_tokens, self.counts.shape[1])
        self.counts[row] += found
        self.num_batches[row] += 1

    def probabilities(self, input_tokens: Any) -> dict[str, float]:
        """Probability of each task type; types never seen have none. Error before anything was learned."""
        seen = self.num_batches > 0
        if not seen.any():
            raise TrimtabError("the classifier has learned nothing yet; call update(tokens, task_type)")
        smoothed = self.counts + _SMOOTHING
        logs = np.log(smoothed / smoothed.sum(axis=1, keepdims=True)) @ features(
            input_tokens, self.counts.shape[1]
        )
        logs += np.log(np.maximum(self.num_batches, 1.0))
        logs[~seen] = -np.inf
        weights = np.exp(logs - logs.max())
        return dict(zip(self.task_types, (weights / weights.sum()).tolist(), strict=True))

    def __call__(self, input_tokens: Any) -> str:
        """The most probable task type."""
        found = self.probabilities(input_tokens)
        return max(found, key=found.__getitem__)

    def index(self, task_type: str) -> int:
        if task_type not in self.task_types:
            raise unknown("task type", task_type, self.task_types)
        return self.task_types.index(task_type)


class DomainDetector(Stateful):
    """The classifier with inertia: a new domain counts once ``patience`` batches in a row say so."""

    state = ("classifier", "domain", "candidate", "streak")

    def __init__(self, classifier: TaskTypeClassifier, patience: int = 1) -> None:
        if patience < 1:
            raise TrimtabError(f"patience is a number of batches, at least 1; given {patience!r}")
        self.classifier, self.patience = classifier, patience
        self.domain: str | None = None
        self.candidate: str | None = None
        self.streak = 0

    def detect(self, input_batch: Any) -> str:
        """The domain in force after this batch of text or token ids."""
        found = self.classifier(input_batch)
        self.streak = self.streak + 1 if found == self.candidate else 1
        self.candidate = found
        if self.domain is None or self.streak >= self.patience:
            self.domain = found
        return self.domain


class LoadPredictor(Stateful):
    """Experts' shares from the input alone: the task type's row of a learned affinity matrix.

    A row is the mean of that type's shares, exponential once 1 / ``rate`` batches are in. Where a window
    of past loads lags a change of traffic, this knows at the first batch.
    """

    state = ("task_type_classifier", "expert_affinity_matrix", "num_updates")

    def __init__(
        self,
        task_types: Iterable[str],
        experts: int | tuple[int, ...],
        rate: float = 0.1,
        buckets: int = 4096,
    ) -> None:
        self.task_type_classifier = TaskTypeClassifier(task_types, buckets)
        shape = (experts,) if isinstance(experts, int) else tuple(experts)
        if not shape or min(shape) < 1 or not 0 < rate <= 1:
            raise TrimtabError(f"experts must be above 0 and rate in (0, 1]; given {experts!r} and {rate!r}")
        types = len(self.task_type_classifier.task_types)
        self.rate = rate
        self.expert_affinity_matrix = np.full((types, *shape), 1.0 / shape[-1])
        self.num_updates = np.zeros(types)

    def update(self, input_tokens: Any, load: Any, task_type: str | None = None) -> None:
        """Learn from a batch and its load (..., experts). Without a label only the matrix learns, for the
        type that the classifier takes the batch for."""
        row_shape = self.expert_affinity_matrix[0]
        xp, counts = as_load(load.detach().cpu() if hasattr(load, "detach") else load, row_shape)
        labelled = task_type is not None
        found = task_type if task_type is not None else self.task_type_classifier(input_tokens)
        row = self.task_type_classifier.index(found)
        if labelled:
            self.task_type_classifier.update(input_tokens, found)
        shares = counts / xp.sum(counts, axis=-1, keepdims=True)
        self.num_updates[row] += 1
        gain = max(1.0 / self.num_updates[row], self.rate)
        self.expert_affinity_matrix[row] += gain * (shares - self.expert_affinity_matrix[row])

    def predict_load(self, input_tokens: Any) -> np.ndarray:
        """Expected shares (..., experts) of a batch of text or token ids; rows sum to 1."""
        row = self.task_type_classifier.index(self.task_type_classifier(input_tokens))
        predicted: np.ndarray = self.expert_affinity_matrix[row].copy()
        return predicted
