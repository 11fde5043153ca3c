"""A bias law beside a Hugging Face model: reads every router, moves every bias, restores all of it.

    with attach(model, "quantile") as balanced:
        model(**batch)              # recorded; the next batch is served with the new bias
        print(balanced.load)        # tokens per expert (layers, experts)
                                    # here the model is as it was, bit for bit

The bias of a batch is made from earlier batches only: it is written after the forward.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trimtab.balance import LAWS, AdaptiveLoadBalancer, BiasLaw, Guard, reduce_counts
from trimtab.balance import law as law_of
from trimtab.balance.arrays import as_bias
from trimtab.errors import TrimtabError, unknown
from trimtab.moe.recorder import Recorder
from trimtab.moe.routers import Router, find_routers

Law = BiasLaw | AdaptiveLoadBalancer
MARK = "trimtab_attached"  # set on a router while it is attached


def attach(
    model: nn.Module,
    law: str | Law | None = None,
    *,
    target: Any = None,
    guard: Guard | None = None,
    strength: float = 1.0,
    reduce: Callable[[Tensor], Any] | None = None,
    only: str | None = None,
) -> Attachment:
    """Put ``law`` in charge of the biases of all routers of ``model``; without a law, only observe.

    Parameters
    ----------
    law : a name of ``balance.LAWS``, a law without a start or with ``trained_bias(model)`` as its start,
        or an `AdaptiveLoadBalancer`, whose domain detector then sees ``input_ids``.
    target : wanted share per expert, (experts,) or (layers, experts); uniform where left out.
    guard : takes the law's bias in small steps and back to the trained one when a probe complains;
        made with ``Guard(trained_bias(model), ...)``.
    strength : 0 to 1, how far to go from the trained bias towards the law's.
    reduce : sums a tensor of counts over processes in place (``torch.distributed.all_reduce``); called
        once per forward, by every process.
    only : pattern on router names, for models with several towers.

    Padding, where ``attention_mask`` (batch, tokens) is 0, is neither counted nor learned from.
    Raises `TrimtabError` where no router is found, one is attached already, or the law has another shape;
    a forward in which a router stays silent raises too.
    """
    return Attachment(model, law, target, guard, strength, reduce, only)


def trained_bias(model: nn.Module, only: str | None = None) -> np.ndarray:
    """The biases that the model has now, float64 (layers, experts); zero for routers without one."""
    return read(find_routers(model, only))


def read(routers: list[Router]) -> np.ndarray:
    """The stored biases, float64 (layers, experts)."""
    rows = [
        np.zeros(router.experts)
        if router.holder is None
        else router.stored().detach().double().cpu().numpy().reshape(-1)
        for router in routers
    ]
    return np.stack(rows)


def as_numpy(values: Any) -> np.ndarray:
    """A tensor of any device, or an array, as an array."""
    return values.detach().cpu().numpy() if torch.is_tensor(values) else np.asarray(values)


class Attachment:
    """What `attach` returns: the figures of the last forward, the bias in force, and the way back."""

    def __init__(
        self,
        model: nn.Module,
        law: str | Law | None,
        target: Any,
        guard: Guard | None,
        strength: float,
        reduce: Callable[[Tensor], Any] | None,
        only: str | None,
    ) -> None:
        self.model, self.target, self.guard, self.reduce = model, target, guard, reduce
        self.routers = find_routers(model, only)
        if taken := [router.name for router in self.routers if hasattr(router.module, MARK)]:
            raise TrimtabError(f"{taken[0]} is attached already; detach() that attachment first")
        if not 0.0 <= strength <= 1.0:
            raise TrimtabError(f"strength is from 0 (trained bias) to 1 (the law's); given {strength!r}")
        self.strength = strength
        self.experts, self.top_k = self.routers[0].experts, self.routers[0].top_k
        self.device = self.routers[0].device()
        self.trained = read(self.routers)  # float64 (layers, experts)
        self.law = self.prepared(law)
        self.initial = self.law.state_dict() if isinstance(self.law, BiasLaw) else None
        if guard is not None:
            self.check_same(guard.trained, "guard's trained bias")
        scores = isinstance(self.law, BiasLaw) and self.law.observes == "scores"
        self.recorders = [Recorder(router, scores) for router in self.routers]
        self.load: np.ndarray | None = (
            None  # tokens per expert of the last forward, float64 (layers, experts)
        )
        self.num_forwards = 0
        self.inside = self.resting = False
        self.signature = inspect.signature(model.forward)
        self.hooks = [
            model.register_forward_pre_hook(self.before, with_kwargs=True),
            model.register_forward_hook(self.after),
            *(hook for recorder in self.recorders for hook in recorder.hooks(self)),
        ]
        for router in self.routers:
            setattr(router.module, MARK, True)

    # --- the law ----------------------------------------------------------------------------------

    def prepared(self, law: str | Law | None) -> Law | None:
        """The law with the trained bias as its start, checked against this model."""
        if isinstance(law, str):
            if law not in LAWS:
                raise unknown("bias law", law, LAWS)
            law = law_of(law, **self.market) if LAWS[law].observes == "scores" else law_of(law)
        if isinstance(law, AdaptiveLoadBalancer):
            if self.guard is not None or self.strength != 1.0 or self.target is not None:
                raise TrimtabError("an AdaptiveLoadBalancer has its own guard; give it guard, not attach()")
            self.check_same(law.adjuster.base, "balancer's base bias")
        elif isinstance(law, BiasLaw):
            if law.bias is None:
                law.bias = law.start = self.trained
                if law.observes == "scores" and self.device.type != "cpu":  # sorted where they are made
                    law.bias = law.start = torch.from_numpy(self.trained.copy()).to(self.device)
            self.check_same(law.start, "law's starting bias")
            self.check_market(law)
            alone = law.observes == "scores" and getattr(law, "reduce", None) is None
            if self.reduce is not None and alone:
                raise TrimtabError(
                    f"{type(law).__name__} sees the scores of its own process only, and biases would part; "
                    "use QuantileHistogramLaw(top_k, reduce=...) with several processes"
                )
        elif law is not None:
            raise TrimtabError(
                f"law is a name, a BiasLaw or an AdaptiveLoadBalancer; given {type(law).__name__}"
            )
        return law

    @property
    def market(self) -> dict[str, int]:
        """How the routers select, as the quantile laws take it."""
        router = self.routers[0]
        return {"top_k": router.top_k, "groups": router.groups, "top_groups": router.top_groups}

    def check_market(self, law: BiasLaw) -> None:
        """Raise where a law that reads scores reckons with another kind of selection."""
        market = getattr(law, "market", None)  # laws of other people may reckon without one
        if market is not None and any(getattr(market, name) != value for name, value in self.market.items()):
            listed = ", ".join(f"{name}={value}" for name, value in self.market.items())
            raise TrimtabError(
                f"{type(law).__name__} is for other routers than those of {type(self.model).__name__}: "
                f"make it with {listed}"
            )

    def other_model(self, what: str, bias: Any) -> TrimtabError:
        return TrimtabError(
            f"{what} has shape {tuple(bias.shape)}; {type(self.model).__name__} has "
            f"{self.trained.shape[0]} routers of {self.experts} experts: a bias for another model?"
        )

    def check_same(self, bias: Any, what: str) -> None:
        """Raise where a trained bias given beside the model is not the model's."""
        if tuple(bias.shape) != self.trained.shape:
            raise self.other_model(what, bias)
        if not np.array_equal(as_numpy(as_bias(bias, what)[1]), self.trained):
            raise TrimtabError(f"{what} is not that of this model; take it from trained_bias(model)")

    # --- around a forward ---------------------------------------------------------------------------

    def before(self, _model: nn.Module, args: Any, kwargs: Any) -> None:
        """Pre-hook of the model: note the padding, let a balancer choose the bias for this batch."""
        if self.resting:
            return
        given = self.signature.bind_partial(*args, **kwargs).arguments
        given = {**given, **given.get("kwargs", {})}
        mask = given.get("attention_mask")
        mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        for recorder in self.recorders:
            recorder.begin(mask)
        self.inside = True
        if isinstance(self.law, AdaptiveLoadBalancer):
            if given.get("input_ids") is None:
                raise TrimtabError("an AdaptiveLoadBalancer reads input_ids; the model was called without")
            self.write(self.law.get_correction_bias(given["input_ids"]))

    def after(self, _model: nn.Module, _args: Any, _output: Any) -> None:
        """Hook of the model: sum what was recorded, update the law, write the next batch's bias."""
        if self.resting:
            return
        self.inside = False
        silent = [each.router for each in self.recorders if each.counts is None]
        if silent:
            raise TrimtabError(
                f"{len(silent)} of {len(self.routers)} routers recorded nothing in this forward, first "
                f"{silent[0].name} ({type(silent[0].module).__name__}): a fused kernel in its place, "
                "or a tower that did not run (leave it out with only=)?"
            )
        counts = torch.stack(
            [each.counts.to(self.device) for each in self.recorders if each.counts is not None]
        )
        if self.reduce is not None:
            counts = reduce_counts([counts], self.reduce)[0]
        self.load = counts.double().cpu().numpy()
        self.num_forwards += 1
        with self.paused():
            self.update()

    def update(self) -> None:
        """One step of the law with what the last forward showed."""
        if isinstance(self.law, AdaptiveLoadBalancer):
            self.law.record(self.load)
        elif self.law is not None:
            seen: Any = self.load
            if self.law.observes == "scores":
                # On a CPU NumPy sorts about ten times as fast as torch.
                seen = self.scores() if self.device.type != "cpu" else self.scores().double().numpy()
            proposed = as_numpy(self.law.update(seen, self.target))
            proposed = self.trained + self.strength * (proposed - self.trained)
            self.write(proposed if self.guard is None else self.guard.step(proposed))

    def scores(self) -> Tensor:
        """What the biases were added to in the last forward, (layers, tokens, experts)."""
        return torch.stack([recorder.all_scores().to(self.device) for recorder in self.recorders])

    # --- the bias ---------------------------------------------------------------------------------

    @property
    def bias(self) -> np.ndarray:
        """The bias in force, float64 (layers, experts)."""
        return np.stack(
            [recorder.bias.detach().double().cpu().numpy().reshape(-1) for recorder in self.recorders]
        )

    def set_bias(self, bias: Any) -> None:
        """Serve with this bias (layers, experts) from now on; a bias of another shape, or NaN, is refused."""
        if tuple(np.shape(bias)) != self.trained.shape:
            raise self.other_model("bias", np.asarray(bias))
        self.write(as_bias(bias, "bias")[1])

    def write(self, bias: Any) -> None:
        """In place: whoever holds the tensor (a CUDA graph, say) sees the new values."""
        rows = bias if torch.is_tensor(bias) else torch.from_numpy(np.ascontiguousarray(bias))
        for recorder, row in zip(self.recorders, rows, strict=True):
            recorder.write(row)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Forwards inside are neither recorded nor learned from: what a quality probe needs."""
        before, self.resting = self.resting, True
        try:
            yield
        finally:
            self.resting = before

    @contextmanager
    def trial(self, bias: Any) -> Iterator[None]:
        """Serve with ``bias`` inside, paused; afterwards with the bias from before."""
        held = [recorder.bias.detach().clone() for recorder in self.recorders]
        self.set_bias(bias)
        try:
            with self.paused():
                yield
        finally:
            for recorder, row in zip(self.recorders, held, strict=True):
                recorder.write(row)

    def rollback(self) -> None:
        """The trained bias, bit for bit; the law starts anew, the guard rests for its cool-down."""
        guard = self.law.guard if isinstance(self.law, AdaptiveLoadBalancer) else self.guard
        if guard is not None:
            guard.rollback()
        if isinstance(self.law, BiasLaw) and self.initial is not None:
            self.law.load_state_dict(self.initial)
        for recorder in self.recorders:
            recorder.write(recorder.kept)

    def detach(self) -> None:
        """Take everything away: hooks, biases, marks. The model computes as before, bit for bit."""
        for hook in self.hooks:
            hook.remove()
        self.hooks = []
        for recorder in self.recorders:
            recorder.restore()
            if hasattr(recorder.router.module, MARK):
                delattr(recorder.router.module, MARK)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    # --- state ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The bias in force, the law's and the guard's state, and whose; for `balance.save_state`."""
        return {
            "kind": "Attachment",
            "routers": [router.name for router in self.routers],
            "top_k": self.top_k,
            "trained": self.trained.copy(),
            "bias": self.bias,
            "law": None if self.law is None else self.law.state_dict(),
            "guard": None if self.guard is None else self.guard.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``. One of another model or law is one error and changes nothing."""
        self.check_state(state)
        if self.law is not None:
            self.law.load_state_dict(state["law"])
        if self.guard is not None:
            self.guard.load_state_dict(state["guard"])
        self.set_bias(state["bias"])

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise where `load_state_dict` would not fit."""
        if not isinstance(state, Mapping) or state.get("kind") != "Attachment":
            raise TrimtabError("this is not the state of an attachment; load what its state_dict() gave")
        names = [router.name for router in self.routers]
        shape = np.shape(np.asarray(state.get("trained")))
        if state.get("routers") != names or state.get("top_k") != self.top_k or shape != self.trained.shape:
            raise TrimtabError(
                f"the state is of a model with {len(state.get('routers', []))} routers, bias {shape}; "
                f"this one has {len(names)} of {self.experts}, top-{self.top_k}: another model"
            )
        if not np.array_equal(state["trained"], self.trained):
            raise TrimtabError("the state is of a checkpoint with another trained bias than this model's")
        as_bias(state["bias"], "bias", self.trained)
        for what, part in (("law", self.law), ("guard", self.guard)):
            if (part is None) != (state.get(what) is None):
                has = "has no" if part is None else "has a"
                raise TrimtabError(f"this attachment {has} {what}, unlike the one whose state this is")
            if part is not None:
                part.check_state(state[what])
