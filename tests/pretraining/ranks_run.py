"""Tiny pretraining runs for the tests of several devices: in one process, or as the program of one rank of two.

As a program it takes ``[[[FOLDER, {options}], ...], ...]`` as JSON, groups of runs of equally many ranks, and makes
them one after the other. Ranks are forked, so that the libraries are loaded once.
"""

import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from data_modules.collate import collate_training
from data_modules.transforms import PretrainTransform
from s2kit.export import export_task
from s2kit.losses.koleo import koleo_loss
from s2kit.pretraining import Pretraining, module
from s2kit.strategies import FSDP2Strategy, gather

TASK = {
    "arch": "sapiens2_nano",
    "image_size": (32, 24),
    "backbone": {"patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 2, "mlp_dim": 64, "full_attention_ends": 0},
    "decoder": {"dim": 24, "depth": 1, "num_heads": 2},
    "head": {"hidden_dim": 24, "bottleneck_dim": 12, "prototypes": 20},
    "lr": 1e-3,
    "warmup_steps": 1,
    # Small, so that the teacher moves far in few steps.
    "teacher_momentum": 0.75,
    "centre_momentum": 0.5,
}


def item(number: int, canvas: tuple[int, int] = (40, 32)) -> dict[str, Any]:
    """A smooth picture of its number, as the data module gives it."""
    rng = np.random.default_rng([7, number])
    y, x = np.mgrid[: canvas[0], : canvas[1]] / 10
    image = np.stack([127 + 120 * np.sin(x + a) * np.cos(y + b) for a, b in rng.uniform(0, 6, (3, 2))], -1)
    return PretrainTransform(canvas)({"key": f"p{number}", "image": image.astype(np.uint8)}, rng)


def batches(steps: int, size: int, rank: int = 0, ranks: int = 1, empty: tuple[int, int] | None = None) -> list[dict]:
    """The batches of one rank: step t has samples t * size * ranks and on; at ``empty`` (step, rank) there is none."""
    found = []
    for step in range(steps):
        first = (step * ranks + rank) * size
        items = [item(first + k) for k in range(size)]
        if empty == (step, rank):
            items = [{"key": one["key"], "rejected": "damaged"} for one in items]
        found.append(collate_training(items))
    return found


class Rest:
    """What remains of a list of batches to a run that goes on; its length is that of the whole."""

    def __init__(self, whole: list[dict], start: int) -> None:
        self.whole, self.start = whole, start

    def __len__(self) -> int:
        return len(self.whole)

    def __iter__(self) -> Iterator[dict]:
        return iter(self.whole[self.start :])


class Recorder(Callback):
    """Keeps losses (mean over ranks), whole gradients of each step before clipping, and states after each step."""

    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.states: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer, task, optimizer) -> None:
        gradients = {name: p.grad for name, p in task.named_parameters() if p.grad is not None}
        self.gradients.append({name: value.clone() for name, value in gather(gradients).items()})

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx) -> None:
        values = {name: value.detach().clone() for name, value in trainer.callback_metrics.items()}
        if dist.is_initialized():
            for name in sorted(name for name in values if name.startswith("train/") and "norm" not in name):
                dist.all_reduce(values[name])
                values[name] /= dist.get_world_size()
        self.losses.append({name: float(value) for name, value in values.items()})
        self.states.append({name: value.clone() for name, value in gather(task.state_dict()).items()})


def by_halves(embeddings: torch.Tensor) -> torch.Tensor:
    """The regulariser as two ranks compute it: each over its own half of the batch."""
    return torch.stack([koleo_loss(part) for part in embeddings.chunk(2)]).mean()


def train(
    folder: Path,
    steps: int,
    size: int,
    ranks: int = 1,
    strategy: str = "auto",
    start_from: str | None = None,
    precision: str = "32-true",
    empty: list[int] | None = None,
    accumulate: int = 1,
    task: dict[str, Any] | None = None,
) -> Recorder:
    """Train ``steps`` optimiser steps in all, keep ``stepN.ckpt`` after step 2, and export at the end."""
    seed_everything(0, verbose=False)
    model = Pretraining(**{**TASK, **(task or {})})
    recorder = Recorder()
    keeper = ModelCheckpoint(folder, "step{step}", auto_insert_metric_name=False, every_n_train_steps=2, save_top_k=-1)
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=ranks,
        strategy=FSDP2Strategy() if strategy == "fsdp2" else strategy,
        precision=precision,
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        callbacks=[recorder, keeper],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        use_distributed_sampler=False,
    )
    rank = trainer.global_rank
    data = batches(steps * accumulate, size, rank, ranks, tuple(empty) if empty else None)
    data = Rest(data, 2 * accumulate if start_from else 0)
    with mock.patch.object(module, "koleo_loss", by_halves if ranks == 1 else koleo_loss):
        trainer.fit(model, train_dataloaders=data, ckpt_path=start_from, weights_only=True)
    export_task(model, folder)
    return recorder


def run_group(runs: list[tuple[str, dict[str, Any]]]) -> None:
    for folder, options in runs:
        recorder = train(Path(folder), **options)
        if not dist.is_initialized() or dist.get_rank() == 0:
            parts = ("losses", "gradients", "states")
            torch.save({name: getattr(recorder, name) for name in parts}, Path(folder) / "recorded.pt")


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def fork(runs: list[tuple[str, dict[str, Any]]]) -> bool:
    """Make runs in as many processes as they have ranks; return whether all went well."""
    ranks, port = runs[0][1].get("ranks", 1), free_port()
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            if ranks > 1:
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": str(rank)}
            status = 1
            try:
                run_group(runs)
                status = 0
            finally:
                sys.stdout.flush()
                if status:
                    import traceback

                    traceback.print_exc()
                os._exit(status)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return not any(codes)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(not all(fork(group) for group in json.loads(sys.argv[1])))
