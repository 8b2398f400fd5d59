"""Files of weights: finding, reading, recognising, converting and loading them. See docs/checkpoints.md."""

from s2kit.models.checkpoints.errors import WeightsError
from s2kit.models.checkpoints.fit import Mismatch, compare, fit_checkpoint, load_weights
from s2kit.models.checkpoints.huggingface import from_huggingface, to_huggingface
from s2kit.models.checkpoints.identity import TASK_OF_LAYER, Identity, head_shapes, identify, task_of
from s2kit.models.checkpoints.locate import locate
from s2kit.models.checkpoints.reader import (
    PUBLISHED,
    Checkpoint,
    check_finite,
    read_checkpoint,
    read_model_json,
    read_state_dict,
)

__all__ = [
    "PUBLISHED",
    "TASK_OF_LAYER",
    "Checkpoint",
    "Identity",
    "Mismatch",
    "WeightsError",
    "check_finite",
    "compare",
    "fit_checkpoint",
    "from_huggingface",
    "head_shapes",
    "identify",
    "load_weights",
    "locate",
    "read_checkpoint",
    "read_model_json",
    "read_state_dict",
    "task_of",
    "to_huggingface",
]
