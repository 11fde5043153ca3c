"""``trimtab compare``: the same requests through many routers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trimtab.cli import options
from trimtab.cli.progress import note, progress_bar
from trimtab.errors import TrimtabError

RoutersOption = Annotated[
    str, typer.Option("--routers", help="Names with commas between, or all; see `trimtab routers`.")
]


def compare(
    scenario: options.ScenarioArgument,
    routers: RoutersOption = "all",
    seeds: Annotated[int, typer.Option("--seeds", help="Repetitions, each with its own requests.")] = 3,
    model: options.ModelOption = None,
    device: options.DeviceOption = None,
    replicas: options.ReplicasOption = None,
    tp: options.TpOption = None,
    pp: options.PpOption = None,
    scheduler: options.SchedulerOption = None,
    qps: options.QpsOption = None,
    requests: options.RequestsOption = None,
    seed: options.SeedOption = None,
    setting: options.SetOption = None,
    out: options.OutOption = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Processes; all cores by default.")] = None,
    quiet: options.QuietOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Compare routers on the same requests; write an HTML report."""
    chosen = options.scenario_with(
        scenario, setting, model=model, device=device, replicas=replicas, tp=tp, pp=pp,
        scheduler=scheduler, qps=qps, requests=requests, seed=seed,
    )  # fmt: skip
    raise TrimtabError("not yet")
