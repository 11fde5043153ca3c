"""OpenRLHF's flags as data: their names in each version, kinds and defaults, and how to read a command."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from trimtab.errors import TrimtabError, did_you_mean

FOLDER = Path(__file__).parent.parent / "data" / "rlhf"
OLDEST, LATEST = "0.8.6", "0.11.2"
DOTTED_SINCE = "0.10.2"  # all flat names went
TOTAL_LENGTH_SINCE = "0.9.8"  # max_len and max_new_tokens instead of prompt_max_len and generate_max_len
END = "0.11.999"

Settings = dict[str, Any]


@dataclass(frozen=True)
class Flag:
    """One flag; ``name`` is its flat name, or the dotted one where it came after the renaming.

    ``changed`` holds (version, default from then on). ``since`` and ``until`` bound the name itself.
    """

    name: str
    kind: str  # switch, switch-off, int, float, str
    dotted: str | None = None
    count: int | str | None = None
    choices: tuple[str, ...] = ()
    default: Any = None
    changed: dict[str, Any] = field(default_factory=dict)
    since: str | None = None
    until: str | None = None
    everywhere: bool = False
    dotted_since: str | None = None
    dotted_until: str | None = None

    def spelling(self, version: str) -> str | None:
        """What the flag is called in ``version``, without dashes; None where there is no such flag."""
        at, renamed = version_key(version), version_key(version) >= version_key(DOTTED_SINCE)
        if self.everywhere:
            return self.name
        if renamed and self.dotted:
            low, high, name = self.dotted_since, self.dotted_until, self.dotted
        elif renamed == ("." in self.name):
            low, high, name = self.since, self.until, self.name
        else:
            return None
        inside = version_key(low or OLDEST) <= at <= version_key(high or END)
        return name if inside else None

    def default_in(self, version: str) -> Any:
        """The parser's default in ``version``; a switch that is not given is False."""
        value = self.default
        for since, changed in self.changed.items():
            if version_key(version) >= version_key(since):
                value = changed
        return bool(value) if self.kind == "switch" else value


@lru_cache(maxsize=1)
def all_flags() -> dict[str, Flag]:
    """Every flag by name (flat, or dotted where there is no flat one)."""
    text = (FOLDER / "flags.yaml").read_text(encoding="utf-8")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    entries = yaml.load(text, Loader=loader)
    return {
        name: Flag(name, **{**entry, "choices": tuple(entry.get("choices", ()))})
        for name, entry in entries.items()
    }


@lru_cache(maxsize=64)
def version_key(version: str) -> tuple[int, ...]:
    """Orders versions: ``0.10.1.post2`` lies between 0.10.1 and 0.10.2."""
    numbers = [int(number) for number in re.findall(r"\d+", version)]
    return (*numbers, 0, 0, 0, 0)[:4]


def checked_version(version: str) -> str:
    """The version itself; a version outside what is known is refused. ``0.9`` reads as 0.9.0.

    Raises
    ------
    TrimtabError
        for text that is no version, or one before 0.8.6 or after 0.11.
    """
    if not re.fullmatch(r"v?\d+\.\d+(\.(\d+|x))?(\.?post\d+)?", version):
        raise TrimtabError(f"{version!r} is not a version of OpenRLHF; allowed: {OLDEST} to 0.11.x")
    bare = version.removeprefix("v").replace(".x", ".999" if version.endswith("11.x") else ".0")
    if not version_key(OLDEST) <= version_key(bare) <= version_key(END):
        raise TrimtabError(f"OpenRLHF {version} is not known here; allowed: {OLDEST} to 0.11.x")
    return LATEST if version_key(bare) > version_key(LATEST) else bare


@lru_cache(maxsize=64)
def stack_of(version: str) -> dict[str, str]:
    """What the wheel of ``version`` pins: deepspeed, vllm, ray."""
    rows = yaml.safe_load((FOLDER / "stack.yaml").read_text(encoding="utf-8"))
    found: dict[str, str] = {}
    for since, row in rows.items():
        if version_key(since) <= version_key(version):
            found = row
    return found


def sleeps_below_zero_3(version: str) -> bool:
    """Whether the pinned DeepSpeed can offload its states below ZeRO-3 (after 0.17.5)."""
    return version_key(stack_of(version)["deepspeed"]) > version_key("0.17.5")


@lru_cache(maxsize=32)
def spellings(version: str) -> dict[str, Flag]:
    """Names that the parser of ``version`` accepts."""
    found = {}
    for flag in all_flags().values():
        name = flag.spelling(version)
        if name is not None:
            found[name] = flag
    return found


