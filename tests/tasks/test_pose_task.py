"""The pose task: places through crop and heatmap, the flip test, schemas, learning, panels, loading."""

import json

import cv2
import numpy as np
import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from data_modules.collate import collate, collate_training
from s2kit.export import export_task
from s2kit.pose import encode_heatmaps
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


def test_an_exported_model_predicts_the_same(tmp_path):
    torch.manual_seed(0)
    task = PoseTask(**TINY).eval()
    picture = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    export_task(task, tmp_path)
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
