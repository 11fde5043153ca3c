"""A Vidur command line or config.json becomes a scenario; what has no counterpart is named.

The way: text -> flags -> Vidur's nested configuration, defaults filled in -> scenario. The flags and
their places are data in ``vidur_flags``.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab.errors import TrimtabError, did_you_mean
from trimtab.hardware.devices import get_device
from trimtab.hardware.memory import vidur_num_blocks
from trimtab.hardware.models import get_model
from trimtab.vidur_flags import (
    BY_NAME,
    CHOICES,
    DERIVED,
    FLAGS,
    GAPS,
    LENGTHS,
    REQUESTS,
    ROUTER,
    ROUTER_NAMES,
    SCHEDULER,
    SCHEDULER_NAMES,
    SECTIONS,
    TIMES,
    Fate,
    Flag,
)

Config = dict[tuple[str, ...], Any]  # path in config.json -> value


@dataclass
class Translation:
    """A scenario (as data), what was changed on the way, and what has no counterpart.

    With ``problems`` the scenario is not the run that was asked for.
    """

    scenario: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def from_vidur(source: str, root: str | None = None) -> Translation:
    """Translate a command line, or the path of a config.json or of a file with a command line.

    ``root`` is the folder of Vidur's checkout, which relative file names in the configuration refer to.

    Raises
    ------
    TrimtabError
        for a source that is neither, and for values that no scenario can hold.
    """
    text = _read(source)
    config = _defaults()
    notes: list[str] = []
    problems: list[str] = []
    if text.lstrip().startswith("{"):
        _fill_from_json(config, text, problems)
    else:
        _fill_from_flags(config, split_command(text), notes, problems)
    return _translate(config, root, notes, problems)


# --- reading ------------------------------------------------------------------------------------


def _read(source: str) -> str:
    """The text itself, or that of the file it names."""
    is_text = any(mark in source for mark in ("\n", " -", "vidur.main", "{")) or source.startswith("--")
    if is_text:
        return source
    try:
        return Path(source).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise TrimtabError(
            f"{source!r} is no Vidur command line, and no file that can be read: {error.strerror}"
        ) from None
    except UnicodeDecodeError:
        raise TrimtabError(f"{source} is not UTF-8 text") from None


def split_command(text: str) -> list[str]:
    """The words of a Vidur command line after ``vidur.main``.

    Lines may be continued with a backslash (sh) or a backtick (PowerShell), also before a comment;
    redirections and what follows a pipe are dropped.
    """
    if len(re.findall(r"vidur\.main\b", text)) > 1:
        raise TrimtabError("the text holds more than one Vidur command; give one at a time")
    lines: list[str] = []
    wanted = True
    for line in text.replace("\\\n", " ").splitlines():
        line = re.sub(r"(^|\s)#.*$", "", line).strip()
        goes_on = line.endswith(("\\", "`"))
        line = line.rstrip("\\`").strip()
        started = any("--" in earlier or "vidur.main" in earlier for earlier in lines)
        if line and (wanted or not started or line.startswith("--")):
            lines.append(line)
            wanted = goes_on
    reader = shlex.shlex(" ".join(lines), posix=True)
    reader.whitespace_split, reader.escape, reader.commenters = True, "", ""
    try:
        words = list(reader)
    except ValueError:
        raise TrimtabError("the command line has a quote that is not closed") from None
    start = next((i + 1 for i, word in enumerate(words) if word == "vidur.main"), None)
    if start is None:
        start = next((i for i, word in enumerate(words) if word.startswith("--")), None)
    if start is None:
        raise TrimtabError("no Vidur command line: expected `python -m vidur.main --flag value ...`")
    end = next((i for i in range(start, len(words)) if words[i] in ("|", "&&", ";", "&")), len(words))
    kept, skip = [], False
    for word in words[start:end]:
        redirection = re.match(r"^[*&\d]?>{1,2}(.*)$", word)
        if not skip and not redirection:
            kept.append(word)
        skip = bool(redirection and not redirection[1])
    return kept


def _defaults() -> Config:
    config: Config = {(*place, "name"): default for place, default, _ in CHOICES.values()}
    for flag in FLAGS:
        config[_place(flag)] = flag.default
    return config


def _place(flag: Flag) -> tuple[str, ...]:
    """Where a flag's value is kept: its section's path, the choice that selects it, its field."""
    section = SECTIONS[flag.section]
    return (*section.path, *([section.choice] if section.choice else []), flag.field)


def _fill_from_flags(config: Config, words: list[str], notes: list[str], problems: list[str]) -> None:
    given: list[Flag] = []
    at = 0
    while at < len(words):
        name, equals, joined = words[at].partition("=")
        values = [joined] if equals else []
        at += 1
        while not equals and at < len(words) and not words[at].startswith("--"):
            values.append(words[at])
            at += 1
        if not name.startswith("--"):
            problems.append(f"{' '.join([name, *values])!r} is no flag")
            continue
        flag, value = _understand(name[2:], values, problems)
        if flag is not None:
            config[_place(flag)] = value
            given.append(flag)
        elif name[2:] in CHOICES and values:
            config[(*CHOICES[name[2:]][0], "name")] = values[0].lower()
    for flag in given:
        choice = SECTIONS[flag.section].choice
        chosen = config.get((*SECTIONS[flag.section].path, "name"))
        if choice and chosen != choice:
            notes.append(f"--{flag.name} has no effect: {chosen} is chosen there, not {choice}")
        elif flag.fate is Fate.IDLE:
            notes.append(f"--{flag.name} is not needed: {flag.note}")


def _understand(name: str, values: list[str], problems: list[str]) -> tuple[Flag | None, Any]:
    """The flag of a name and its value; unknown flags and unreadable values become problems."""
    negated = name.startswith("no-") and name[3:] in BY_NAME
    flag = BY_NAME.get(name[3:] if negated else name)
    shown = " ".join([f"--{name}", *values])
    if flag is None:
        if name not in CHOICES or not values:
            learned = name.startswith(("p_p_o_", "d_q_n_"))
            hint = ", a setting of a learned router" if learned else did_you_mean(name, [*BY_NAME, *CHOICES])
            problems.append(f"{shown}: unknown flag{hint}")
        return None, None
    try:
        if flag.type is bool:
            words = {"true": True, "false": False, "1": True, "0": False}
            return flag, not negated if not values else words[values[0].lower()]
        parsed = [flag.type(value) for value in values]
    except (ValueError, KeyError):
        problems.append(f"{shown}: expected {flag.type.__name__}")
        return None, None
    if isinstance(flag.default, list):
        return flag, parsed
    if len(parsed) != 1 and flag.fate is not Fate.IDLE:
        problems.append(f"{shown}: expected one value")
        return None, None
    return flag, parsed[0] if parsed else None


def _fill_from_json(config: Config, text: str, problems: list[str]) -> None:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise TrimtabError(f"config.json is not valid JSON: line {error.lineno}: {error.msg}") from None
    if not isinstance(data, dict) or "cluster_config" not in data:
        raise TrimtabError("this JSON is no Vidur config.json: it has no cluster_config")
    places = {_place(flag) for flag in FLAGS}
    sections = {section.path for section in SECTIONS.values()} | {place for place, _, _ in CHOICES.values()}

    def visit(node: dict[str, Any], path: tuple[str, ...]) -> None:
        choice = node.get("name") if (*path, "name") in config else None
        if choice is not None:
            config[(*path, "name")] = str(choice)
        for key, value in node.items():
            place = (*path, *([str(choice)] if choice else []), key)
            if place in places:
                config[place] = value
            elif (*path, key) in sections and isinstance(value, dict):
                visit(value, (*path, key))
            elif key not in DERIVED and key not in ("metrics_config",):
                problems.append(f"{'.'.join((*path, key))}: unknown key")

    visit(data, ())


# --- translating --------------------------------------------------------------------------------


def _translate(config: Config, root: str | None, notes: list[str], problems: list[str]) -> Translation:
    for flag in FLAGS:
        choice = SECTIONS[flag.section].choice
        in_use = choice is None or config[(*SECTIONS[flag.section].path, "name")] == choice
        value = config[_place(flag)]
        if in_use and flag.fate is Fate.MISSING and value != flag.default:
            problems.append(f"--{flag.name} {value}: {flag.note}")
    scenario = {
        "name": "from-vidur",
        "seed": config["seed",],
        "workload": _workload(config, root, problems),
        "replicas": [_replicas(config, root, notes, problems)],
        "router": {"name": _router(config, notes, problems)},
    }
    if config["time_limit",]:
        scenario["time_limit_s"] = config["time_limit",]
    return Translation(scenario, notes, problems)


def _section(config: Config, path: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """The choice made at ``path`` and the values of its class."""
    choice = config[(*path, "name")]
    at = (*path, choice)
    return choice, {key[-1]: value for key, value in config.items() if key[:-1] == at}


def _under(path: str, root: str | None) -> str:
    path = path.removeprefix("./")
    return path if root is None or Path(path).is_absolute() else str(Path(root) / path)


def _workload(config: Config, root: str | None, problems: list[str]) -> dict[str, Any]:
    requests, settings = _section(config, REQUESTS)
    if requests == "trace_replay":
        return {
            "arrivals": {"kind": "trace", "time_scale": settings["time_scale_factor"]},
            "lengths": {"kind": "trace", **_scales(settings)},
            "trace": {"path": _under(settings["trace_file"], root), "format": "vidur"},
            "max_tokens": settings["max_tokens"],
            "cap": "prefill",
        }
    if requests != "synthetic":
        problems.append(f"--request_generator_config_type {requests}: allowed: synthetic, trace_replay")
        settings = {flag.field: flag.default for flag in FLAGS if flag.section.startswith("synthetic_")}
    workload: dict[str, Any] = {"arrivals": _arrivals(config, problems), "lengths": {}}
    kind, lengths = _section(config, LENGTHS)
    if kind == "fixed":
        workload["lengths"] = {"prefill": lengths["prefill_tokens"], "decode": lengths["decode_tokens"]}
    elif kind in ("uniform", "zipf"):
        workload["lengths"] = {key: lengths[key] for key in ("min_tokens", "max_tokens")}
        workload["lengths"]["prefill_to_decode"] = lengths["prefill_to_decode_ratio"]
        workload["lengths"] |= {key: lengths[key] for key in ("theta", "scramble") if key in lengths}
    elif kind == "trace":
        workload["lengths"] = {"shuffle": True, **_scales(lengths)}
        workload["trace"] = {"path": _under(lengths["trace_file"], root), "format": "vidur"}
        workload |= {"max_tokens": lengths["max_tokens"], "cap": "proportional"}
    else:
        problems.append(f"--length_generator_config_type {kind}: allowed: fixed, trace, uniform, zipf")
        kind = "fixed"
    workload["lengths"] = {"kind": kind, **workload["lengths"]}
    if settings["duration"]:
        workload["duration_s"] = settings["duration"]
    else:
        workload["num_requests"] = settings["num_requests"]
    return workload


def _arrivals(config: Config, problems: list[str]) -> dict[str, Any]:
    kind, gaps = _section(config, GAPS)
    if kind == "poisson":
        return {"kind": kind, "qps": gaps["qps"], "cap": 3.0}
    if kind == "gamma":
        return {"kind": kind, "qps": gaps["qps"], "cv": gaps["cv"]}
    if kind != "static":
        reason = (
            "Azure Functions traces are not read" if kind == "trace" else "allowed: gamma, poisson, static"
        )
        problems.append(f"--interval_generator_config_type {kind}: {reason}")
    return {"kind": "static"}


def _scales(settings: dict[str, Any]) -> dict[str, Any]:
    names = {"prefill_scale": "prefill_scale_factor", "decode_scale": "decode_scale_factor"}
    return {ours: settings[theirs] for ours, theirs in names.items() if settings[theirs] != 1}


def _router(config: Config, notes: list[str], problems: list[str]) -> str:
    name = config[(*ROUTER, "name")]
    if name == "lor":
        notes.append(
            "router lor -> vidur-lor, which counts waiting requests only, as Vidur does; "
            "least-outstanding counts running ones too"
        )
    if name not in ROUTER_NAMES:
        problems.append(
            f"--global_scheduler_config_type {name}: no such router; Vidur has lor, random, round_robin"
        )
    return ROUTER_NAMES.get(name, "round-robin")


def _replicas(config: Config, root: str | None, notes: list[str], problems: list[str]) -> dict[str, Any]:
    replica = {
        key[-1]: value for key, value in config.items() if key[:-1] == ("cluster_config", "replica_config")
    }
    model, device = get_model(replica["model_name"]), get_device(replica["device"])
    group: dict[str, Any] = {
        "model": model.name,
        "device": device.name,
        "node": replica["network_device"],
        "count": config["cluster_config", "num_replicas"],
        "tp": replica["tensor_parallel_size"],
        "pp": replica["num_pipeline_stages"],
        "memory_margin": replica["memory_margin_fraction"],
    }
    name, settings = _section(config, SCHEDULER)
    if name not in SCHEDULER_NAMES:
        problems.append(f"--replica_scheduler_config_type {name}: allowed: {', '.join(SCHEDULER_NAMES)}")
        name, settings = (
            "sarathi",
            {flag.field: flag.default for flag in FLAGS if flag.section.startswith("sara")},
        )
    slots, blocks = _memory(config, group, settings)
    scheduler: dict[str, Any] = {
        "name": name,
        "max_num_seqs": settings["batch_size_cap"],
        "block_size": settings["block_size"],
        "num_blocks": blocks,
    }
    budget = settings.get("chunk_size", settings.get("max_tokens_in_batch"))
    if budget is not None:
        scheduler["token_budget"] = budget
    if name in ("vllm", "sarathi"):
        scheduler["watermark"] = settings["watermark_blocks_fraction"]
    if name in ("orca", "faster_transformer"):
        scheduler["max_num_seqs"] = min(slots, settings["batch_size_cap"])
        scheduler["kv_reservation_tokens"] = _longest(config)
    if name == "lightllm":
        scheduler["max_waiting_iters"] = settings["max_waiting_iters"]
    return {**group, "scheduler": scheduler, "exectime": _times(config, root, notes, problems)}


def _longest(config: Config) -> int:
    """Tokens of the longest request: what Vidur plans memory with."""
    requests, settings = _section(config, REQUESTS)
    if requests != "trace_replay":
        settings = _section(config, LENGTHS)[1]
    return int(settings.get("max_tokens", 4096))


def _memory(config: Config, group: dict[str, Any], settings: dict[str, Any]) -> tuple[int, int]:
    """(slots, KV blocks) of a replica: given, or by Vidur's memory rule."""
    blocks, slots = vidur_num_blocks(
        get_model(group["model"]), get_device(group["device"]), group["tp"], group["pp"],
        settings["block_size"], group["memory_margin"], _longest(config),
    )  # fmt: skip
    return slots, settings["num_blocks"] or blocks


