"""The dense tasks: each learns, mirrors, finishes at the source's size, scores, draws, is rebuilt from its files."""

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from data_modules import SegmentationDataModule
from data_modules.collate import collate, collate_training
from s2kit.export import export_task
from s2kit.inference.geometry import letterbox_matrix, unletterbox
from s2kit.models.heads import PointmapOutput
from s2kit.report import print_metrics
from s2kit.schemas import SchemaError, load_class_list
from s2kit.tasks import AlbedoTask, MattingTask, NormalsTask, PointmapTask, SegmentationTask, Task, load_task
from s2kit.tasks.pointmap import PointmapPrediction

SIZE = (72, 48)
TINY = {
    "arch": "sapiens2_nano",
    "image_size": SIZE,
    "backbone": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_dim": 64},
    "warmup_steps": 0,
    "schedule": "constant",
    "layer_decay": 1.0,
}
HEAD = {"upsample_channels": (8, 8, 8), "conv_channels": (8,)}
HEADS = {
    NormalsTask: HEAD,
    SegmentationTask: HEAD,
    AlbedoTask: HEAD,
    MattingTask: HEAD,
    PointmapTask: {**HEAD, "scale_channels": (8, 8, 8), "scale_hidden": (8,)},
}
DENSE = [SegmentationTask, PointmapTask, AlbedoTask, MattingTask]
#: Of the loss, where there are not two.
FORMS = {MattingTask: ("release",)}
FOCAL = 60.0


def make(kind: type[Task], **options: Any) -> Task:
    head = {**HEADS[kind], **options.pop("head", {})}
    return kind(**{**TINY, "head": head, **options})


def item(key: str, size: tuple[int, int] = SIZE) -> dict[str, Any]:
    """A picture of a disc (``a``) or a square (else), with every task's labels of its own pixels."""
    height, width = size
    y, x = np.mgrid[:height, :width] + 0.5
    dx, dy = (x - 0.4 * width) / (0.25 * width), (y - 0.6 * height) / (0.25 * width)
    inside = (np.hypot(dx, dy) if key == "a" else np.maximum(abs(dx), abs(dy))) < 1
    left = inside & (dx < 0)
    albedo = np.where(left, 0.8, 0.3)[None] * np.array([1.0, 0.5, 0.2]).reshape(3, 1, 1)
    image = np.where(inside, 255 * albedo, 40).round().astype(np.uint8)
    labels = np.where(inside, np.where(left, 6, 15), 0)
    labels[0] = 255
    focal = FOCAL * width / SIZE[1]
    depth = 2 + 0.2 * dx
    points = np.stack([(x - width / 2) * depth / focal, (y - height / 2) * depth / focal, depth])
    return {
        "key": key,
        "image": image,
        "valid": inside[None],
        "labels": labels.astype(np.int64),
        "albedo": (albedo * inside).astype(np.float32),
        "normals": np.stack([0 * x, 0 * x, 1 + 0 * x]).astype(np.float32) * inside,
        "pointmap": (points * inside).astype(np.float32),
        "intrinsics": np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], np.float32),
        "alpha": inside[None].astype(np.float32),
        "foreground": (albedo * inside).astype(np.float32),
        "crop": letterbox_matrix(size, SIZE).astype(np.float32),
        "source_size": np.array(size, np.int64),
    }


def train(task: Task, items: list[dict], steps: int) -> Trainer:
    trainer = Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(task, DataLoader(items, batch_size=len(items), collate_fn=collate_training))
    return trainer


def test_score(task: Task, predictions: list, batch: dict[str, Any]) -> dict[str, float]:
    task.update_metrics("test", predictions, batch)
    return {name: float(value) for name, value in task.compute_metrics("test").items()}


test_score.__test__ = False


