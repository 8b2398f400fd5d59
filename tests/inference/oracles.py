"""Tasks whose network knows the answer: it is written in the picture's colours, in any size, part and mirror.

Blue grows from left to right; where it falls, the oracle sees a mirrored picture, and says what is true of the mirrored
scene: left is right, and x points the other way.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2kit.models.heads import PointmapOutput
from s2kit.pose import encode_heatmaps
from s2kit.tasks import AlbedoTask, MattingTask, NormalsTask, PointmapTask, PoseTask, SegmentationTask, Task

SIZE = (64, 48)
HEAD = {"upsample_channels": (8, 8, 8), "conv_channels": (8,)}
HEADS = {
    "pose": {"upsample_channels": (8, 8), "conv_channels": (8,)},
    "pointmap": {**HEAD, "scale_channels": (8, 8), "scale_hidden": (8,)},
}
#: Of the pointmaps' camera, in the picture's pixels.
FOCAL = 80.0


def make(kind: type[Task], **options: Any) -> Task:
    """A tiny task with random weights."""
    backbone = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_dim": 16}
    fixed = {"arch": "sapiens2_nano", "image_size": SIZE, "backbone": backbone, "head": HEADS.get(kind.name, HEAD)}
    if issubclass(kind, PoseTask):
        fixed["schema"] = "coco-17"
    torch.manual_seed(0)
    return kind(**{**fixed, **options}).eval()


class Oracle:
    """What the oracles share: ``answer(rgb (B, 3, h, w) in 0..1, sign (B, 1, 1))``, sign -1 for mirrored pictures."""

    def forward(self, image: Tensor) -> Any:
        rgb = (image * self.pixel_std + self.pixel_mean) / 255
        place = torch.arange(rgb.shape[-1]) + 0.5 - rgb.shape[-1] / 2
        sign = (rgb[:, 2] * place).sum(dim=(1, 2)).sign().view(-1, 1, 1)
        return self.answer(rgb, sign)


class NormalsOracle(Oracle, NormalsTask):
    def answer(self, rgb: Tensor, sign: Tensor) -> Tensor:
        return torch.stack([sign * (2 * rgb[:, 2] - 1), 2 * rgb[:, 1] - 1, torch.ones_like(rgb[:, 0])], dim=1)


class SegmentationOracle(Oracle, SegmentationTask):
    """Where red is above a half there is a left hand, else a right one."""

    def answer(self, rgb: Tensor, sign: Tensor) -> Tensor:
        logits = torch.full((len(rgb), len(self.classes), *rgb.shape[2:]), -20.0)
        side = 20 * (rgb[:, 0] - 0.5) * sign
        logits[:, self.classes.ids["Left_Hand"]] = side
        logits[:, self.classes.ids["Right_Hand"]] = -side
        return logits


class AlbedoOracle(Oracle, AlbedoTask):
    def answer(self, rgb: Tensor, sign: Tensor) -> Tensor:
        return rgb


class MattingOracle(Oracle, MattingTask):
    def answer(self, rgb: Tensor, sign: Tensor) -> Tensor:
        return torch.cat([rgb, rgb[:, 1:2]], dim=1)


class PointmapOracle(Oracle, PointmapTask):
    """Depth is 1 + red metres, y green - 0.5, x blue - 0.5; the camera's focal length in the picture is FOCAL.

    ``size`` is the picture's.
    """

    size = SIZE

    def answer(self, rgb: Tensor, sign: Tensor) -> PointmapOutput:
        points = torch.stack([sign * (rgb[:, 2] - 0.5), rgb[:, 1] - 0.5, 1 + rgb[:, 0]], dim=1)
        focal = FOCAL * min(side / own for side, own in zip(rgb.shape[-2:], self.size))
        scale = self.canonical_focal / focal
        return PointmapOutput(points * scale, torch.full((len(rgb), 1), scale))

    def forward_scaled(self, image: Tensor) -> PointmapOutput:
        found = self(image)
        return PointmapOutput(found.pointmap, found.scale * float("nan"))


class PoseOracle(Oracle, PoseTask):
    """The left eye is in the middle of what is red, the right eye of what is green, everything else in the middle."""

    def answer(self, rgb: Tensor, sign: Tensor) -> Tensor:
        height, width = rgb.shape[2:]
        x, y = torch.arange(width) + 0.5, (torch.arange(height) + 0.5)[:, None]
        points = torch.tensor([width / 2, height / 2]).repeat(len(rgb), 17, 1)
        eyes = [self.keypoint_set.ids[name] for name in ("left_eye", "right_eye")]
        for index, one in enumerate(rgb):
            pair = eyes if sign[index] > 0 else eyes[::-1]
            for channel, eye in enumerate(pair):
                weight = (one[channel] - 0.4).clamp(min=0)
                total = weight.sum().clamp(min=1e-6)
                points[index, eye] = torch.stack([(weight * x).sum(), (weight * y).sum()]) / total
        cells = (height // 2, width // 2)
        return encode_heatmaps(points, torch.ones(len(rgb), 17), (height, width), cells, sigma=cells[1] / 12)[0]


def ramps(height: int, width: int) -> np.ndarray:
    """A picture, uint8 (H, W, 3): red from top left, green from the bottom, blue from the left; none is ever 0 or 1."""
    y, x = (np.mgrid[:height, :width] + 0.5) / np.array([height, width]).reshape(2, 1, 1)
    return np.stack([25 + 100 * (x + y), 230 - 200 * y, 20 + 210 * x], axis=-1).round().astype(np.uint8)
