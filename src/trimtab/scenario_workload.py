"""The workload part of a scenario: who asks, when, how much, and what prompts share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Unknown keys are errors; values are checked on assignment."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


# --- who asks, and when -------------------------------------------------------------------------


class StaticArrivals(Section):
    """All at time zero (``qps`` unset), or one every ``1/qps`` seconds."""

    kind: Literal["static"] = "static"
    qps: Positive | None = None


class PoissonArrivals(Section):
    """Exponential gaps. ``cap`` cuts a gap at ``cap/qps`` as Vidur does (3.0); off by default."""

    kind: Literal["poisson"] = "poisson"
    qps: Positive
    cap: Positive | None = None


class GammaArrivals(Section):
    """Gamma gaps with coefficient of variation ``cv`` (1 = Poisson, more = burstier)."""

    kind: Literal["gamma"] = "gamma"
    qps: Positive
    cv: Positive = 0.5


class TraceArrivals(Section):
    """The arrival times of the workload's trace, times ``time_scale`` (0.5 = twice the rate)."""

    kind: Literal["trace"] = "trace"
    time_scale: Positive = 1.0


class DiurnalArrivals(Section):
    """Poisson with rate ``qps * (1 + amplitude * sin(2 pi t / period_s))``."""

    kind: Literal["diurnal"] = "diurnal"
    qps: Positive
    amplitude: Annotated[float, Field(ge=0, le=1)] = 0.5
    period_s: Positive = 86400.0


class StepArrivals(Section):
    """Poisson with a piecewise constant rate: ``steps`` = [[start_s, qps], ...], first start 0."""

    kind: Literal["step"] = "step"
    steps: Annotated[list[tuple[NonNegative, NonNegative]], Field(min_length=1)]


class BurstArrivals(Section):
    """Poisson at ``qps``, times ``factor`` for ``burst_s`` seconds out of every ``every_s``."""

    kind: Literal["burst"] = "burst"
    qps: Positive
    factor: Positive = 4.0
    burst_s: Positive = 10.0
    every_s: Positive = 60.0


Arrivals = Annotated[
    StaticArrivals
    | PoissonArrivals
    | GammaArrivals
    | TraceArrivals
    | DiurnalArrivals
    | StepArrivals
    | BurstArrivals,
    Field(discriminator="kind"),
]


class FixedLengths(Section):
    kind: Literal["fixed"] = "fixed"
    prefill: Count = 2048
    decode: Count = 512


class UniformLengths(Section):
    """Total uniform in [min_tokens, max_tokens]; decode = ceil(total / (1 + prefill_to_decode))."""

    kind: Literal["uniform"] = "uniform"
    min_tokens: Count = 1024
    max_tokens: Count = 4096
    prefill_to_decode: Positive = 20.0


class ZipfLengths(Section):
    """Total Zipf-distributed over [min_tokens, max_tokens] with exponent ``theta``."""

    kind: Literal["zipf"] = "zipf"
    theta: NonNegative = 0.6
    scramble: bool = False
    min_tokens: Count = 1024
    max_tokens: Count = 4096
    prefill_to_decode: Positive = 20.0


class TraceLengths(Section):
    """The trace's (prefill, decode) pairs in order; ``shuffle`` draws them without replacement."""

    kind: Literal["trace"] = "trace"
    shuffle: bool = False
    prefill_scale: Positive = 1.0
    decode_scale: Positive = 1.0


class EmpiricalLengths(Section):
    """Pairs drawn with replacement from the trace."""

    kind: Literal["empirical"] = "empirical"
    prefill_scale: Positive = 1.0
    decode_scale: Positive = 1.0


class FittedLengths(Section):
    """A joint quantile table fitted by ``trimtab workload fit``: bundled name or a .json file."""

    kind: Literal["fitted"] = "fitted"
    name: str = "azure-conv-2023"


Lengths = Annotated[
    FixedLengths | UniformLengths | ZipfLengths | TraceLengths | EmpiricalLengths | FittedLengths,
    Field(discriminator="kind"),
]


class Trace(Section):
    """A trace file. ``columns`` maps arrived_at/prefill/decode/session to the file's own names.

    Each of a Mooncake row's ``hash_ids`` stands for ``hash_tokens`` tokens of its prompt.
    """

    path: str
    format: Literal["auto", "azure", "vidur", "burstgpt", "mooncake", "table"] = "auto"
    columns: dict[str, str] | None = None
    hash_tokens: Count = 512


class Sessions(Section):
    """Conversations: every prompt is the whole history so far and the new words of the user.

    A session has ``turns`` turns, on average (geometric) or always (fixed). ``lengths`` draws the new
    prompt tokens and the answer of each turn. The next turn comes ``think_s`` seconds after the answer
    (mean, exponential). A session ends early where its context would pass ``max_context`` tokens.
    """

    turns: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 5.0
    law: Literal["geometric", "fixed"] = "geometric"
    think_s: NonNegative = 10.0
    max_context: Count = 32768


class Prefixes(Section):
    """Shared beginnings of prompts, as system prompts are: ``groups`` of them, put before the drawn prompt.

    A prefix has ``tokens`` tokens, or between two bounds: [least, most]. The k-th most popular one is
    chosen with probability proportional to k^-zipf; ``share`` of all requests (of all sessions, where
    there are sessions) have one.
    """

    groups: Count = 16
    tokens: Count | tuple[Count, Count] = 1024
    zipf: NonNegative = 1.0
    share: Annotated[float, Field(ge=0, le=1)] = 1.0


class Workload(Section):
    """Requests: how many, when, how long.

    ``duration_s`` wins over ``num_requests``. ``max_tokens`` caps prompt plus output by cutting the
    prompt, or both with ``cap: proportional``. ``users`` switches to a closed loop: N users, each
    sending its next request ``think_s`` seconds (mean, exponential; 0 = at once) after its last answer;
    arrivals are then ignored. ``sessions`` makes conversations, which ``arrivals`` start at a rate that
    brings the requests to the one stated; ``prefixes`` gives prompts shared beginnings.
    """

    arrivals: Arrivals = PoissonArrivals(qps=10.0)
    lengths: Lengths = FittedLengths()
    trace: Trace | None = None
    num_requests: Count | None = None
    duration_s: Positive | None = None
    max_tokens: Count | None = None
    cap: Literal["prefill", "proportional"] = "prefill"
    users: Count | None = None
    think_s: NonNegative = 0.0
    requests_per_session: Count = 1
    sessions: Sessions | None = None
    prefixes: Prefixes | None = None
