"""A scenario: everything a run depends on, as data. YAML in, YAML out, hashable by content."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from trimtab.errors import TrimtabError, did_you_mean, unknown
from trimtab.scenario_workload import (
    Arrivals,
    BurstArrivals,
    Count,
    DiurnalArrivals,
    EmpiricalLengths,
    FittedLengths,
    FixedLengths,
    GammaArrivals,
    Lengths,
    NonNegative,
    PoissonArrivals,
    Positive,
    Prefixes,
    Section,
    Sessions,
    StaticArrivals,
    StepArrivals,
    Trace,
    TraceArrivals,
    TraceLengths,
    UniformLengths,
    Workload,
    ZipfLengths,
)

# The sections about the workload are said in ``scenario_workload`` and are part of this module all the same.
__all__ = [
    "Admission",
    "Arrivals",
    "Autoscale",
    "BurstArrivals",
    "Disaggregation",
    "DiurnalArrivals",
    "EmpiricalLengths",
    "ExecTimeConfig",
    "FaultEvent",
    "Faults",
    "FittedLengths",
    "FixedLengths",
    "GammaArrivals",
    "Lengths",
    "PoissonArrivals",
    "Prefixes",
    "ReplicaGroup",
    "RequestClass",
    "RouterConfig",
    "Scenario",
    "SchedulerConfig",
    "Sessions",
    "SignalsConfig",
    "Slo",
    "Speculation",
    "StaticArrivals",
    "StepArrivals",
    "Trace",
    "TraceArrivals",
    "TraceLengths",
    "UniformLengths",
    "Workload",
    "ZipfLengths",
    "bundled_scenarios",
    "load_scenario",
    "parse",
]

BUNDLED = Path(__file__).parent / "data" / "scenarios"
FILE_KEYS = (  # values that may name a file
    ("workload", "trace", "path"),
    ("workload", "lengths", "name"),
    ("replicas", "exectime", "path"),
    ("replicas", "model"),
    ("router", "policy"),
    ("replicas", "device"),
)


# --- who serves ---------------------------------------------------------------------------------


class SchedulerConfig(Section):
    """How a replica forms its batches. Unset fields take the scheduler's own defaults.

    ``max_num_seqs`` requests may hold KV at once; a batch has up to ``token_budget`` tokens; a KV block
    holds ``block_size`` tokens; ``num_blocks`` replaces what the memory planner finds; ``watermark`` is
    the share of blocks kept free at admission. lightllm prefills at least every ``max_waiting_iters``
    iterations; orca and faster_transformer reserve ``kv_reservation_tokens`` per request (by default
    what the longest request needs).
    """

    name: str = "vllm_v1"
    max_num_seqs: Count | None = None
    token_budget: Count | None = None
    block_size: Count | None = None
    num_blocks: Count | None = None
    watermark: Annotated[float, Field(ge=0, lt=1)] | None = None
    max_waiting_iters: Count = 10
    policy: Literal["fcfs", "priority"] = "fcfs"
    kv_reservation_tokens: Count | None = None
    prefix_caching: bool = False


class ExecTimeConfig(Section):
    """Where iteration times come from.

    ``roofline`` needs nothing: it takes the calibration that ships for the device, or the one at ``path``;
    ``forest`` fits Vidur's random forests to profile CSVs under ``path`` (its ``data/profiling`` layout);
    ``tables`` reads per-operator look-up tables ``<path>__<op>.csv[.gz]``. ``max_tokens`` is the context
    that tables span (by default the longest request's); ``cpu_overhead_ms`` is added to every iteration;
    ``eager``: without CUDA graphs (roofline).
    """

    kind: Literal["roofline", "forest", "tables"] = "roofline"
    path: str | None = None
    max_tokens: Count | None = None
    cpu_overhead_ms: NonNegative = 0.0
    eager: bool = False
    seed: int = 0
    trees: Count = 250
    max_depth: Count = 16


class Autoscale(Section):
    """Keeps ``min`` to ``max`` replicas, as many as bring ``metric`` to its ``target``: requests waiting
    (``queue``) or waiting and running (``outstanding``) per replica, the share of KV blocks in use (``kv``),
    or the share of first tokens of the last ``window_s`` within slo.ttft_ms (``slo``).

    It looks every ``interval_s``; what it orders serves ``provision_s`` later; it sends replicas away when
    that has been right for ``scale_down_delay_s``.
    """

    min: Annotated[int, Field(ge=0)] = 1
    max: Count
    metric: Literal["queue", "outstanding", "kv", "slo"] = "queue"
    target: Positive
    interval_s: Positive = 15.0
    provision_s: NonNegative = 120.0
    scale_down_delay_s: NonNegative = 300.0
    window_s: Positive = 60.0


class Speculation(Section):
    """Speculative decoding, for scheduler vllm_v1 and pp 1: each decode step drafts ``tokens`` and verifies
    them at once.

    ``acceptance`` is the probability that a draft is accepted, those before it being so; ``draft_cost`` the
    time of drafting one token over that of a plain decode iteration of the same requests (0 for n-gram
    lookup, about 0.05 to 0.1 for EAGLE-like heads, 0.1 to 0.3 for a small draft model).
    """

    tokens: Annotated[int, Field(ge=1, le=100)]
    acceptance: Annotated[float, Field(ge=0, lt=1)]
    draft_cost: NonNegative = 0.0

    @property
    def tokens_per_step(self) -> float:
        """Mean of what a decode step yields: (1 - a^(k+1)) / (1 - a) (Leviathan et al. 2023, eq. 1)."""
        return float((1.0 - self.acceptance ** (self.tokens + 1)) / (1.0 - self.acceptance))


class ReplicaGroup(Section):
    """``count`` identical replicas of one model on one kind of device; with ``autoscale``, at the start.

    ``model`` is a name or the path of a Hugging Face config.json. ``tp`` devices share every layer, ``pp``
    stages share the layers; ``ep`` = tp puts whole experts on each of these devices instead of slices, the
    busiest with ``moe_imbalance`` times the mean tokens. ``node`` is the kind of server (by default the
    device's usual one); ``memory_margin`` is the share of device memory left alone. With ``role`` prefill or
    decode it does only that, and the scenario needs ``disaggregation``; groups of one model are listed
    prefill, both, decode.
    """

    model: str = "llama-3-8b"
    device: str = "a100-80"
    node: str | None = None
    count: Count = 1
    role: Literal["both", "prefill", "decode"] = "both"
    tp: Count = 1
    pp: Count = 1
    ep: Count = 1
    moe_imbalance: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    memory_margin: Annotated[float, Field(ge=0, lt=1)] = 0.1
    scheduler: SchedulerConfig = SchedulerConfig()
    exectime: ExecTimeConfig = ExecTimeConfig()
    speculation: Speculation | None = None
    name: str | None = None
    autoscale: Autoscale | None = None

    @property
    def slots(self) -> int:
        """Replicas that there can be at once."""
        return self.autoscale.max if self.autoscale else self.count


class Disaggregation(Section):
    """Prefill here, decode there, for models with groups whose ``role`` is prefill or decode.

    When a request's first token is out, ``decode_router`` chooses among the replicas that decode; its KV
    goes there in ``latency_ms`` plus its size / ``bandwidth_gb_s`` (gigabytes per second of a replica's
    link, each way; 25 is 200 Gb/s). A replica sends one at a time and receives one at a time.
    """

    bandwidth_gb_s: Positive = 25.0
    latency_ms: NonNegative = 1.0
    decode_router: str = "least-outstanding"


class RouterConfig(Section):
    """Which replica gets the next request. ``choices`` is d of power-of-d; see `trimtab routers`.

    ``knows`` is what it assumes of a request's output: ``none`` (the mean of the workload), ``class-mean``
    (of its SLO class), ``predictor`` (the truth times a lognormal error of sigma ``error``) or ``oracle``.
    ``temperature`` is dynamo-kv's and learned's; ``weights`` = [prefix, queue, kv] replace the defaults of
    llm-d and gie; ``policy`` is the file of a policy that trimtab train wrote, for learned.
    """

    name: str = "least-outstanding"
    choices: Count = 2
    speed_aware: bool = True
    assignment: list[int] | None = None
    knows: Literal["none", "class-mean", "predictor", "oracle"] = "none"
    error: NonNegative = 0.5
    temperature: NonNegative = 0.0
    weights: Annotated[list[NonNegative], Field(min_length=3, max_length=3)] | None = None
    policy: str | None = None


class SignalsConfig(Section):
    """What routers see of the replicas. By default the state of this very moment.

    With ``refresh_s`` each router reads it that often, put off by up to ``jitter`` of the interval, and
    learns it ``delay_s`` later; with ``count_own`` it adds what it dispatched since, with ``count_answers``
    it also subtracts what was answered since. ``routers`` independent ones, which read at evenly spaced
    times, take the requests in turn.
    """

    refresh_s: NonNegative = 0.0
    delay_s: NonNegative = 0.0
    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0
    count_own: bool = True
    count_answers: bool = False
    routers: Annotated[int, Field(ge=1, le=1000)] = 1


class Slo(Section):
    """A request is good when it meets every bound that is set (milliseconds)."""

    ttft_ms: Positive | None = None
    tpot_ms: Positive | None = None
    itl_ms: Positive | None = None
    e2e_ms: Positive | None = None


# --- what goes wrong ----------------------------------------------------------------------------


class FaultEvent(Section):
    """``slow`` stretches iterations by ``factor`` (1 ends it); a draining replica gets nothing new."""

    at_s: NonNegative
    replica: Annotated[int, Field(ge=0)]
    kind: Literal["crash", "recover", "slow", "drain", "undrain"]
    factor: Positive | None = None


class Faults(Section):
    """``events`` at given times, and crashes of every replica at random: ``mtbf_s`` seconds up and
    ``mttr_s`` seconds down (means, exponential).

    What a crash loses is tried again elsewhere ``retries`` times, after ``backoff_s`` that doubles each
    time. Routers see a crash or recovery ``health_delay_s`` late. ``breaker_failures`` failed attempts in
    a row keep routers off a replica for ``breaker_open_s``.
    """

    events: list[FaultEvent] = Field(default=[])
    mtbf_s: Positive | None = None
    mttr_s: Positive | None = None
    retries: Annotated[int, Field(ge=0)] = 2
    backoff_s: NonNegative = 0.5
    health_delay_s: NonNegative = 0.0
    breaker_failures: Count | None = None
    breaker_open_s: Positive = 10.0


class Admission(Section):
    """A request is rejected when ``max_outstanding_per_replica`` requests are outstanding per accepting
    replica, or when ``rate_qps`` (in bursts of up to ``burst``) is exceeded.

    Clients give up when the first token takes longer than ``ttft_timeout_s`` or the answer ``timeout_s``.
    """

    max_outstanding_per_replica: Positive | None = None
    rate_qps: Positive | None = None
    burst: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    timeout_s: Positive | None = None
    ttft_timeout_s: Positive | None = None


class RequestClass(Section):
    """A share of the requests. ``priority`` (smaller first) is for scheduler policy "priority".

    ``slo`` and timeouts replace the scenario's; the class is rejected from the share ``shed_at`` of
    admission.max_outstanding_per_replica on. Only replicas of ``model`` serve it (by default: any).
    """

    name: str
    share: Positive
    model: str | None = None
    priority: int = 0
    slo: Slo | None = None
    timeout_s: Positive | None = None
    ttft_timeout_s: Positive | None = None
    shed_at: Annotated[float, Field(gt=0, le=1)] = 1.0


class Scenario(Section):
    """One run, complete. Same scenario, same seed: same result, bit for bit."""

    name: str = "scenario"
    description: str = ""
    seed: Annotated[int, Field(ge=0)] = 0
    workload: Workload = Workload()
    replicas: Annotated[list[ReplicaGroup], Field(min_length=1)] = Field(default=[ReplicaGroup()])
    router: RouterConfig = RouterConfig()
    disaggregation: Disaggregation | None = None
    signals: SignalsConfig = SignalsConfig()
    slo: Slo = Slo()
    faults: Faults = Faults()
    admission: Admission = Admission()
    classes: list[RequestClass] = Field(default=[])
    time_limit_s: Positive | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_group_or_many(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = {key: value for key, value in data.items() if value is not None}
        if isinstance(data.get("replicas"), dict):
            data["replicas"] = [data["replicas"]]
        if isinstance(data.get("router"), str):
            data["router"] = {"name": data["router"]}
        return data

    @property
    def num_replicas(self) -> int:
        """Replicas that there can be at once, as they are numbered."""
        return sum(group.slots for group in self.replicas)

    def digest(self) -> str:
        """Twelve hex digits that change when anything that affects the run changes."""
        content = self.model_dump(mode="json", exclude={"name", "description"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


# --- loading ------------------------------------------------------------------------------------


def bundled_scenarios() -> list[str]:
    """Names of the scenarios that ship with the package."""
    return sorted(path.stem for path in BUNDLED.glob("*.yaml"))


def load_scenario(
    source: str | Path | dict[str, Any] | Scenario, overrides: dict[str, Any] | None = None
) -> Scenario:
    """A bundled name, a YAML file, a dict or a Scenario; ``overrides`` are dotted paths to values.

    Files that a scenario file names (traces, profiles, models) are looked up beside it, then in the
    working directory.

    Raises
    ------
    TrimtabError
        naming the key, what was given and what is allowed.
    """
    if isinstance(source, Scenario):
        data: Any = source.model_dump(mode="json", exclude_unset=True)
    elif isinstance(source, dict):
        data = copy.deepcopy(source)
    else:
        data = _read_yaml(str(source))
    for path, value in (overrides or {}).items():
        _assign(data, path, value)
    scenario: Scenario = parse(Scenario, data, "scenario")
    return scenario


def parse(model: type[BaseModel], data: Any, what: str) -> Any:
    """Validate ``data``; turn the first pydantic error into one readable line."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        # A misspelt key is often also reported as a missing one: say the former.
        errors = sorted(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        raise TrimtabError(f"{what}: {_explain(model, errors[0])}") from None


def _read_yaml(source: str) -> Any:
    path = Path(source)
    if not path.is_file() and (BUNDLED / f"{source}.yaml").is_file():
        path = BUNDLED / f"{source}.yaml"
    elif not path.exists() and not path.suffix and path.name == source:
        raise TrimtabError(f"{unknown('scenario', source, bundled_scenarios())} Or give a .yaml file.")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrimtabError(f"cannot read scenario {source!r}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise TrimtabError(f"{source} is not valid YAML{where}") from None
    if not isinstance(data, dict):
        raise TrimtabError(f"{source} must hold a mapping of scenario keys, got {type(data).__name__}")
    data.setdefault("name", path.stem)
    if path.parent != BUNDLED:
        for keys in FILE_KEYS:
            _find_files(data, keys, path.parent)
    return data


def _find_files(data: Any, keys: tuple[str, ...], folder: Path) -> None:
    """Files that are in ``folder`` or in the working directory become absolute paths."""
    for entry in data if isinstance(data, list) else [data]:
        value = entry.get(keys[0]) if isinstance(entry, dict) else None
        if len(keys) > 1 and value is not None:
            _find_files(value, keys[1:], folder)
        elif isinstance(value, str) and (
            keys[0] == "path" or value.endswith((".json", ".yaml", ".safetensors"))
        ):
            for candidate in (folder / value, Path(value)):
                # Look-up tables are named by the beginning that their files share.
                if candidate.exists() or any(candidate.parent.glob(f"{candidate.name}__*.csv*")):
                    entry[keys[0]] = str(candidate.absolute())
                    break


def _assign(data: Any, path: str, value: Any) -> None:
    """``replicas.tp`` sets every group; ``replicas.0.tp`` the first; missing sections are made.

    Setting a section's ``kind`` to another one drops the keys of the old kind.
    """
    head, _, rest = path.partition(".")
    if isinstance(data, list):
        if head.isdigit():
            if int(head) >= len(data):
                raise TrimtabError(f"cannot set {path!r}: there are only {len(data)} entries, counted from 0")
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
        if head == "kind" and data.get("kind", value) != value:
            data.clear()  # another kind has other keys
        data[head] = value
    else:
        if head == "router" and isinstance(data.get(head), str):
            data[head] = {"name": data[head]}
        if data.get(head) is None:
            data[head] = [{}] if head == "replicas" else {}
        _assign(data[head], rest, value)


# --- errors -------------------------------------------------------------------------------------


def _explain(model: type[BaseModel], error: Any) -> str:
    """One line for one pydantic error: where, what was given, what is allowed there."""
    problem, context, given = error["type"], error.get("ctx", {}), error.get("input")
    models, where = _walk(model, error["loc"])
    if problem == "extra_forbidden":
        known = sorted(models[0].model_fields)
        hint = _elsewhere(model, error["loc"][-1])
        if not hint or repr(where) in hint:  # there already, but not of this kind
            hint = did_you_mean(error["loc"][-1], known)
        return f"unknown key {where!r}; allowed there: {', '.join(known)}.{hint}"
    if problem == "missing":
        return f"{where!r} is required"
    if problem == "union_tag_not_found":
        return f"{where!r} needs a kind; allowed: {', '.join(_kind(each) for each in models)}"
    if problem == "union_tag_invalid":
        return str(unknown(f"{where}.kind", str(context["tag"]), (_kind(each) for each in models)))
    if problem == "literal_error":
        return str(unknown(where, str(given), re.findall(r"'(.*?)'", context["expected"])))
    shown = str(given) if isinstance(given, (int, float, bool)) else repr(given)
    if isinstance(given, (dict, list)):
        shown = "a mapping" if isinstance(given, dict) else "a list"
    message = error["msg"].replace("Input should", "must").replace("List should", "must")
    message = message.replace("valid dictionary or object to extract fields from", "mapping of keys")
    message = re.sub(r"valid dictionary or instance of \w+", "mapping of keys", message)
    return f"{where or 'it'}: {message.split(', ')[0].replace(' after validation', '')}, got {shown}"


def _walk(model: type[BaseModel], location: tuple[Any, ...]) -> tuple[list[type[BaseModel]], str]:
    """The models that may stand at ``location`` (at its parent, for a field that is none), and its path.

    Pydantic puts the chosen kind of a union into the location; it is no key and is left out.
    """
    models, path = [model], []
    for part in location:
        chosen = [each for each in models if len(models) > 1 and _kind(each) == part]
        if chosen:
            models = chosen
            continue
        path.append(str(part))
        field = models[0].model_fields.get(part) if isinstance(part, str) else None
        models = (_models_in(field.annotation) if field else []) or models
    return models, ".".join(path)


def _elsewhere(model: type[BaseModel], key: str) -> str:
    """Where ``key`` does belong, if it is a key at all."""
    sections: list[tuple[str, type[BaseModel]]] = [("", model)]
    for prefix, section in sections:
        if prefix and key in section.model_fields:
            return f" Did you mean {prefix + key!r}?"
        for name, field in section.model_fields.items():
            sections += [(f"{prefix}{name}.", inner) for inner in _models_in(field.annotation)]
    return ""


def _kind(model: type[BaseModel]) -> str:
    return str(model.model_fields["kind"].default) if "kind" in model.model_fields else ""


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _models_in(part)]