def _times(config: Config, root: str | None, notes: list[str], problems: list[str]) -> dict[str, Any]:
    kind, settings = _section(config, TIMES)
    if kind != "random_forrest":
        problems.append(f"--execution_time_predictor_config_type {kind}: allowed: random_forrest")
        settings = {flag.field: flag.default for flag in FLAGS if flag.section.startswith("random_forrest")}
    folders = set()
    for key in ("compute", "attention", "all_reduce", "send_recv"):
        path = settings[f"{key}_input_file"]
        match = re.match(r"(.*?)/?(compute|network)/[^/]+/(?:.*/)?[^/]+\.csv$", path)
        folders.add(match[1] if match else f"? {path}")
    if len(folders) > 1 or any(folder.startswith("?") for folder in folders):
        problems.append(f"profile files outside one folder of Vidur's layout: {', '.join(sorted(folders))}")
    exectime: dict[str, Any] = {"kind": "forest"}
    exectime["path"] = _under(settings["compute_input_file"].split("/compute/")[0], root)
    exectime["max_tokens"] = settings["prediction_max_tokens_per_request"]
    for theirs, ours, usual in (("num_estimators", "trees", 250), ("max_depth", "max_depth", 16)):
        values = settings[theirs] if isinstance(settings[theirs], list) else [settings[theirs]]
        exectime[ours] = values[0] if len(values) == 1 else usual
    if not Path(exectime["path"]).is_dir():
        notes.append(
            f"profiles are expected in {exectime['path']!r}, which is not here: run from Vidur's checkout, "
            "give --root, or set replicas.exectime.kind to roofline"
        )
    return exectime
