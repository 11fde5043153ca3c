"""CMU-MOSEI in the form of MMSA (Yu et al., ``aligned_50.pkl``, ``unaligned_50.pkl``), read safely.

A dictionary train/valid/test, each with ``text`` (n, 50, 768), ``vision`` (n, 50, 35), ``audio`` (n, 50, 74),
``regression_labels`` (n,) from -3 to 3, and more; unaligned files have longer vision and audio and their
lengths (``vision_lengths``, ``audio_lengths``). The audio holds -inf, which becomes 0.

A pickle may run any program. Only what arrays, lists and dictionaries are made of is allowed here; anything
else in the file is refused by name.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import TrimtabError
from trimtab.fusion.views import SPLITS, Views

MODALITIES = ("text", "vision", "audio")
LABELS = "regression_labels"
ALLOWED = {
    (module, name)
    for module, names in {
        "numpy": ("ndarray", "dtype"),
        "numpy.core.multiarray": ("_reconstruct", "scalar"),
        "numpy._core.multiarray": ("_reconstruct", "scalar"),
        "numpy.core.numeric": ("_frombuffer",),
        "numpy._core.numeric": ("_frombuffer",),
        "_codecs": ("encode",),
    }.items()
    for name in names
}


class ArraysOnly(pickle.Unpickler):
    """Refuses every global but those that arrays need."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise TrimtabError(f"the file wants {module}.{name}, which no array needs: not opened")


def read_mosei(path: Path) -> Views:
    """The three modalities with sentiment as a value; rows of train, valid and test one after the other.

    Raises
    ------
    TrimtabError
        for a file that is no pickle of arrays, or whose splits, shapes or labels are not as above.
    """
    found = unpickled(path)
    if not isinstance(found, dict) or not {"train", "test"} <= set(found):
        raise TrimtabError(
            f"{path} is not in the form of MMSA: a dictionary of train, valid and test is needed"
        )
    names = [name for name in SPLITS if name in found]
    labels = [labels_of(path, name, found[name]) for name in names]
    ends = np.cumsum([len(each) for each in labels]).tolist()
    split = {
        name: np.arange(end - len(each), end) for name, each, end in zip(names, labels, ends, strict=True)
    }
    views = {
        modality: np.concatenate(
            [
                view_of(path, name, found[name], modality, len(each))
                for name, each in zip(names, labels, strict=True)
            ]
        )
        for modality in MODALITIES
    }
    return Views(path.stem, views, np.concatenate(labels), "value", None, split, str(path))


def unpickled(path: Path) -> Any:
    """The contents of a pickle that holds arrays, lists, dictionaries, numbers and text."""
    try:
        return ArraysOnly(io.BytesIO(path.read_bytes())).load()
    except (pickle.UnpicklingError, EOFError, OSError, ValueError, TypeError, IndexError, KeyError,
            AttributeError, ImportError, MemoryError) as error:  # fmt: skip
        if isinstance(error, TrimtabError):
            raise TrimtabError(f"{path}: {error}") from None
        raise TrimtabError(f"{path} is no pickle file that can be read: {error}") from None


def labels_of(path: Path, name: str, part: Any) -> NDArray[np.float64]:
    """Sentiment (n,) from -3 to 3 of one split."""
    if not isinstance(part, dict) or LABELS not in part:
        raise TrimtabError(f"{path}: split {name!r} has no {LABELS!r}")
    labels = np.asarray(part[LABELS], np.float64).reshape(-1)
    if not len(labels) or not np.isfinite(labels).all() or np.abs(labels).max() > 3:
        raise TrimtabError(f"{path}: {LABELS} of {name!r} must be numbers from -3 to 3, at least one")
    return labels


def view_of(path: Path, name: str, part: Any, modality: str, samples: int) -> NDArray[np.float32]:
    """(n, time, size) of one modality: -inf becomes 0, and what lies behind a sample's length."""
    if modality not in part:
        raise TrimtabError(f"{path}: split {name!r} has no {modality!r}; there: {', '.join(map(str, part))}")
    view = np.asarray(part[modality], np.float32)
    if view.ndim != 3 or len(view) != samples:
        raise TrimtabError(
            f"{path}: {modality} of {name!r} has shape {view.shape}; ({samples}, time, size) is needed"
        )
    view = np.where(np.isneginf(view), np.float32(0), view)
    lengths = part.get(f"{modality}_lengths")
    if lengths is not None:
        ends = np.asarray(lengths, np.int64).reshape(-1)
        if len(ends) != samples or ends.min() < 0 or ends.max() > view.shape[1]:
            raise TrimtabError(
                f"{path}: {modality}_lengths of {name!r} must be {samples} numbers of steps, "
                f"at most {view.shape[1]}"
            )
        view = view * (np.arange(view.shape[1]) < ends[:, None])[..., None]
    return view