@pytest.mark.parametrize(
    ("kind", "options", "metric", "goal"),
    [
        (SegmentationTask, {"lr": 1e-2, "class_weights": "equal"}, "mIoU", 60.0),
        (PointmapTask, {"lr": 5e-3}, "l2", 0.5),
        (AlbedoTask, {"lr": 1e-2}, "mae", 0.2),
        (MattingTask, {"lr": 1e-2}, "alpha_mae", 0.2),
    ],
)
def test_a_few_steps_fit_two_pictures(kind, options, metric, goal):
    torch.manual_seed(0)
    task = make(kind, **options)
    items = [item("a"), item("b")]
    batch = collate(items)

    def score() -> float:
        task.eval()
        with torch.no_grad():
            return test_score(task, task._predict_batch(batch), batch)[metric]

    before = score()
    train(task, items, 50)
    after = score()
    better = (lambda x, y: x > y) if kind.monitor_mode == "max" else (lambda x, y: x < y)
    assert better(goal, before)
    assert better(after, goal)


@pytest.mark.parametrize("kind", [*DENSE, NormalsTask])
def test_a_flip_test_makes_predictions_mirror_with_the_picture(kind):
    """What is predicted of the mirrored picture is the mirrored prediction, with sides, signs and classes swapped."""
    torch.manual_seed(0)
    task = make(kind).eval()
    image = torch.randint(0, 255, (1, 3, *SIZE), dtype=torch.uint8)
    batch = {"key": ["a"], "image": image, "crop": torch.eye(3)[None], "source_size": torch.tensor([SIZE])}
    for flip_test in (False, True):
        task.hparams.flip_test = flip_test
        with torch.no_grad():
            straight, mirrored = (
                task._predict_batch({**batch, "image": picture})[0] for picture in (image, image.flip(-1))
            )
        if kind is SegmentationTask:
            table = torch.from_numpy(load_class_list(29).flip_table)
            equal = (table[mirrored.flip(-1).long()] == straight).float().mean() > 0.999
        elif kind is PointmapTask:
            sign = torch.tensor([-1.0, 1.0, 1.0]).view(3, 1, 1)
            equal = torch.allclose(mirrored.points.flip(-1) * sign, straight.points, atol=1e-4)
            assert not flip_test or torch.allclose(mirrored.scale, straight.scale, atol=1e-6)
        else:
            sign = torch.tensor([-1.0, 1.0, 1.0] if kind is NormalsTask else [1.0]).view(-1, 1, 1)
            equal = torch.allclose(mirrored.flip(-1) * sign, straight, atol=1e-4)
        assert bool(equal) is flip_test


@pytest.mark.parametrize(
    ("kind", "form"),
    [(kind, form) for kind in [*DENSE, NormalsTask] for form in FORMS.get(kind, ("release", "paper"))],
)
def test_all_invalid_batches_change_nothing(kind, form):
    task = make(kind, lr=1e-2, weight_decay=0.0, loss=form)
    items = [item("a"), item("b")]
    for sample in items:
        sample["valid"][:] = False
        sample["labels"][:] = 255
    batch = collate(items)
    terms = task.compute_losses(task(task.normalise(batch["image"])), batch)
    part = {name: value for name, value in terms.items() if not name.startswith("alpha")}
    if kind is not MattingTask:  # alpha is known everywhere
        assert all(float(value.detach()) == 0 for value in part.values())
        before = [parameter.detach().clone() for parameter in task.parameters()]
        logged = train(task, items, 1).callback_metrics
        assert {float(value) for name, value in logged.items() if name.startswith("train/")} == {0.0}
        assert {"train/loss", "train/gradient_norm"} < set(logged)
        assert all(torch.equal(one, other) for one, other in zip(before, task.parameters()))
    else:
        assert all(float(part[f"foreground_{term}"].detach()) == 0 for term in ("l1", "gradient", "laplacian"))
        sum(value for name, value in part.items() if name.startswith("foreground")).backward()
        assert all(parameter.grad is None or (parameter.grad == 0).all() for parameter in task.parameters())
        assert task.decode_head.output.weight.grad is not None
        logged = train(task, items, 1).callback_metrics
        assert torch.isfinite(logged["train/gradient_norm"]) and logged["train/gradient_norm"] > 0


