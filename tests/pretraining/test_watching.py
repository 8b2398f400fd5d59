"""What watches a pretraining: kept steps that are replayed, norms of parts, maps to look at, probes on the way."""

import copy

import numpy as np
import pytest
import ranks_run
import torch
from lightning import Callback, Trainer
from torch import nn

from s2kit.callbacks import NaNGuard, OnlineProbes
from s2kit.callbacks.nan_guard import replay
from s2kit.callbacks.probes import spread
from s2kit.errors import UserError
from s2kit.models import create_backbone
from s2kit.pretraining import Pretraining
from s2kit.pretraining.looks import cls_attention, feature_colours


class Breaks(Callback):
    """Puts a NaN into one weight before step 1, and takes it out after it."""

    def on_train_batch_start(self, trainer, task, batch, batch_idx) -> None:
        weight = task.decoder.blocks[0].ffn.w12.weight
        self.clean = copy.deepcopy(task.state_dict())
        self.broken = trainer.global_step == 1
        if self.broken:
            self.before = self.clean
            with torch.no_grad():
                weight[3, 5] = torch.nan

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx) -> None:
        if self.broken:
            self.expected = trainer.callback_metrics["train/loss"]
            task.load_state_dict(self.clean)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run of three steps of two accumulated batches each, of which step 1 broke."""
    folder = tmp_path_factory.mktemp("nan")
    torch.manual_seed(0)
    backbone = {**ranks_run.TASK["backbone"], "drop_path": 0.5}
    task = Pretraining(**{**ranks_run.TASK, "backbone": backbone})
    guard, breaks = NaNGuard(), Breaks()
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        max_steps=3,
        accumulate_grad_batches=2,
        # After it: what breaks a weight must come before what is kept.
        callbacks=[breaks, guard],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.warns(UserWarning, match="step 1: the gradient is not finite; this batch: p6, p7; the step is skipped"):
        trainer.fit(task, train_dataloaders=ranks_run.Rest(ranks_run.batches(6, 2), 0))
    return folder, task, breaks, guard


def test_a_skipped_step_is_kept_with_its_batches_and_without_weights(kept):
    folder, task, _, guard = kept
    assert (
        [path.name for path in (folder / "nan").iterdir()] == ["step000001_rank0.pt"] == [p.name for p in guard.written]
    )
    contents = torch.load(guard.written[0], weights_only=True)
    assert contents.keys() == {"step", "precision", "batches"} and contents["step"] == 1
    assert [part["batch"]["key"] for part in contents["batches"]] == [["p4", "p5"], ["p6", "p7"]]
    assert all(len(part["batch"]["seed"]) == 2 for part in contents["batches"])
    assert guard.written[0].stat().st_size < 200_000 < sum(p.numel() for p in task.parameters()) * 4 + 200_000
    assert not task.skipped  # step 2 went well


def test_replayed_with_the_same_weights_it_is_the_same_and_says_where(kept):
    _, task, breaks, guard = kept
    task.load_state_dict(breaks.before)
    with torch.no_grad():
        task.decoder.blocks[0].ffn.w12.weight[3, 5] = torch.nan
    replays = replay(task, guard.written[0])
    assert [part.keys for part in replays] == [["p4", "p5"], ["p6", "p7"]]
    for part in replays:
        assert part.first == "decoder.blocks.0.ffn.w12" and np.isnan(part.losses["reconstruction"])
        assert np.isfinite(part.losses["contrast"]) and "decoder.pixels.weight" in part.gradients


def test_replayed_with_whole_weights_it_is_the_step_that_should_have_been(kept):
    """Masks, crops, dropped paths and temperature are those of the step."""
    _, task, breaks, guard = kept
    task.load_state_dict(breaks.before)
    first = replay(task, guard.written[0])
    task.load_state_dict(breaks.before)
    torch.rand(7)
    again = replay(task, guard.written[0])
    for one, two in zip(first, again):
        assert one.first is None and not one.gradients and np.isfinite(one.losses["loss"])
        assert one.losses == two.losses
    task.load_state_dict(breaks.before)
    contents = torch.load(guard.written[0], weights_only=True)
    part = contents["batches"][0]
    assert part["batch"]["step"] == 1
    torch.set_rng_state(part["random"]["cpu"])
    assert float(task.train().training_losses(part["batch"])["loss"]) == pytest.approx(
        first[0].losses["loss"], rel=1e-6
    )


def test_norms_of_parts_make_the_norm_of_the_whole(tmp_path):
    recorder = ranks_run.train(tmp_path, 2, 4)
    values = recorder.losses[0]
    parts = [values[f"train/gradient_norm/{name}"] for name in ("backbone", "decoder", "head")]
    assert values["train/gradient_norm"] == pytest.approx(np.linalg.norm(parts), rel=1e-5)
    for name, norm in zip(("backbone", "decoder", "head"), parts):
        squares = [g.double().square().sum() for key, g in recorder.gradients[0].items() if key.startswith(name + ".")]
        assert norm == pytest.approx(float(torch.stack(squares).sum().sqrt()), rel=1e-5)


FIELDS = {"patch_size": 8, "embed_dim": 32, "num_heads": 4, "depth": 3, "mlp_dim": 64, "full_attention_ends": 1}


def test_attention_of_the_class_token_is_that_of_the_last_block():
    """Against probabilities that are computed from the block's own input, head by head; the block has grouped keys."""
    torch.manual_seed(0)
    backbone = create_backbone("sapiens2_nano", (32, 24), **{**FIELDS, "full_attention_ends": 0}).eval()
    images = torch.randn(2, 3, 32, 24)
    found = cls_attention(backbone, images)
    assert found.shape == (2, 4, 3) and (found.sum((1, 2)) < 1).all()
    inputs = []
    handle = backbone.blocks[-1].attn.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments))
    with torch.no_grad():
        backbone(images)
        handle.remove()
        attention, (x, rope) = backbone.blocks[-1].attn, inputs[0]
        q, k, _ = attention.project(x, rope)
        assert (q.shape[2], k.shape[2]) == (4, 2)
        expected = torch.zeros(2, 21)
        for head in range(4):
            scores = torch.einsum("bd,bnd->bn", q[:, 0, head], k[:, :, head // 2]) / 8**0.5
            expected += scores.softmax(-1) / 4
    torch.testing.assert_close(found, expected[:, 9:].unflatten(1, (4, 3)))
    assert not backbone.blocks[-1].attn._forward_pre_hooks


def test_colours_of_features_are_their_main_directions_with_the_middle_bright():
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 12), indexing="ij")
    person = ((x.abs() < 0.5) & (y.abs() < 0.5)).float()
    basis = torch.linalg.qr(torch.randn(10, 10)).Q
    strengths = torch.tensor([-8.0, 3.0, -1.0])  # a direction may come with either sign
    maps = torch.stack([person, person * y, person * x])
    patches = torch.einsum("khw,k,kd->dhw", maps, strengths, basis[:3]) + 0.01 * torch.randn(10, 16, 12)
    colours = feature_colours(torch.stack([patches, patches]) + 5.0)
    assert colours.shape == (2, 3, 16, 12) and colours.min() == 0 and colours.max() == 1
    for one in colours:
        inside, outside = one[0][person > 0].mean(), one[0][person == 0].mean()
        assert inside > outside + 0.5
    assert torch.corrcoef(torch.stack([colours[0, 1].flatten(), (person * y).flatten()]))[0, 1].abs() > 0.95
    torch.testing.assert_close(feature_colours(torch.ones(1, 4, 6, 6)), torch.full((1, 3, 6, 6), 0.5))


