"""From a checkpoint and text of a domain to a checkpoint that is balanced on it: `calibrate_checkpoint`.

The folder written holds what the original holds, with other numbers in the bias tensors; a model without a
bias gets a folder with a sidecar instead (`trimtab.moe.sidecar`). ``trimtab_moe.json`` says what was done
and what it measured; `trimtab.moe.loads` shows it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn

from trimtab import __version__
from trimtab.errors import TrimtabError, unknown
from trimtab.moe import checkpoint
from trimtab.moe.calibration import LAWS, Calibrated, Limit, Report, calibrate
from trimtab.moe.loads import REPORT
from trimtab.moe.notebook import EVERY_S, Notebook
from trimtab.moe.routers import Router, find_routers
from trimtab.moe.sidecar import write_sidecar
from trimtab.moe.texts import Tokenizer, sequences, text_files
from trimtab.report.atomic import replacing

DEFAULT_LIMIT = Limit()


@dataclass(frozen=True)
class Settings:
    """What a calibration is to do."""

    law: str = "quantile"
    cap: float | None = None  # multiple of its share that an expert may have; None evens all
    tokens: int = 65_536  # of text, a quarter of them held out
    length: int = 512  # tokens per sequence
    passes: int = 2
    limit: Limit = DEFAULT_LIMIT
    only: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.law not in LAWS:
            raise unknown("law", self.law, LAWS)
        for name in ("tokens", "length", "passes"):
            if getattr(self, name) < 1:
                raise TrimtabError(f"{name} must be at least 1; given {getattr(self, name)}")


def calibrate_checkpoint(
    model_folder: Path,
    text: Sequence[Path],
    out: Path,
    settings: Settings | None = None,
    report: Report = lambda *_: None,
    show: Callable[[Calibrated], Any] = lambda _: None,
    *,
    fresh: bool = False,
    save_every_s: float = EVERY_S,
) -> dict[str, Any]:
    """Measure, find the bias, write ``out`` (whole or not at all); returns what `REPORT` holds.

    ``show`` is given the result before anything is written. An interrupted calibration goes on from its
    notes, kept beside ``out`` every ``save_every_s`` seconds, unless ``fresh``. Raises `TrimtabError` where
    the folder holds no model with routers, there is no text, or no strength helps within the limits.
    """
    settings = settings if settings is not None else Settings()
    files = text_files(text)
    if out.resolve() == model_folder.resolve():
        raise TrimtabError("--out must be another folder than --model")
    model = loaded(model_folder)
    routers = find_routers(model, settings.only)
    patchable = all(router.holder is not None for router in routers)
    names = precise_biases(model_folder, routers) if patchable else []
    config: Any = model.config
    text_config = config.get_text_config()
    tokenizer = Tokenizer(model_folder, int(text_config.vocab_size))
    length = min(settings.length, int(getattr(text_config, "max_position_embeddings", settings.length)))
    ids, held_out = sequences(files, tokenizer, length, settings.tokens, settings.seed)
    stored = checkpoint.stored_tensors(model_folder) if patchable else {}
    dtypes = [stored[name].dtype for name in names] or ["F32"] * len(routers)

    def as_stored(bias: np.ndarray) -> np.ndarray:
        return np.stack([checkpoint.rounded(row, kind) for row, kind in zip(bias, dtypes, strict=True)])

    notes_path = out.parent / f".{out.name}.calibrating.npz"
    if fresh:
        notes_path.unlink(missing_ok=True)
    notes_path.parent.mkdir(parents=True, exist_ok=True)
    notes = Notebook(notes_path, key_of(model_folder, files, settings), save_every_s)
    found = calibrate(
        model,
        ids,
        held_out,
        law=settings.law,
        cap=settings.cap,
        passes=settings.passes,
        limit=settings.limit,
        as_stored=as_stored,
        only=settings.only,
        report=report,
        notes=notes,
    )
    show(found)
    if found.chosen is None:
        notes.close()
        raise TrimtabError(
            f"no strength makes the load more even at a loss of at most +{settings.limit.loss_increase:.2%} "
            f"and a KL of at most {settings.limit.kl:g}; nothing is written"
        )
    words = told(config, routers, found, settings, ids.numel(), held_out.numel(), tokenizer.name, names)
    with replacing(out, REPORT) as draft:
        if patchable:
            report(0, 1, "copying the checkpoint")
            checkpoint.copy_files(model_folder, draft)
            checkpoint.patch(draft, dict(zip(names, found.bias, strict=True)))
            report(0, 1, "comparing all tensors")
            words["changed"] = verified(model_folder, draft, names)
        else:
            write_sidecar(draft, routers, found.bias, str(config.model_type))
        (draft / REPORT).write_text(json.dumps(words, indent=1) + "\n", encoding="utf-8")
    notes.close()
    return words


def key_of(model_folder: Path, files: Sequence[Path], settings: Settings) -> str:
    """The same for the same calibration of the same files."""
    paths = [*sorted(path for path in model_folder.iterdir() if path.is_file()), *files]
    stamps = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    # The limits are not part of it: the curve is the same whatever they are.
    asked = {name: value for name, value in asdict(settings).items() if name != "limit"}
    return hashlib.sha256(json.dumps([__version__, stamps, asked]).encode()).hexdigest()


def loaded(folder: Path) -> nn.Module:
    """The causal language model in ``folder``, in the checkpoint's dtype."""
    if not (folder / "config.json").is_file():
        raise TrimtabError(f"--model {str(folder)!r}: no folder with a config.json and safetensors files")
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype="auto", local_files_only=True, device_map=device()
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[:1]
        raise TrimtabError(
            f"{folder} does not load: {first[0] if first else type(error).__name__}"
        ) from error
    return model.eval()