def guess_version(words: Sequence[str]) -> str:
    """The latest version that knows all flags of a command, or most of them.

    The latest is taken where nothing tells versions apart.
    """
    given = [word.lstrip("-").split("=")[0] for word in words if word.startswith("--")]
    candidates = (LATEST, "0.11.1", DOTTED_SINCE, "0.10.1.post2", "0.9.7", "0.9.1", "0.8.9", OLDEST)
    return max(candidates, key=lambda version: sum(name in spellings(version) for name in given))


def words_of(command: str) -> list[str]:
    """The words of a shell command: line ends escaped, comments dropped, everything before the flags too.

    Raises
    ------
    TrimtabError
        for quotes that do not close, and where no flag is left.
    """
    # The guide puts comments after the backslash that goes on to the next line.
    joined = re.sub(r"\\[ \t]*(#[^\n]*)?\n", " ", command)
    try:
        words = shlex.split(joined, comments=True)
    except ValueError as error:
        raise TrimtabError(f"the command cannot be read as shell words: {error}") from None
    if "--" in words[:-1]:  # ray job submit ... -- python3 -m openrlhf.cli.train_ppo_ray ...
        words = words[words.index("--") + 1 :]
    dashed = [index for index, word in enumerate(words) if word.startswith("--")]
    if not dashed:
        raise TrimtabError(
            "no flag of train_ppo_ray in the command; give what follows `-m openrlhf.cli.train_ppo_ray`"
        )
    # A script may have other programs' flags before ours.
    return words[next((index for index in dashed if _is_ours(words[index])), dashed[0]) :]


def _is_ours(word: str) -> bool:
    name = word.lstrip("-").split("=")[0]
    return any(name in (flag.name, flag.dotted) for flag in all_flags().values())


def parse(words: Sequence[str], version: str) -> Settings:
    """The flags that ``words`` give, by canonical name, with the kinds that the parser would make of them.

    Raises
    ------
    TrimtabError
        for a flag that ``version`` does not have, and for missing or wrong values.
    """
    known = spellings(version)
    settings: Settings = {}
    index = 0
    while index < len(words):
        name, equals, value = words[index].partition("=")
        if not name.startswith("--"):
            raise TrimtabError(f"{words[index]!r} belongs to no flag")
        flag = known.get(name[2:])
        if flag is None:
            raise TrimtabError(_unknown(name[2:], version, known))
        index += 1
        values = [value] if equals else []
        while not equals and index < len(words) and not words[index].startswith("--"):
            values.append(words[index])
            index += 1
        settings[flag.name] = _typed(flag, name, values)
    return settings


def _unknown(name: str, version: str, known: dict[str, Flag]) -> str:
    """One line for a flag that the version does not have: where it went, or what was meant."""
    for flag in all_flags().values():
        if name in (flag.name, flag.dotted):
            now = flag.spelling(version)
            if now:
                return f"--{name} is not a flag of OpenRLHF {version}; there it is called --{now}"
            if name in ("prompt_max_len", "generate_max_len"):
                # gone for good: the total and the new tokens are given instead
                names = [all_flags()[other].spelling(version) for other in ("max_len", "max_new_tokens")]
                instead = f"give --{names[0]} (total) and --{names[1]}"
                return f"--{name} is not a flag of OpenRLHF {version}; {instead}"
            if name == "ref_reward_offload":
                return (
                    f"--{name} is not a flag of OpenRLHF {version}; give --ref.offload and --reward.offload"
                )
            return f"--{name} is not a flag of OpenRLHF {version}"
    return f"unknown flag --{name} in OpenRLHF {version}.{did_you_mean(name, known)}"


def _typed(flag: Flag, name: str, values: list[str]) -> Any:
    if flag.kind.startswith("switch"):
        if values:
            raise TrimtabError(f"{name} is a switch and takes no value, got {' '.join(values)!r}")
        return flag.kind == "switch"
    wanted = flag.count if isinstance(flag.count, int) else None
    if not values or (wanted and len(values) != wanted) or (flag.count is None and len(values) > 1):
        raise TrimtabError(f"{name} takes {wanted or 'one'} value{'s' * bool(wanted)}, got {len(values)}")
    typed = [_number(flag, name, value) for value in values]
    if flag.choices and str(typed[0]) not in flag.choices:
        raise TrimtabError(f"{name} {typed[0]}; allowed: {', '.join(flag.choices)}.")
    return typed if flag.count is not None else typed[0]


def _number(flag: Flag, name: str, value: str) -> Any:
    if flag.kind == "str":
        return value
    try:
        return int(value) if flag.kind == "int" else float(value)
    except ValueError:
        kind = "a whole number" if flag.kind == "int" else "a number"
        raise TrimtabError(f"{name} must be {kind}, got {value!r}") from None
