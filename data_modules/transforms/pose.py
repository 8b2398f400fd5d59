"""From a raw sample of one person to an item for pose: the person's crop, and keypoints in its pixels."""

import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_modules.transforms import photometric
from data_modules.transforms.checks import SampleRejected, check_sample, draw_steps, step_probabilities, to_planes
from data_modules.transforms.geometry import (
    flip_matrix,
    rotation_matrix,
    scale_matrix,
    translation_matrix,
    warp_image,
)
from data_modules.transforms.sample import warp_keypoints
from s2kit.schemas import KeypointSet, load_keypoint_set

#: Side of the crop over side of the person's box (release, data 4.2.1).
PADDING = 1.25
#: Area of a person over area of their box, where only the box is known: COCO's convention for sets without masks.
AREA_OF_BOX = 0.53


def person_matrix(
    centre: np.ndarray, extent: np.ndarray, image_size: tuple[int, int], degrees: float = 0.0
) -> np.ndarray:
    """Return the (3, 3) matrix of a person's crop: source pixel -> network pixel.

    ``extent`` (width, height) is enlarged to the input's aspect. Its edges go to the *centres* of the input's first
    and last pixels, not to their outer edges: that is how the release crops (UDP, data 4.2.1), and its heatmaps count
    on it.

    Args:
        centre: (2,) x, y in source pixels.
        extent: (2,) width and height in source pixels.
        image_size: (h, w) of the network's input.
        degrees: Angle that the picture is turned by about ``centre``, counter-clockwise as seen.
    """
    height, width = image_size
    wide, high = max(extent[0], extent[1] * width / height), max(extent[1], extent[0] * height / width)
    turn = rotation_matrix(degrees, (0.0, 0.0))
    # A network of one pixel could not be divided by zero: its only centre is the middle.
    scale = scale_matrix(max(width - 1, 1) / wide, max(height - 1, 1) / high)
    return translation_matrix(width / 2, height / 2) @ scale @ turn @ translation_matrix(-centre[0], -centre[1])


def usable_box(sample: dict[str, Any]) -> np.ndarray | None:
    """Return the person's box (4,) float64: ``box``, else the bounds of the labelled keypoints; None if empty."""
    if "box" in sample:
        box = np.asarray(sample["box"], np.float64)
    else:
        points = np.asarray(sample["keypoints"], np.float64)[np.asarray(sample["visibility"]) > 0]
        if not len(points):
            return None
        box = np.concatenate([points.min(axis=0), points.max(axis=0)])
    return box if np.isfinite(box).all() and box[2] > box[0] and box[3] > box[1] else None


def check_keypoints(sample: dict[str, Any], points: KeypointSet) -> None:
    """Check the number of keypoints, and that every labelled one is a number.

    Raises:
        SampleRejected: If that is not so, or there are none.
    """
    if "keypoints" not in sample:
        raise SampleRejected(sample["key"], "the person has no keypoints")
    keypoints, visibility = sample["keypoints"], sample["visibility"]
    if keypoints.shape != (len(points), 2) or visibility.shape != (len(points),):
        raise SampleRejected(
            sample["key"], f"it has {len(keypoints)} keypoints, {points.name} has {len(points)}: see data.schema"
        )
    if not np.isfinite(keypoints[visibility > 0]).all():
        raise SampleRejected(sample["key"], "a labelled keypoint is no number")


