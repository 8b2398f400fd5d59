"""What training costs before it is started: FLOPs, memory per device, the batch that fits, the time of a step."""

from s2kit.planning.activations import Activations, activations
from s2kit.planning.flops import Flops, backbone_flops, task_flops
from s2kit.planning.gpus import peak_tflops
from s2kit.planning.memory import Memory, Parameters, Strategy, largest_batch, memory_per_device
from s2kit.planning.numerics import Numerics, numerics
from s2kit.planning.plan import Plan, count_parameters, make_plan
from s2kit.planning.pretraining import make_pretraining_plan, pretraining_flops

__all__ = [
    "Activations",
    "Flops",
    "Memory",
    "Numerics",
    "Parameters",
    "Plan",
    "Strategy",
    "activations",
    "backbone_flops",
    "count_parameters",
    "largest_batch",
    "make_plan",
    "make_pretraining_plan",
    "memory_per_device",
    "numerics",
    "peak_tflops",
    "pretraining_flops",
    "task_flops",
]
