"""``trimtab rlhf``: samples to GPUs.

Each command is in a module of its own, and is registered here:

plan        the best placement and its command (`rlhf_plan`)
check       a command that someone already has (`rlhf_check`)
simulate    a command's step on the GPUs (`rlhf_simulate`)
doctor      what went wrong, by the logs (`rlhf_doctor`)
"""

from __future__ import annotations

import typer

from trimtab.cli import rlhf_check, rlhf_doctor, rlhf_plan, rlhf_simulate

app = typer.Typer(no_args_is_help=True)


@app.callback()
def rlhf() -> None:
    """RLHF with OpenRLHF: plan a job, check a command, simulate its steps, diagnose its logs.

    \b
    No GPU is needed. COMMAND is what follows `python3 -m openrlhf.cli.train_ppo_ray`: in quotes, in a file
    (as `plan --script FILE` writes it), or - for stdin.
    """


app.command("plan")(rlhf_plan.plan)
# A quoted command begins with dashes, and is no option of ours.
QUOTED = {"ignore_unknown_options": True}
app.command("check", context_settings=QUOTED)(rlhf_check.check)
app.command("simulate", context_settings=QUOTED)(rlhf_simulate.simulate)
app.command("doctor")(rlhf_doctor.doctor)
