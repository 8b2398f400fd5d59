"""From raw samples to items for a network: geometry that keeps labels right, and changes of colour."""

from data_modules.transforms.albedo import AlbedoTrainTransform
from data_modules.transforms.checks import SampleRejected
from data_modules.transforms.evaluation import EvalTransform
from data_modules.transforms.geometry import warp_image, warp_labels
from data_modules.transforms.matting import MattingEvalTransform, MattingTrainTransform
from data_modules.transforms.normals import NormalsTrainTransform
from data_modules.transforms.pointmap import PointmapTrainTransform
from data_modules.transforms.pose import PoseEvalTransform, PoseTrainTransform
from data_modules.transforms.pretraining import PretrainTransform
from data_modules.transforms.sample import warp_sample
from data_modules.transforms.segmentation import SegmentationTrainTransform
from s2kit.inference.geometry import letterbox_matrix

__all__ = [
    "AlbedoTrainTransform",
    "EvalTransform",
    "MattingEvalTransform",
    "MattingTrainTransform",
    "NormalsTrainTransform",
    "PointmapTrainTransform",
    "PoseEvalTransform",
    "PoseTrainTransform",
    "PretrainTransform",
    "SampleRejected",
    "SegmentationTrainTransform",
    "letterbox_matrix",
    "warp_image",
    "warp_labels",
    "warp_sample",
]
