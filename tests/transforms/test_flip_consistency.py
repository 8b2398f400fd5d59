"""Every augmentation of every task: the mirror of an item is the item of the mirror, and colours move no label."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest

from data_modules import transforms as T
from s2kit.schemas import load_class_list, load_keypoint_set

SIZE = (128, 96)
#: Of each task: its transform, what else it can do to the geometry, and the labels of an item.
TASKS: dict[str, tuple[type, dict[str, Any], tuple[str, ...]]] = {
    "normals": (T.NormalsTrainTransform, {"rotate": 1.0, "person_crop": True}, ("normals", "valid", "intrinsics")),
    "pointmap": (T.PointmapTrainTransform, {"rotate": 1.0, "person_crop": True}, ("pointmap", "valid", "intrinsics")),
    "albedo": (T.AlbedoTrainTransform, {"rotate": 1.0, "person_crop": True}, ("albedo", "valid")),
    "segmentation": (T.SegmentationTrainTransform, {"person_crop": True}, ("labels",)),
    "matting": (T.MattingTrainTransform, {"person_crop": True, "recomposite": 1.0}, ("alpha", "foreground", "valid")),
    "pose": (T.PoseTrainTransform, {}, ("keypoints", "visibility")),
}
#: Further options: the whole of a small sample is valid, and the 133 names say their side.
OPTIONS = {"pose": {"schema": 133}, "normals": {"max_valid": 1.0}, "pointmap": {"max_valid": 1.0}}


def steps_of(task: str) -> dict[str, float | bool]:
    """Every augmentation of a task but the flip, with the value that makes it happen."""
    kind, more, _ = TASKS[task]
    return {**dict.fromkeys(kind.published, 1.0), **more, "flip": 0.0}


CASES = [(task, step) for task in TASKS for step in steps_of(task) if step != "flip"] + [(t, "all") for t in TASKS]


def transform_of(task: str, step: str, **options: Any) -> Callable[..., dict[str, Any]]:
    kind = TASKS[task][0]
    steps = steps_of(task)
    wanted = {name: value if step in (name, "all") else type(value)(0) for name, value in steps.items()}
    return kind(SIZE, **{**OPTIONS.get(task, {}), **wanted, **options})


def person(chart) -> dict[str, Any]:
    """A soft disc on the chart, with every label; left and right differ everywhere."""
    rng = np.random.default_rng(0)
    points = chart.sources(np.eye(3), chart.size)
    offset = (points - [58, 80]) / [36, 50]
    inside = (offset**2).sum(axis=-1) < 1
    normals = np.concatenate([offset, np.ones((*chart.size, 1))], axis=-1) * [1, -1, 1]
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    # Of every class a stripe, in an order without symmetry.
    parts = rng.permutation(np.arange(1, 29))[(points[..., 0] / 9 + points[..., 1] / 11).astype(int) % 28]
    return {
        "key": "person",
        "image": chart.image(),
        "alpha": np.clip((1 - np.sqrt((offset**2).sum(axis=-1))) * 1000 + 128, 0, 255).astype(np.uint8),
        "foreground": chart.image(),
        "normals": (normals * inside[..., None]).astype(np.float32),
        "depth": np.where(inside, 2 + 0.3 * offset[..., 0], 0).astype(np.float32),
        "intrinsics": np.array([[140, 0, 52], [0, 140, 81], [0, 0, 1]], np.float32),
        "albedo": chart.image(),
        "parts": np.where(inside, parts, 0).astype(np.uint8),
        "box": np.array([22, 30, 94, 130], np.float32),
        "keypoints": rng.uniform([22, 30], [94, 130], (133, 2)).astype(np.float32),
        "visibility": rng.integers(0, 3, 133).astype(np.uint8),
    }


def other_side(name: str) -> str:
    """The name of the class or keypoint that one becomes in a mirror, by its words alone."""
    swapped = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
    return "_".join(swapped.get(word, word) for word in name.split("_"))


def mirrored(name: str, label: np.ndarray, shift: int) -> np.ndarray:
    """What a label says of the mirrored picture, moved to the right by ``shift`` pixels."""
    width = SIZE[1] + shift
    if name == "intrinsics":
        # By the definition: a point seen at u is seen, with x negated, at width - u.
        return np.array([[-1, 0, width], [0, 1, 0], [0, 0, 1]]) @ label @ np.diag([-1, 1, 1])
    if name in ("keypoints", "visibility"):
        points = load_keypoint_set(133)
        label = label[[points.ids[other_side(known)] for known in points.names]]
        there = label.any(axis=-1, keepdims=True)
        return label if name == "visibility" else np.where(there, label * [-1, 1] + [width, 0], 0)
    label = np.roll(label[..., ::-1], shift, axis=-1)
    if name == "labels":
        classes = load_class_list(29)
        table = np.arange(256)
        table[:29] = [classes.ids[other_side(known)] for known in classes.names]
        return table[label]
    return label * np.array([-1, 1, 1]).reshape(3, 1, 1) if name in ("normals", "pointmap") else label


@pytest.mark.parametrize(("task", "step"), CASES, ids=lambda value: value)
def test_the_mirror_of_an_item_is_the_item_of_the_mirror(chart, task, step):
    straight, flipped = (transform_of(task, step, flip=flip) for flip in (0.0, 1.0))
    sample = person(chart)
    for seed in range(6):
        one, other = (transform(sample, np.random.default_rng(seed)) for transform in (straight, flipped))
        assert np.linalg.det(one["crop"]) > 0 > np.linalg.det(other["crop"])
        # A letterbox whose two margins are not equal stays where it was.
        shift = round(float(other["crop"][0, 2] + one["crop"][0, 2])) - SIZE[1]
        assert abs(shift) <= (task in ("normals", "pointmap", "albedo"))
        for name in TASKS[task][2]:
            expected = mirrored(name, one[name], shift).astype(np.float64)
            assert other[name].any(), name
            blended = name in ("albedo", "alpha", "foreground")
            close = np.isclose(other[name], expected, rtol=1e-4, atol=0.02 if blended else 1e-3)
            # Where a pixel's centre lies on the border of two of the source, either is nearest.
            assert close.mean() > 0.995, name


LABELS_BY_COLOUR = {"matting": {"foreground", "valid"}}
COLOURS = {
    "photometric": "matting normals pointmap segmentation pose",
    "downsample": "normals",
    "blur": "normals segmentation pose",
    "noise": "normals albedo segmentation",
    "solarise": "normals",
    "median": "pose",
    "hole": "pose",
    "jpeg": "matting",
    "composite": "matting",
    "recomposite": "matting",
    "background": "segmentation",
}


@pytest.mark.parametrize(("task", "step"), [(task, step) for step in COLOURS for task in COLOURS[step].split()])
def test_colours_move_no_label(chart, task, step, tmp_path):
    """With geometry and without: the labels are those of the item whose colours stay."""
    sample, options, differences = person(chart), {}, 0
    sample["image"] = np.random.default_rng(1).integers(0, 256, (*chart.size, 3), np.uint8)
    if step != "recomposite":  # else it is a cut-out, which has no background to be replaced
        sample["foreground"] = sample["image"]
    if step == "background":
        cv2.imwrite(str(tmp_path / "green.png"), np.full((40, 60, 3), (0, 200, 0), np.uint8))
        options = {"backgrounds": tmp_path}
    for geometry in ({}, {"flip": 1.0, "rotate": 1.0}):
        for seed in range(3):
            changed, plain = (
                transform_of(task, name, **options, **geometry)(sample, np.random.default_rng(seed))
                for name in (step, "none")
            )
            np.testing.assert_array_equal(changed["crop"], plain["crop"])
            for name in set(TASKS[task][2]) - LABELS_BY_COLOUR.get(task, set()):
                np.testing.assert_array_equal(changed[name], plain[name], err_msg=name)
            differences += not np.array_equal(changed["image"], plain["image"])
    assert differences >= 4  # a blur may be too narrow to be seen


def test_every_augmentation_is_held_by_one_of_the_two():
    geometry = {"scale", "crop", "rotate", "person_crop", "resize", "person", "shift", "half_body", "flip"}
    for task in TASKS:
        assert set(steps_of(task)) - geometry == {step for step, tasks in COLOURS.items() if task in tasks.split()}


PLANES = [(0.5, 0.0, -1.0), (0.0, 0.6, -1.0), (-0.4, 0.3, -1.0)]


@pytest.mark.parametrize("direction", PLANES)
@pytest.mark.parametrize("step", ["none", "flip", "rotate", "crop", "person_crop", "all"])
def test_normals_turn_as_the_surface_does(chart, step, direction):
    """The normal of the plane through an item's *points* is the normal that the other task's item says.

    Two labels, two rules, one geometry: what turns the one is not used for the other.
    """
    normal = np.array(direction) / np.linalg.norm(direction)  # towards the camera; x right, y down, z forward
    sample = person(chart)
    rays = np.concatenate([chart.sources(np.eye(3), chart.size), np.ones((*chart.size, 1))], axis=-1)
    rays = rays @ np.linalg.inv(sample["intrinsics"].astype(np.float64)).T
    sample["depth"] = (-2.0 / (rays @ normal)).astype(np.float32)
    assert sample["depth"].min() > 0.5
    sample["normals"] = np.tile((normal * [1, -1, -1]).astype(np.float32), (*chart.size, 1))
    options = {"flip": float(step in ("flip", "all")), "rotate_degrees": 70.0}
    points_of, normals_of = (transform_of(task, step, **options) for task in ("pointmap", "normals"))
    seen = []
    for seed in range(4):
        points, normals = (transform(sample, np.random.default_rng(seed)) for transform in (points_of, normals_of))
        np.testing.assert_array_equal(points["crop"], normals["crop"])
        cloud = points["pointmap"][:, points["valid"][0]].T.astype(np.float64)
        across = np.linalg.svd(cloud - cloud.mean(axis=0), full_matrices=False)[2][2]
        across *= -np.sign(across @ cloud.mean(axis=0))
        label = normals["normals"][:, normals["valid"][0]].mean(axis=1)
        np.testing.assert_allclose(label * [1, -1, -1], across, atol=0.02)
        seen.append(across)
    turned = np.abs(np.array(seen) - normal).max() > 0.1
    assert turned == (step in ("rotate", "all") or (step == "flip" and direction[0] != 0))