@pytest.mark.parametrize("kind", DENSE)
def test_a_checkpoint_and_exported_weights_rebuild_the_task(kind, tmp_path):
    task = make(kind, lr=0.125, loss_weights={})
    trainer = train(task, [item("a"), item("b")], 1)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    again = kind.load_from_checkpoint(tmp_path / "run.ckpt", map_location="cpu")
    export_task(task, tmp_path / "exported")
    loaded = load_task(None, tmp_path / "exported")
    assert type(loaded) is kind
    for other in (again, loaded):
        assert other.hparams.lr == 0.125
        assert {n: v.tolist() for n, v in other.state_dict().items()} == {
            n: v.tolist() for n, v in task.state_dict().items()
        }
    # weights_only: nothing in the file but tensors and plain values.
    torch.load(tmp_path / "run.ckpt", weights_only=True)


@pytest.mark.parametrize("kind", DENSE)
def test_panels_and_drawings_are_pictures_of_the_sources_size(kind):
    task = make(kind).eval()
    wide = item("a", (40, 64))
    batch = collate([wide])
    batch["image"] = torch.randint(0, 255, (1, 3, *SIZE), dtype=torch.uint8)
    with torch.no_grad():
        prediction = task._predict_batch(batch)[0]
    panel = task.panel(prediction, 0, batch)
    drawn = task.draw(task.to_numpy(prediction), panel["input"])
    panel.pop("classes", None)  # the legend, of its own size
    for title, picture in [*panel.items(), ("drawn", drawn)]:
        assert (picture.dtype, picture.shape) == (np.uint8, (40, 64, 3)), title
    batch["valid"] = [torch.zeros(1, 40, 64, dtype=torch.bool)]
    batch["labels"] = [torch.full((40, 64), 255)]
    assert len(set(task.panel(prediction, 0, batch)) - {"classes"}) == len(panel)


def test_a_panel_of_points_shows_relief_at_a_wrong_distance():
    task = make(PointmapTask)
    sample = item("a", (40, 64))
    batch = {**collate([sample]), "image": torch.zeros(1, 3, *SIZE, dtype=torch.uint8)}
    points = torch.from_numpy(sample["pointmap"])
    panels = [
        list(task.panel(PointmapPrediction(factor * points, torch.tensor(1.0), torch.tensor(60.0)), 0, batch).items())
        for factor in (1.0, 2.0)
    ]
    (_, truth), (title, depth) = panels[1][1:3]
    assert title == "depth, times 0.50"
    assert len(np.unique(depth.reshape(-1, 3), axis=0)) > 10
    np.testing.assert_array_equal(depth, truth)
    assert panels[0][3][0] == "error, mean 0.000 m"
    assert panels[1][3][0] != panels[0][3][0]


def letterboxed(values: np.ndarray, outside: float) -> torch.Tensor:
    """A map (C, 40, 64) of a source as a perfect network would give it at SIZE, with ``outside`` in the padding."""
    matrix = letterbox_matrix((40, 64), SIZE)
    width, height = round(matrix[0, 0] * 64), round(matrix[1, 1] * 40)
    inner = cv2.resize(np.ascontiguousarray(values.transpose(1, 2, 0)), (width, height))
    output = np.full((*SIZE, len(values)), outside, np.float32)
    left, top = round(matrix[0, 2]), round(matrix[1, 2])
    output[top : top + height, left : left + width] = inner.reshape(height, width, -1)
    return torch.from_numpy(output.transpose(2, 0, 1).copy())[None]


def test_albedo_of_a_perfect_network():
    """Whatever the padding says, and beyond 0..1 it is clamped."""
    sample = item("a", (40, 64))
    sample["albedo"] = np.full((3, 40, 64), 0.25, np.float32) * np.array([1, 2, 4], np.float32).reshape(3, 1, 1)
    batch = collate([sample])
    output = letterboxed(sample["albedo"] * np.array([1, 1, 1.5], np.float32).reshape(3, 1, 1), -7.0)
    prediction = make(AlbedoTask).finish(output, 0, batch)
    np.testing.assert_allclose(prediction.numpy(), sample["albedo"], atol=1e-6)


