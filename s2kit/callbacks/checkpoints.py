"""Which checkpoints a run keeps, and how they are written."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

#: Optimiser steps between two writes of ``last.ckpt`` where no validation sets the pace.
EVERY_N_STEPS = 500


class LatestCheckpoint(ModelCheckpoint):
    """Keeps ``last.ckpt``, also of the very last step, which no multiple of steps and no validation may hit."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if not trainer.fast_dev_run and trainer.global_step != self._last_global_step_saved:
            self.best_model_path = str(Path(self.dirpath) / f"{self.filename}{self.FILE_EXTENSION}")
            trainer.save_checkpoint(self.best_model_path, self.save_weights_only)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there: an interruption leaves the old one or the new one.

    Lightning's own writes it into the folder for temporary files first; where that is on another file system, moving it
    copies it over the old one, byte by byte.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            with open(temporary, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@dataclass
class CheckpointConfig:
    """Checkpoints in the run folder: the best by the task's own metric, and the last.

    Args:
        keep: Number of best checkpoints to keep.
        last: Whether to keep ``last.ckpt``, to resume from.
        every_n_steps: How many optimiser steps lie between two writes of it; by default as many as between validations
            (``trainer.val_check_interval``, which counts also in a run that has nothing to validate on), else 500.
    """

    keep: int = 1
    last: bool = True
    every_n_steps: int | None = None

    def callbacks(
        self, monitor: str, mode: str, validates: bool = True, pace: int | None = None
    ) -> list[ModelCheckpoint]:
        """Return the callbacks that do this; the first one keeps the best, if the run ``validates`` at all.

        Without validation ``last.ckpt`` is written every ``pace`` steps, which is how often it would have been.
        """
        # Not save_last of the best: that is written only when the best improves, so it would not be the last.
        latest = LatestCheckpoint(
            filename="last",
            every_n_train_steps=self.every_n_steps or (None if validates else pace or EVERY_N_STEPS),
            save_top_k=1,
            enable_version_counter=False,
        )
        if not validates:
            return [latest]
        best = ModelCheckpoint(
            filename="step{step:06d}",
            monitor=monitor,
            mode=mode,
            save_top_k=self.keep,
            auto_insert_metric_name=False,
        )
        return [best, latest] if self.last else [best]
