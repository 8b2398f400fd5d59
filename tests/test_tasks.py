"""The task base: built from plain values, optimised as published, safe against bad gradients and bad samples."""

import numpy as np
import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from data_modules.collate import collate, collate_training
from s2kit.tasks import NormalsTask, load_task
from s2kit.tasks.base import MAX_BAD_STEPS

TINY = {
    "arch": "sapiens2_nano",
    "image_size": (32, 32),
    "backbone": {"embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32},
    "head": {"upsample_channels": (8, 8, 8, 8), "conv_channels": (8,)},
    "warmup_steps": 0,
}


def sample(key: str) -> dict:
    """An item whose left half faces the camera."""
    normals = np.zeros((3, 32, 32), np.float32)
    normals[2, :, :16] = 1
    image = np.random.default_rng(len(key)).integers(0, 255, (3, 32, 32), np.uint8)
    return {"key": key, "image": image, "normals": normals, "valid": normals[2:] != 0}


def train(task: NormalsTask, items: list[dict], steps: int, batch_size: int = 2) -> Trainer:
    trainer = Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(task, DataLoader(items, batch_size=batch_size, collate_fn=collate_training))
    return trainer


class BadGradients(NormalsTask):
    """A task whose loss is never finite."""

    def compute_losses(self, output, batch):
        return {"loss": output.sum() * float("nan")}


def parameters_of(task: NormalsTask) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in task.parameters()])


def test_a_few_steps_fit_one_picture():
    torch.manual_seed(0)
    task = NormalsTask(**TINY, lr=3e-3)
    items = [sample("a"), sample("b")]
    batch = collate(items)

    def error() -> float:
        with torch.no_grad():
            output = task(task.normalise(batch["image"]))
        cosine = torch.nn.functional.cosine_similarity(output, batch["normals"])[:, None]
        return float(torch.rad2deg(torch.acos(cosine[batch["valid"]].clamp(-1, 1))).mean())

    before = error()
    train(task, items, 40)
    assert before > 30
    assert error() < 10


def test_a_step_without_a_finite_gradient_changes_nothing():
    task = BadGradients(**TINY, lr=1e-2)
    before = parameters_of(task).clone()
    with pytest.warns(UserWarning, match="step 0: the gradient is not finite; this batch: bad1, bad2"):
        train(task, [sample("bad1"), sample("bad2")], 1)
    assert torch.equal(parameters_of(task), before)


def test_a_run_of_such_steps_ends_the_training():
    task = BadGradients(**TINY, lr=1e-2)
    with pytest.raises(RuntimeError, match=f"{MAX_BAD_STEPS} such steps in a row"):
        train(task, [sample("bad")] * 2 * MAX_BAD_STEPS, MAX_BAD_STEPS)


def test_rejected_samples_are_left_out_of_a_batch_and_too_many_end_the_training():
    task = NormalsTask(**TINY)
    rejected = {"key": "c", "rejected": "no person"}
    batch = collate_training([sample("a"), rejected, sample("b")])
    assert batch["key"] == ["a", "b"]
    assert batch["rejected"] == [("c", "no person")]
    train(task, [sample("a"), rejected], 1)
    with pytest.raises(RuntimeError, match=r"more than data\.max_bad_share=0\.1; the last one: c: no person"):
        train(task, [sample("a"), rejected, rejected, rejected] * 60, 60, batch_size=4)


def test_the_gradient_is_clipped_to_the_published_norm():
    task = NormalsTask(**TINY)
    optimizer = torch.optim.SGD(task.parameters(), lr=1.0)
    for parameter in task.parameters():
        parameter.grad = torch.ones_like(parameter)
    task.log = lambda *args, **kwargs: None
    task.configure_gradient_clipping(optimizer)
    norm = torch.cat([parameter.grad.flatten() for parameter in task.parameters()]).norm()
    assert float(norm) == pytest.approx(4.0, rel=1e-4)


def test_what_was_published_for_a_size_gives_way_to_what_is_given():
    task = NormalsTask(**TINY)
    assert (task.lr, task.layer_decay, task.clip) == (5e-4, 1.0, 4.0)
    task = NormalsTask(**TINY, lr=0.5, layer_decay=0.25, clip=0.125)
    assert (task.lr, task.layer_decay, task.clip) == (0.5, 0.25, 0.125)


def test_a_checkpoint_rebuilds_the_task_from_plain_values(tmp_path):
    task = NormalsTask(**TINY, lr=0.125, loss="paper")
    trainer = train(task, [sample("a"), sample("b")], 1)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    again = NormalsTask.load_from_checkpoint(tmp_path / "run.ckpt", map_location="cpu")
    assert torch.equal(parameters_of(again), parameters_of(task))
    assert (again.hparams.lr, again.hparams.loss, again.hparams.arch) == (0.125, "paper", "sapiens2_nano")
    # weights_only: nothing in the file but tensors and plain values.
    hyper = torch.load(tmp_path / "run.ckpt", weights_only=True)["hyper_parameters"]
    assert "weights" not in hyper