def test_metric_points_of_a_perfect_network():
    """It answers canonical points and the scale; what comes out is metric, with the source's focal length."""
    sample = item("a", (40, 64))
    batch = collate([sample])
    task = make(PointmapTask)
    # The network's picture is 48 pixels wide, the source 64: so is the ratio of the focal lengths.
    focal = float(sample["intrinsics"][0, 0])
    scale = SIZE[1] / (focal * 48 / 64)
    smooth = sample["pointmap"].copy()
    smooth[:] = np.array([0.3, -0.2, 2.5], np.float32).reshape(3, 1, 1)
    batch["pointmap"] = torch.from_numpy(smooth)[None]
    output = PointmapOutput(letterboxed(smooth * scale, 99.0), torch.tensor([[scale]]))
    prediction = task.finish(output, 0, batch)
    np.testing.assert_allclose(prediction.points.numpy(), smooth, rtol=1e-5)
    assert float(prediction.focal_length) == pytest.approx(focal, rel=1e-5)
    values = test_score(task, [prediction], batch)
    for name in ("l2", "metric_l2", "rmse", "abs_rel", "scale_error", "mae_z"):
        assert values[name] == pytest.approx(0, abs=1e-4), name
    assert values["delta_1.25"] == 100
    assert values["baseline_metric_l2"] == pytest.approx(0, abs=1e-4)


def test_a_wrong_scale_moves_metric_points_and_not_canonical_ones():
    sample = item("a")
    task, batch = make(PointmapTask), collate([sample])
    scale = SIZE[1] / FOCAL
    canonical = torch.from_numpy(sample["pointmap"])[None] * scale
    prediction = task.finish(PointmapOutput(canonical, torch.tensor([[2 * scale]])), 0, batch)
    values = test_score(task, [prediction], batch)
    assert values["l2"] == pytest.approx(0, abs=1e-5)
    assert values["scale_error"] == pytest.approx(100, rel=1e-5)
    assert values["abs_rel"] == pytest.approx(0.5, rel=1e-5)
    assert values["scale_abs_rel"] == pytest.approx(0, abs=1e-5)
    assert float(prediction.focal_length) == pytest.approx(FOCAL / 2)


def test_a_scale_that_cannot_be_has_a_defined_answer():
    task, batch = make(PointmapTask), collate([item("a")])
    for value in (0.0, -3.0):
        prediction = task.finish(PointmapOutput(torch.ones(1, 3, *SIZE), torch.tensor([[value]])), 0, batch)
        assert float(prediction.scale) == pytest.approx(0.01)
        torch.testing.assert_close(prediction.points, torch.full((3, *SIZE), 100.0))


def test_the_targets_of_training_are_canonical():
    """A perfect canonical answer has no loss."""
    batch = collate([item("a"), item("b")])
    scale = torch.full((2, 1), SIZE[1] / FOCAL)
    for options in ({"loss": "paper"}, {}, {"canonical_focal": 96.0}):
        task = make(PointmapTask, **options)
        factor = options.get("canonical_focal", SIZE[1]) / SIZE[1]
        output = PointmapOutput(batch["pointmap"] * scale.view(2, 1, 1, 1) * factor, scale * factor)
        terms = task.compute_losses(output, batch)
        # At the mask's corners normals are of rounding: see `surface_normals`.
        for name in set(terms) - {"loss", "normal"}:
            assert float(terms[name]) == pytest.approx(0, abs=1e-4), name
        assert float(terms["loss"]) < 0.1
    with pytest.raises(ValueError, match="pointmaps need 'intrinsics'"):
        task.compute_losses(output, {name: value for name, value in batch.items() if name != "intrinsics"})
    with pytest.raises(ValueError, match="canonical_focal=0: it must be positive"):
        make(PointmapTask, canonical_focal=0)


def test_a_pointmap_head_fits_its_input_and_says_so():
    task = make(PointmapTask)
    assert task.decode_head.image_size == SIZE
    assert task.decode_head.grid == (9, 6)
    with pytest.raises(ValueError, match="too small for the pointmap head"):
        make(PointmapTask, image_size=(32, 32))


