"""The doctor: what went wrong in an RLHF run, by its logs.

Lines are matched with ``data/rlhf/signatures.yaml``; measures are held to ``measure_ranges``, and
``measure_rules`` looks for patterns in them. A finding names the cause, the line that shows it, and what to
change, in the flags of the version at hand.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from trimtab.errors import TrimtabError, unknown
from trimtab.rlhf.flags import LATEST, all_flags, checked_version, guess_version, parse, words_of
from trimtab.rlhf.log_files import Logs, read_logs
from trimtab.rlhf.measure_ranges import PROFILES, Symptom
from trimtab.rlhf.measure_rules import symptoms
from trimtab.rlhf.rules import Command, demand

SIGNATURES = Path(__file__).parent.parent / "data" / "rlhf" / "signatures.yaml"
CONFIDENCE = ("high", "medium", "low")
DIGITS = re.compile(r"\d+")
WAITING = "placement-pending"
MOST_FLAGS = 200  # lines of a script
LONGEST = 200  # characters of a line that is shown


@dataclass(frozen=True)
class Finding:
    """One cause. ``place`` is file:line of ``evidence``; ``times`` is how often it was seen."""

    name: str
    cause: str
    confidence: str
    place: str
    evidence: str
    fix: tuple[str, ...]
    source: str = ""
    times: int = 1
    hides: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Diagnosis:
    """All findings, the surest first; empty where nothing is wrong."""

    findings: tuple[Finding, ...]
    version: str
    profile: str
    files: int
    lines: int
    steps: int


def diagnose(paths: list[Path], profile: str = "default", version: str | None = None) -> Diagnosis:
    """What is wrong in the logs.

    Parameters
    ----------
    paths : files and folders: console output, CSV, TensorBoard's event files
    profile : "default", or "guide" for the ranges of the tuning guide that the project began with
    version : of OpenRLHF, for the spelling of flags; by default that of a command in the logs, or else the
        latest

    Raises
    ------
    TrimtabError
        for an unknown profile or version, for paths without logs, and for logs in which nothing can be read.
    """
    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    logs = read_logs(paths)
    if not logs.lines and not logs.measures:
        raise TrimtabError(f"nothing to read in {', '.join(map(str, paths))}: no lines, no measures")
    words = command_in(logs)
    spoken = checked_version(version) if version else guess_version(words) if words else LATEST
    found = [*_by_lines(logs, spoken), *_by_measures(logs, profile, spoken)]
    asked = gpus_asked(words, spoken) if words else None
    if asked:
        found = [replace(each, fix=(asked, *each.fix)) if each.name == WAITING else each for each in found]
    hidden = {name for finding in found for name in finding.hides}
    kept = [finding for finding in found if finding.name not in hidden]
    kept.sort(key=lambda finding: CONFIDENCE.index(finding.confidence))
    return Diagnosis(tuple(kept), spoken, profile, len(logs.files), len(logs.lines), logs.steps)


def command_in(logs: Logs) -> list[str]:
    """The flags of the first command of OpenRLHF in the logs; empty without one."""
    for number, (_, text) in enumerate(logs.lines):
        if "train_ppo_ray" not in text:
            continue
        script = [text]
        # A script that was printed: its flags stand on the lines that follow.
        for _, further in logs.lines[number + 1 : number + MOST_FLAGS]:
            if not further.startswith("--"):
                break
            script.append(further)
        try:
            return words_of("\n".join(line.removesuffix("\\") for line in script))
        except TrimtabError:  # it names the program, but is no command
            continue
    return []


def gpus_asked(words: list[str], version: str) -> str | None:
    """What a command asks of Ray, in words; None where its flags are not this version's."""
    try:
        parts = demand(Command(parse(words, version), version))
    except TrimtabError:
        return None
    groups = ", ".join(f"{name} {count}" for name, count in parts.items())
    return f"the command in the log asks for {sum(parts.values())} GPUs ({groups}): have them or ask for less"


def spelled(advice: str, version: str) -> str | None:
    """Advice with its flags as ``version`` writes them; None where it needs one that there is not.

    >>> spelled("raise {generate_max_len|max_new_tokens}", "0.10.2")
    'raise --rollout.max_new_tokens'
    """
    flags, missing = all_flags(), []

    def written(match: re.Match[str]) -> str:
        for name in match[1].split("|"):
            spelling = flags[name].spelling(version)
            if spelling:
                return f"--{spelling}"
        missing.append(match[1])
        return ""

    text = re.sub(r"\{([a-z_0-9.|]+)\}", written, advice)
    return None if missing else text


@lru_cache(maxsize=1)
def signatures() -> dict[str, dict[str, Any]]:
    """The signatures of log lines by name."""
    found: dict[str, dict[str, Any]] = yaml.safe_load(SIGNATURES.read_text(encoding="utf-8"))
    return found


def _by_lines(logs: Logs, version: str) -> list[Finding]:
    rules = {name: re.compile(rule["pattern"]) for name, rule in signatures().items()}
    either = re.compile("|".join(f"(?:{rule['pattern']})" for rule in signatures().values()))
    hits: dict[str, list[tuple[str, str]]] = {}
    dull: set[str] = set()  # lines repeat themselves but for their numbers
    for place, text in logs.lines:
        shape = DIGITS.sub("0", text)
        if shape in dull:
            continue
        if not either.search(text):
            dull.add(shape)
            continue
        for name, pattern in rules.items():
            if pattern.search(text):
                hits.setdefault(name, []).append((place, text))
    found = []
    for name, seen in hits.items():
        rule = signatures()[name]
        if len(seen) < rule.get("times", 1) or not _company(rule, logs):
            continue
        place, text = seen[0]
        found.append(
            Finding(
                name, rule["cause"], rule["confidence"], place, text[:LONGEST], _fixes(rule["fix"], version),
                rule["source"], len(seen), tuple(rule.get("hides", ())),
            )
        )  # fmt: skip
    if any(not signatures()[finding.name].get("last_resort") for finding in found):
        found = [finding for finding in found if not signatures()[finding.name].get("last_resort")]
    return found


def _company(rule: dict[str, Any], logs: Logs) -> bool:
    """Whether what must also be in the logs is, and what must not be is not."""

    def anywhere(pattern: str) -> bool:
        compiled = re.compile(pattern)
        return any(compiled.search(text) for _, text in logs.lines)

    if "with" in rule and not anywhere(rule["with"]):
        return False
    return "without" not in rule or not anywhere(rule["without"])


def _fixes(advice: list[str] | tuple[str, ...], version: str) -> tuple[str, ...]:
    return tuple(text for text in (spelled(each, version) for each in advice) if text is not None)


def _by_measures(logs: Logs, profile: str, version: str) -> list[Finding]:
    return [_finding(symptom, version) for symptom in symptoms(logs.measures, profile)]


def _finding(symptom: Symptom, version: str) -> Finding:
    return Finding(
        symptom.name, symptom.cause, symptom.confidence, symptom.point.place, symptom.evidence,
        _fixes(symptom.fix, version), symptom.source, 1, symptom.hides,
    )  # fmt: skip