def device() -> str | None:
    """The GPUs where there are any; None is the CPU, without the package that spreads models."""
    return "auto" if torch.cuda.is_available() else None


def precise_biases(folder: Path, routers: list[Router]) -> list[str]:
    """Names of the biases in the checkpoint; the model's are set to exactly what the checkpoint holds.

    A model that is loaded in half precision may have rounded a bias that is stored in float32.
    """
    stored = checkpoint.stored_tensors(folder)
    names = checkpoint.bias_names(stored, routers)
    for router, name in zip(routers, names, strict=True):
        here = router.stored()
        exact = torch.from_numpy(checkpoint.values_of(stored[name])).float().reshape(here.shape)
        if here.dtype != torch.float32:
            router.replace(exact.to(here.device))
    return names


def verified(source: Path, draft: Path, names: list[str]) -> list[str]:
    """The tensors that differ; anything but biases is our own fault and stops everything."""
    changed = checkpoint.differing(source, draft)
    assert set(changed) <= set(names), f"changed more than biases: {sorted(set(changed) - set(names))}"
    return changed


def told(
    config: Any,
    routers: list[Router],
    found: Calibrated,
    settings: Settings,
    calibration_tokens: int,
    held_out_tokens: int,
    tokenizer: str,
    names: list[str],
) -> dict[str, Any]:
    """What `REPORT` holds."""
    assert found.chosen is not None
    return {
        "trimtab": __version__,
        "model_type": str(config.model_type),
        "settings": asdict(settings),
        "tokens": {"calibration": calibration_tokens, "held_out": held_out_tokens, "tokenizer": tokenizer},
        "routers": [router.name for router in routers],
        "biases": names,
        "experts": routers[0].experts,
        "top_k": routers[0].top_k,
        "sidecar": not names,
        "floor": {"batch": found.floor_batch, "global": found.floor_global},
        "chosen": found.chosen.figures(),
        "curve": [point.figures() for point in found.curve],
        "loads_before": found.curve[0].loads.tolist(),
        "loads": found.chosen.loads.tolist(),  # as trimtab moe place reads them
    }
