"""Several views of the same samples: the table that everything trains on, its splits, a folder of arrays."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trimtab.errors import TrimtabError

Task = Literal["classes", "value"]
SPLITS = ("train", "valid", "test")
LABELS = "labels"
FORMATS = (".npy", ".npz", ".csv")


@dataclass(frozen=True)
class Views:
    """Samples with several modalities.

    ``views``: modality -> (samples, size) or (samples, time, size) float; ``labels`` (samples,) integers
    from 0 (`classes`) or numbers (`value`: accuracy is then that of the sign). ``present``
    (samples, modalities) bool or None: all. ``split``: indices of train, valid and test where the data
    says so; else each seed draws its own halves.
    """

    name: str
    views: dict[str, NDArray[np.float32]]
    labels: NDArray[Any]
    task: Task = "classes"
    present: NDArray[np.bool_] | None = None
    split: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        check(self)

    @property
    def modalities(self) -> list[str]:
        return list(self.views)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Modality -> shape of one sample."""
        return {name: view.shape[1:] for name, view in self.views.items()}

    @property
    def outputs(self) -> int:
        return int(self.labels.max()) + 1 if self.task == "classes" else 1

    def about(self) -> dict[str, Any]:
        """What identifies it in a checkpoint."""
        return {
            "name": self.name,
            "samples": len(self.labels),
            "shapes": {k: list(v) for k, v in self.shapes.items()},
        }


class Part(NamedTuple):
    """Tensors of one part of the samples."""

    views: list[Tensor]  # each (samples, ...)
    labels: Tensor
    present: Tensor | None  # (samples, modalities) bool

    def rows(self, index: Tensor) -> Part:
        present = None if self.present is None else self.present[index]
        return Part([view[index] for view in self.views], self.labels[index], present)


def check(data: Views) -> None:
    """Raise `TrimtabError` where views, labels and splits do not belong together."""
    if len(data.views) < 2:
        raise TrimtabError(f"{data.name} has {len(data.views)} modalities; fusion needs two or more")
    samples = len(data.labels)
    if data.labels.ndim != 1 or not samples:
        raise TrimtabError(f"{data.name}: labels have shape {data.labels.shape}; (samples,) is needed")
    for name, view in data.views.items():
        if view.ndim not in (2, 3) or len(view) != samples or 0 in view.shape:
            raise TrimtabError(
                f"{data.name}: modality {name!r} has shape {view.shape}; needed is (samples, size) or "
                f"(samples, time, size) with {samples} samples"
            )
        if not np.isfinite(view).all():
            raise TrimtabError(f"{data.name}: modality {name!r} has NaN or infinite entries")
    if data.task == "classes":
        if not np.issubdtype(data.labels.dtype, np.integer) or data.labels.min() < 0:
            raise TrimtabError(f"{data.name}: class labels are integers from 0")
        if data.labels.max() == 0:
            raise TrimtabError(f"{data.name}: all labels are of one class")
    elif not np.isfinite(data.labels).all():
        raise TrimtabError(f"{data.name}: labels have NaN or infinite entries")
    used = list(data.split.values())
    if used and len(np.unique(np.concatenate(used))) != sum(map(len, used)):
        raise TrimtabError(f"{data.name}: splits share samples")


def parts(data: Views, seed: int) -> tuple[Part, Part]:
    """(train, test): the data's own split, or halves of each class by ``seed``; features standardised by
    the training part. Sequences keep their padding of zeros."""
    if data.split:
        train, test = data.split["train"], data.split["test"]
    else:
        train, test = halves(data, seed)
    views = [standardised(view, train) for view in data.views.values()]

    def part(index: NDArray[np.int64]) -> Part:
        labels = data.labels[index]
        kind = torch.int64 if data.task == "classes" else torch.float32
        present = None if data.present is None else torch.from_numpy(data.present[index])
        return Part(
            [torch.from_numpy(view[index]) for view in views], torch.as_tensor(labels, dtype=kind), present
        )

    return part(train), part(test)


