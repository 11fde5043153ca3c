"""``trimtab moe``: mixtures of experts.

Each command is in a module of its own, and is registered here:

place      where to put experts and their replicas (`moe_place`)
calibrate  a checkpoint whose experts are even on a domain (`moe_calibrate`)
report     loads before and after, as tables and a heat map (`moe_calibrate`)
"""

from __future__ import annotations

import typer

from trimtab.cli import moe_calibrate, moe_place

app = typer.Typer(no_args_is_help=True)


@app.callback()
def moe() -> None:
    """Mixtures of experts: balance their routers on a domain, place and replicate their experts.

    \b
    Loads are tokens per layer and expert, as serving engines count them:
      .json         [[layer 0's experts], [layer 1's], ...], or {"loads": ...};
                    {"logical_count": ...} of SGLang's recorder
      .csv          one line per layer
      .npy          (layers, experts), or (windows, layers, experts)
      .safetensors  the same, as the tensor `loads`
    """


app.command("place")(moe_place.place)
app.command("calibrate")(moe_calibrate.calibrate)
app.command("report")(moe_calibrate.report)
