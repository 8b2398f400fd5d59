"""Poses of many people end to end: boxes, crops batched over pictures, keypoints in the picture, files, videos.

The people are 17 spots each of a colour of its own, and the network finds these colours: what it sees, it places
exactly. Whatever is wrong in between shows as an offset.
"""

import itertools
import json
import os
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import detection

from s2kit.cli import main
from s2kit.export import export_task
from s2kit.inference.items import PredictOptions
from s2kit.inference.people import BoxFile, make_people
from s2kit.inference.people.detector import FILES
from s2kit.inference.predictor import Picture, Predictor
from s2kit.inference.video import VideoReader, VideoWriter
from s2kit.pose.coco_results import read_pose
from s2kit.pose.udp import encode_heatmaps
from s2kit.tasks import PoseTask

TINY = {
    "arch": "sapiens2_nano",
    "image_size": (128, 96),
    "backbone": {"embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32},
    "head": {"upsample_channels": (8, 8), "conv_channels": (8,), "output_std": 0.1},
    "schema": "coco-17",
}
#: None is another one's blend with the black ground, as the edges of spots are.
COLORS = np.array([color for color in itertools.product((0, 120, 240), repeat=3) if max(color) == 240][:17])
#: Where a person's spots are, in shares of the box; they span it.
PLACES = np.random.default_rng(5).permutation(
    np.stack(np.meshgrid(np.linspace(0, 1, 3), np.linspace(0, 1, 6)), axis=-1).reshape(-1, 2)[:17]
)


class SeesColors(nn.Module):
    """In place of a trained head: maps (B, 17, h / 2, w / 2) with a peak at the middle of each colour's spot."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        task = self.task[0]
        rgb = image * task.pixel_std + task.pixel_mean
        distance = (rgb[:, None] - torch.tensor(COLORS)[None, :, :, None, None]).abs().amax(dim=2)
        weight = (distance < 40).float()
        height, width = image.shape[-2:]
        x, y = torch.arange(width) + 0.5, torch.arange(height) + 0.5
        total = weight.sum(dim=(2, 3)).clamp(min=1e-6)
        centre = torch.stack([(weight * x).sum(dim=(2, 3)), (weight * y[:, None]).sum(dim=(2, 3))], dim=-1)
        seen = weight.amax(dim=(2, 3))
        return encode_heatmaps(centre / total[..., None], seen, (height, width), (height // 2, width // 2))[0]


@pytest.fixture
def sees_colors() -> PoseTask:
    task = PoseTask(**TINY).eval()
    stride = task.backbone.config.stride
    task.backbone = nn.Identity()
    task.backbone.config = SimpleNamespace(stride=stride)
    head = SeesColors()
    head.task = [task]
    task.decode_head = head
    # Heads take a backbone's patches; here the picture itself.
    task.forward = lambda image: head(image)
    return task


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """An untrained model, as a file."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pose")
    export_task(PoseTask(**TINY), folder)
    return str(folder)


