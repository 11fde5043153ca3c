"""The flags that several commands share, and what they change in a scenario."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.errors import TrimtabError

if TYPE_CHECKING:
    from trimtab.scenario import Scenario

ScenarioArgument = Annotated[
    str, typer.Argument(metavar="SCENARIO", help="Bundled name (see `trimtab scenario list`) or YAML file.")
]
ModelOption = Annotated[str | None, typer.Option("--model", help="Model of every replica.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="Device of every replica.")]
ReplicasOption = Annotated[int | None, typer.Option("--replicas", help="Number of replicas.")]
TpOption = Annotated[int | None, typer.Option("--tp", help="Tensor parallelism.")]
PpOption = Annotated[int | None, typer.Option("--pp", help="Pipeline stages.")]
SchedulerOption = Annotated[str | None, typer.Option("--scheduler", help="Replica scheduler.")]
QpsOption = Annotated[float | None, typer.Option("--qps", help="Requests per second.")]
RequestsOption = Annotated[int | None, typer.Option("--requests", help="Number of requests.")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of the workload.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Any other key, e.g. slo.ttft_ms=500; repeatable."),
]
OutOption = Annotated[Path | None, typer.Option("--out", metavar="FOLDER", help="Folder to write.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no tables.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the figures as JSON instead of tables.")]

PATHS = {  # flag -> path in the scenario
    "model": "replicas.model",
    "device": "replicas.device",
    "tp": "replicas.tp",
    "pp": "replicas.pp",
    "scheduler": "replicas.scheduler.name",
    "requests": "workload.num_requests",
    "router": "router.name",
    "seed": "seed",
}


def scenario_with(source: str, settings: list[str] | None, **flags: Any) -> Scenario:
    """The scenario ``source`` with the flags that were given (not None), then ``--set``, applied."""
    from trimtab.scenario import load_scenario

    flags = {name: value for name, value in flags.items() if value is not None}
    overrides = {PATHS[name]: value for name, value in flags.items() if name in PATHS}
    base = load_scenario(source)
    if "device" in flags:
        overrides["replicas.node"] = None  # the old device's node
    if "requests" in flags:
        overrides["workload.duration_s"] = None  # which would win
    if "replicas" in flags:
        if len(base.replicas) > 1:
            names = ", ".join(f"replicas.{i}.count={group.count}" for i, group in enumerate(base.replicas))
            raise TrimtabError(
                f"--replicas: {source} has {len(base.replicas)} groups; use --set, now {names}"
            )
        overrides["replicas.count"] = flags["replicas"]
    if "qps" in flags:
        arrivals = base.workload.arrivals
        if base.workload.users is not None:
            raise TrimtabError(f"--qps: {source} is a closed loop; use --set workload.users=N")
        if not hasattr(arrivals, "qps"):
            raise TrimtabError(
                f"--qps: arrivals of kind {arrivals.kind!r} have no qps; use --set workload.arrivals"
            )
        overrides["workload.arrivals.qps"] = flags["qps"]
    return load_scenario(source, overrides | parse_settings(settings))


def output_folder(out: Path | None, default: str, marker: str) -> Path:
    """Where to write; somebody else's folder is refused before anything is computed."""
    folder = out or Path("runs") / default
    ours = folder.is_dir() and (not any(folder.iterdir()) or (folder / marker).is_file())
    if folder.exists() and not ours:
        raise TrimtabError(
            f"{folder} exists and holds no {marker}, so it is not replaced; give another --out"
        )
    return folder


def parse_settings(settings: list[str] | None) -> dict[str, Any]:
    """``["a.b=1", "c=[x, y]"]`` as paths and YAML values."""
    import yaml

    parsed = {}
    for setting in settings or []:
        path, equals, text = setting.partition("=")
        if not equals or not path.strip():
            raise TrimtabError(f"--set {setting!r} must read PATH=VALUE, for example slo.ttft_ms=500")
        try:
            parsed[path.strip()] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise TrimtabError(f"--set {path}: {text!r} is not a YAML value") from None
    return parsed