def halves(data: Views, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of two halves, each class in equal parts."""
    generator = np.random.default_rng(seed)
    kinds = data.labels if data.task == "classes" else np.zeros(len(data.labels), int)
    chosen = np.zeros(len(kinds), bool)
    for kind in np.unique(kinds):
        rows = generator.permutation(np.flatnonzero(kinds == kind))
        chosen[rows[: max(1, len(rows) // 2)]] = True
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)


def standardised(view: NDArray[np.float32], train: NDArray[np.int64]) -> NDArray[np.float32]:
    """Mean 0 and deviation 1 per feature over the training samples; steps of zeros only stay zero."""
    if view.ndim == 2:
        mean, spread = view[train].mean(0), view[train].std(0)
        return np.asarray((view - mean) / np.where(spread > 0, spread, 1), np.float32)
    there = (view != 0).any(-1)
    steps = view[train][there[train]]
    mean, spread = steps.mean(0), steps.std(0)
    scaled = (view - mean) / np.where(spread > 0, spread, 1)
    return np.asarray(scaled * there[..., None], np.float32)


# --- a folder of arrays -------------------------------------------------------------------------------


def read_folder(folder: Path) -> Views:
    """One file per modality (``text.npy``, ``vision.csv``) and ``labels``; the file's name is the modality's.

    ``.npy``: (samples, size) or (samples, time, size); ``.csv``: one line per sample, a first line of names
    is allowed; ``.npz``: one array, or parts ``train``, ``valid`` and ``test`` (then in all files). Labels
    that are whole numbers are classes. ``present.npy`` (samples, modalities in alphabetical order) says
    what is there.
    """
    files = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in FORMATS}
    if LABELS not in files:
        raise TrimtabError(f"{folder} needs a file {LABELS}.npy, .npz or .csv beside one file per modality")
    found = {name: read_array(path) for name, path in files.items()}
    labels = found.pop(LABELS)
    present = found.pop("present", None)
    split: dict[str, Any] = {}
    if isinstance(labels, dict):
        split, labels, found = joined(folder, labels, found)
    mixed = [name for name, value in found.items() if isinstance(value, dict)]
    if mixed or isinstance(present, dict):
        raise TrimtabError(f"{folder}: {mixed[0] if mixed else 'present'} is split, but {LABELS} is not")
    kinds, task = classes_of(np.asarray(labels).reshape(len(labels), -1))
    views = {name: np.asarray(value, np.float32) for name, value in found.items()}
    there = None if present is None else np.asarray(present, bool)
    if there is not None and there.shape != (len(kinds), len(views)):
        raise TrimtabError(f"{folder}: present has shape {there.shape}; {(len(kinds), len(views))} is needed")
    return Views(folder.name, views, kinds, task, there, split, str(folder))


def joined(folder: Path, labels: Mapping[str, Any], found: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """(indices of each part, labels, views) with the parts one after the other."""
    names = [name for name in SPLITS if name in labels]
    if "train" not in names or "test" not in names or set(labels) - set(SPLITS):
        raise TrimtabError(
            f"{folder}: labels have parts {sorted(labels)}; train and test are needed, valid allowed"
        )
    for name, value in found.items():
        if not isinstance(value, dict) or set(value) != set(labels):
            raise TrimtabError(f"{folder}: {name} must have the parts {', '.join(names)}, as {LABELS} has")
    ends = np.cumsum([len(labels[name]) for name in names])
    split = {
        name: np.arange(end - len(labels[name]), end) for name, end in zip(names, ends.tolist(), strict=True)
    }
    views = {key: np.concatenate([value[name] for name in names]) for key, value in found.items()}
    return split, np.concatenate([labels[name] for name in names]), views


def read_array(path: Path) -> Any:
    """The array of a file, or the dictionary of its parts. Nothing is unpickled."""
    try:
        if path.suffix == ".csv":
            try:
                return np.loadtxt(path, delimiter=",", ndmin=2)
            except ValueError:
                return np.loadtxt(path, delimiter=",", ndmin=2, skiprows=1)
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise TrimtabError(f"cannot read {path}: {str(error).splitlines()[0]}") from None
    return arrays if len(arrays) > 1 else next(iter(arrays.values()))


def classes_of(labels: NDArray[Any]) -> tuple[NDArray[Any], Task]:
    """Labels (samples, 1) as class numbers from 0 where they are whole or words, else as values."""
    flat = labels[:, 0]
    if labels.shape[1] != 1:
        raise TrimtabError(f"labels have shape {labels.shape}; one per sample is needed")
    if flat.dtype.kind == "f" and not (flat == np.round(flat)).all():
        return flat.astype(np.float64), "value"
    return np.unique(flat, return_inverse=True)[1].astype(np.int64), "classes"
