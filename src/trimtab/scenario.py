"""A scenario: everything a run depends on, as data. YAML in, YAML out, hashable by content."""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trimtab.errors import TrimtabError, unknown

BUNDLED = Path(__file__).parent / "data" / "scenarios"

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    """Unknown keys are errors; values are checked on assignment."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


# --- who asks, and when -------------------------------------------------------------------------


class StaticArrivals(_Section):
    """All at time zero (``qps`` unset), or one every ``1/qps`` seconds."""

    kind: Literal["static"] = "static"
    qps: Positive | None = None


class PoissonArrivals(_Section):
    """Exponential gaps. ``cap`` cuts a gap at ``cap/qps`` as Vidur does (3.0); off by default."""

    kind: Literal["poisson"] = "poisson"
    qps: Positive
    cap: Positive | None = None


class GammaArrivals(_Section):
    """Gamma gaps with coefficient of variation ``cv`` (1 = Poisson, more = burstier)."""

    kind: Literal["gamma"] = "gamma"
    qps: Positive
    cv: Positive = 0.5


class TraceArrivals(_Section):
    """The arrival times of the workload's trace, times ``time_scale`` (0.5 = twice the rate)."""

    kind: Literal["trace"] = "trace"
    time_scale: Positive = 1.0


class DiurnalArrivals(_Section):
    """Poisson with rate ``qps * (1 + amplitude * sin(2 pi t / period_s))``."""

    kind: Literal["diurnal"] = "diurnal"
    qps: Positive
    amplitude: Annotated[float, Field(ge=0, le=1)] = 0.5
    period_s: Positive = 86400.0


class StepArrivals(_Section):
    """Poisson with a piecewise constant rate: ``steps`` = [[start_s, qps], ...], first start 0."""

    kind: Literal["step"] = "step"
    steps: Annotated[list[tuple[NonNegative, NonNegative]], Field(min_length=1)]


class BurstArrivals(_Section):
    """Poisson at ``qps``, times ``factor`` for ``burst_s`` seconds out of every ``every_s``."""

    kind: Literal["burst"] = "burst"
    qps: Positive
    factor: Positive = 4.0
    burst_s: Positive = 10.0
    every_s: Positive = 60.0


Arrivals = Annotated[
    StaticArrivals | PoissonArrivals | GammaArrivals | TraceArrivals | DiurnalArrivals | StepArrivals | BurstArrivals,
    Field(discriminator="kind"),
]


class FixedLengths(_Section):
    kind: Literal["fixed"] = "fixed"
    prefill: Count = 2048
    decode: Count = 512


class UniformLengths(_Section):
    """Total uniform in [min_tokens, max_tokens]; decode = ceil(total / (1 + prefill_to_decode))."""

    kind: Literal["uniform"] = "uniform"
    min_tokens: Count = 1024
    max_tokens: Count = 4096
    prefill_to_decode: Positive = 20.0


class ZipfLengths(_Section):
    """Total Zipf-distributed over [min_tokens, max_tokens] with exponent ``theta``."""

    kind: Literal["zipf"] = "zipf"
    theta: NonNegative = 0.6
    scramble: bool = False
    min_tokens: Count = 1024
    max_tokens: Count = 4096
    prefill_to_decode: Positive = 20.0


class TraceLengths(_Section):
    """The trace's (prefill, decode) pairs in order; ``shuffle`` draws them without replacement."""

    kind: Literal["trace"] = "trace"
    shuffle: bool = False
    prefill_scale: Positive = 1.0
    decode_scale: Positive = 1.0


class EmpiricalLengths(_Section):
    """Pairs drawn with replacement from the trace."""

    kind: Literal["empirical"] = "empirical"
    prefill_scale: Positive = 1.0
    decode_scale: Positive = 1.0


class FittedLengths(_Section):
    """A joint quantile table fitted by ``trimtab workload fit``: bundled name or a .json file."""

    kind: Literal["fitted"] = "fitted"
    name: str = "azure-conv-2023"


