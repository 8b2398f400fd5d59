"""A tiny training run whose samples and crops are recorded: for the tests of resuming, in-process and as a program.

As a program it takes pairs of a folder and options, one after the other, and goes on from ``start_from`` or else from
``last.ckpt`` in the folder: ``resume_run.py '[["FOLDER", {"max_steps": 9, "data": {"train": [{"path": "SET"}]}}]]'``.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from data_modules.base import ShardSource, TaskDataModule
from data_modules.shards import ShardWriter

#: What each training step took: (key, augmentation) of its samples.
Taken = list[list[tuple[str, float]]]


def write_set(folder: Path, samples: int, prefix: str = "a", per_shard: int = 4) -> str:
    """Write a shard set of tiny pictures whose keys start with ``prefix``."""
    with ShardWriter(folder, prefix=prefix, samples_per_shard=per_shard) as writer:
        for number in range(samples):
            writer.write({"key": f"{prefix}{number:03d}", "image": np.full((8, 8, 3), number % 256, np.uint8)})
    return str(folder)


def augment(sample: dict, rng: np.random.Generator) -> dict:
    return {"key": sample["key"], "draw": np.float32([rng.random()])}


def present(sample: dict) -> dict:
    return {"key": sample["key"], "draw": np.float32([0.5])}


class RecordedData(TaskDataModule):
    """Samples are their key and one random number of their augmentation."""

    def train_transform(self):
        return augment

    def eval_transform(self):
        return present


class Recorder(LightningModule):
    """A model of two numbers, whose values depend on the order of the samples.

    Args:
        log: A file that lists what each step takes, beside the attribute ``taken``.
        pause: Seconds that a step lasts longer.
    """

    def __init__(self, log: Path | None = None, pause: float = 0.0) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(self.layer.weight, 0.1)
        torch.nn.init.constant_(self.layer.bias, 0.2)
        self.taken: Taken = []
        self.log_file, self.pause = log, pause
        self.stop_in: int | None = None

    def on_train_start(self) -> None:
        self.trainer.datamodule.align_epoch()

    def training_step(self, batch: dict, batch_index: int) -> torch.Tensor:
        if self.global_step == self.stop_in:
            raise ValueError("stopped in the middle of a step")
        self.taken.append(list(zip(batch["key"], batch["draw"].ravel().tolist())))
        if self.log_file is not None:
            seen = self.trainer.datamodule.samples_seen
            line = {"step": self.global_step, "rank": self.global_rank, "seen": seen, "taken": self.taken[-1]}
            with self.log_file.open("a") as file:
                file.write(json.dumps(line) + "\n")
        time.sleep(self.pause)
        return ((self.layer(batch["draw"]) - batch["draw"].sin()) ** 2).mean()

    def validation_step(self, batch: dict, batch_index: int) -> None:
        self.log("error", self.layer.weight.sum(), batch_size=len(batch["key"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.05)

    def weights(self) -> list[float]:
        return [float(value) for parameter in self.parameters() for value in parameter.detach().flatten()]


def make_trainer(folder: Path, callbacks: list[ModelCheckpoint] | None = None, **options: Any) -> Trainer:
    """Return a quiet trainer on the CPU."""
    return Trainer(
        default_root_dir=folder,
        logger=False,
        callbacks=callbacks or [],
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0, **options},
    )


def main(folder: Path, options: dict[str, Any]) -> None:
    """Run or go on with a run in ``folder``, which records ``log.jsonl`` and at the end ``weights.json``."""
    data, start_from = dict(options.pop("data")), options.pop("start_from", None)
    train = [ShardSource(**source) for source in data.pop("train")]
    last = ModelCheckpoint(folder, "last", every_n_train_steps=3, enable_version_counter=False)
    torch.set_num_threads(1)
    model = Recorder(folder / "log.jsonl", options.pop("pause", 0.0))
    trainer = make_trainer(folder, [last], **options)
    path = Path(start_from or folder / "last.ckpt")
    trainer.fit(model, datamodule=RecordedData(train=train, **data), ckpt_path=path if path.exists() else None)
    if trainer.is_global_zero:
        (folder / "weights.json").write_text(json.dumps(model.weights()))


if __name__ == "__main__":
    for folder, options in json.loads(sys.argv[1]):
        main(Path(folder), options)
