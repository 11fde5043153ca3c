"""Text of a domain as batches of token ids: files in, sequences out, some held out for the check."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.errors import TrimtabError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "spiece.model")
LOOKED_AT = 8192  # bytes of a file, to tell whether it is text
HELD_OUT = 4  # every fourth sequence is for the check only


def text_files(paths: Iterable[Path]) -> list[Path]:
    """The files among ``paths``, and those below the folders among them that are text, sorted.

    Below a folder, what is hidden or binary is left out (`is_text`); a binary file that is named raises.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = [file for file in path.rglob("*") if file.is_file()]
            seen = [file for file in inside if all(part[0] != "." for part in file.relative_to(path).parts)]
            found += sorted(file for file in seen if is_text(file))
        elif not path.is_file():
            raise TrimtabError(f"--text {str(path)!r}: there is no such file or folder")
        elif not is_text(path):
            raise TrimtabError(f"--text {str(path)!r} is a binary file; give text")
        else:
            found.append(path)
    if not found:
        raise TrimtabError("there are no text files to calibrate on; give files or folders with --text")
    return found


def is_text(file: Path) -> bool:
    """Whether the beginning of a file has no zero byte, which is how git tells text from binary files."""
    with file.open("rb") as opened:
        return b"\0" not in opened.read(LOOKED_AT)


class Tokenizer:
    """The checkpoint's own tokenizer; without one, a token is a byte."""

    def __init__(self, model: Path, vocabulary: int) -> None:
        self.inner: Any = None
        if any((model / name).is_file() for name in TOKENIZER_FILES):
            from transformers import AutoTokenizer

            try:
                self.inner = AutoTokenizer.from_pretrained(str(model), local_files_only=True)
            except (OSError, ValueError, ImportError) as error:
                raise TrimtabError(f"the tokenizer of {model} does not load: {error}") from error
        elif vocabulary < 256:
            raise TrimtabError(
                f"{model} has no tokenizer, and its vocabulary of {vocabulary} is too small for bytes (256)"
            )

    @property
    def name(self) -> str:
        """For the reader of a report."""
        return "bytes" if self.inner is None else type(self.inner).__name__

    def __call__(self, file: Path) -> np.ndarray:
        """Token ids (n,) of a file; bytes that are no UTF-8 are replaced."""
        raw = file.read_bytes()
        if self.inner is None:
            return np.frombuffer(raw, dtype=np.uint8).astype(np.int64)
        text = raw.decode("utf-8", errors="replace")
        ids = self.inner(text, add_special_tokens=False, verbose=False)["input_ids"]
        return np.asarray(ids, dtype=np.int64)


def sequences(
    files: Sequence[Path], tokenizer: Tokenizer, length: int, tokens: int, seed: int
) -> tuple[Tensor, Tensor]:
    """(calibration, held out) sequences (n, length) of token ids, about ``tokens`` of them together.

    A random choice from all files, the same for the same seed; ends of files shorter than ``length`` are
    left out. At least one of each.
    """
    order = np.random.default_rng(seed).permutation(len(files))
    rows: list[np.ndarray] = []
    wanted = max(2, tokens // length)
    for number in order:
        ids = tokenizer(files[number])
        whole = len(ids) // length
        rows += list(ids[: whole * length].reshape(whole, length))
        if len(rows) >= 4 * wanted:  # enough to choose from, whatever the size of the corpus
            break
    if len(rows) < 2:
        raise TrimtabError(
            f"{len(files)} text files give {len(rows)} sequences of {length} tokens; at least 2 are needed: "
            "give more text, or a smaller --length"
        )
    chosen = np.random.default_rng([seed, 1]).permutation(len(rows))[:wanted]
    ids = torch.from_numpy(np.stack([rows[i] for i in chosen]))
    held = torch.arange(len(ids)) % HELD_OUT == 1
    return ids[~held], ids[held]
