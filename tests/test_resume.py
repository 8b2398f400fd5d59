"""A run that goes on from any checkpoint of Lightning sees the samples, crops and weights of one that never stopped."""

import importlib
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy

from data_modules.base import ShardSource
from s2kit.errors import UserError
from s2kit.tasks import NormalsTask

sys.path.append(str(Path(__file__).parent))
run = importlib.import_module("resume_run")

#: Two sets of 22 and 9 samples, drawn five to two: an epoch of 31 samples is 7 batches of 4, and 3 samples are left.
SIZES, WEIGHTS = (22, 9), (5, 2)
STEPS = 17  # two epochs and three steps


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[ShardSource]:
    folder = tmp_path_factory.mktemp("sets")
    names = ("a", "b")
    return [
        ShardSource(run.write_set(folder / name, size, name), weight)
        for name, size, weight in zip(names, SIZES, WEIGHTS)
    ]


def checkpoints(folder: Path) -> list[ModelCheckpoint]:
    """Save after every step, after every validation and after every epoch."""
    return [
        ModelCheckpoint(folder / "steps", "{step}", every_n_train_steps=1, save_top_k=-1),
        ModelCheckpoint(folder / "validations", "{step}", monitor="error", save_top_k=-1),
        ModelCheckpoint(folder / "epochs", "{step}", save_on_train_epoch_end=True, save_top_k=-1),
    ]


def fit(folder: Path, sources: list[ShardSource], checkpoint: Path | None = None, save: bool = False, **options: Any):
    """Train, and return the model, the data module and the trainer. Options are the data module's or the Trainer's."""
    names = ("num_workers", "batch_size", "seed", "allow_changed", "block")
    settings = {"num_workers": 0, "batch_size": 4, **{name: options.pop(name) for name in names if name in options}}
    data = run.RecordedData(train=sources, val=sources[1:], **settings)
    model = options.pop("model", None) or run.Recorder()
    trainer = run.make_trainer(folder, options.pop("callbacks", checkpoints(folder) if save else None), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint)
    return model, data, trainer


def step_of(path: Path) -> int:
    return int(path.stem.split("=")[1].partition("-")[0])


def flat(taken: list) -> list:
    return [sample for step in taken for sample in step]


#: How long a run is said to be, and when it validates: each makes Lightning resume along another path.
LENGTHS = {
    "steps": {"max_steps": STEPS, "val_check_interval": 5, "check_val_every_n_epoch": None},
    "steps, validated by epoch": {"max_steps": STEPS},
    "steps, never validated": {"max_steps": STEPS, "limit_val_batches": 0},
    "epochs": {"max_epochs": 3},
    "epochs, validated within": {"max_epochs": 3, "val_check_interval": 3},
    "epochs cut short": {"max_epochs": 4, "limit_train_batches": 5},
}


@pytest.mark.parametrize("length", LENGTHS)
def test_every_checkpoint_goes_on_with_the_samples_that_remain(length, sources, tmp_path):
    options = LENGTHS[length]
    whole, data, trainer = fit(tmp_path, sources, save=True, **options)
    saved = sorted(tmp_path.glob("*/*.ckpt"))
    assert {path.parent.name for path in saved} >= {"steps", "epochs"}
    assert data.samples_seen == 4 * len(whole.taken)
    for path in saved:
        step = step_of(path)
        rest, data, again = fit(tmp_path / "again", sources, path, **options)
        assert rest.taken == whole.taken[step:], path
        assert rest.weights() == whole.weights(), path
        assert data.samples_seen == 4 * len(whole.taken), path
        if "max_epochs" in options:  # a run that counts steps may have ended the last epoch or not: Lightning's matter
            assert again.current_epoch == trainer.current_epoch, path


def test_an_accumulated_step_goes_on_after_it(sources, tmp_path):
    """An epoch of 7 batches makes 4 steps, the last of them of one batch."""
    options = {"max_epochs": 3, "accumulate_grad_batches": 2}
    whole, _, _ = fit(tmp_path, sources, save=True, **options)
    assert len(whole.taken) == 21
    for path in (tmp_path / "steps").glob("*.ckpt"):
        epoch, step = divmod(step_of(path), 4)
        rest, _, _ = fit(tmp_path / "again", sources, path, **options)
        assert rest.taken == whole.taken[7 * epoch + 2 * step :], path
        assert rest.weights() == whole.weights(), path


