"""The overlays of experiments/paper: laid over an experiment, each comes to the published table (optimisation 5)."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from s2kit.cli import main

SIZES = ("0.4b", "0.8b", "1b", "5b")
TASKS = ("pose", "segmentation", "normals", "pointmap", "albedo", "matting")
#: Of each size, and what is another in some task.
LAYER_DECAY = {"0.4b": 0.80, "0.8b": 0.85, "1b": 0.90, "5b": 0.94}
CLIP = {"0.4b": 2.0, "0.8b": 4.0, "1b": 4.0, "5b": 4.0}
OTHER_CLIP = {("pointmap", "0.8b"): 2.0}
OTHER_LR = dict.fromkeys([("pose", "5b"), ("normals", "5b"), ("pointmap", "5b")], 1e-4)
#: Of 1B: steps and samples per device.
RUNS = {
    "pose": (20000, 7),
    "segmentation": (20000, 8),
    "normals": (40000, 7),
    "pointmap": (40000, 3),
    "albedo": (40000, 7),
    "matting": (14550, 8),
}


def resolve(experiments: Path, name: str, capsys: pytest.CaptureFixture) -> dict[str, Any]:
    """Return what ``fit`` would run with the overlay."""
    configs = [f"--config={experiments / name}.yaml", f"--config={experiments / 'paper' / name}.yaml"]
    assert main(["fit", *configs, "--print_config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def build(config: dict[str, Any], **changed: Any) -> Any:
    """Return the object of a class path and its arguments."""
    module, _, name = config["class_path"].rpartition(".")
    arguments = {key: value for key, value in config["init_args"].items() if key != "synth"}
    return getattr(import_module(module), name)(**{**arguments, **changed})


@pytest.mark.parametrize("name", TASKS)
def test_every_size_gets_the_published_optimisation(name, experiments, capsys):
    config = resolve(experiments, name, capsys)
    model, trainer, data = config["model"]["init_args"], config["trainer"], config["data"]["init_args"]
    assert (model["arch"], model["image_size"]) == ("sapiens2_1b", [1024, 768])
    assert (model["betas"], model["weight_decay"]) == ([0.9, 0.999], 0.1)
    assert (model["schedule"], model["warmup_steps"], model["flip_test"]) == ("linear", 500, name == "pose")
    assert (trainer["max_steps"], data["batch_size"]) == RUNS[name]
    assert trainer["precision"] == ("32-true" if name == "pointmap" else "bf16-mixed")
    assert (trainer["val_check_interval"], trainer["check_val_every_n_epoch"]) == (1000, None)
    for size in SIZES:
        with torch.device("meta"):
            task = build(config["model"], arch=f"sapiens2_{size}", backbone={**model["backbone"], "depth": 1})
        assert task.lr == OTHER_LR.get((name, size), 5e-4), size
        assert task.clip == OTHER_CLIP.get((name, size), CLIP[size]), size
        assert task.layer_decay == LAYER_DECAY[size], size
        assert (task.backbone.config.patch_size, task.backbone.config.layer_scale_init) == (16, 1e-4)
        assert task.backbone.config.checkpointing == ("none" if name == "pose" else "full")


@pytest.mark.parametrize("name", TASKS)
def test_losses_heads_and_augmentations_are_the_published_ones(name, experiments, capsys):
    config = resolve(experiments, name, capsys)
    with torch.device("meta"):
        task = build(config["model"])
        plain = type(task)(arch="sapiens2_1b")
    assert task.loss.weights == plain.loss.weights
    assert task.loss.form == plain.loss.form == "release"
    shapes = {key: value.shape for key, value in task.decode_head.state_dict().items()}
    assert shapes == {key: value.shape for key, value in plain.decode_head.state_dict().items()}
    data = build(config["data"])
    assert not data.is_synthetic
    assert data.image_size == (1024, 768)
    published, options = type(data)().train_transform(), data.train_transform()
    assert options.probability == published.probability
    assert geometry_of(options) == geometry_of(published)
    if name == "pose":
        assert (options.padding, task.hparams.sigma) == (1.25, None)
    else:
        assert not options.regions.person_crop
        assert data.person_margin is None
    if name == "segmentation":
        assert task._class_weights() == plain._class_weights()


def geometry_of(transform: Any) -> tuple[Any, ...]:
    """Return what a transform does besides its probabilities."""
    stretch = getattr(transform, "geometry", transform)
    return transform.image_size, stretch.rotate_degrees, getattr(stretch, "scale", None)
