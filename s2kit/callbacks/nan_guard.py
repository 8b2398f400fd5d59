"""Keeps what is needed to replay a step whose gradient was not finite, and replays it."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn


class NaNGuard(Callback):
    """Writes the batches of a step that was skipped for its gradient, and what is random in them, without weights.

    A task skips such a step and stops after several in a row. Each rank writes what it had itself, to
    ``nan/step<step>_rank<rank>.pt`` in the run folder: the batches of the step as they were on the device, among them
    ``key`` and, in pretraining, ``seed``, crops and masks; the state of the random numbers before each; the step's
    number and the precision. ``replay`` computes it again with the weights of a checkpoint.

    Args:
        limit: Steps that a rank keeps at most; 0 keeps none.
    """

    def __init__(self, limit: int = 3) -> None:
        self.limit = limit
        self.written: list[Path] = []
        self._batches: list[dict[str, Any]] = []
        self._step = -1
        self._folder = Path()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Here, where all ranks are: the Trainer asks rank 0 for it, and a step may fail on one rank alone.
        self._folder = Path(trainer.log_dir or trainer.default_root_dir) / "nan"

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if len(self.written) >= self.limit:
            return
        if trainer.global_step != self._step:
            # Batches whose gradients are accumulated belong to one step.
            self._batches, self._step = [], trainer.global_step
        self._batches.append({"batch": batch, "random": random_state(pl_module.device)})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step != self._step:
            self._keep(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._keep(trainer, pl_module)

    def _keep(self, trainer: Trainer, task: LightningModule) -> None:
        batches, self._batches = self._batches, []
        if not batches or not getattr(task, "skipped", False) or trainer.fast_dev_run:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"step{self._step:06d}_rank{trainer.global_rank}.pt"
        torch.save({"step": self._step, "precision": str(trainer.precision), "batches": batches}, path)
        self.written.append(path)
        print(f"step {self._step} is kept in {path}; replay it: s2kit.callbacks.nan_guard.replay(task, path)")


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of the generators that a step on ``device`` draws from."""
    state = {"cpu": torch.get_rng_state()}
    return {**state, "cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


@dataclass(frozen=True)
class Replay:
    """What one batch of a kept step comes to.

    Attributes:
        keys: Of its samples.
        losses: The terms of the loss.
        first: Name of the first module that gave a number that is not finite, in the order of computation, if any.
        gradients: Names of the parameters whose gradient is not finite.
    """

    keys: list[str]
    losses: dict[str, float]
    first: str | None
    gradients: list[str]


def replay(task: LightningModule, path: str | Path) -> list[Replay]:
    """Compute the batches of a kept step again with the weights of ``task``, one after the other.

    Nothing is trained, but running means of the task may move, and gradients are left in place.

    Args:
        task: Of the kind that was trained, e.g. from ``load_from_checkpoint`` of the run's last checkpoint.
        path: A file that ``NaNGuard`` wrote.
    """
    kept = torch.load(path, map_location="cpu", weights_only=True)
    device, replays = task.device, []
    task.train()
    half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(kept["precision"])
    for part in kept["batches"]:
        batch = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in part["batch"].items()}
        task.zero_grad(set_to_none=True)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), watch(task) as bad:
            torch.set_rng_state(part["random"]["cpu"])
            if device.type == "cuda" and "cuda" in part["random"]:
                torch.cuda.set_rng_state(part["random"]["cuda"], device)
            with nullcontext() if half is None else torch.autocast(device.type, half):
                losses = task.training_losses(batch)
            losses["loss"].backward()
        wrong = [n for n, p in task.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        values = {name: float(value) for name, value in losses.items()}
        replays.append(Replay(list(batch["key"]), values, bad[0] if bad else None, wrong))
    return replays


@contextmanager
def watch(model: nn.Module) -> Iterator[list[str]]:
    """List the modules whose output is not finite, in the order of computation."""
    bad: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple, output: Any) -> None:
            tensors = output if isinstance(output, tuple | list) else [output]
            if any(isinstance(x, Tensor) and x.is_floating_point() and not x.isfinite().all() for x in tensors):
                bad.append(name)

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        with torch.compiler.set_stance("force_eager"):
            yield bad
    finally:
        for handle in handles:
            handle.remove()