@pytest.mark.parametrize(("before", "after"), [(2, 2), (0, 3), (3, 0)])
def test_the_number_of_workers_may_change(before, after, sources, tmp_path):
    options = {"max_epochs": 2, "limit_val_batches": 0}
    whole, _, _ = fit(tmp_path, sources, save=True, num_workers=before, **options)
    straight, _, _ = fit(tmp_path / "straight", sources, **options)
    assert whole.taken == straight.taken
    for path in (tmp_path / "steps" / "step=5.ckpt", tmp_path / "epochs" / "step=7.ckpt"):
        rest, _, _ = fit(tmp_path / "again", sources, path, num_workers=after, **options)
        assert rest.taken == whole.taken[step_of(path) :]


@pytest.mark.parametrize(("batch_size", "batches"), [(3, 10), (5, 6), (16, 1)])
def test_the_batch_size_may_change(batch_size, batches, sources, tmp_path):
    """The samples that remain come in the same order; Lightning's epoch goes on at the same share of its batches."""
    whole, _, _ = fit(tmp_path, sources, save=True, max_epochs=3)
    single, _, _ = fit(tmp_path / "single", sources, max_steps=110, limit_val_batches=0, batch_size=1)
    order = flat(single.taken)
    assert flat(whole.taken) == order[:84]
    for path in sorted(tmp_path.glob("*/*.ckpt"), key=step_of)[::2]:
        step = step_of(path)
        rest, data, trainer = fit(tmp_path / "again", sources, path, max_epochs=3, batch_size=batch_size)
        epoch, done = divmod(step, 7)
        expected = (3 - epoch) * batches - done * batches // 7
        assert [len(taken) for taken in rest.taken] == [batch_size] * expected, path
        assert flat(rest.taken) == order[4 * step : 4 * step + expected * batch_size], path
        assert data.samples_seen == 4 * step + expected * batch_size
        assert trainer.current_epoch == 3


def test_a_step_that_failed_is_taken_again(sources, tmp_path):
    whole, _, _ = fit(tmp_path, sources, max_steps=12)
    for stop in (1, 7, 9):
        model = run.Recorder()
        model.stop_in = stop
        callbacks = [OnExceptionCheckpoint(tmp_path, f"failed{stop}")]
        with pytest.raises(ValueError, match="stopped in the middle"):
            fit(tmp_path, sources, model=model, callbacks=callbacks, max_steps=12)
        rest, _, _ = fit(tmp_path, sources, tmp_path / f"failed{stop}.ckpt", max_steps=12)
        assert model.taken + rest.taken == whole.taken
        assert rest.weights() == whole.weights()


class Planned(run.Recorder):
    """Asks for the number of steps, which makes Lightning build the loader before it has loaded the loops."""

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches == 14
        return super().configure_optimizers()


class RestoresLate(SingleDeviceStrategy):
    """Loads a checkpoint after the set-up, as the strategies for sharded models do."""

    restore_checkpoint_after_setup = True


@pytest.mark.parametrize(("late", "num_workers"), [(False, 0), (True, 0), (True, 1)])
def test_a_loader_that_exists_before_the_state_is_loaded_takes_it(late, num_workers, sources, tmp_path):
    whole, _, _ = fit(tmp_path, sources, save=True, max_epochs=2, model=Planned())
    for name in ("steps/step=3.ckpt", "steps/step=7.ckpt", "epochs/step=7.ckpt", "steps/step=10.ckpt"):
        options = {"max_epochs": 2, "model": Planned(), "num_workers": num_workers}
        if late:
            options |= {"strategy": RestoresLate("cpu"), "accelerator": "auto"}
        rest, _, _ = fit(tmp_path / "again", sources, tmp_path / name, **options)
        assert rest.taken == whole.taken[step_of(Path(name)) :]


def see(sample: dict, rng: np.random.Generator) -> dict:
    image = rng.integers(0, 255, (3, 32, 32), np.uint8)
    normals = np.float32([0, 0, 1])[:, None, None] * np.ones((1, 32, 32), np.float32)
    return {"key": sample["key"], "image": image, "normals": normals, "valid": np.ones((1, 32, 32), bool)}


class Seen(run.RecordedData):
    """Random pictures that face the camera everywhere."""

    def train_transform(self):
        return see


