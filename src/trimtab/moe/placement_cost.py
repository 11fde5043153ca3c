"""What a placement costs in time: the engine's expert layer, in every layer, for a batch of tokens.

With many rows per expert (prompts) the busiest rank's rows decide; with few (decoding) the weights that it
must read do, one set per active replica, and spreading an expert's tokens over replicas activates more.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trimtab.errors import TrimtabError
from trimtab.exectime import moe_layer_seconds
from trimtab.hardware import Device, Model, Node, default_node
from trimtab.moe.packing import Floats
from trimtab.moe.placement import Placement
from trimtab.moe.split import Split


def expert_seconds(
    placement: Placement,
    loads: Any,
    model: Model,
    device: Device,
    tokens: float,
    *,
    split: Split = "even",
    node: Node | None = None,
) -> Floats:
    """Seconds of the expert layers in one iteration of ``tokens`` tokens, summed over the layers given.

    Parameters
    ----------
    loads : (..., layers, experts); only their shares count.
    tokens : of the batch, all devices together.

    Returns
    -------
    (...) seconds, of the expected rows and active replicas of each device; chance adds to that.

    Raises
    ------
    TrimtabError
        where the model has no experts, or another number of them, or there are no tokens.
    """
    if model.experts != placement.experts:
        have = f"{model.experts} experts" if model.experts else "no experts"
        raise TrimtabError(f"{model.name} has {have}; the loads have {placement.experts}")
    if not tokens > 0:
        raise TrimtabError(f"tokens must be above 0; given {tokens:g}")
    slot = placement.slot_loads(loads, split)
    share = slot / slot.sum(axis=(-2, -1), keepdims=True) * model.experts_per_token
    rows = tokens * share.sum(axis=-1)
    active = 1.0 - (1.0 - np.minimum(share, 1.0)) ** tokens
    chosen = default_node(device) if node is None else node
    return np.asarray(moe_layer_seconds(model, device, chosen, rows, active.sum(axis=-1)).sum(axis=-1))
