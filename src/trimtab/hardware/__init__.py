"""Models, devices and nodes as data; what may be split how, and how much KV cache is left."""

from trimtab.hardware.devices import (
    Device,
    Node,
    default_node,
    get_device,
    get_node,
    list_devices,
    list_nodes,
    node_for,
)
from trimtab.hardware.memory import (
    KvPlan,
    attention_flops_per_pair,
    params_per_device,
    plan_kv,
    vidur_num_blocks,
)
from trimtab.hardware.models import Model, get_model, list_models
from trimtab.hardware.parallelism import (
    allowed_tensor_parallel,
    validate_expert_parallelism,
    validate_parallelism,
)

__all__ = [
    "Device",
    "KvPlan",
    "Model",
    "Node",
    "allowed_tensor_parallel",
    "attention_flops_per_pair",
    "default_node",
    "get_device",
    "get_model",
    "get_node",
    "list_devices",
    "list_models",
    "list_nodes",
    "node_for",
    "params_per_device",
    "plan_kv",
    "validate_expert_parallelism",
    "validate_parallelism",
    "vidur_num_blocks",
]
