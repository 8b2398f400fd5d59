"""Writes predictions beside a picture of them."""

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from s2kit.inference.drawing import write_image


class PredictionWriter(Callback):
    """Writes each prediction at its picture's own size (``<stem>.npy`` for most tasks), and ``<stem>.png`` to look at.

    Args:
        folder: Where to; by default ``predictions`` in the run folder.
        visualise: Whether to write the ``.png``.
    """

    def __init__(self, folder: str | None = None, visualise: bool = True) -> None:
        self.folder, self.visualise = folder, visualise
        self.path = Path()
        self.written = 0
        #: (path, reason) of every picture that could not be read.
        self.failed: list[tuple[str, str]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.path = Path(self.folder or Path(trainer.log_dir or trainer.default_root_dir) / "predictions")
        self.path.mkdir(parents=True, exist_ok=True)
        self.written, self.failed = 0, []

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: list[Any], batch: dict[str, Any], *_: Any
    ) -> None:
        self.failed += batch["error"]
        for index, prediction in enumerate(outputs):
            key = batch["key"][index]
            result = pl_module.gather([pl_module.to_numpy(prediction)])
            picture = pl_module.source_picture(index, batch)
            pl_module.write(self.path / key, result, picture)
            if self.visualise:
                write_image(self.path / f"{key}.png", pl_module.draw(result, picture))
            self.written += 1