def test_a_task_resumes_to_the_same_weights_and_fits_epochs_to_the_batch_size(sources, tmp_path):
    def train(checkpoint: Path | None = None, batch_size: int = 4, **options: Any) -> tuple[NormalsTask, int]:
        torch.manual_seed(0 if checkpoint is None else 1)
        task = NormalsTask(
            arch="sapiens2_nano",
            image_size=(32, 32),
            backbone={"embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32},
            head={"upsample_channels": (8, 8, 8, 8), "conv_channels": (8,)},
            warmup_steps=1,
        )
        trainer = run.make_trainer(tmp_path, checkpoints(tmp_path) if checkpoint is None else None, **options)
        trainer.fit(task, datamodule=Seen(train=sources, batch_size=batch_size, num_workers=0), ckpt_path=checkpoint)
        return task, trainer.global_step

    whole, _ = train(max_steps=9)
    rest, steps = train(tmp_path / "steps" / "step=3.ckpt", max_steps=9)
    assert steps == 9
    for name, value in whole.state_dict().items():
        assert torch.equal(rest.state_dict()[name], value), name
    # 3 of 7 batches of 4 are done: as much as 1 of 3 batches of 8. 2 of this epoch remain, and 3 of the next.
    _, steps = train(tmp_path / "steps" / "step=3.ckpt", batch_size=8, max_epochs=2)
    assert steps == 3 + 2 + 3


def test_a_loader_that_is_made_anew_every_epoch_goes_on(sources, tmp_path):
    whole, _, _ = fit(tmp_path, sources, max_epochs=3)
    anew, _, _ = fit(tmp_path, sources, max_epochs=3, reload_dataloaders_every_n_epochs=1)
    assert anew.taken == whole.taken


def test_overfitting_repeats_the_first_batches(sources, tmp_path):
    model, _, _ = fit(tmp_path, sources, max_epochs=3, overfit_batches=2)
    assert len(model.taken) == 6
    assert model.taken[:2] == model.taken[2:4] == model.taken[4:]


def test_scoring_a_checkpoint_does_not_move_the_run(sources, tmp_path):
    _, data, trainer = fit(tmp_path, sources, save=True, max_steps=9)
    trainer.validate(run.Recorder(), datamodule=data, ckpt_path=tmp_path / "steps" / "step=3.ckpt", verbose=False)
    assert data.samples_seen == 36
    fresh, _, _ = fit(tmp_path, sources, max_steps=2)
    again = run.Recorder()
    run.make_trainer(tmp_path, max_steps=2).fit(again, datamodule=data)
    assert again.taken == fresh.taken  # another run of the same data module starts at the beginning


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "seed is 1 and was 0"),
        ({"block": 2}, "block is 2 and was 8"),
        ({"weights": (1, 1)}, r"set 1 of 2 has 5000 draws in 10 000 and had 7143"),
        ({"weights": (1,)}, "there are 1 sets of samples and were 2"),
        ({"sizes": (22, 10)}, "set 2 of 2 has 10 samples and had 9"),
        ({"prefixes": ("a", "c")}, "set 2 of 2 has the digest [0-9a-f]{64} and had [0-9a-f]{64}"),
    ],
)
def test_changed_data_is_refused_unless_asked_for(changes, words, sources, tmp_path):
    fit(tmp_path, sources, save=True, max_steps=3)
    prefixes, sizes = changes.get("prefixes", ("a", "b")), changes.get("sizes", SIZES)
    changed = [
        ShardSource(run.write_set(tmp_path / prefix, size, prefix), weight)
        for prefix, size, weight in zip(prefixes, sizes, changes.get("weights", WEIGHTS))
    ]
    options = {"max_steps": 5, **{name: changes[name] for name in ("seed", "block") if name in changes}}
    path = tmp_path / "steps" / "step=3.ckpt"
    with pytest.raises(UserError, match=rf"written with other data: {words}.*data\.allow_changed=true"):
        fit(tmp_path / "again", changed, path, **options)
    model, data, _ = fit(tmp_path / "again", changed, path, allow_changed=True, **options)
    assert (len(model.taken), data.samples_seen) == (2, 20)


def test_the_same_data_in_another_place_are_the_same(sources, tmp_path):
    whole, _, _ = fit(tmp_path, sources, save=True, max_steps=4)
    moved = [
        ShardSource(run.write_set(tmp_path / "moved" / prefix, size, prefix), weight)
        for prefix, size, weight in zip(("a", "b"), SIZES, WEIGHTS)
    ]
    rest, _, _ = fit(tmp_path / "again", moved, tmp_path / "steps" / "step=2.ckpt", max_steps=4)
    assert rest.taken == whole.taken[2:]