Lengths = Annotated[
    FixedLengths | UniformLengths | ZipfLengths | TraceLengths | EmpiricalLengths | FittedLengths,
    Field(discriminator="kind"),
]


class Trace(_Section):
    """A trace file. ``columns`` maps arrived_at/prefill/decode/session to the file's own names."""

    path: str
    format: Literal["auto", "azure", "vidur", "burstgpt", "mooncake", "table"] = "auto"
    columns: dict[str, str] | None = None


class Workload(_Section):
    """Requests: how many, when, how long.

    ``users`` switches to a closed loop: N users, each sending its next request ``think_s`` seconds
    (mean, exponential; 0 = at once) after its last answer; arrivals are then ignored.
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


# --- who serves ---------------------------------------------------------------------------------


class SchedulerConfig(_Section):
    """How a replica forms its batches. Unset fields take the scheduler's own defaults."""

    name: str = "vllm_v1"
    max_num_seqs: Count | None = None
    token_budget: Count | None = None
    block_size: Count | None = None
    num_blocks: Count | None = None
    watermark: Annotated[float, Field(ge=0, lt=1)] | None = None
    max_waiting_iters: Count = 10
    policy: Literal["fcfs", "priority"] = "fcfs"
    kv_reservation_tokens: Count | None = None


class ExecTimeConfig(_Section):
    """Where iteration times come from.

    ``roofline`` needs nothing; ``forest`` fits Vidur's random forests to profile CSVs under
    ``path`` (its ``data/profiling`` layout); ``tables`` reads per-operator look-up tables
    ``<path>__<op>.csv[.gz]``.
    """

    kind: Literal["roofline", "forest", "tables"] = "roofline"
    path: str | None = None
    max_tokens: Count | None = None
    cpu_overhead_ms: NonNegative = 0.0
    seed: int = 0
    trees: Count = 250
    max_depth: Count = 16


class ReplicaGroup(_Section):
    """``count`` identical replicas of one model on one kind of device."""

    model: str = "llama-3-8b"
    device: str = "a100-80"
    node: str | None = None
    count: Count = 1
    tp: Count = 1
    pp: Count = 1
    memory_margin: Annotated[float, Field(ge=0, lt=1)] = 0.1
    scheduler: SchedulerConfig = SchedulerConfig()
    exectime: ExecTimeConfig = ExecTimeConfig()
    name: str | None = None


class RouterConfig(_Section):
    """Which replica gets the next request. ``choices`` is d of power-of-d; see `trimtab routers`."""

    name: str = "least-outstanding"
    choices: Count = 2
    speed_aware: bool = True
    assignment: list[int] | None = None


class Slo(_Section):
    """A request is good when it meets every bound that is set (milliseconds)."""

    ttft_ms: Positive | None = None
    tpot_ms: Positive | None = None
    itl_ms: Positive | None = None
    e2e_ms: Positive | None = None


