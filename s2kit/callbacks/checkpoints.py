"""Which checkpoints a run keeps."""

from dataclasses import dataclass

from lightning.pytorch.callbacks import ModelCheckpoint


@dataclass
class CheckpointConfig:
    """Checkpoints in the run folder: the best by the task's own metric, and the last.

    Args:
        keep: Number of best checkpoints to keep.
        last: Whether to keep ``last.ckpt``, to resume from.
        every_n_steps: How many optimiser steps lie between two writes of it; by default as many as between validations.
    """

    keep: int = 1
    last: bool = True
    every_n_steps: int | None = None

    def callbacks(self, monitor: str, mode: str) -> list[ModelCheckpoint]:
        """Return the callbacks that do this; the first one keeps the best."""
        best = ModelCheckpoint(
            filename="step{step:06d}",
            monitor=monitor,
            mode=mode,
            save_top_k=self.keep,
            auto_insert_metric_name=False,
        )
        if not self.last:
            return [best]
        # Not save_last of the first: that is written only when the best improves, so it would not be the last.
        latest = ModelCheckpoint(
            filename="last", every_n_train_steps=self.every_n_steps, save_top_k=1, enable_version_counter=False
        )
        return [best, latest]
