"""What a task does with a picture: network inputs from it, batched with those of other pictures, and one result."""

from __future__ import annotations

import contextlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from data_modules.collate import collate
from s2kit.errors import UserError
from s2kit.inference.augmentation import as_float, predict_output, scaled_size
from s2kit.inference.tiles import OVERLAP, Blend, WholePass, plan_tiles, tile_size

if TYPE_CHECKING:
    from s2kit.tasks.base import Task

#: Types of ``precision``, in which the network runs; what comes after it is in float32.
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class PredictOptions:
    """How networks run.

    Attributes:
        batch_size: Network inputs a pass: pictures, tiles or people.
        flip: Whether the output is averaged with the mirrored picture's; None as the model has it.
        scales: Factors on the network's input, whose outputs are averaged; 1, the model's own size, is always one.
        tile: (height, width) of tiles in the picture's pixels, ``auto``, or None for whole pictures.
        precision: ``fp32``, ``bf16`` or ``fp16`` (automatic mixed precision).
        compile: Whether backbone and head are compiled.
    """

    batch_size: int = 8
    flip: bool | None = None
    scales: tuple[float, ...] = (1.0,)
    tile: tuple[int, int] | Literal["auto"] | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch_size={self.batch_size}: it must be at least 1")
        if not self.scales or not all(0.1 <= scale <= 10 for scale in self.scales):
            raise UserError(f"scales={list(self.scales)}: give one or several numbers from 0.1 to 10")
        if self.tile not in (None, "auto") and min(self.tile) < 32:
            raise UserError(f"tile={self.tile[0]}x{self.tile[1]}: a side has at least 32 pixels")
        if self.precision not in PRECISIONS:
            raise UserError(f"precision={self.precision!r}: choose from {', '.join(PRECISIONS)}")


@dataclass
class Job:
    """A picture on its way through a task.

    Attributes:
        picture: uint8 (H, W, 3).
        samples: Raw samples, one a network input.
        blend: Of the tiles, whose samples follow the whole picture's where the task needs that.
        found: Finished predictions of the samples so far.
        whole: The whole picture's pass, for the tiles.
        result: What ``task.gather`` makes of ``found``, once all samples are ``taken``.
        error: Why no network input could be made of the picture.
    """

    picture: np.ndarray
    samples: list[dict[str, Any]]
    blend: Blend | None = None
    found: list[Any] = field(default_factory=list)
    whole: WholePass | None = None
    result: Any = None
    taken: int = 0
    error: str | None = None

    @property
    def done(self) -> bool:
        return self.taken == len(self.samples) or self.error is not None


class TaskRunner:
    """One task: takes pictures, runs batches of their network inputs, gives one result a picture.

    Args:
        task: On its device, in evaluation mode.
        options: How to run it.
        pool: Threads that make the network's inputs.
    """

    def __init__(self, task: Task, options: PredictOptions, pool: ThreadPoolExecutor) -> None:
        self.task, self.options, self.pool = task, options, pool
        self.flip = task.hparams.flip_test if options.flip is None else options.flip
        others = {scaled_size(task.image_size, scale, task.backbone.config.stride) for scale in options.scales}
        #: Sizes of the passes beside the one at the task's own size.
        self.sizes = sorted(others - {task.image_size})
        self.transform = task.picture_transform()
        self._items: deque[tuple[Job, Future[list[dict[str, Any]]] | None, dict[str, Any]]] = deque()
        if options.compile:
            task.backbone.compile(dynamic=False)
            task.decode_head.compile(dynamic=False)

    def __len__(self) -> int:
        """Network inputs that wait."""
        return len(self._items)

    def push(self, picture: np.ndarray, boxes: np.ndarray | None = None) -> Job:
        """Take a picture; ``boxes`` (N, 4+) are its people, for tasks that take them."""
        task, size = self.task, picture.shape[:2]
        samples = task.samples(picture, boxes)
        tile = tile_size(size, task.image_size, self.options.tile) if task.takes_tiles else None
        job = Job(picture, samples)
        if tile is not None:
            windows = plan_tiles(size, tile)
            job.blend = Blend(windows, size, task.close_tiles, OVERLAP)
            cut = [{**samples[0], "image": picture[y : y + h, x : x + w]} for y, x, h, w in windows]
            job.samples = [*samples, *cut] if task.tiles_need_whole else cut
        self._items += [(job, None, sample) for sample in job.samples]
        if not job.samples:
            job.result = task.gather([])
        return job

    @torch.inference_mode()
    def run(self) -> None:
        """Run one batch of what waits."""
        self._prepare(2 * self.options.batch_size)
        count = min(self.options.batch_size, len(self._items))
        entries, inputs = [], []
        for job, future, _ in [self._items.popleft() for _ in range(count)]:
            try:
                inputs.append(future.result())
                entries.append(job)
            except (ValueError, UserError) as error:
                job.error = str(error)
        if not entries:
            return
        passes = [self._batch([item[k] for item in inputs]) for k in range(1 + len(self.sizes))]
        output = self._network(passes)
        batch = passes[0]
        if all(job.blend is None for job in entries):
            for job, prediction in zip(entries, self.task.finish_batch(output, batch)):
                job.found.append(self.task.to_numpy(prediction))
        else:
            for index, job in enumerate(entries):
                self._add(job, output, index, batch)
        for job in entries:
            job.taken += 1
            if job.done and job.result is None:
                job.result = self._join(job)

    def _prepare(self, count: int) -> None:
        """Let the pool make the next ``count`` inputs."""
        for place in range(min(count, len(self._items))):
            job, future, sample = self._items[place]
            if future is None:
                self._items[place] = (job, self.pool.submit(self._inputs, sample), sample)

    def _inputs(self, sample: dict[str, Any]) -> list[dict[str, Any]]:
        base = self.transform(sample)
        return [base, *(self.task.scaled_item(sample, base, size) for size in self.sizes)]

    def _batch(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        if self.options.compile:
            # A compiled network is one for a fixed size of batch: the last is filled up.
            items = items + items[-1:] * (self.options.batch_size - len(items))
        batch = collate(items)
        batch["image"] = batch["image"].to(self.task.device, non_blocking=True)
        return batch

    def _network(self, passes: list[dict[str, Any]]) -> Any:
        device, dtype = self.task.device.type, PRECISIONS[self.options.precision]

        def call(function: Any, image: Tensor) -> Any:
            with torch.autocast(device, dtype=dtype) if dtype else contextlib.nullcontext():
                output = function(image)
            return as_float(output)

        try:
            return predict_output(self.task, passes, bool(self.flip), call)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{self.task.name}: the memory of {self.task.device} is too small for batches of "
                f"{self.options.batch_size}: give a smaller --batch-size, or --precision bf16"
            ) from error

    def _add(self, job: Job, output: Any, index: int, batch: dict[str, Any]) -> None:
        task = self.task
        if job.blend is None:
            job.found.append(task.to_numpy(task.finish(output, index, batch)))
        elif task.tiles_need_whole and job.whole is None:
            job.whole = task.whole_pass(output, index, batch)
        else:
            window = job.blend.windows[job.blend.count]
            job.blend.add(task.finish_tile(output, index, batch, job.whole, window))

    def _join(self, job: Job) -> Any:
        if job.blend is None:
            return self.task.gather(job.found)
        return self.task.gather([self.task.to_numpy(self.task.join_tiles(job.blend.result(), job.whole))])