def test_panels_show_reconstruction_mask_attention_and_features():
    task = Pretraining(**ranks_run.TASK).eval()
    task._trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    batch = task.draw_views(ranks_run.batches(1, 3)[0], training=False)
    predictions = task._predict_batch(batch)
    rows = [task.panel(prediction, index, batch) for index, prediction in enumerate(predictions)]
    assert [*rows[0]][:2] == ["crop", "what is seen"] and [*rows[0]][3:] == ["where [cls] looks", "features"]
    assert all(picture.shape == (32, 24, 3) and picture.dtype == np.uint8 for row in rows for picture in row.values())
    views = task.global_views(batch, batch["centre"])
    # The teacher's backbone is the one that others get.
    with torch.no_grad():
        task.backbone.blocks[-1].attn.wq.weight.zero_()
    expected = feature_colours(task.teacher["backbone"](views).patches)[1].permute(1, 2, 0)
    np.testing.assert_allclose(rows[1]["features"][4::8, 4::8], (255 * expected).byte().numpy(), atol=1)


def test_online_probes_tell_classes_and_name_what_is_missing(synth_cache):
    torch.manual_seed(0)
    folders = {path.name.split("-")[0]: str(path) for path in (synth_cache / "synth").iterdir()}
    task = Pretraining(**{**ranks_run.TASK, "image_size": (64, 48)}).eval()
    probes = OnlineProbes(folders["train"], folders["test"], count=5, k=3)
    values = probes.score(task)
    names = {f"{kind}_{name}" for kind in ("knn", "linear", "majority") for name in ("action", "garment", "view")}
    assert values.keys() == names and all(0 <= value <= 100 for value in values.values())
    assert len(probes._pictures[0][1]) == 5 and len(probes._pictures[1][1]) == 3
    same = OnlineProbes(folders["train"], folders["train"], k=1).score(task)
    assert same["knn_action"] == 100.0
    with pytest.raises(UserError, match="OnlineProbes needs labelled sets"):
        OnlineProbes().score(task)
    assert [*spread(10, 4)] == [0, 3, 6, 9] and [*spread(3, 8)] == [0, 1, 2]


def test_probes_are_of_the_exported_backbone():
    task = Pretraining(**ranks_run.TASK)
    assert task.exported_backbone is task.teacher["backbone"]
    assert Pretraining(**ranks_run.TASK, export="student").exported_backbone.training
    assert isinstance(task.exported_backbone, nn.Module)
