"""Options that the commands of ``trimtab rlhf`` share, and the cluster and job they make."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.errors import TrimtabError

if TYPE_CHECKING:
    from trimtab.rlhf.job import Cluster

DeviceOption = Annotated[str, typer.Option("--device", help="GPU, see `trimtab devices`.")]
NodesOption = Annotated[int, typer.Option("--nodes", help="Servers.")]
PerNodeOption = Annotated[int, typer.Option("--gpus-per-node", help="GPUs of each server.")]
HostOption = Annotated[float, typer.Option("--host-gib", help="Memory of each server, GiB.")]
NetworkOption = Annotated[
    float | None,
    typer.Option("--network", help="GB/s of one GPU to other servers; the usual node's if none."),
]
VersionOption = Annotated[
    str | None, typer.Option("--openrlhf", metavar="VERSION", help="Target version, 0.8.6 to 0.11.x.")
]
ResponseOption = Annotated[
    float | None, typer.Option("--response-tokens", help="Mean response; half of the longest if none.")
]
ActorOption = Annotated[
    str | None,
    typer.Option("--actor", help="Model, where the command's own is not bundled: name or config."),
]
CriticOption = Annotated[str | None, typer.Option("--critic", help="Critic, likewise.")]
CommandArgument = Annotated[
    str,
    typer.Argument(
        metavar="COMMAND", help="Flags of train_ppo_ray in quotes, a file with them, or - for stdin."
    ),
]


def make_cluster(device: str, nodes: int, per_node: int, host_gib: float, network: float | None) -> Cluster:
    """The cluster of the options."""
    from trimtab.hardware import get_device
    from trimtab.rlhf.job import Cluster

    return Cluster(get_device(device), nodes, per_node, host_gib, network)


def read_command(command: str) -> str:
    """The text of a command: itself, a file's, or what stdin gives."""
    import sys

    if command == "-":
        return sys.stdin.read()
    if "--" in command:
        return command
    try:
        return Path(command).read_text(encoding="utf-8")
    except OSError as error:
        raise TrimtabError(f"{command!r} holds no flag and is no file ({error.strerror})") from None
    except UnicodeDecodeError:
        raise TrimtabError(f"{command!r} is not a text file") from None
