"""Real text that every installation has: Python's library and the documentation inside packages.

Four kinds, each in held-out and training files: ``prose`` (documentation strings, the language reference,
licences, read-mes), ``mathematics`` (documentation strings of mathematical packages), ``code`` (the source
of Python's library) and ``c`` (header files). No download, nothing generated. A file is held out or not by
its name alone, whatever is taken from it, so no text is in both. Exact bytes depend on the packages that
are installed; `Corpus.digest` names them.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import pydoc_data
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import TrimtabError, unknown

Bytes = NDArray[np.uint8]
PROSE_PACKAGES = ("numpy", "sklearn", "hypothesis", "pip", "setuptools", "torch")
MATHEMATICS_PACKAGES = ("sympy", "scipy", "mpmath", "networkx")
HEADER_PACKAGES = ("numpy", "torch", "pyarrow")
DOMAINS = ("prose", "mathematics", "code", "c")
HELD_OUT = 0.15  # of files
SHORTEST = 600  # bytes; shorter files are mostly licence headers
EXAMPLE = re.compile(r"^\s*(>>>|\.\.\.).*\n?", re.MULTILINE)  # lines typed at Python's prompt
TESTS = ("tests", "test", "testing", "idlelib", "idle_test", "lib2to3")


@dataclass(frozen=True)
class Part:
    """The files of one domain and side, end to end: ``text``, and where each file begins and ends."""

    text: Bytes
    edges: NDArray[np.int64]  # (files + 1,)


@dataclass(frozen=True)
class Corpus:
    """Text by domain: ``train`` and ``held_out`` name a `Part` each."""

    train: dict[str, Part]
    held_out: dict[str, Part]

    def digest(self) -> str:
        """A name for exactly this training text, 12 hexadecimal digits."""
        found = hashlib.blake2b(digest_size=6)
        for domain in sorted(self.train):
            found.update(domain.encode() + self.train[domain].text.tobytes())
        return found.hexdigest()


def load_corpus(megabytes: float = 3.0) -> Corpus:
    """The installed text, at most ``megabytes`` of each domain and side. Seconds of reading."""
    train: dict[str, Part] = {}
    held_out: dict[str, Part] = {}
    for domain in DOMAINS:
        for side, wanted in ((train, False), (held_out, True)):
            side[domain] = joined(domain, wanted, int(1e6 * megabytes))
    return Corpus(train, held_out)


def joined(domain: str, held_out: bool, limit: int) -> Part:
    """Files of a domain on one side, in an order that only depends on their names."""
    texts, total, seen = [], 0, set()
    for path in sorted(files_of(domain), key=name_hash):
        if (name_hash(path) < int(HELD_OUT * 2**64)) != held_out:
            continue
        text = text_of(path, domain)
        mark = hashlib.blake2b(text).digest()
        if len(text) < SHORTEST or mark in seen:
            continue
        seen.add(mark)
        texts.append(np.frombuffer(text, dtype=np.uint8))
        total += len(text)
        if total >= limit:
            break
    if total < 20_000:
        raise TrimtabError(f"only {total} bytes of {domain} text are installed; pip install 'trimtab[dev]'")
    edges = np.concatenate([[0], np.cumsum([len(text) for text in texts])])
    return Part(np.concatenate(texts), edges.astype(np.int64))


def files_of(domain: str) -> Iterator[Path]:
    """Every file that the domain takes text from."""
    if domain not in DOMAINS:
        raise unknown("domain", domain, DOMAINS)
    library = Path(sysconfig.get_paths()["stdlib"])
    if domain == "code":
        return (path for path in library.rglob("*.py") if wanted(path.relative_to(library)))
    if domain == "mathematics":
        return packages(MATHEMATICS_PACKAGES, ("*.py",))
    if domain == "c":
        return packages(HEADER_PACKAGES, ("*.h", "*.hpp"))
    return prose_files(library)


def prose_files(library: Path) -> Iterator[Path]:
    yield from (path for path in library.rglob("*.py") if wanted(path.relative_to(library)))
    yield from packages(PROSE_PACKAGES, ("*.py", "*.md", "*.rst"))
    site = Path(sysconfig.get_paths()["purelib"])
    for name in ("LICENSE*", "METADATA", "licenses/**/*"):
        yield from (path for path in site.glob(f"*.dist-info/{name}") if path.is_file())


def packages(names: tuple[str, ...], patterns: tuple[str, ...]) -> Iterator[Path]:
    """Files below the installed packages of these names; those that are not installed give none."""
    for name in names:
        found = importlib.util.find_spec(name)
        for root in (found.submodule_search_locations or []) if found else []:
            for pattern in patterns:
                yield from (path for path in Path(root).rglob(pattern) if wanted(path.relative_to(root)))


def wanted(path: Path) -> bool:
    """Leaves out tests, and packages installed inside Python's library."""
    return not set(path.parts) & {*TESTS, "site-packages", "dist-packages", "__pycache__"}


def name_hash(path: Path) -> int:
    """A number below 2^64 from the last three parts of the name: the same on every machine."""
    name = "/".join(path.parts[-3:])
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def text_of(path: Path, domain: str) -> bytes:
    """What the domain takes from a file; nothing where it cannot be read as text."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return b""
    if path.suffix == ".py" and domain in ("prose", "mathematics"):
        if path.parent == Path(pydoc_data.__path__[0]) and path.stem == "topics":
            return "\n\n".join(literals(text)).encode()
        text = "\n\n".join(documentation(text, domain == "mathematics"))
    return text.encode()


def documentation(source: str, examples: bool) -> Iterator[str]:
    """The documentation strings of a module, from 200 characters on; with or without lines of code."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text and len(text) >= 200:
                yield text if examples else EXAMPLE.sub("", text)


def literals(source: str) -> Iterator[str]:
    """The long strings of a module: the language reference is stored as a dictionary of them."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) >= 200:
            yield node.value


def sample(part: Part, sequences: int, length: int, generator: np.random.Generator) -> Bytes:
    """(sequences, length) runs of text, each from a file drawn by its size; short files run on."""
    starts = generator.integers(0, len(part.text) - length, size=sequences)
    drawn: Bytes = part.text[starts[:, None] + np.arange(length)]
    return drawn


def mixture_batch(
    side: dict[str, Part],
    mixture: dict[str, float],
    sequences: int,
    length: int,
    generator: np.random.Generator,
) -> tuple[Bytes, list[str]]:
    """Sequences (sequences, length) drawn from domains by the weights of ``mixture``, and their domains."""
    names = list(mixture)
    weights = np.array([mixture[name] for name in names])
    counts = generator.multinomial(sequences, weights / weights.sum())
    rows = [
        sample(side[name], int(count), length, generator)
        for name, count in zip(names, counts, strict=True)
        if count
    ]
    labels = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
    order = generator.permutation(sequences)
    return np.concatenate(rows)[order], [labels[index] for index in order]