@pytest.mark.parametrize("classes", [29, 28, 3])
def test_labels_are_those_of_the_resized_logits(classes, monkeypatch):
    """A few classes at a time or all at once."""
    monkeypatch.setattr("s2kit.tasks.segmentation.CLASSES_AT_A_TIME", 5)
    task = make(SegmentationTask)
    output = torch.randn(1, classes, *SIZE, generator=torch.Generator().manual_seed(0))
    crop = torch.diag(torch.tensor([48 / 31, 72 / 55, 1.0]))
    batch = {"crop": crop[None], "source_size": torch.tensor([[55, 31]])}
    labels = task.finish(output, 0, batch)
    assert (labels.dtype, labels.shape) == (torch.uint8, (55, 31))
    assert torch.equal(labels.long(), unletterbox(output[0], crop, (55, 31)).argmax(dim=0))


def test_flipped_logits_swap_left_and_right_and_are_averaged_as_probabilities():
    task = make(SegmentationTask)
    classes = load_class_list(29)
    output = torch.zeros(1, 29, 2, 2)
    output[0, classes.ids["Left_Hand"], 0, 0] = 5.0
    flipped = task.unflip(output)
    assert flipped[0, classes.ids["Right_Hand"], 0, 1] == 5.0
    assert flipped.sum() == 5.0
    mean = task.average([output, flipped]).exp()
    torch.testing.assert_close(mean, (output.softmax(dim=1) + flipped.softmax(dim=1)) / 2)


def test_class_lists_by_schema():
    assert make(SegmentationTask).decode_head.output.out_channels == 29
    older = make(SegmentationTask, schema="sapiens1-28")
    assert older.decode_head.output.out_channels == 28
    assert older.loss.class_weights.tolist()[:3] == pytest.approx([0.1, 10, 3])
    # A file of weights says only how many classes it has.
    assert make(SegmentationTask, head={"out_channels": 28}).classes.name == older.classes.name
    with pytest.raises(SchemaError, match=r"the head has 29 classes, but model\.schema=sapiens1-28 has 28"):
        make(SegmentationTask, schema="sapiens1-28", head={"out_channels": 29})
    with pytest.raises(SchemaError, match="no schema 17: give sapiens2-29"):
        make(SegmentationTask, head={"out_channels": 17})


def test_weights_of_the_older_classes_are_recognised_by_their_shape(tmp_path):
    from safetensors.torch import save_file

    task = make(SegmentationTask, schema="sapiens1-28")
    save_file(task.state_dict(), tmp_path / "plain.safetensors")
    loaded = load_task("segmentation", tmp_path / "plain.safetensors", image_size=SIZE)
    assert loaded.classes.name == task.classes.name
    assert loaded.test_metrics.names == task.classes.names


def test_class_weights():
    assert make(SegmentationTask, class_weights="equal").loss.class_weights.unique().tolist() == [1.0]
    some = make(SegmentationTask, class_weights={"Background": 0.5, "Hair": 7.0}).loss.class_weights
    assert (some[0], some[4], some[5]) == (0.5, 7.0, 4.0)
    with pytest.raises(ValueError, match=r"model\.class_weights names 'Nose'; parts_29 has Background, Apparel"):
        make(SegmentationTask, class_weights={"Nose": 1.0})


def test_labels_of_another_schema_are_an_error():
    task, batch = make(SegmentationTask, schema="sapiens1-28"), collate([item("a"), item("b")])
    batch["labels"][0, 5, 5] = 28
    with pytest.raises(ValueError, match=r"hold the value 28; the model has classes 0 to 27.* another schema"):
        task.compute_losses(torch.zeros(2, 28, *SIZE), batch)


@pytest.mark.parametrize(("given", "fits"), [("sapiens2-29", True), ("sapiens1-28", False), ("lip-20", False)])
def test_model_and_data_number_their_labels_alike(given, fits):
    """LIP's 20 classes are all numbers that 29 classes have, too: no label would be out of range."""
    task = make(SegmentationTask)
    data = SegmentationDataModule(given, root="nowhere")
    trainer = Trainer(fast_dev_run=True, accelerator="cpu", logger=False, enable_progress_bar=False)
    message = "no folder" if fits else rf"model\.schema=29, but data\.schema={given}: give both the same"
    with pytest.raises((SchemaError, FileNotFoundError), match=message):
        trainer.validate(task, datamodule=data)


