"""Pictures of what a model does, in the run folder and in TensorBoard."""

from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from s2kit.inference.drawing import grid, write_image


class Panels(Callback):
    """Draws the first samples of every validation and test: one row a sample, one column a picture of the task.

    They are written to ``panels/<stage>_step<step>.png`` in the run folder and to TensorBoard.

    Args:
        count: Number of samples; 0 draws none.
        height: Height of each picture in pixels.
    """

    def __init__(self, count: int = 8, height: int = 256) -> None:
        self.count, self.height = count, height
        self._rows: list[dict[str, np.ndarray]] = []

    def _collect(self, trainer: Trainer, task: LightningModule, predictions: list[Any], batch: dict[str, Any]) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        for index in range(min(len(predictions), self.count - len(self._rows))):
            self._rows.append(task.panel(predictions[index], index, batch))

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self._collect(trainer, pl_module, outputs, batch)

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self._collect(trainer, pl_module, outputs, batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, "test")

    def _draw(self, trainer: Trainer, stage: str) -> None:
        rows, self._rows = self._rows, []
        # On every rank, also those without rows: the Trainer asks rank 0 for it.
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "panels"
        if not rows or trainer.fast_dev_run:
            return
        picture = grid(rows, self.height)
        write_image(folder / f"{stage}_step{trainer.global_step:06d}.png", picture)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(f"panels/{stage}", picture, trainer.global_step, dataformats="HWC")
