"""The pose task: places through crop and heatmap, the flip test, schemas, learning, panels, loading."""

import io
import json
import re

import cv2
import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from data_modules.collate import collate, collate_training
from s2kit.callbacks import StepProgress
from s2kit.export import export_task
from s2kit.pose import encode_heatmaps
from s2kit.report import print_metrics
from s2kit.schemas import SchemaError, load_keypoint_set
from s2kit.tasks import PoseTask, load_task

TINY = {
    "arch": "sapiens2_nano",
    "image_size": (64, 48),
    "backbone": {"embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_dim": 64, "patch_size": 8},
    "head": {"upsample_channels": (32, 32), "conv_channels": (32,), "output_std": 0.01},
    "schema": "coco-17",
    "warmup_steps": 0,
}
#: Source pixel -> network pixel: turned by 20 degrees and shrunk to a fifth.
CROP = np.array([[0.188, 0.068, -12.0], [-0.068, 0.188, 9.0], [0, 0, 1]], np.float32)


def item(key: str, points: int = 17, seed: int = 0, training: bool = True) -> dict:
    """A person of coloured spots: at the keypoints of the crop."""
    rng = np.random.default_rng(seed)
    keypoints = rng.uniform([6, 6], [42, 58], (points, 2)).astype(np.float32)
    image = np.zeros((64, 48, 3), np.uint8)
    for i, (x, y) in enumerate(keypoints):
        cv2.circle(image, (int(x), int(y)), 2, ((37 * i) % 206 + 50, (91 * i) % 206 + 50, (151 * i) % 206 + 50), -1)
    source = (np.c_[keypoints, np.ones(points)] @ np.linalg.inv(CROP).T)[:, :2].astype(np.float32)
    low, high = source.min(axis=0), source.max(axis=0)
    return {
        "key": key,
        "image": np.ascontiguousarray(image.transpose(2, 0, 1)),
        "crop": CROP,
        "keypoints": keypoints if training else source,
        "visibility": np.full(points, 2, np.uint8),
        "box": np.concatenate([low, high]).astype(np.float32),
        "area": np.array([0.5 * np.prod(high - low)], np.float32),
        "source_size": np.array([400, 300]),
    }


def heatmaps_of(items: list[dict], size=(32, 24)) -> torch.Tensor:
    keypoints = torch.stack([torch.from_numpy(one["keypoints"]) for one in items])
    return encode_heatmaps(keypoints, torch.ones(keypoints.shape[:2]), (64, 48), size)[0]


def test_true_heatmaps_give_the_source_pixels_and_full_marks():
    task = PoseTask(**TINY)
    batch = collate([item("a", seed=1, training=False), item("b", seed=2, training=False)])
    maps = heatmaps_of([item("a", seed=1), item("b", seed=2)])
    predictions = task.finish_batch(maps, batch)
    for prediction, truth in zip(predictions, batch["keypoints"]):
        assert prediction.shape == (17, 3)
        assert (prediction[:, :2] - truth).abs().max() < 0.5  # a tenth of a network pixel
        assert prediction[:, 2].min() > 0.6
    task.update_metrics("test", predictions, batch)
    values = task.compute_metrics("test")
    assert values["AP"] == values["PCK"] == 100
    assert values["OKS"] > 99
    assert values["baseline_OKS"] < 70
    assert "baseline_OKS" not in task.compute_metrics("val")


def test_mixed_precision_does_not_round_places():
    task = PoseTask(**TINY)
    batch = collate([item("a", seed=1, training=False)])
    maps = heatmaps_of([item("a", seed=1)])
    exact = task.finish_batch(maps, batch)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = task.finish_batch(maps, batch)[0]
    torch.testing.assert_close(mixed, exact, rtol=0, atol=1e-4)


def test_pck_is_of_the_sides_of_the_crop():
    task = PoseTask(**TINY)
    batch = collate([item("a", seed=1, training=False)])
    turn = torch.tensor([[0.8, 0.6], [-0.6, 0.8]])
    batch["crop"][0, :2, :2] = torch.tensor([[0.2], [0.1]]) * turn
    prediction = torch.cat([batch["keypoints"][0], torch.ones(17, 1)], dim=1)
    task.update_metrics("val", [prediction], batch)
    torch.testing.assert_close(task.val_metrics.sides[0], torch.tensor([[240.0, 640.0]]))


