"""Keypoints of one person in a picture, top-down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from data_modules.transforms import PoseEvalTransform
from data_modules.transforms.checks import to_planes
from data_modules.transforms.geometry import scale_matrix, translation_matrix, warp_image
from s2kit.inference.people import WholePicture
from s2kit.inference.pose_drawing import THRESHOLD, draw_offsets, draw_people, draw_pose, is_drawn
from s2kit.losses.pose import HARD_KEYPOINTS, PoseLoss
from s2kit.metrics.pose import PCK_SHARE, PoseMetric
from s2kit.models.heads import HEADS, create_head
from s2kit.pose.coco_results import PoseResult, write_pose
from s2kit.pose.nms import oks_nms, person_confidence
from s2kit.pose.udp import cell_steps, decode_heatmaps, encode_heatmaps, flip_heatmaps
from s2kit.schemas import SchemaError, load_keypoint_set
from s2kit.schemas.files import PACKAGED
from s2kit.tasks.base import Task, overrides_for

if TYPE_CHECKING:
    from s2kit.inference.predictor import Result

#: Panels are drawn on crops of at least this height.
PANEL_HEIGHT = 512


class PoseTask(Task):
    """Keypoints of a person: heatmaps at the crop's size, places and scores in the source's pixels.

    Training batches hold ``keypoints`` (B, K, 2) in the network's pixels; in evaluation they are in the source's. The
    heatmaps to learn are drawn on the device.

    Args:
        schema: The keypoint set: a packaged one by name, such as ``sapiens2-308``, ``coco-wholebody-133`` or
            ``coco-17``, or the path of a file. By default the packaged one with as many points as ``head`` says, and
            else the 308 points.
        sigma: Standard deviation of the heatmaps' Gaussians in cells; by default the published share of the map's
            width: 6 cells of 192.
        loss: The loss's form: ``release`` (its weights were trained so) or ``paper`` (hard keypoint mining).
        loss_weights: Weights of some of its terms in place of the form's.
        hard_keypoints: Worst keypoints of a person that the paper's form counts.
        nms: Of two persons in a picture whose OKS is above this, the less confident one is dropped: in evaluation, and
            where a detector found the people.
        **kwargs: See ``Task``.

    Raises:
        SchemaError: If there is no such keypoint set, or the head has another number of points.
    """

    name: ClassVar[str] = "pose"
    #: AP stays 0 for long in short runs on small pictures, mean OKS does not.
    monitor: ClassVar[str] = "val/OKS"
    monitor_mode: ClassVar[str] = "max"
    published_lr: ClassVar[dict[str, float]] = {"sapiens2_5b": 1e-4}
    metric_units: ClassVar[dict[str, str]] = {
        **{f"{name}{suffix}": "%" for name in ("AP", "AR") for suffix in ("", "50", "75", "_M", "_L")},
        "PCK": "% of keypoints",
        "OKS": "%, mean",
    }
    takes_tiles: ClassVar[bool] = False
    takes_boxes: ClassVar[bool] = True
    #: Predicted keypoints of a score from this on are drawn.
    drawn_score: float = THRESHOLD
    baseline_title: ClassVar[str] = "mean pose in the box"
    row_title: ClassVar[str] = "part"
    load_schema = staticmethod(load_keypoint_set)

    def __init__(
        self,
        schema: str | int | None = None,
        sigma: float | None = None,
        loss: Literal["release", "paper"] = "release",
        loss_weights: dict[str, float] | None = None,
        hard_keypoints: int = HARD_KEYPOINTS,
        nms: float | None = 0.9,
        **kwargs: Any,
    ) -> None:
        if sigma is not None and not sigma > 0:
            raise ValueError(f"sigma={sigma}: it must be positive")
        super().__init__(**kwargs)
        self.register_buffer("flip_map", torch.from_numpy(self.keypoint_set.flip_map), persistent=False)

    def build_head(self, dim: int) -> nn.Module:
        options = overrides_for(self.hparams.arch, self.hparams.head)
        count = options.pop("out_channels", None)
        if self.hparams.schema is None:
            self.hparams.schema = schema_of_size(count or HEADS[self.name].default_out_channels)
        self.keypoint_set = load_keypoint_set(self.hparams.schema)
        if count not in (None, len(self.keypoint_set)):
            raise SchemaError(
                f"the head has {count} keypoints, but model.schema={self.hparams.schema} has {len(self.keypoint_set)}"
            )
        return create_head(self.name, self.hparams.arch, dim, out_channels=len(self.keypoint_set), **options)

    def configure_losses(self) -> None:
        self.loss = PoseLoss(self.hparams.loss, self.hparams.loss_weights, self.hparams.hard_keypoints)

    def configure_metrics(self) -> None:
        self.val_metrics = PoseMetric(self.keypoint_set, nms=self.hparams.nms, baseline=False)
        self.test_metrics = PoseMetric(self.keypoint_set, nms=self.hparams.nms)

    def compute_losses(self, output: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the loss's terms and ``PCK``, the share of labelled keypoints within 0.05 of the crop's sides, in %.

        Raises:
            ValueError: If the data have another keypoint set than the task.
        """
        keypoints, visibility = batch["keypoints"], batch["visibility"]
        if keypoints.shape[1] != len(self.keypoint_set):
            raise ValueError(
                f"the data have {keypoints.shape[1]} keypoints, but model.schema={self.hparams.schema} has "
                f"{len(self.keypoint_set)}: give data.schema and model.schema the same"
            )
        target, weights = encode_heatmaps(
            keypoints, visibility, self.image_size, tuple(output.shape[-2:]), self.hparams.sigma
        )
        return {**self.loss(output, target, weights), "PCK": self._training_pck(output.detach(), keypoints, weights)}

    def _training_pck(self, output: Tensor, keypoints: Tensor, weights: Tensor) -> Tensor:
        height, width = output.shape[-2:]
        best = output.flatten(2).argmax(dim=2)
        cells = torch.stack([best % width, best // width], dim=-1)
        pixels = cells * keypoints.new_tensor(cell_steps(self.image_size, (height, width))) + 0.5
        distance = ((pixels - keypoints) / keypoints.new_tensor(self.image_size[::-1])).norm(dim=-1)
        seen = weights.sum(dim=0)
        right = ((distance <= PCK_SHARE) * weights).sum(dim=0) / seen.clamp(min=1)
        return 100 * right.sum() / (seen > 0).sum().clamp(min=1)

    def unflip(self, output: Tensor) -> Tensor:
        return flip_heatmaps(output, self.flip_map)

    def finish_batch(self, output: Tensor, batch: dict[str, Any]) -> list[Tensor]:
        """Return (K, 3) of each sample: x, y in continuous pixels of the source, and score."""
        keypoints, scores = decode_heatmaps(output, self.image_size)
        inverse = torch.linalg.inv(batch["crop"].cpu().double()).to(keypoints)
        # No matrix product: mixed precision would round source pixels to half precision.
        source = (keypoints[:, :, None] * inverse[:, None, :2, :2]).sum(dim=-1) + inverse[:, None, :2, 2]
        return list(torch.cat([source, scores[..., None]], dim=-1))

    def picture_transform(
        self, image_size: tuple[int, int] | None = None
    ) -> Callable[[dict[str, Any]], dict[str, Any]]:
        return PoseEvalTransform(image_size or self.image_size, schema=self.hparams.schema)

    def samples(self, picture: np.ndarray, boxes: np.ndarray | None) -> list[dict[str, Any]]:
        """Return one sample a person; without ``boxes`` (N, 4) the whole picture is one."""
        if boxes is None:
            return [{"key": "", "image": picture}]
        return [{"key": "", "image": picture, "box": box} for box in boxes]

    def scaled_item(self, sample: dict[str, Any], base: dict[str, Any], image_size: tuple[int, int]) -> dict[str, Any]:
        """Return the same part of the picture in another size, corner pixel's centre on corner pixel's centre.

        So heatmaps of both lie over each other cell for cell, which they would not if the crop were made anew: the
        size in whole tokens may have another aspect.
        """
        (height, width), (own_height, own_width) = image_size, self.image_size
        resize = scale_matrix((width - 1) / max(own_width - 1, 1), (height - 1) / max(own_height - 1, 1))
        crop = translation_matrix(0.5, 0.5) @ resize @ translation_matrix(-0.5, -0.5) @ base["crop"]
        image = to_planes(warp_image(sample["image"], crop, image_size))
        return {**base, "image": image, "crop": crop.astype(np.float32)}

    def at_input_size(self, output: Tensor, size: tuple[int, int]) -> Tensor:
        """Heatmaps are decoded as they are, at any size."""
        return output

    def rescale(self, output: Tensor, batch: dict[str, Any], base_output: Tensor, base: dict[str, Any]) -> Tensor:
        return interpolate(output, base_output.shape[-2:], mode="bilinear", align_corners=True)

    def update_metrics(self, stage: str, predictions: Sequence[Tensor], batch: dict[str, Any]) -> None:
        metrics = self.test_metrics if stage == "test" else self.val_metrics
        predicted = torch.stack(list(predictions))
        crop = batch["crop"].to(predicted)
        sides = predicted.new_tensor(self.image_size[::-1]) / crop[:, :2, :2].norm(dim=2)
        areas, boxes = batch["area"].to(predicted)[:, 0], batch["box"].to(predicted)
        keypoints, visibility = batch["keypoints"].to(predicted), batch["visibility"]
        metrics.update(predicted, keypoints, visibility, boxes, areas, sides, batch["key"])

    def compute_metrics(self, stage: str) -> dict[str, Tensor]:
        metrics = self.test_metrics if stage == "test" else self.val_metrics
        values = metrics.compute()
        metrics.reset()
        return values

    @staticmethod
    def source_picture(index: int, batch: dict[str, Any]) -> np.ndarray:
        """Return what the network saw of sample ``index`` in its place in the source, black around it."""
        height, width = (int(side) for side in batch["source_size"][index])
        shift = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])
        matrix = np.linalg.inv(shift) @ np.linalg.inv(batch["crop"][index].double().cpu().numpy()) @ shift
        picture = batch["image"][index].permute(1, 2, 0).cpu().numpy()
        return cv2.warpAffine(np.ascontiguousarray(picture), matrix[:2], (width, height))

    def to_numpy(self, prediction: Tensor) -> np.ndarray:
        """Return a finished prediction as float32 (K, 3)."""
        return prediction.float().cpu().numpy()

    def gather(self, predictions: Sequence[np.ndarray]) -> np.ndarray:
        """Return float32 (N, K, 3) of N people."""
        return np.stack(predictions) if len(predictions) else np.zeros((0, len(self.keypoint_set), 3), np.float32)

    def distinct(self, prediction: np.ndarray, box_scores: np.ndarray) -> np.ndarray:
        """Return the rows of the people (N, K, 3) without those that are another, more certain one (``nms``)."""
        if self.hparams.nms is None:
            return np.arange(len(prediction))
        certain = person_confidence(np.nan_to_num(prediction[..., 2]), box_scores)
        return np.sort(oks_nms(prediction[..., :2], certain, self.keypoint_set.sigmas, self.hparams.nms))

    def draw(self, prediction: np.ndarray, picture: np.ndarray, result: Result | None = None) -> np.ndarray:
        people = None if result is None else result.people
        # A box that is the whole picture says nothing.
        several = people is not None and (len(prediction) > 1 or people.ids is not None)
        boxes, ids = (people.boxes, people.ids) if several else (None, None)
        return draw_people(picture, prediction, self.keypoint_set, boxes, ids, self.drawn_score)

    def views(self, prediction: np.ndarray, picture: np.ndarray, result: Result | None = None) -> dict[str, np.ndarray]:
        """Return the poses on the picture, with how many of all their keypoints are sure enough to be drawn."""
        title = f"pose, {len(prediction)} people" if len(prediction) != 1 else "pose"
        if len(prediction):
            drawn = is_drawn(prediction, self.drawn_score)
            title += f", {drawn.sum()} of {drawn.size} points above {self.drawn_score:g}"
        return {title: self.draw(prediction, picture, result)}

    def write(self, stem: Path, prediction: np.ndarray, picture: np.ndarray, result: Result | None = None) -> None:
        """Write ``<stem>.json``: each person's box, score and keypoints (``s2kit.pose.coco_results.read_pose``)."""
        size, name, seconds, people = picture.shape[:2], stem.name, None, None
        if result is not None:
            name, people, frame = result.picture.source, result.people, result.picture.frame
            seconds = None if frame is None else frame.seconds
        people = people or WholePicture()([name], [picture])[0]
        poses = PoseResult(name, size, prediction, people.boxes, people.scores, people.ids, seconds)
        write_pose(f"{stem}.json", poses, self.hparams.schema)

    def panel(self, prediction: Tensor, index: int, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Return the crop, the truth and the prediction on it, and the way from the one to the other."""
        factor = max(1, -(-PANEL_HEIGHT // self.image_size[0]))
        picture = batch["image"][index].permute(1, 2, 0).cpu().numpy().repeat(factor, axis=0).repeat(factor, axis=1)
        crop = batch["crop"][index].double().cpu().numpy()

        def on_crop(points: Tensor) -> np.ndarray:
            return factor * (points.double().cpu().numpy() @ crop[:2, :2].T + crop[:2, 2])

        labelled = batch["visibility"][index].cpu().numpy() > 0
        truth, predicted = on_crop(batch["keypoints"][index]), on_crop(prediction[:, :2])
        score = prediction[:, 2].cpu().numpy()
        return {
            "input": picture,
            "truth": draw_pose(picture, np.column_stack([truth, labelled]), self.keypoint_set),
            f"prediction, mean score {np.nan_to_num(score).mean():.2f}": draw_pose(
                picture, np.column_stack([predicted, score]), self.keypoint_set
            ),
            "truth green, prediction red": draw_offsets(picture, truth, predicted, labelled),
        }


def schema_of_size(count: int) -> str:
    """Return the name of the packaged keypoint set with ``count`` points.

    Raises:
        SchemaError: If there is none.
    """
    for name in PACKAGED["keypoints"]:
        if len(load_keypoint_set(name)) == count:
            return name
    raise SchemaError(
        f"the head has {count} keypoints, and no packaged keypoint set has as many: give model.schema, one of "
        f"{', '.join(PACKAGED['keypoints'])} or the path of a file"
    )
