"""How fast training is, and how long it waits for data."""

import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from s2kit.planning.gpus import peak_tflops


class Throughput(Callback):
    """Logs ``throughput/samples_per_second`` and ``throughput/data_wait`` and prints one line now and then.

    The line says loss, gradient norm, learning rate, samples per second over all devices, TFLOP/s of a device (forward
    and backward, 2 per multiply-add, attention included, recomputation not), on a known GPU the share of its dense
    bf16 peak that this is (MFU), the share of time spent waiting for data, and on a GPU the peak memory. The two are
    logged as ``throughput/tflops`` and ``throughput/mfu``.

    Args:
        every_n_steps: Optimiser steps between two lines; 0 for none.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps
        self._flops = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Before a strategy shards the modules, whose shapes count here.
        if stage == "fit" and hasattr(pl_module, "flops"):
            self._flops = pl_module.flops().model

    def _compute_rate(self, trainer: Trainer, rate: float) -> dict[str, float]:
        """TFLOP/s of a device at ``rate`` samples a second over all, and its share of the peak if that is known."""
        if not self._flops:
            return {}
        tflops = {"tflops": rate / trainer.world_size * self._flops / 1e12}
        device = trainer.strategy.root_device
        peak = peak_tflops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        return tflops if peak is None else {**tflops, "mfu": tflops["tflops"] / peak}

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
        compute = self._compute_rate(trainer, rate)
        values = {"samples_per_second": rate, "data_wait": wait, **compute}
        pl_module.log_dict({f"throughput/{name}": value for name, value in values.items()})
        if trainer.is_global_zero:
            self._print(trainer, rate, wait, compute)
        self._restart()
        self._step = step

    def _print(self, trainer: Trainer, rate: float, wait: float, compute: dict[str, float]) -> None:
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
        if compute:
            words.append(f"{compute['tflops']:.3g} TFLOP/s")
        if "mfu" in compute:
            words.append(f"MFU {100 * compute['mfu']:.1f} %")
        words.append(f"waiting for data {100 * wait:.1f} %")
        if torch.cuda.is_available() and trainer.strategy.root_device.type == "cuda":
            words.append(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
        line = ", ".join(words)
        bar = trainer.progress_bar_callback
        print(line, flush=True) if bar is None else bar.print(line)