def test_a_perfect_heatmap_has_no_loss_and_full_pck():
    task = PoseTask(**TINY)
    items = [item("a", seed=1), item("b", seed=2)]
    items[1]["visibility"][:9] = 0
    items[1]["keypoints"][:9] = 0
    batch = collate(items)
    maps = heatmaps_of(items)
    losses = task.compute_losses(maps, batch)
    assert losses["loss"] == 0
    assert losses["PCK"] == 100
    # Of keypoint 3 only the first person's is labelled, so half a keypoint is wrong: 16.5 of 17.
    wrong = maps.clone()
    wrong[0, 12] = wrong[0, 12].flip(0, 1)
    wrong[1, 3] = 1.0
    assert task.compute_losses(wrong, batch)["PCK"].item() == pytest.approx(100 * 16.5 / 17)
    batch["visibility"][:] = 0
    losses = task.compute_losses(torch.rand(2, 17, 32, 24).requires_grad_(), batch)
    losses["loss"].backward()
    assert losses["loss"] == losses["PCK"] == 0


@pytest.mark.parametrize("form", ["release", "paper"])
def test_a_batch_without_labels_changes_nothing(form):
    task = PoseTask(**TINY, lr=1e-2, weight_decay=0.0, loss=form)
    items = [item("a", seed=1), item("b", seed=2)]
    for one in items:
        one["visibility"][:] = 0
        one["keypoints"][:] = 0
    before = [parameter.detach().clone() for parameter in task.parameters()]
    trainer = Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(task, DataLoader(items, batch_size=2, collate_fn=collate_training))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("train/")}
    assert set(logged.values()) == {0.0} and {"train/loss", "train/PCK", "train/gradient_norm"} < set(logged)
    assert all(torch.equal(one, other) for one, other in zip(before, task.parameters()))


