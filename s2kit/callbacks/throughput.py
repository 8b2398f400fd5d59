"""How fast training is, and how long it waits for data."""

import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer


class Throughput(Callback):
    """Logs ``throughput/samples_per_second`` and ``throughput/data_wait`` and prints one line now and then.

    The line says loss, gradient norm, learning rate, samples per second over all devices, the share of time spent
    waiting for data, and on a GPU the peak memory.

    Args:
        every_n_steps: Optimiser steps between two lines; 0 for none.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mark = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.training or not trainer.sanity_checking:
            pause = time.perf_counter() - self._paused
            self._since = getattr(self, "_since", 0.0) + pause
            self._mark = time.perf_counter()

    def _restart(self) -> None:
        self._since = self._mark = time.perf_counter()
        self._samples, self._waited, self._step = 0, 0.0, None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._waited += time.perf_counter() - self._mark

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self._samples += len(batch["key"])
        self._mark = time.perf_counter()
        step = trainer.global_step
        if not self.every_n_steps or step % self.every_n_steps or step == self._step:
            return
        elapsed = self._mark - self._since
        rate = self._samples * trainer.world_size / elapsed
        wait = self._waited / elapsed
        pl_module.log_dict({"throughput/samples_per_second": rate, "throughput/data_wait": wait})
        if trainer.is_global_zero:
            self._print(trainer, rate, wait)
        self._restart()
        self._step = step

    def _print(self, trainer: Trainer, rate: float, wait: float) -> None:
        metrics = trainer.callback_metrics
        words = [
            f"step {trainer.global_step}/{trainer.max_steps}"
            if trainer.max_steps > 0
            else f"step {trainer.global_step}"
        ]
        for name, title in (("train/loss", "loss"), ("train/gradient_norm", "gradient norm")):
            if name in metrics:
                words.append(f"{title} {float(metrics[name]):.3f}")
        words.append(f"lr {trainer.optimizers[0].param_groups[-1]['lr']:.2e}")
        words.append(f"{rate:.1f} samples/s")
        words.append(f"waiting for data {100 * wait:.1f} %")
        if torch.cuda.is_available() and trainer.strategy.root_device.type == "cuda":
            words.append(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
        line = ", ".join(words)
        bar = trainer.progress_bar_callback
        print(line) if bar is None else bar.print(line)
