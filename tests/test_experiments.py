"""Every shipped experiment through the command line: fit, test with the exported weights, predict."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from s2kit.cli import main
from s2kit.pose.coco_results import read_pose

HEIGHT, WIDTH = 50, 70
SHUFFLE = "{upsample_channels: [8, 8, 8], conv_channels: [8]}"


class Experiment(NamedTuple):
    """What is made tiny in an experiment, and what must come out.

    Attributes:
        head: The head's fields, for patches of 8 x 8 pixels.
        metrics: Of the test, finite and beside those of the trivial baseline.
        columns: Pictures of one row of a panel.
        outputs: Suffix of each file that ``predict`` writes beside the drawing, with a check of what it holds.
        options: Further options.
    """

    head: str
    metrics: tuple[str, ...]
    columns: int
    outputs: dict[str, Callable[[Path], None]]
    options: tuple[str, ...] = ()


def array(channels: int, low: float, high: float) -> Callable[[Path], None]:
    """Return a check of a ``.npy`` of float32 (H, W, channels) between ``low`` and ``high``."""

    def check(path: Path) -> None:
        values = np.load(path)
        assert (values.shape, values.dtype) == ((HEIGHT, WIDTH, channels), np.float32)
        assert low <= values.min() <= values.max() <= high

    return check


def unit_vectors(path: Path) -> None:
    array(3, -1, 1)(path)
    np.testing.assert_allclose(np.linalg.norm(np.load(path), axis=-1), 1, atol=1e-4)


def keypoints(path: Path) -> None:
    people, _ = read_pose(path)
    assert people.keypoints.shape == (1, 308, 3)
    assert np.isfinite(people.keypoints).all()


def labels(path: Path) -> None:
    with Image.open(path) as image:
        assert (image.mode, image.size) == ("P", (WIDTH, HEIGHT))
        assert np.asarray(image).max() < 29


def points(path: Path) -> None:
    with np.load(path) as arrays:
        assert arrays["points"].shape == arrays["normals"].shape == (HEIGHT, WIDTH, 3)
        np.testing.assert_array_equal(arrays["depth"], arrays["points"][..., 2])
        assert np.isfinite(arrays["points"]).all()
        assert arrays["focal_length"] > 0


def point_cloud(path: Path) -> None:
    assert path.read_bytes().startswith(b"ply\n")


def cutout(path: Path) -> None:
    assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape == (HEIGHT, WIDTH, 4)


EXPERIMENTS = {
    "pose": Experiment(
        "{upsample_channels: [8], conv_channels: [8]}",
        ("OKS", "PCK", "AP", "AR"),
        4,
        {".json": keypoints},
    ),
    "segmentation": Experiment(SHUFFLE, ("mIoU", "mAcc", "aAcc", "boundary_f"), 5, {"_labels.png": labels}),
    "normals": Experiment(SHUFFLE, ("mean",), 4, {".npy": unit_vectors}),
    "pointmap": Experiment(
        "{upsample_channels: [8, 8, 8], conv_channels: [8], scale_channels: [8, 8], scale_hidden: [8]}",
        ("l2", "metric_l2", "affine_l2"),
        6,
        {".npz": points, ".ply": point_cloud},
    ),
    "albedo": Experiment(SHUFFLE, ("mae", "rmse", "psnr"), 4, {".npy": array(3, 0, 1)}),
    "matting": Experiment(
        SHUFFLE,
        ("sad", "mse", "gradient", "connectivity", "alpha_mae"),
        5,
        {".npy": array(4, 0, 1), "_cutout.png": cutout},
    ),
    "pretrain": Experiment(
        "{hidden_dim: 16, bottleneck_dim: 8, prototypes: 16}",
        ("reconstruction",),
        3,
        {},
        ("--model.decoder={dim: 16, depth: 1, num_heads: 2, mlp_dim: 32}", "--data.batch_size=4"),
    ),
}


@pytest.fixture
def tiny(synth_options: list[str]) -> list[str]:
    """Options that make any experiment tiny: the session's data, a one-layer model, two steps."""
    options = {
        "model.image_size": "[64, 48]",
        "model.backbone": "{patch_size: 8, embed_dim: 16, depth: 1, num_heads: 2, mlp_dim: 32}",
        "model.warmup_steps": 1,
        "data.batch_size": 2,
        "data.num_workers": 0,
        "panels.count": 2,
        "panels.height": 64,
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 1,
        "trainer.log_every_n_steps": 1,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
    }
    return [*synth_options, *(f"--{name}={value}" for name, value in options.items())]


def last_values(run: Path) -> dict[str, float]:
    """Return the last value of every column of a run's ``metrics.csv``."""
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: float(row[name]) for row in rows for name in row if row[name]}


def check_panel(path: Path, rows: int, columns: int) -> None:
    """Check that a panel has as many pictures, and that they are not all of one colour."""
    picture = cv2.imread(str(path))
    assert picture.shape[0] > rows * 64
    # A picture of 64 x 48 or, beside the crop of a person, of another width; each is a good deal wider than 30.
    assert picture.shape[1] > columns * 30
    assert picture.std() > 10


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_fit_test_and_predict(name: str, experiments: Path, tiny: list[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = EXPERIMENTS[name]
    config = ["--config", str(experiments / f"{name}.yaml"), *tiny, f"--model.head={expected.head}", *expected.options]
    runs = tmp_path / "runs" / name

    assert main(["fit", *config, "--run.version=fit"]) == 0
    trained = runs / "fit"
    check_panel(trained / "panels" / "val_step000002.png", 2, expected.columns)
    check_panel(trained / "panels" / "test_step000002.png", 2, expected.columns)
    assert (trained / "checkpoints" / "last.ckpt").is_file()
    parts = {key.split(".")[0] for key in load_file(trained / "weights.safetensors")}
    assert parts >= {"blocks", "patch_embed"} if name == "pretrain" else parts == {"backbone", "decode_head"}
    metrics = json.loads((trained / "model.json").read_text())["metrics"]
    for metric in expected.metrics:
        assert math.isfinite(metrics[f"test/{metric}"]), metric
        assert math.isfinite(metrics[f"test/baseline_{metric}"]), metric
    assert math.isfinite(last_values(trained)["train/loss"])

    weights = f"--model.weights={trained / 'weights.safetensors'}"
    if name == "pretrain":  # what is exported is a backbone, which has nothing to be scored by
        weights = f"--ckpt_path={trained / 'checkpoints' / 'last.ckpt'}"
    assert main(["test", *config, weights, "--run.version=test"]) == 0
    again = last_values(runs / "test")
    for metric in expected.metrics:
        assert again[f"test/{metric}"] == pytest.approx(metrics[f"test/{metric}"], rel=1e-5), metric

    (tmp_path / "pictures").mkdir()
    picture = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    for stem in ("first", "second"):
        cv2.imwrite(str(tmp_path / "pictures" / f"{stem}.png"), picture)
    assert main(["predict", *config, weights, "--data.predict_path=pictures", "--predictions.folder=by_config"]) == 0
    folders = ["by_config"]
    if name != "pretrain":
        assert main(["predict", "pictures", "--weights", str(trained), "--out", "out"]) == 0
        folders.append(f"out/{name}")
    for folder in folders:
        for stem in ("first", "second"):
            assert cv2.imread(str(tmp_path / folder / f"{stem}.png")) is not None
            for suffix, check in expected.outputs.items():
                check(tmp_path / folder / f"{stem}{suffix}")
