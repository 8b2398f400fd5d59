"""What a backbone in pretraining knows of people, told now and then from labelled pictures."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from data_modules.shards import ShardDataset
from data_modules.transforms import EvalTransform
from s2kit.errors import UserError


class OnlineProbes(Callback):
    """Tells classes of whole pictures from the frozen [cls] features by nearest neighbours and by a linear classifier.

    The classes are what the generator of synthetic people wrote down: the action that a pose began from, the garment,
    the quarter that the person is seen from. After a validation it logs ``probe/knn_<class>`` and
    ``probe/linear_<class>`` in %, beside ``probe/majority_<class>``: what the most frequent class gives. They cost one
    pass over the pictures, which are read once and kept.

    Args:
        train: Labelled shard set that the probes learn from; by default the run's own synthetic training set.
        val: The one that they are scored on, of other people; by default the run's synthetic validation set.
        count: Pictures of each at most.
        every: Validations from one to the next; 0 for none.
        k: Neighbours that vote.
        batch_size: Pictures of a pass.
    """

    def __init__(
        self,
        train: str | None = None,
        val: str | None = None,
        count: int = 512,
        every: int = 1,
        k: int = 20,
        batch_size: int = 32,
    ) -> None:
        self.train, self.val, self.count, self.every, self.k = train, val, count, every, k
        self.batch_size = batch_size
        self._validations = 0
        self._pictures: list[tuple[Tensor, list[dict[str, str]]]] = []

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.fast_dev_run or not self.every:
            return
        if self._sources(trainer.datamodule) is None:
            rank_zero_warn("online probes are left out: the run's data have no labels, and no labelled sets are named")
            self.every = 0
            return
        self._validations += 1
        if self._validations % self.every == 0 and trainer.is_global_zero:
            values = self.score(pl_module, trainer.datamodule, trainer.precision_plugin.forward_context)
            named = {f"probe/{name}": value for name, value in values.items()}
            pl_module.log_dict(named, batch_size=1, rank_zero_only=True)

    def score(
        self, task: Any, data: Any = None, context: Callable[[], AbstractContextManager] = nullcontext
    ) -> dict[str, float]:
        """Return what is logged, without ``probe/``.

        Args:
            task: A pretraining, in evaluation mode.
            data: Its data module, whose synthetic sets are used where none is named.
            context: The backbone runs in it, the probes do not: they need full precision.

        Raises:
            UserError: There are no labelled sets.
        """
        from s2kit.probing.features import FeatureCache
        from s2kit.probing.knn import knn_accuracy, majority_accuracy
        from s2kit.probing.labels import number_classes
        from s2kit.probing.linear import linear_probe

        if not self._pictures:
            sources = self._sources(data)
            if sources is None:
                raise UserError("OnlineProbes needs labelled sets: name train and val, both of data synth")
            self._pictures = [self._read(source, task.image_size) for source in sources]
        cache = FeatureCache(task.exported_backbone, self.batch_size)
        with context():
            rows = [cache.rows(pictures) for pictures, _ in self._pictures]
        first, second = (cache.cls(each) for each in rows)
        values = {}
        for name in self._pictures[0][1][0]:
            labels = number_classes(*([classes[name] for classes in each] for _, each in self._pictures))
            probed = (first, labels[0], second, labels[1])
            values[f"knn_{name}"] = knn_accuracy(*probed, k=self.k)
            values[f"linear_{name}"] = linear_probe(*probed)
            values[f"majority_{name}"] = majority_accuracy(*labels)
        return values

    def _sources(self, data: Any) -> list[str] | None:
        """The labelled shard sets for training and scoring: those named, or the run's synthetic ones, if it has any."""
        own = {} if data is None or not data.is_synthetic else {s: str(data.synth.folder(s)) for s in ("train", "val")}
        sources = [self.train or own.get("train"), self.val or own.get("val")]
        return None if None in sources else sources

    def _read(self, source: str, size: tuple[int, int]) -> tuple[Tensor, list[dict[str, str]]]:
        """Pictures uint8 (N, 3, H, W) at the network's size, and the classes of each."""
        from s2kit.probing.labels import picture_classes

        dataset = ShardDataset(source, ("image", "meta"))
        transform, pictures, classes = EvalTransform(size), [], []
        for number in spread(len(dataset), self.count):
            sample = dataset[number]
            classes.append(picture_classes(sample.get("meta")))
            pictures.append(torch.from_numpy(transform({"key": sample["key"], "image": sample["image"]})["image"]))
        return torch.stack(pictures), classes


def spread(total: int, count: int) -> Sequence[int]:
    """Return ``count`` numbers below ``total``, evenly spread; all of them if there are no more."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()
