"""Dense probes: a task trains a light head on features of a frozen backbone, and scores it as it scores any model."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_modules import AlbedoDataModule, NormalsDataModule, PoseDataModule, SegmentationDataModule
from data_modules.base import TaskDataModule
from data_modules.collate import collate
from data_modules.transforms.checks import SampleRejected
from s2kit.errors import UserError
from s2kit.optim import learning_rate_factor
from s2kit.probing.features import FeatureCache
from s2kit.tasks import AlbedoTask, NormalsTask, PoseTask, SegmentationTask, Task

#: The head of every probe, of whatever backbone: one doubling of the feature map to 64 channels, and a 1 x 1.
LIGHT_HEAD = {"upsample_channels": [64], "conv_channels": []}


@dataclass(frozen=True)
class DenseProbe:
    """A task as a probe.

    Attributes:
        task, data: Its classes.
        metric: The one of its metrics that tells backbones apart, and whether more of it is better.
        higher_is_better: See ``metric``.
        head: Fields of the head beside ``LIGHT_HEAD``.
        options: Fields of the task that differ from its defaults: those of the shipped short experiments.
    """

    task: type[Task]
    data: type[TaskDataModule]
    metric: str
    higher_is_better: bool
    head: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


PROBES = {
    "normals": DenseProbe(
        NormalsTask, NormalsDataModule, "mean", False, options={"loss_weights": {"gradient": 1.0, "l1": 3.0}}
    ),
    "segmentation": DenseProbe(
        SegmentationTask, SegmentationDataModule, "mIoU", True, options={"class_weights": "equal"}
    ),
    "pose": DenseProbe(PoseTask, PoseDataModule, "OKS", True, head={"output_std": 0.01}),
    "albedo": DenseProbe(AlbedoTask, AlbedoDataModule, "mae", False),
}


@dataclass(frozen=True)
class Training:
    """How heads are trained; equal for all backbones.

    Attributes:
        steps, batch_size: Of AdamW.
        lr, weight_decay, warmup_steps: Of its cosine schedule.
        clip: Limit on the gradient's norm.
        seed: Of the head's weights and of the order.
    """

    steps: int = 400
    batch_size: int = 16
    lr: float = 3e-3
    weight_decay: float = 0.05
    warmup_steps: int = 50
    clip: float = 4.0
    seed: int = 0


def run_probe(
    name: str,
    cache: FeatureCache,
    fields: dict[str, Any],
    data_options: dict[str, Any],
    counts: tuple[int | None, int | None],
    training: Training,
) -> dict[str, float]:
    """Train a probe's head on the training pictures and their mirrored ones, and score it on held-out pictures.

    Args:
        name: Of ``PROBES``.
        cache: Of the backbone.
        fields: ``arch`` and ``image_size`` of the backbone.
        data_options: Of the task's data module: where the pictures are.
        counts: Pictures (for pose: people) to train on and to score on; None for all.
        training: See there.

    Returns:
        The task's metrics, on the sources' pixels.

    Raises:
        s2kit.errors.UserError: A set is empty, or lacks what the task needs.
    """
    probe = PROBES[name]
    data = probe.data(image_size=fields["image_size"], batch_size=training.batch_size, num_workers=0, **data_options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        task = make_task(probe, cache.backbone, fields)
    items = [item for mirrored in (False, True) for item in training_items(data, counts[0], cache, mirrored)]
    if not items:
        raise UserError(f"the probe {name}: no training picture has anything to learn")
    train_head(task, items, cache, training)
    return score_head(task, data, counts[1], cache)


def make_task(probe: DenseProbe, backbone: nn.Module, fields: dict[str, Any]) -> Task:
    """Return the probe's task on a backbone that is there already."""

    class Probe(probe.task):
        def build_backbone(self) -> nn.Module:
            return backbone

    head = {**LIGHT_HEAD, **probe.head}
    task = Probe(arch=fields["arch"], image_size=fields["image_size"], head=head, **probe.options)
    return task.to(next(backbone.parameters()).device)


