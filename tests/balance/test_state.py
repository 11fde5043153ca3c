"""States: what is saved goes on as if nothing had happened, in any library; what does not fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimtab.balance import (
    ABTest,
    AdaptiveThreshold,
    AffinityLaw,
    DomainAdaptiveBias,
    Guard,
    HybridBias,
    LoadMonitor,
    LoadPredictor,
    law,
    load_state,
    save_state,
)
from trimtab.balance.state import Stateful
from trimtab.errors import TrimtabError

LOADS = np.random.default_rng(0).integers(1, 100, (20, 2, 4)).astype(float)


def advanced(thing: Any, loads: np.ndarray) -> Any:
    """Feed a thing with loads in its own way; its last answer."""
    answer = None
    for i, load in enumerate(loads):
        if isinstance(thing, (DomainAdaptiveBias, HybridBias)):
            answer = thing.update(load, domain=("code", "prose")[i % 2])
        elif isinstance(thing, AdaptiveThreshold):
            answer = thing.should_adjust_bias(load), thing.threshold
        elif isinstance(thing, Guard):
            answer = thing.step(load / 1000)
        elif isinstance(thing, ABTest):
            thing.observe("AB"[i % 2], float(load[0, 0]) / 100)
            answer = thing.p_value, thing.interval()
        elif isinstance(thing, LoadMonitor):
            thing.record(load, "code", 0.001 * load[0, 0])
            answer = thing.prometheus()
        elif isinstance(thing, LoadPredictor):
            thing.update("def f(): return" * i + "x", load, "code")
            answer = thing.predict_load("def")
        else:
            answer = thing.update(load)
    return answer


MAKERS: dict[str, Any] = {
    "sign": lambda: law("sign"),
    "tanh": lambda: law("tanh"),
    "window": lambda: law("window", 5),
    "ewma": lambda: law("ewma"),
    "quantile": lambda: law("quantile", 1, memory=0.5),
    "affinity": AffinityLaw,
    "bank": lambda: DomainAdaptiveBias(["code", "prose"], "balance"),
    "hybrid": lambda: HybridBias(np.zeros((2, 4)), ["code", "prose"]),
    "threshold": lambda: AdaptiveThreshold(window=5),
    "guard": lambda: Guard(np.zeros((2, 4), np.float32), max_step=0.01),
    "abtest": ABTest,
    "monitor": lambda: LoadMonitor(5),
    "predictor": lambda: LoadPredictor(["code", "prose"], (2, 4)),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_saved_state_goes_on(name: str, tmp_path: Path) -> None:
    """Through a file, into a fresh object: the same answers as without the interruption, to the bit."""
    loads = LOADS[:, None] if name == "quantile" else LOADS  # scores (..., tokens, experts)
    whole, first, second = (MAKERS[name]() for _ in range(3))
    expected = advanced(whole, loads)
    advanced(first, loads[:12])
    save_state(tmp_path / "state.npz", first.state_dict())
    if name in ("sign", "tanh", "window", "ewma", "quantile", "affinity", "bank"):
        advanced(second, loads[:1])  # has a shape and a past of its own
    second.load_state_dict(load_state(tmp_path / "state.npz"))
    answer = advanced(second, loads[12:])
    if isinstance(expected, np.ndarray):
        np.testing.assert_array_equal(answer, expected)
    else:
        assert answer == expected


@pytest.mark.parametrize("name", MAKERS)
def test_states_are_copies(name: str) -> None:
    loads = LOADS[:, None] if name == "quantile" else LOADS
    thing: Stateful = MAKERS[name]()
    advanced(thing, loads[:5])
    saved = thing.state_dict()
    advanced(thing, loads[5:])
    fresh = MAKERS[name]()
    advanced(fresh, loads[:5])
    assert repr(saved) == repr(fresh.state_dict())


def test_a_state_of_another_kind_or_model_is_refused() -> None:
    ours = law("ewma")
    before = ours.update([[1, 2, 3]])
    other = law("ewma")
    other.update([1, 2])
    for wrong, says in (
        (law("sign").state_dict(), "state of 'SignLaw' given to OnlineBiasLearning"),
        (other.state_dict(), r"shape \(2,\); expected \(1, 3\)"),
        ({"kind": "OnlineBiasLearning"}, "lacks bias, start"),
        ({**ours.state_dict(), "bias": np.full((1, 3), np.nan)}, "finite"),
        ("nothing", "state of 'str'"),
    ):
        with pytest.raises(TrimtabError, match=says):
            ours.load_state_dict(wrong)  # type: ignore[arg-type]
        np.testing.assert_array_equal(ours.bias, before)
    bank = DomainAdaptiveBias(["code"], "balance")
    with pytest.raises(TrimtabError, match="holds"):
        bank.load_state_dict(DomainAdaptiveBias(["prose"], "balance").state_dict())


def test_files_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with pytest.raises(TrimtabError, match="not a state saved by trimtab"):
        load_state(path)
    path.write_text("hello")
    with pytest.raises(TrimtabError, match="not a state saved by trimtab"):
        load_state(path)
    np.savez(path, a=np.ones(3))
    with pytest.raises(TrimtabError, match="not a state saved by trimtab"):
        load_state(path)


def test_from_numpy_to_torch_and_back(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    ours = law("window", 3)
    for load in LOADS[:6]:
        ours.update(load)
    save_state(tmp_path / "state.npz", ours.state_dict())
    theirs = law("window", 3)
    theirs.load_state_dict(load_state(tmp_path / "state.npz", torch.zeros(1)))
    for load in LOADS[6:]:
        tensor, array = theirs.update(torch.from_numpy(load)), ours.update(load)
    np.testing.assert_allclose(tensor.numpy(), array, atol=1e-12)
    save_state(tmp_path / "torch.npz", theirs.state_dict())
    ours.load_state_dict(load_state(tmp_path / "torch.npz"))
    np.testing.assert_array_equal(ours.bias, tensor.numpy())
