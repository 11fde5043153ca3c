"""What there is to choose from: routers, schedulers, models, devices; the schema; the version."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


def routers(as_json: JsonOption = False) -> None:
    """List the routers: which replica gets the next request."""
    from trimtab.routers import ROUTERS

    rows = [
        {
            "name": info.name,
            "aliases": list(info.aliases),
            "summary": info.summary,
            "smallest": info.formula,
            "defaults": info.defaults,
            "source": info.source,
        }
        for info in ROUTERS.values()
    ]
    _paragraphs(rows, as_json)


def schedulers(as_json: JsonOption = False) -> None:
    """List the schedulers: how a replica forms its batches."""
    from trimtab.schedulers import SCHEDULERS

    rows = []
    for info in SCHEDULERS.values():
        budget = "no token budget" if info.token_budget is None else f"token_budget {info.token_budget}"
        defaults = f"max_num_seqs {info.max_num_seqs}, {budget}, block_size {info.block_size}"
        aliases = list(info.aliases)
        rows.append({"name": info.name, "aliases": aliases, "summary": info.summary, "defaults": defaults})
    _paragraphs(rows, as_json)


def models(as_json: JsonOption = False) -> None:
    """List the models; any Hugging Face config.json will do, too."""
    from trimtab.hardware.models import get_model, list_models

    rows = []
    for model in map(get_model, list_models()):
        parameters = f"{model.parameters / 1e9:.1f}"
        if model.experts:
            parameters += f" ({model.active_parameters / 1e9:.1f} active)"
        rows.append(
            {
                "name": model.name,
                "hugging face": model.id,
                "weights, 1e9": parameters,
                "KV kB/token": round(model.kv_bytes_per_token() / 1000),
                "context": model.max_context,
            }
        )
    _print(rows, as_json)


def devices(as_json: JsonOption = False) -> None:
    """List the devices and their nodes, with published figures."""
    from trimtab.hardware.devices import get_device, get_node, list_devices, list_nodes

    nodes = [get_node(name) for name in list_nodes()]
    rows = [
        {
            "name": device.name,
            "GiB": device.memory_gib,
            "TFLOP/s": device.tflops,
            "TB/s": device.hbm_tb_s,
            "USD/h": device.price,
            "nodes": ", ".join(node.name for node in nodes if node.device == device.name),
        }
        for device in map(get_device, list_devices())
    ]
    _print(rows, as_json)


def schema() -> None:
    """Print the JSON schema of a scenario."""
    from trimtab.scenario import Scenario

    print(json.dumps(Scenario.model_json_schema(), indent=1))


def version() -> None:
    """Print the version."""
    from trimtab import __version__

    print(f"trimtab {__version__}")


def _paragraphs(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Name and aliases, the summary below, then the other fields with their labels."""
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        name, aliases, summary, *_ = row.values()
        print(f"{name}  ({', '.join(aliases)})" if aliases else name)
        print(f"    {summary}")
        for key, value in list(row.items())[3:]:
            if value:
                print(f"    {key}: {value}")


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in rows[0]:
        numeric = all(isinstance(row[heading], (int, float)) for row in rows)
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 120).print(table, highlight=False)