class PoseTrainTransform:
    """Training augmentation for pose; by default the published recipe (release, data 4.2.1).

    The steps: ``flip`` (which swaps left and right keypoints), ``half_body`` (only the upper or the lower half of the
    body is shown, if at least nine keypoints are labelled), ``shift`` (of the centre, by up to 0.16 of the crop),
    ``scale`` (of the crop, by 0.5 to 1.5), ``rotate`` (by up to 80 degrees), the crop, ``photometric``, ``blur`` and
    ``median`` (over 3 to 7 pixels), ``hole`` (a black rectangle of 20 to 40 % of each side; keypoints beneath it stay
    labelled). Shift, scale and rotation are normally distributed, cut at one deviation.

    Heatmaps are drawn on the device, by the task. The corner cells of a heatmap of w' cells stand on the corner pixels
    of an input of w pixels: x is at cell (x - 0.5) (w' - 1) / (w - 1), counted from cell centres.

    Args:
        image_size: Network input (height, width).
        schema: Keypoint set: a packaged one by name or number of points, or a file.
        padding: Side of the crop over side of the person's box.
        rotate_degrees: Largest angle of a rotation, either way.
        min_labelled: Smallest number of labelled keypoints in the crop.
        **probability: Probability of a step by its name; by default the published one.

    Raises:
        ValueError: If a probability makes no sense, or a step is not known.
        SchemaError: If there is no such keypoint set.
    """

    published: ClassVar[dict[str, float]] = {
        "flip": 0.5,
        "half_body": 0.3,
        "shift": 0.3,
        "scale": 1.0,
        "rotate": 0.6,
        "photometric": 0.8,
        "blur": 0.1,
        "median": 0.1,
        "hole": 1.0,
    }

    def __init__(
        self,
        image_size: tuple[int, int] = (1024, 768),
        *,
        schema: int | str | Path = 308,
        padding: float = PADDING,
        rotate_degrees: float = 80.0,
        min_labelled: int = 1,
        **probability: float,
    ) -> None:
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.probability = step_probabilities(self.published, probability)
        self.points = load_keypoint_set(schema)
        self.padding, self.rotate_degrees, self.min_labelled = padding, rotate_degrees, min_labelled
        self._halves = {name: np.array(self.points.half(name), np.int64) for name in ("upper", "lower")}

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Make an item of a raw sample of one person: ``image``, ``keypoints``, ``visibility``, and optionally ``box``.

        Returns:
            ``image`` uint8 (3, h, w), ``keypoints`` float32 (K, 2) network pixels, (0, 0) where not labelled,
            ``visibility`` uint8 (K,): 0 not labelled or outside, 1 occluded, 2 visible; ``crop`` float32 (3, 3) source
            pixel -> network pixel, ``box`` float32 (4,) source pixels, ``source_size`` int64 (H, W), ``key``,
            ``person_id``.

        Raises:
            SampleRejected: If the person is a crowd, has no box, no keypoints or not those of the schema, or too few of
                them are in the crop.
            ValueError: If a field has a wrong type or shape.
        """
        source_size = check_sample(sample)
        check_keypoints(sample, self.points)
        if sample.get("iscrowd"):
            raise SampleRejected(sample["key"], f"its person {sample.get('person_id', 0)!r} is a crowd")
        box = usable_box(sample)
        if box is None:
            raise SampleRejected(sample["key"], "the person has no box and no labelled keypoint")
        does = draw_steps(self.probability, rng)
        matrix = self._geometry(sample, box, does, rng)
        keypoints, visibility = warp_keypoints(
            sample["keypoints"], sample["visibility"], matrix, self.image_size, self.points
        )
        labelled = np.count_nonzero(visibility)
        if labelled < self.min_labelled:
            raise SampleRejected(
                sample["key"], f"{labelled} labelled keypoints in the crop, at least {self.min_labelled} needed"
            )
        image = warp_image(sample["image"], matrix, self.image_size)
        for name, change in (
            ("photometric", "distort_colours"),
            ("blur", "box_blur"),
            ("median", "median_blur"),
            ("hole", "cut_hole"),
        ):
            if does[name]:
                image = getattr(photometric, change)(image, rng)
        return {
            "key": sample["key"],
            "image": to_planes(image),
            "keypoints": keypoints,
            "visibility": visibility,
            "crop": matrix.astype(np.float32),
            "box": box.astype(np.float32),
            "source_size": np.array(source_size, np.int64),
            "person_id": sample.get("person_id", 0),
        }

    def _geometry(
        self, sample: dict[str, Any], box: np.ndarray, does: dict[str, bool], rng: np.random.Generator
    ) -> np.ndarray:
        shift, growth, turn = truncated_normal(rng, 2), truncated_normal(rng, 1)[0], truncated_normal(rng, 1)[0]
        prefers_upper = rng.random() < 0.7
        centre, extent = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) * self.padding
        half = self._half_body(sample, prefers_upper) if does["half_body"] else None
        centre, extent = half or (centre, extent)
        if does["shift"]:
            centre = centre + 0.16 * shift * extent
        if does["scale"]:
            extent = extent * (1 + 0.5 * growth)
        degrees = turn * self.rotate_degrees if does["rotate"] else 0.0
        matrix = person_matrix(centre, extent, self.image_size, degrees)
        return flip_matrix(self.image_size[1]) @ matrix if does["flip"] else matrix

    def _half_body(self, sample: dict[str, Any], prefers_upper: bool) -> tuple[np.ndarray, np.ndarray] | None:
        """Return centre and extent of the upper or lower half; None if too little is labelled."""
        labelled = sample["visibility"] > 0
        if np.count_nonzero(labelled) < 9:
            return None
        upper, lower = (sample["keypoints"][ids[labelled[ids]]] for ids in self._halves.values())
        if len(upper) < 2 and len(lower) < 3:
            return None
        if len(upper) < 2 or len(lower) < 3:
            chosen = lower if len(upper) < 2 else upper
        else:
            chosen = upper if prefers_upper else lower
        extent = (chosen.max(axis=0) - chosen.min(axis=0)).astype(np.float64) * 1.5
        return (chosen.mean(axis=0, dtype=np.float64), extent) if extent.max() > 0 else None


class PoseEvalTransform:
    """The crop around the person's box; keypoints stay in the source's pixels.

    Args:
        image_size: Network input (height, width).
        schema: Keypoint set: a packaged one by name or number of points, or a file.
        padding: Side of the crop over side of the person's box.
    """

    def __init__(
        self, image_size: tuple[int, int] = (1024, 768), *, schema: int | str | Path = 308, padding: float = PADDING
    ) -> None:
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.points, self.padding = load_keypoint_set(schema), padding

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Make an item of a raw sample; without ``box`` and ``keypoints`` the whole picture is the person's box.

        Returns:
            ``image`` uint8 (3, h, w), ``crop`` float32 (3, 3) source pixel -> network pixel, ``box`` float32 (4,) and
            ``area`` float32 (1,) in source pixels (0.53 of the box where the sample has none), ``source_size`` int64
            (H, W), ``key``, ``person_id``, ``iscrowd`` bool; with labels ``keypoints`` float32 (K, 2) *source* pixels,
            (0, 0) where not labelled, and ``visibility`` uint8 (K,), all 0 for a person with a box alone.

        Raises:
            SampleRejected: If the sample has other keypoints than the schema.
            ValueError: If a field has a wrong type or shape, or the box is empty.
        """
        height, width = check_sample(sample)
        labelled = "keypoints" in sample or "box" in sample
        if "keypoints" in sample:
            check_keypoints(sample, self.points)
        box = usable_box(sample) if labelled else np.array([0, 0, width, height], np.float64)
        if box is None:
            raise ValueError(f"sample {sample['key']!r}: the person has no box and no labelled keypoint")
        matrix = person_matrix((box[:2] + box[2:]) / 2, (box[2:] - box[:2]) * self.padding, self.image_size)
        area = sample.get("area") or AREA_OF_BOX * math.prod(box[2:] - box[:2])
        item = {
            "key": sample["key"],
            "image": to_planes(warp_image(sample["image"], matrix, self.image_size)),
            "crop": matrix.astype(np.float32),
            "box": box.astype(np.float32),
            "area": np.array([area], np.float32),
            "source_size": np.array((height, width), np.int64),
            "person_id": sample.get("person_id", 0),
            "iscrowd": bool(sample.get("iscrowd", False)),
        }
        if labelled:
            visibility = sample.get("visibility", np.zeros(len(self.points), np.uint8))
            keypoints = sample.get("keypoints", np.zeros((len(self.points), 2), np.float32))
            item["keypoints"] = np.where(visibility[:, None] > 0, keypoints, 0).astype(np.float32)
            item["visibility"] = visibility.astype(np.uint8)
        return item


def truncated_normal(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return (count,) normal numbers of deviation 1, drawn again until they lie within -1..1."""
    values = np.empty(count)
    for index in range(count):
        value = rng.standard_normal()
        while abs(value) > 1:
            value = rng.standard_normal()
        values[index] = value
    return values