def draw(boxes: np.ndarray, size: tuple[int, int] = (240, 480)) -> tuple[np.ndarray, np.ndarray]:
    """A picture of a person in each box (N, 4), and their keypoints (N, 17, 2)."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    picture = np.zeros((*size, 3), np.uint8)
    points = boxes[:, None, :2] + PLACES * (boxes[:, None, 2:] - boxes[:, None, :2])
    for person in points:
        for (x, y), color in zip(person, COLORS.tolist()):
            place = (round((x - 0.5) * 16), round((y - 0.5) * 16))
            cv2.circle(picture, place, 5 * 16, color, -1, cv2.LINE_8, 4)
    return picture, points


def standing(*lefts: float, width: float = 60, height: float = 120, top: float = 50) -> np.ndarray:
    return np.array([[left, top, left + width, top + height] for left in lefts])


def test_many_people_of_several_pictures_are_placed_to_a_pixel(sees_colors):
    boxes = [standing(20, 160, 300), standing(200, width=90, height=100), standing(30, 330, height=180, top=20)]
    sizes = [(240, 480), (200, 400), (220, 470)]
    drawn = [draw(one, size) for one, size in zip(boxes, sizes)]
    found = sees_colors.predict([picture for picture, _ in drawn], batch_size=4, boxes=boxes)
    for (_, truth), poses, one in zip(drawn, found, boxes):
        assert poses.shape == (len(one), 17, 3)
        assert np.abs(poses[..., :2] - truth).max() < 1
        assert poses[..., 2].min() > 0.8
    # The order is that of the boxes.
    turned = sees_colors.predict(drawn[0][0], boxes=boxes[0][::-1])
    np.testing.assert_allclose(turned[0], found[0][::-1], atol=1e-4)


def test_several_scales_are_placed_as_well(sees_colors):
    picture, truth = draw(standing(20, 160, 300))
    (poses,) = sees_colors.predict(picture, boxes=standing(20, 160, 300), scales=(0.75, 1, 1.5))
    assert np.abs(poses[..., :2] - truth).max() < 1.5


def test_batches_change_nothing(weights):
    from s2kit.tasks import load_task

    task = load_task("pose", weights)
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (*size, 3), np.uint8) for size in ((90, 120), (200, 80), (60, 300), (128, 96))]
    boxes = [standing(5, 40, height=80, top=4), np.zeros((0, 4)), standing(0, 30, 60, 120, height=50, top=5), None]
    alone = [task.predict(picture, batch_size=1, boxes=one)[0] for picture, one in zip(pictures, boxes)]
    assert [len(poses) for poses in alone] == [2, 0, 4, 1]
    for size in (1, 3, 16):
        together = task.predict(pictures, batch_size=size, boxes=boxes)
        for first, second in zip(alone, together):
            np.testing.assert_allclose(first, second, atol=2e-3, rtol=1e-4)


def test_boxes_that_reach_beyond_the_picture_are_placed_and_others_refused(sees_colors):
    boxes = standing(-30, 430)
    picture, truth = draw(boxes)
    (poses,) = sees_colors.predict(picture, boxes=boxes)
    inside = (truth[..., 0] > 6) & (truth[..., 0] < 474)
    assert 8 < inside.sum() < 30
    assert np.abs(poses[..., :2] - truth)[inside].max() < 1.5
    assert (poses[~inside & ((truth[..., 0] < -6) | (truth[..., 0] > 486)), 2] == 0).all()
    for bad in ([10, 10, 10, 50], [500, 10, 560, 50], [10, 10, np.nan, 50], [-60, 0, 0, 50], [10, 10, np.inf, 50]):
        with pytest.raises(ValueError, match=r"boxes of picture 0: .* shows nothing of the picture"):
            sees_colors.predict(picture, boxes=[np.array([boxes[0], bad])])


class Finds:
    """A detector that finds what it is told to."""

    detects = True

    def __init__(self, boxes: list) -> None:
        self.boxes = boxes

    def __call__(self, names, pictures):
        return [make_people(one, np.linspace(0.9, 0.5, len(one))) for one in self.boxes[: len(pictures)]]

    def report(self) -> str:
        return ""


def test_one_who_was_found_twice_is_left_out_once(sees_colors):
    boxes = standing(160, 20, 300)
    double = [*boxes, [150, 40, 225, 190]]  # the first one again, less certain
    picture, truth = draw(boxes)
    predictor = Predictor([sees_colors], PredictOptions(), Finds([double]))
    (result,) = predictor([Picture("a", "a.png", picture)])
    assert result.people.boxes.tolist() == boxes.tolist()
    assert np.abs(result.predictions["pose"][..., :2] - truth).max() < 1
    predictor.boxes.detects = False  # people that the user gives are all meant
    (result,) = predictor([Picture("a", "a.png", picture)])
    assert len(result.predictions["pose"]) == 4


def write_inputs(folder) -> tuple[dict[str, np.ndarray], str]:
    """Three pictures, and a file of the boxes of two of them."""
    folder.mkdir()
    boxes = {"one.png": standing(20, 160, 300), "two.jpg": standing(), "three.png": standing(200)}
    for name, one in boxes.items():
        cv2.imwrite(str(folder / name), draw(one)[0][..., ::-1])
    # A box without area, and one outside, as real files have them.
    file = {name: one.tolist() for name, one in boxes.items() if name != "three.png"}
    file["one.png"] += [[5, 5, 5, 90], [600, 5, 700, 90]]
    path = folder.parent / "boxes.json"
    path.write_text(json.dumps(file))
    return boxes, str(path)


def test_the_command_writes_poses_and_drawings(weights, tmp_path, capsys):
    _, boxes = write_inputs(tmp_path / "in")
    out = tmp_path / "out"
    args = ["predict", str(tmp_path / "in"), "--weights", weights, "--out", str(out), "--boxes", boxes]
    assert main([*args, "--batch-size", "2"]) == 0
    said = capsys.readouterr()
    assert "it does not name 1 of 3 pictures (three.png): taken as without people" in said.err
    assert "2 boxes have no area or lie outside of their picture and were left out" in said.err
    poses, schema = read_pose(out / "pose" / "one.json")
    assert schema == "coco-17" and poses.keypoints.shape == (3, 17, 3) and poses.size == (240, 480)
    np.testing.assert_allclose(poses.boxes, standing(20, 160, 300))
    assert poses.ids is None
    for name in ("two", "three"):
        assert read_pose(out / "pose" / f"{name}.json")[0].keypoints.shape == (0, 17, 3)
        # Nobody: the picture as it is.
        shown = cv2.imread(str(out / "pose" / f"{name}.png"))
        source = cv2.imread(str(tmp_path / "in" / ("two.jpg" if name == "two" else "three.png")))
        assert np.array_equal(shown, source)
    entries = json.loads((out / "pose" / "predictions.json").read_text())
    assert [entry["file_name"].endswith("one.png") for entry in entries] == [True] * 3
    assert entries[1]["bbox"] == [160, 50, 60, 120] and len(entries[1]["keypoints"]) == 51
    np.testing.assert_allclose(np.reshape(entries[1]["keypoints"], (17, 3))[:, 2], poses.keypoints[1, :, 2], atol=1e-3)


def test_the_command_says_what_is_wrong_with_boxes_and_detectors(weights, tmp_path, capsys, monkeypatch):
    write_inputs(tmp_path / "in")
    args = ["predict", str(tmp_path / "in"), "--weights", weights, "--out", str(tmp_path / "out")]
    (tmp_path / "bad.json").write_text('{"one.png": [[10, 10, 5, 90]]}')
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: (_ for _ in ()).throw(OSError("no network")))
    for options, said in (
        (["--boxes", str(tmp_path / "none.json")], "none.json: the file of boxes cannot be read: no such file"),
        (["--boxes", str(tmp_path / "bad.json")], "one.png has the box [10, 10, 5, 90], which ends before it begins"),
        (["--boxes", "detect"], "cannot be downloaded (no network): download it elsewhere and put it into"),
        (["--boxes", "detect", "--detector-weights", weights + "/weights.safetensors"], "holds no detector of"),
        (["--boxes", "detect", "--detector-weights", "nothing.pth"], "--detector-weights: nothing.pth: no such file"),
    ):
        assert main([*args, *options]) == 1
        error = capsys.readouterr().err.strip()
        assert said in error and error.startswith("s2kit: error: ") and "\n" not in error, error


def test_a_detector_by_name_and_other_boxes_of_the_same_name(weights, tmp_path, capsys, monkeypatch):
    _, boxes = write_inputs(tmp_path / "in")
    name = "fasterrcnn_mobilenet_v3_large_fpn"
    (tmp_path / "checkpoints").mkdir()
    torch.manual_seed(0)
    state = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=2).state_dict()
    torch.save(state, tmp_path / "checkpoints" / FILES[name])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    args = ["predict", str(tmp_path / "in" / "one.png"), "--weights", weights, "--out"]
    detect = [*args, str(tmp_path / "a"), "--boxes", "detect", "--detector-weights", name]
    assert main([*detect, "--min-score", "1"]) == 0
    assert "the detector found nobody in 1 of 1 pictures: without results" in capsys.readouterr().err
    assert main([*args, str(tmp_path / "b"), "--boxes", boxes]) == 0
    # Going on with other boxes would leave those that are done with the old ones.
    os.utime(boxes, (0, 0))
    assert main([*args, str(tmp_path / "b"), "--boxes", boxes]) == 1
    assert "give another folder, or --restart" in capsys.readouterr().err
    # The poses that were written are a file of boxes, too.
    found = str(tmp_path / "b" / "pose" / "predictions.json")
    assert main([*args, str(tmp_path / "c"), "--boxes", found, "--min-score", "0"]) == 0
    poses, again = (read_pose(tmp_path / folder / "pose" / "one.json")[0] for folder in "bc")
    np.testing.assert_allclose(np.sort(again.boxes, axis=0), np.sort(poses.boxes, axis=0), atol=0.01)


def test_people_of_a_video_keep_their_numbers(weights, tmp_path, capsys):
    path, times = tmp_path / "clip.mp4", [0, 0.04, 0.1, 0.14, 0.2, 0.24, 0.3, 0.5]
    with VideoWriter(path, 25, (240, 480)) as writer:
        boxes = {}
        for index, seconds in enumerate(times):
            left, right = standing(20 + 6 * index, 380 - 8 * index)
            # The second one is hidden in two pictures, and the order changes.
            shown = [left] if index in (3, 4) else [left, right][:: 1 if index % 2 else -1]
            boxes[f"clip.mp4/{index:06d}"] = [box.tolist() for box in shown]
            writer.write(draw([left, right])[0], seconds)
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    args = ["predict", str(path), "--weights", weights, "--out", str(tmp_path / "out")]
    assert main([*args, "--boxes", str(tmp_path / "boxes.json")]) == 0
    assert capsys.readouterr().err == ""
    folder = tmp_path / "out" / "pose"
    ids = []
    for index, seconds in enumerate(times):
        poses, _ = read_pose(folder / "clip" / f"{index:06d}.json")
        assert poses.seconds == pytest.approx(seconds, abs=1e-3)
        ids.append(dict(zip(poses.ids.tolist(), poses.boxes[:, 0].tolist())))
    assert all(found[2] == 20 + 6 * index for index, found in enumerate(ids))
    assert all(found.get(1) == (None if index in (3, 4) else 380 - 8 * index) for index, found in enumerate(ids))
    entries = json.loads((folder / "predictions.json").read_text())
    assert len(entries) == 14 and {entry["track_id"] for entry in entries} == {1, 2}
    assert len({entry["image_id"] for entry in entries}) == 8
    with VideoReader(folder / "clip.mp4") as reader:
        drawn = list(reader)
    assert [seconds for _, seconds, _ in drawn] == pytest.approx(times, abs=1e-3)
    assert drawn[0][2].shape == (240, 480, 3)


def test_coco_annotations_give_their_numbers_of_images(sees_colors, tmp_path):
    file = {
        "images": [{"id": 42, "file_name": "one.png"}],
        "annotations": [{"image_id": 42, "category_id": 1, "bbox": [20, 50, 60, 120]}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(file))
    source = BoxFile(tmp_path / "coco.json")
    assert source.image_number(str(tmp_path / "one.png")) == 42 and not source.detects
