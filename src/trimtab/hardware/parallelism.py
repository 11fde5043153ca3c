"""How a model may be split: tensor parallelism inside a node, pipeline stages along the layers."""

from __future__ import annotations

from trimtab.errors import TrimtabError
from trimtab.hardware.devices import Node
from trimtab.hardware.models import Model

TENSOR_PARALLEL = (1, 2, 4, 8)


def allowed_tensor_parallel(model: Model, node: Node) -> list[int]:
    """Tensor-parallel degrees that the model and the node permit."""
    if not model.tensor_parallel:
        return [1]
    return [tp for tp in TENSOR_PARALLEL if tp <= node.devices and model.heads % tp == 0]


def validate_parallelism(model: Model, tp: int, pp: int, node: Node) -> None:
    """Vidur's rules: ``tp`` in 1, 2, 4, 8, within a node, dividing the heads; ``pp`` divides the layers;
    a replica of more than one node fills whole nodes.

    Raises
    ------
    TrimtabError
        one line that names the rule and the values that would do.
    """
    allowed = allowed_tensor_parallel(model, node)
    if tp not in allowed:
        raise TrimtabError(
            f"tp={tp} is not possible for {model.name} on {node.name}: {_reason(model, tp, node)}; "
            f"allowed: {', '.join(str(choice) for choice in allowed)}"
        )
    if pp < 1 or model.layers % pp:
        divisors = [d for d in range(1, min(model.layers, 64) + 1) if model.layers % d == 0]
        raise TrimtabError(
            f"pp={pp} does not divide the {model.layers} layers of {model.name}; "
            f"allowed: {', '.join(str(d) for d in divisors)}"
        )
    total = tp * pp
    if total > node.devices and total % node.devices:
        raise TrimtabError(
            f"tp={tp} x pp={pp} = {total} devices neither fit into one {node.name} node ({node.devices} "
            f"devices) nor fill whole nodes; use at most {node.devices} or a multiple of it"
        )


def validate_expert_parallelism(model: Model, tp: int, ep: int, imbalance: float) -> None:
    """``ep`` is 1 (slices of every expert) or ``tp`` (whole experts), and divides the experts;
    ``imbalance``, busiest over mean rank, is what ``ep`` ranks and the router can make of it.

    Raises
    ------
    TrimtabError
        one line that names the rule and the values that would do.
    """
    if ep == 1:
        if imbalance > 1:
            raise TrimtabError(
                f"moe_imbalance={imbalance:g} needs expert parallelism: with ep=1 every device holds a slice "
                f"of every expert; set ep to tp, or moe_imbalance to 1"
            )
        return
    if not model.experts:
        raise TrimtabError(f"ep={ep} is not possible for {model.name}: it has no experts; allowed: 1")
    if ep != tp:
        raise TrimtabError(f"ep={ep} must be 1 (slices of experts) or tp={tp} (whole experts on each device)")
    if model.experts % ep:
        raise TrimtabError(f"ep={ep} does not divide the {model.experts} experts of {model.name}; use ep=1")
    most = min(ep, model.experts / model.experts_per_token)
    if imbalance > most:
        raise TrimtabError(
            f"moe_imbalance={imbalance:g} is not possible for {model.name} with ep={ep}: a rank gets at "
            f"most {most:g} times the mean; allowed: 1 to {most:g}"
        )


def _reason(model: Model, tp: int, node: Node) -> str:
    if not model.tensor_parallel and tp > 1:
        return "the model does not support tensor parallelism"
    if tp not in TENSOR_PARALLEL:
        return "tensor parallelism must be 1, 2, 4 or 8"
    if tp > node.devices:
        return f"the node has {node.devices} devices, and tensor parallelism stays inside a node"
    return f"it does not divide the model's {model.heads} attention heads"
