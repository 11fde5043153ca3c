"""The whole loop at inference: detect the domain, watch the load, move the bias, guard what is served."""

from __future__ import annotations

from typing import Any

from trimtab.balance.arrays import Array, as_bias, as_load, as_target
from trimtab.balance.domains import HybridBias
from trimtab.balance.guard import Guard
from trimtab.balance.monitor import LoadMonitor
from trimtab.balance.predictor import DomainDetector
from trimtab.balance.state import Stateful
from trimtab.balance.threshold import AdaptiveThreshold
from trimtab.errors import TrimtabError


class AdaptiveLoadBalancer(Stateful):
    """One object beside a model: before a batch it gives the bias, after it takes the load.

        bias = balancer.get_correction_bias(input_batch)    # serve the batch with this
        balancer.record(load, latency_s=seconds)            # what it did

    ``adjuster`` mixes the trained, the dynamic and the domains' biases; by default there is a domain for
    each task type of ``domain_detector``. ``threshold`` decides whether a load is worth reacting to (without
    one every load is). ``guard`` keeps steps small and the way back open. A batch's bias is made from
    earlier batches only: the trained bias is served until a load has called for something else.
    """

    state = ("adjuster", "domain_detector", "load_monitor", "threshold", "guard", "domain")

    def __init__(
        self,
        base_bias: Any,
        domain_detector: DomainDetector,
        *,
        adjuster: HybridBias | None = None,
        guard: Guard | None = None,
        threshold: AdaptiveThreshold | None = None,
        load_monitor: LoadMonitor | None = None,
    ) -> None:
        types = domain_detector.classifier.task_types
        self.adjuster = adjuster if adjuster is not None else HybridBias(base_bias, types)
        as_bias(base_bias, "base_bias", self.adjuster.base)
        if strange := set(types) - set(self.adjuster.domains.laws):
            raise TrimtabError(f"the detector may say {sorted(strange)}, which the adjuster has no bias for")
        self.domain_detector = domain_detector
        self.guard = guard if guard is not None else Guard(base_bias)
        self.threshold = threshold
        self.load_monitor = load_monitor if load_monitor is not None else LoadMonitor()
        self.domain: str | None = None  # of the batch being served

    def get_correction_bias(self, input_batch: Any) -> Array:
        """The bias (..., experts) to serve this batch of text or token ids with, in the trained dtype."""
        self.domain = self.domain_detector.detect(input_batch)
        return self.guard.step(self.adjuster.get_bias(self.domain))

    def record(self, load: Any, target: Any = None, latency_s: float | None = None) -> bool:
        """Take in the load (..., experts) of the batch just served; whether the bias was adjusted for it."""
        if self.domain is None:
            raise TrimtabError(
                "record() takes the load of a batch; call get_correction_bias(batch) before it"
            )
        as_target(target, as_load(load, self.adjuster.base)[1])  # all or nothing: before any part changes
        self.load_monitor.record(load, self.domain, latency_s)
        adjust = self.threshold is None or self.threshold.should_adjust_bias(load, target)
        if adjust:
            self.adjuster.update(load, target, domain=self.domain)
        return adjust
