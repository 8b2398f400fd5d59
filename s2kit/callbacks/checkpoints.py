"""Which checkpoints a run keeps."""

from dataclasses import dataclass

from lightning.pytorch.callbacks import ModelCheckpoint


@dataclass
class CheckpointConfig:
    """Checkpoints in the run folder: the best by the task's own metric, and the last.

    Args:
        keep: Number of best checkpoints to keep.
        every_n_steps: Save also between validations, every so many optimiser steps; by default after each validation.
        last: Whether to keep ``last.ckpt``.
    """

    keep: int = 1
    every_n_steps: int | None = None
    last: bool = True

    def callbacks(self, monitor: str, mode: str) -> list[ModelCheckpoint]:
        """Return the callbacks that do this; the first one keeps the best."""
        name = "step{step:06d}"
        best = ModelCheckpoint(
            filename=name,
            monitor=monitor,
            mode=mode,
            save_top_k=self.keep,
            save_last=self.last,
            auto_insert_metric_name=False,
        )
        if self.every_n_steps is None:
            return [best]
        between = ModelCheckpoint(
            filename=name + "-periodic",
            every_n_train_steps=self.every_n_steps,
            save_top_k=1,
            auto_insert_metric_name=False,
        )
        return [best, between]
