"""One progress bar: optimiser steps in training, batches in evaluation and prediction."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class StepProgress(ProgressBar):
    """A bar over the whole run, with what the task logs to the progress bar; silent where there is no terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(stderr=True)
        self._progress: Progress | None = None
        self._bars: dict[str, Any] = {}
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        text = " ".join(str(arg) for arg in args)
        if self._progress is None:
            print(text, flush=True)
        else:
            self._progress.console.print(text, highlight=False, markup=False)

    def _start(self, name: str, total: float | None) -> None:
        if not self._enabled or not self._console.is_terminal:
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[metrics]}"),
                console=self._console,
            )
            self._progress.start()
        known = total is not None and total != float("inf")
        self._bars[name] = self._progress.add_task(name, total=total if known else None, metrics="")

    def _move(self, name: str, completed: int, metrics: str = "") -> None:
        if self._progress is not None and name in self._bars:
            self._progress.update(self._bars[name], completed=completed, metrics=metrics)

    def _end(self, name: str) -> None:
        if self._progress is None or name not in self._bars:
            return
        bar = self._bars.pop(name)
        if self._bars:
            self._progress.remove_task(bar)
            return
        self._progress.stop()
        self._progress = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start("training", trainer.estimated_stepping_batches)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        shown = {name: value for name, value in self.get_metrics(trainer, pl_module).items() if name != "v_num"}
        text = ", ".join(f"{name} {value:.3f}" for name, value in shown.items() if isinstance(value, float))
        self._move("training", trainer.global_step, text)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end("training")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self._bars.clear()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start("validation", sum(trainer.num_val_batches))

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self._move("validation", batch_idx + 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end("validation")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start("test", sum(trainer.num_test_batches))

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self._move("test", batch_idx + 1)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end("test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start("prediction", sum(trainer.num_predict_batches))

    def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self._move("prediction", batch_idx + 1)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end("prediction")
