"""From raw samples to items for a network: geometry that keeps labels right, and changes of colour."""

from data_modules.transforms.checks import SampleRejected
from data_modules.transforms.evaluation import EvalTransform
from data_modules.transforms.geometry import warp_image, warp_labels
from data_modules.transforms.normals import NormalsTrainTransform
from data_modules.transforms.sample import warp_sample
from s2kit.inference.geometry import letterbox_matrix

__all__ = [
    "EvalTransform",
    "NormalsTrainTransform",
    "SampleRejected",
    "letterbox_matrix",
    "warp_image",
    "warp_labels",
    "warp_sample",
]