def test_a_backbones_file_fills_the_backbone_and_leaves_the_head(tmp_path):
    from safetensors.torch import save_file

    source, torch_seed = NormalsTask(**TINY), 1
    save_file(source.backbone.state_dict(), tmp_path / "backbone.safetensors")
    torch.manual_seed(torch_seed)
    plain = NormalsTask(**TINY)
    torch.manual_seed(torch_seed)
    started = NormalsTask(**TINY, weights=str(tmp_path / "backbone.safetensors"))
    for name, value in started.state_dict().items():
        other = source if name.startswith("backbone.") else plain
        assert torch.equal(value, other.state_dict()[name]), name


def test_load_task_refuses_what_it_cannot_load(tmp_path):
    with pytest.raises(
        ValueError, match="no task 'normal'; choose from: pose, segmentation, normals, pointmap, albedo, matting"
    ):
        load_task("normal", "x.safetensors")
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors"):
        load_task("normals", tmp_path / "gone.safetensors", arch="sapiens2_nano", image_size=(32, 32))
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors: no such file of weights"):
        load_task("normals", tmp_path / "gone.safetensors")
    (tmp_path / "page.safetensors").write_text("<html>")
    with pytest.raises(ValueError, match=r"page\.safetensors: not a readable file of weights"):
        load_task("normals", tmp_path / "page.safetensors", arch="sapiens2_nano", image_size=(32, 32))


def test_evaluation_ignores_letterbox_padding():
    """A perfect prediction on a picture of another shape scores no error at the source's size."""
    from data_modules.transforms import EvalTransform

    task = NormalsTask(**TINY)
    normals = np.zeros((20, 40, 3), np.float32)
    normals[..., 2] = 1
    raw = {"key": "a", "image": np.zeros((20, 40, 3), np.uint8), "normals": normals}
    batch = collate([EvalTransform((32, 32))(raw)])
    output = torch.zeros(1, 3, 32, 32)
    output[:, 2] = 0.5
    output[:, :, :8] = -7.0  # what the padding predicts must not matter
    output[:, :, 24:] = -7.0
    prediction = task.finish(output[0:1], 0, batch)
    assert prediction.shape == (3, 20, 40)
    task.update_metrics("test", [prediction], batch)
    values = task.compute_metrics("test")
    assert float(values["mean"]) < 0.1
    assert float(values["baseline_mean"]) < 0.1


def test_axes_of_another_frame_are_flipped_on_request():
    output = torch.tensor([0.6, 0.0, 0.8]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    batch = {"crop": torch.eye(3)[None], "source_size": torch.tensor([[32, 32]])}
    flipped = NormalsTask(**TINY, flip_axes="xz").finish(output, 0, batch)
    torch.testing.assert_close(flipped[:, 5, 7], torch.tensor([-0.6, 0.0, -0.8]))
    with pytest.raises(ValueError, match="flip_axes='w'"):
        NormalsTask(**TINY, flip_axes="w")


def test_a_flip_test_makes_predictions_mirror_with_the_picture():
    torch.manual_seed(0)
    picture = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    mirror = np.array([-1, 1, 1], np.float32)
    for flip_test, equal in ((False, False), (True, True)):
        task = NormalsTask(**TINY, flip_test=flip_test)
        straight, mirrored = task.predict([picture, np.ascontiguousarray(picture[:, ::-1])])
        assert np.allclose(straight, mirrored[:, ::-1] * mirror, atol=1e-4) is equal


def test_overrides_of_one_arch_do_not_shape_another():
    shaped = {
        "by_arch": {"sapiens2_nano": {"embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32}},
        "drop_path": 0.25,
    }
    head = {"by_arch": {"sapiens2_nano": {"upsample_channels": (8, 8, 8, 8)}}}
    nano = NormalsTask(**{**TINY, "backbone": shaped, "head": head})
    assert (nano.backbone.config.embed_dim, nano.backbone.config.drop_path) == (16, 0.25)
    with torch.device("meta"):
        other = NormalsTask(arch="sapiens2_0.1b", image_size=(64, 48), backbone=shaped, head=head)
        assert other(torch.empty(1, 3, 64, 48)).shape == (1, 3, 64, 48)
    config = other.backbone.config
    assert (config.embed_dim, config.depth, config.drop_path) == (768, 12, 0.25)
    assert other.decode_head.upsample_blocks[0][0].out_channels == 4 * 768


def test_a_run_shorter_than_its_warmup_warms_up_for_half_of_it():
    class Rates(NormalsTask):
        def on_before_optimizer_step(self, optimizer):
            rates.append(max(group["lr"] for group in optimizer.param_groups))

    rates: list[float] = []
    with pytest.warns(UserWarning, match="the warm-up takes 4"):
        train(Rates(**{**TINY, "warmup_steps": 50}, lr=1e-3), [sample("a"), sample("bb")] * 8, steps=8)
    assert len(rates) == 8
    assert rates.index(max(rates)) == 4 and max(rates) == pytest.approx(1e-3)
