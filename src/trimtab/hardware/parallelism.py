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


def _reason(model: Model, tp: int, node: Node) -> str:
    if not model.tensor_parallel and tp > 1:
        return "the model does not support tensor parallelism"
    if tp not in TENSOR_PARALLEL:
        return "tensor parallelism must be 1, 2, 4 or 8"
    if tp > node.devices:
        return f"the node has {node.devices} devices, and tensor parallelism stays inside a node"
    return f"it does not divide the model's {model.heads} attention heads"