def test_segmentation_scores_by_class(capsys):
    task, batch = make(SegmentationTask), collate([item("a"), item("b")])
    predictions = [labels.to(torch.uint8) for labels in batch["labels"]]
    predictions[0] = torch.where(predictions[0] == 15, 6, predictions[0]).to(torch.uint8)
    task.update_metrics("val", [torch.where(p == 255, 0, p) for p in predictions], batch)
    values = task.compute_metrics("val")
    assert set(values) == {"mIoU", "mAcc", "aAcc", "boundary_f"}
    values = test_score(task, [torch.where(p == 255, 0, p) for p in predictions], batch)
    assert values["iou/Background"] == 100
    assert 0 < values["iou/Right_Hand"] < 100
    parts = [values[f"iou/{name}"] for name in ("Background", "Left_Hand", "Right_Hand")]
    assert values["mIoU"] == pytest.approx(sum(parts) / 3)
    assert values["baseline_mIoU"] < 30
    print_metrics(task, {f"test/{name}": value for name, value in values.items()})
    lines = capsys.readouterr().out.splitlines()
    assert any("most frequent class" in line for line in lines)
    row = next(line for line in lines if "Right_Hand" in line)
    assert f"{values['iou/Right_Hand']:.2f}" in row and f"{values['boundary_f/Right_Hand']:.2f}" in row
    assert sum("mIoU" in line for line in lines) == 1


def test_matting_scores_beside_the_box():
    task, batch = make(MattingTask), collate([item("a"), item("b")])
    perfect = torch.cat([batch["foreground"], batch["alpha"]], dim=1)
    values = test_score(task, list(perfect), batch)
    for name in ("sad", "mse", "gradient", "connectivity", "foreground_l1"):
        assert values[name] == 0, name
    # The disc fills pi / 4 of its box, the square all of it.
    disc = batch["alpha"][0].sum()
    rows, columns = (int(batch["alpha"][0, 0].any(dim=axis).sum()) for axis in (1, 0))
    assert values["baseline_sad"] == pytest.approx(float(rows * columns - disc) / 2 / 1000, rel=1e-5)
    assert values["baseline_sad"] > 0


def test_relighting_is_shown_where_the_data_have_normals():
    task, sample, prediction = make(AlbedoTask), item("a"), torch.full((3, *SIZE), 0.5)
    with_normals = task.panel(prediction, 0, collate([sample]))
    del sample["normals"]
    without = task.panel(prediction, 0, collate([sample]))
    assert set(with_normals) - set(without) == {"lit from the left", "lit from the right"}


def test_files_of_predictions(tmp_path):
    picture = item("a")["image"].transpose(1, 2, 0)
    matte = np.zeros((*SIZE, 4), np.float32)
    matte[10:20, 10:20] = [0.25, 0.5, 0.0, 0.5]
    make(MattingTask).write(tmp_path / "x.y", matte, picture)
    assert np.array_equal(np.load(tmp_path / "x.y.npy"), matte)
    cutout = cv2.imread(str(tmp_path / "x.y_cutout.png"), cv2.IMREAD_UNCHANGED)
    # Blue, green, red, alpha; the colours are not premultiplied.
    assert cutout[15, 15].tolist() == [0, 255, 128, 128]
    assert cutout[0, 0].tolist() == [0, 0, 0, 0]
    task = make(PointmapTask)
    batch = collate([item("a")])
    output = PointmapOutput(torch.ones(1, 3, *SIZE), torch.ones(1, 1))
    task.write(tmp_path / "x.y", task.to_numpy(task.finish(output, 0, batch)), picture)
    assert np.load(tmp_path / "x.y.npz")["depth"].shape == SIZE
    assert (tmp_path / "x.y.ply").read_bytes().count(b"element vertex 3456\n") == 1