def test_a_few_steps_fit_two_persons():
    torch.manual_seed(0)
    task = PoseTask(**TINY, lr=5e-3, sigma=2.0)
    items = [item("a", seed=1), item("b", seed=2)]
    batch = collate(items)

    def pck() -> float:
        with torch.no_grad():
            return float(task.compute_losses(task(task.normalise(batch["image"])), batch)["PCK"])

    before = pck()
    trainer = Trainer(
        max_steps=100, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(task, DataLoader(items, batch_size=2, collate_fn=collate_training))
    assert before < 20
    assert pck() > 90


def test_the_bar_shows_the_loss_and_the_monitored_metric(tmp_path):
    """After a validation; everything else goes to the loggers alone, each part by a name of its own."""
    items, scored = ([item(key, 133, seed, training) for seed, key in enumerate("ab")] for training in (True, False))
    bar, screen = StepProgress(), io.StringIO()
    bar._console = Console(file=screen, force_terminal=True, width=200)
    task = PoseTask(**{**TINY, "schema": "coco-wholebody-133"})
    trainer = Trainer(
        max_steps=2,
        val_check_interval=1,
        num_sanity_val_steps=0,
        accelerator="cpu",
        logger=TensorBoardLogger(tmp_path, ""),
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[bar],
    )
    loaders = [DataLoader(items, batch_size=2, collate_fn=collate_training), DataLoader(scored, 2, collate_fn=collate)]
    trainer.fit(task, *loaders)
    shown = set(trainer.progress_bar_metrics)
    assert shown == {"train/loss", task.monitor} == {"train/loss", "val/OKS"}
    assert re.search(r"training.*2/2.*train/loss \d+\.\d+, val/OKS \d+\.\d+", screen.getvalue())
    events = EventAccumulator(trainer.logger.log_dir).Reload()
    names = set(events.Tags()["scalars"])
    assert {"val/OKS", "val/AP", "val/AP_M", "val/PCK"} <= names
    assert {f"val/{name}/{part}" for name in ("AP", "AR") for part in task.keypoint_set.groups} <= names


def test_a_flip_test_makes_heatmaps_mirror_with_the_picture():
    """The heatmaps, not the places: the release's mixed derivative takes one diagonal, which a mirror changes."""
    torch.manual_seed(0)
    batch = collate([item("a", training=False)])
    mirrored = {**batch, "image": batch["image"].flip(-1)}
    flip_map = torch.from_numpy(load_keypoint_set(17).flip_map)
    for flip_test, equal in ((False, False), (True, True)):
        task = PoseTask(**TINY, flip_test=flip_test).eval()
        task.finish_batch = lambda output, batch: output
        with torch.no_grad():
            straight, turned = (task._predict_batch(one) for one in (batch, mirrored))
        assert torch.allclose(straight, turned.flip(-1)[:, flip_map], atol=1e-4) is equal


@pytest.mark.parametrize(("schema", "count"), [("coco-wholebody-133", 133), (17, 17), ("openpose-25", 25), (None, 308)])
def test_the_head_has_the_points_of_the_schema(schema, count):
    task = PoseTask(**{**TINY, "schema": schema})
    assert task(torch.zeros(1, 3, 64, 48)).shape == (1, count, 32, 24)
    assert len(task.flip_map) == count
    assert task.hparams.schema is not None


def test_wrong_schemas_are_named():
    with pytest.raises(SchemaError, match=r"head has 25 keypoints, but model.schema=coco-17 has 17"):
        PoseTask(**{**TINY, "head": {**TINY["head"], "out_channels": 25}})
    with pytest.raises(SchemaError, match=r"head has 18 keypoints, and no packaged .* sapiens2-308, coco-whole"):
        PoseTask(**{**TINY, "schema": None, "head": {**TINY["head"], "out_channels": 18}})
    task = PoseTask(**TINY)
    with pytest.raises(ValueError, match=r"the data have 133 keypoints, but model.schema=coco-17 has 17"):
        task.compute_losses(torch.zeros(1, 17, 32, 24), collate([item("a", points=133)]))
    with pytest.raises(ValueError, match="sigma=0: it must be positive"):
        PoseTask(**TINY, sigma=0)


def test_parts_have_a_table_of_their_own(capsys):
    task = PoseTask(**{**TINY, "schema": None})
    batch = collate([item("a", points=308, training=False), item("b", points=308, seed=1, training=False)])
    predictions = [torch.cat([points, torch.ones(308, 1)], dim=1) for points in batch["keypoints"]]
    parts = list(task.keypoint_set.groups)
    face = list(task.keypoint_set.groups["face"])
    predictions[1][face, :2] += 1000
    predictions[1][:, 2] = 0.9  # ranked last
    task.update_metrics("test", predictions, batch)
    values = {name: float(value) for name, value in task.compute_metrics("test").items()}
    assert values["AP/body"] == 100 and values["AP/face"] == pytest.approx(100 * 51 / 101)
    print_metrics(task, {f"test/{name}": value for name, value in values.items()})
    first, second = capsys.readouterr().out.split("pose: test set, by part")
    assert "mean pose in the box" in first and not any(part in first for part in parts)
    rows = [line for line in second.splitlines() if line.startswith("│")]
    assert [row.split()[1] for row in rows] == parts
    cells = next(row for row in rows if "face" in row).split("│")[2:]
    assert [float(cell) for cell in cells[:2]] == [round(values["AP/face"], 2), round(values["AR/face"], 2)]
    assert float(cells[2]) == pytest.approx(values["baseline_AP/face"], abs=0.01)


def test_an_exported_model_predicts_the_same(tmp_path):
    torch.manual_seed(0)
    task = PoseTask(**TINY).eval()
    picture = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    export_task(task, tmp_path, {"test/AP": 12.5, "test/AP_L": float("nan")})
    described = json.loads((tmp_path / "model.json").read_text(), parse_constant=pytest.fail)
    assert described["metrics"] == {"test/AP": 12.5, "test/AP_L": None}
    again = load_task(None, tmp_path / "weights.safetensors")
    assert again.hparams.schema == "coco-17"
    before, after = task.predict(picture)[0], again.predict(picture)[0]
    assert before.shape == (1, 17, 3)
    np.testing.assert_array_equal(before, after)
    drawn = again.draw(before, picture)
    assert drawn.shape == picture.shape and drawn.dtype == np.uint8


def test_bare_weights_say_their_schema_by_their_points(tmp_path):
    export_task(PoseTask(**TINY), tmp_path)
    (tmp_path / "model.json").write_text(
        json.dumps({"config": {name: value for name, value in TINY.items() if name != "schema"}})
    )
    model = json.loads((tmp_path / "model.json").read_text())
    model["config"]["head"]["out_channels"] = 17
    (tmp_path / "model.json").write_text(json.dumps(model))
    assert load_task("pose", tmp_path / "weights.safetensors").hparams.schema == "coco-17"


def test_panels_show_what_they_say():
    task = PoseTask(**TINY)
    batch = collate([item("a", seed=1, training=False)])
    prediction = torch.cat([batch["keypoints"][0], torch.ones(17, 1)], dim=1)
    panel = task.panel(prediction, 0, batch)
    assert list(panel)[:2] == ["input", "truth"] and len(panel) == 4
    assert {picture.shape for picture in panel.values()} == {(512, 384, 3)}
    titles = list(panel)
    assert np.array_equal(panel["truth"], panel[titles[2]])
    # A keypoint's colour lies where the keypoint is.
    truth = item("a", seed=1)["keypoints"]
    x, y = (truth[16] * 8).astype(int)
    assert np.abs(panel["truth"][y, x].astype(int) - load_keypoint_set(17).colors[16]).max() < 8
    batch["visibility"][:] = 0
    assert np.array_equal(task.panel(prediction, 0, batch)["truth"], panel["input"])


def test_the_picture_around_a_crop_is_put_back_in_its_place():
    batch = collate([item("a", seed=1, training=False)])
    batch["image"][0, :, 20:30, 10:25] = 255
    picture = PoseTask.source_picture(0, batch)
    assert picture.shape == (400, 300, 3)
    centre = np.linalg.inv(CROP) @ [17.5, 25, 1]
    assert picture[int(centre[1]), int(centre[0])].tolist() == [255, 255, 255]
    assert picture[0, 299].tolist() == [0, 0, 0]