def training_items(
    data: TaskDataModule, count: int | None, cache: FeatureCache, mirrored: bool
) -> Iterator[dict[str, Any]]:
    """Yield the task's own training items without any augmentation, ``row`` of the cache in place of ``image``.

    What the task's transform rejects is left out.
    """
    transform = data.train_transform()
    # Augmented pictures would be new ones in every pass; a mirrored one is the same every time.
    transform.probability = {step: float(mirrored and step == "flip") for step in transform.probability}
    yield from with_rows(transformed(data, "train", count, lambda s: transform(s, np.random.default_rng(0))), cache)


def transformed(
    data: TaskDataModule, split: str, count: int | None, transform: Callable[[dict[str, Any]], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield the items of the first ``count`` samples of a split, without those that ``transform`` rejects."""
    for part in data.open_sets(split):
        for index in range(len(part)):
            if count is not None and count <= 0:
                return
            try:
                yield transform(part[index])
            except SampleRejected:
                continue
            finally:
                count = None if count is None else count - 1


def with_rows(items: Iterator[dict[str, Any]], cache: FeatureCache) -> Iterator[dict[str, Any]]:
    """Put rows of the cache in the place of pictures, a pass of the backbone at a time."""
    waiting: list[dict[str, Any]] = []
    for item in items:
        waiting.append(item)
        if len(waiting) == cache.batch_size:
            yield from _cached(waiting, cache)
            waiting = []
    if waiting:
        yield from _cached(waiting, cache)


def _cached(items: list[dict[str, Any]], cache: FeatureCache) -> Iterator[dict[str, Any]]:
    rows = cache.rows(torch.from_numpy(np.stack([item.pop("image") for item in items])))
    yield from ({**item, "row": np.int64(row)} for item, row in zip(items, rows))


def output_of(task: Task, batch: dict[str, Any], cache: FeatureCache) -> Any:
    """Return the head's output for a batch; a map of values is brought to the network's input size."""
    output = task.decode_head(cache.patches(torch.tensor(batch["row"])))
    if isinstance(task, PoseTask):
        return output  # heatmaps have a size of their own
    return F.interpolate(output, task.image_size, mode="bilinear", align_corners=False)


def train_head(task: Task, items: list[dict[str, Any]], cache: FeatureCache, training: Training) -> float:
    """Train ``task.decode_head`` with the task's losses; return the last step's loss."""
    parameters = list(task.decode_head.parameters())
    optimizer = torch.optim.AdamW(parameters, training.lr, betas=(0.9, 0.95), weight_decay=training.weight_decay)
    warmup = min(training.warmup_steps, training.steps - 1)
    factor = learning_rate_factor(training.steps, warmup, "cosine")
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    task.train()
    order = _batches(len(items), training)
    for _ in range(training.steps):
        batch = _to_device(collate([items[index] for index in next(order)]), cache.device)
        loss = task.compute_losses(output_of(task, batch, cache), batch)["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, training.clip)
        optimizer.step()
        scheduler.step()
    return float(loss.detach())


def _batches(count: int, training: Training) -> Iterator[np.ndarray]:
    """Yield numbers of items, every item once before any comes again."""
    rng = np.random.default_rng(training.seed)
    waiting = np.zeros(0, np.int64)
    while True:
        while len(waiting) < training.batch_size:
            waiting = np.concatenate([waiting, rng.permutation(count)])
        yield waiting[: training.batch_size]
        waiting = waiting[training.batch_size :]


def _to_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: _to_device(part, device) for name, part in value.items()}
    if isinstance(value, list):
        return [_to_device(part, device) for part in value]
    return value.to(device) if isinstance(value, Tensor) else value


@torch.inference_mode()
def score_head(task: Task, data: TaskDataModule, count: int | None, cache: FeatureCache) -> dict[str, float]:
    """Return the task's metrics on the pictures of the split ``test``."""
    task.eval()
    items = list(with_rows(transformed(data, "test", count, data.eval_transform()), cache))
    for start in range(0, len(items), data.batch_size):
        batch = _to_device(collate(items[start : start + data.batch_size]), cache.device)
        predictions = task.finish_batch(output_of(task, batch, cache), batch)
        task.update_metrics("test", predictions, batch)
    return {name: float(value) for name, value in task.compute_metrics("test").items()}
