"""State that saves and loads: plain dictionaries of arrays and numbers, and one file format for them."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace, device, is_array_api_obj

from trimtab.balance.arrays import as_bias
from trimtab.errors import TrimtabError

_SKELETON = "skeleton"  # name of the JSON text inside the file
_ARRAY = "array-"  # how the JSON refers to an array of the file


class Stateful:
    """Saves the attributes that ``state`` names; a composite saves its parts.

    Loading checks everything before it changes anything: a state of another kind, or of another model's
    shape, is one clear error and leaves the object as it was. Settings (rates, limits) are not state.
    """

    state: ClassVar[tuple[str, ...]] = ()

    def state_dict(self) -> dict[str, Any]:
        """A copy of the state: nested dictionaries and lists of arrays, numbers and strings."""
        return {
            "kind": type(self).__name__,
            **{name: copied(getattr(self, name)) for name in self.state},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``, as `state_dict` gave it; arrays come into this object's library."""
        self.check_state(state)
        for name in self.state:
            here, given = getattr(self, name), state[name]
            if isinstance(here, Stateful):
                here.load_state_dict(given)
            elif holds_parts(here):
                for key, part in here.items():
                    part.load_state_dict(given[key])
            elif isinstance(here, deque):
                setattr(self, name, deque(copied(list(given)), maxlen=here.maxlen))
            else:
                setattr(self, name, type(here)(given) if isinstance(here, dict) else like(given, here))

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise where `load_state_dict` would not fit."""
        kind = type(self).__name__
        given = state.get("kind") if isinstance(state, Mapping) else type(state).__name__
        if given != kind:
            raise TrimtabError(f"state of {given!r} given to {kind}; load what {kind}.state_dict() saved")
        missing = [name for name in self.state if name not in state]
        if missing:
            raise TrimtabError(f"state of {kind} lacks {', '.join(missing)}")
        for name in self.state:
            check_part(f"{kind}.{name}", getattr(self, name), state[name])


def holds_parts(here: Any) -> bool:
    """Whether ``here`` is a table of stateful parts; its names are then fixed, unlike those of a tally."""
    return isinstance(here, dict) and any(isinstance(part, Stateful) for part in here.values())


def check_part(what: str, here: Any, given: Any) -> None:
    """Raise where ``given`` cannot take the place of ``here``."""
    if isinstance(here, Stateful):
        here.check_state(given)
    elif holds_parts(here):
        if set(here) != set(given):
            raise TrimtabError(f"{what} holds {sorted(here)}; the state has {sorted(given)}")
        for key, part in here.items():
            check_part(f"{what}[{key}]", part, given[key])
    elif isinstance(given, Mapping) and not isinstance(here, dict):
        raise TrimtabError(f"{what} is not in use here, but the state has a {given.get('kind')}")
    elif is_array_api_obj(given):
        as_bias(given, what, here if is_array_api_obj(here) else None)


def like(given: Any, here: Any) -> Any:
    """A copy of ``given``, in the library and on the device of ``here`` where both are arrays."""
    if is_array_api_obj(given) and is_array_api_obj(here) and type(given) is not type(here):
        return array_namespace(here).asarray(given, device=device(here), copy=True)
    return copied(given)


def copied(value: Any) -> Any:
    """A deep copy in which parts have become their states and queues have become lists."""
    if isinstance(value, Stateful):
        return value.state_dict()
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, deque)):
        return [copied(item) for item in value]
    if hasattr(value, "clone"):
        return value.clone()
    return value.copy() if isinstance(value, np.ndarray) else value


def save_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write a state to ``path`` (NumPy's .npz), whole or not at all."""
    arrays: dict[str, np.ndarray] = {}

    def skeleton(value: Any) -> Any:
        if is_array_api_obj(value):
            name = f"{_ARRAY}{len(arrays)}"
            arrays[name] = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
            return name
        if isinstance(value, Mapping):
            return {key: skeleton(item) for key, item in value.items()}
        return [skeleton(item) for item in value] if isinstance(value, list) else value

    arrays[_SKELETON] = np.asarray(json.dumps(skeleton(state)))
    path = Path(path)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
        np.savez(file, allow_pickle=False, **arrays)
    os.replace(file.name, path)


def load_state(path: str | Path, like_array: Any = None) -> dict[str, Any]:
    """The state that `save_state` wrote; arrays become NumPy's, or as ``like_array`` (a torch tensor)."""

    def filled(value: Any) -> Any:
        if isinstance(value, str) and value.startswith(_ARRAY):
            array = file[value]
            return array if like_array is None else like(array, like_array)
        if isinstance(value, dict):
            return {key: filled(item) for key, item in value.items()}
        return [filled(item) for item in value] if isinstance(value, list) else value

    try:
        with np.load(Path(path), allow_pickle=False) as file:
            state: dict[str, Any] = filled(json.loads(str(file[_SKELETON])))
            return state
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise TrimtabError(f"{path} is not a state saved by trimtab: {error}") from error