class Scenario(_Section):
    """One run, complete. Same scenario, same seed: same result, bit for bit."""

    name: str = "scenario"
    description: str = ""
    seed: Annotated[int, Field(ge=0)] = 0
    workload: Workload = Workload()
    replicas: Annotated[list[ReplicaGroup], Field(min_length=1)] = [ReplicaGroup()]
    router: RouterConfig = RouterConfig()
    slo: Slo = Slo()
    time_limit_s: Positive | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_group_or_many(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("replicas"), dict):
            data = {**data, "replicas": [data["replicas"]]}
        if isinstance(data, dict) and isinstance(data.get("router"), str):
            data = {**data, "router": {"name": data["router"]}}
        return data

    @property
    def num_replicas(self) -> int:
        return sum(group.count for group in self.replicas)

    def digest(self) -> str:
        """Twelve hex digits that change when anything that affects the run changes."""
        content = self.model_dump(mode="json", exclude={"name", "description"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


# --- loading ------------------------------------------------------------------------------------


def bundled_scenarios() -> list[str]:
    """Names of the scenarios that ship with the package."""
    return sorted(path.stem for path in BUNDLED.glob("*.yaml"))


def load_scenario(source: str | Path | dict[str, Any] | Scenario, overrides: dict[str, Any] | None = None) -> Scenario:
    """A bundled name, a YAML file, a dict or a Scenario; ``overrides`` are dotted paths to values.

    Raises
    ------
    TrimtabError
        naming the key, what was given and what is allowed.
    """
    if isinstance(source, Scenario):
        data: Any = source.model_dump(mode="json", exclude_unset=True)
    elif isinstance(source, dict):
        data = json.loads(json.dumps(source))
    else:
        data = _read_yaml(str(source))
    for path, value in (overrides or {}).items():
        _assign(data, path, value)
    return parse(Scenario, data, "scenario")


def parse(model: type[BaseModel], data: Any, what: str) -> Any:
    """Validate ``data``; turn the first pydantic error into one readable line."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise TrimtabError(f"{what}: {_first_line(model, error)}") from None


def _read_yaml(source: str) -> Any:
    path = Path(source)
    if not path.suffix:
        path = BUNDLED / f"{source}.yaml"
        if not path.is_file():
            raise unknown("scenario", source, [*bundled_scenarios(), "or a .yaml file"])
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise TrimtabError(f"cannot read scenario {source!r}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise TrimtabError(f"{source} is not valid YAML{where}") from None
    if not isinstance(data, dict):
        raise TrimtabError(f"{source} must hold a mapping of scenario keys, got {type(data).__name__}")
    data.setdefault("name", path.stem)
    return data


def _assign(data: Any, path: str, value: Any) -> None:
    """``replicas.tp`` sets every group; ``replicas.0.tp`` the first; missing sections are made."""
    head, _, rest = path.partition(".")
    if isinstance(data, list):
        if head.isdigit():
            if int(head) >= len(data):
                raise TrimtabError(f"--set {path}: there are only {len(data)} entries")
            if rest:
                _assign(data[int(head)], rest, value)
            else:
                data[int(head)] = value
        else:
            for entry in data:
                _assign(entry, path, value)
    elif not isinstance(data, dict):
        raise TrimtabError(f"cannot set {path!r} inside {data!r}; use a mapping there")
    elif not rest:
        data[head] = value
    else:
        if head == "router" and isinstance(data.get(head), str):
            data[head] = {"name": data[head]}
        if data.get(head) is None:
            data[head] = [{}] if head == "replicas" else {}
        _assign(data[head], rest, value)


def _first_line(model: type[BaseModel], error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _fields_at(model, first["loc"][:-1])
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return f"unknown key {where!r}; allowed there: {', '.join(known)}.{hint}"
    given = first.get("input")
    shown = repr(given) if isinstance(given, (str, int, float, bool, type(None))) else type(given).__name__
    return f"{where or 'input'}: {first['msg']} (given: {shown})"


def _fields_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """The field names allowed at ``location``; walks into lists and discriminated unions."""
    here: Any = model
    for part in location:
        if isinstance(part, int):
            continue
        options = _models_in(here.model_fields[part].annotation) if part in here.model_fields else []
        if not options and hasattr(here, "model_fields"):
            continue
        here = options[0] if len(options) == 1 else _Union(options)
        if isinstance(here, _Union):
            continue
    if isinstance(here, _Union):
        tag = location[-1]
        match = [m for m in here.models if m.model_fields["kind"].default == tag]
        here = match[0] if match else here.models[0]
    return sorted(here.model_fields)


class _Union:
    model_fields: dict[str, Any] = {}

    def __init__(self, models: list[type[BaseModel]]):
        self.models = models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    for part in getattr(annotation, "__args__", ()):
        found.extend(_models_in(part))
    return found
