"""Probes by class: what kind of picture it is, told from [cls], from the mean of the patches, and from both."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from data_modules.base import TaskDataModule
from data_modules.transforms import EvalTransform
from s2kit.probing.dense import transformed, with_rows
from s2kit.probing.features import FeatureCache
from s2kit.probing.knn import knn_accuracy, majority_accuracy
from s2kit.probing.labels import number_classes, picture_classes
from s2kit.probing.linear import linear_probe

#: Neighbours that vote.
NEIGHBOURS = (5, 20)


class ClassDataModule(TaskDataModule):
    """Whole pictures of synthetic people, with ``classes`` (see ``picture_classes``)."""

    fields: ClassVar[tuple[str, ...]] = ("image", "meta")
    required: ClassVar[tuple[str, ...]] = ("image", "meta")

    def eval_transform(self) -> Callable[[dict], dict]:
        fit = EvalTransform(self.image_size, labels=lambda sample: {})
        return lambda sample: {**fit(sample), "classes": picture_classes(sample["meta"])}


def run_class_probes(
    cache: FeatureCache,
    fields: dict[str, Any],
    data_options: dict[str, Any],
    counts: tuple[int | None, int | None],
    temperature: float = 0.07,
) -> dict[str, float]:
    """Return the accuracies on held-out pictures, in %; arguments as for ``run_probe``.

    Returns:
        ``<classes>/majority`` and ``<classes>/<feature>/<probe>`` with classes ``action``, ``garment`` and ``view``,
        features ``cls``, ``mean`` and ``both`` and probes ``knn5``, ``knn20`` and ``linear``; and ``<feature>/<probe>``
        and ``majority``, their means over the classes.

    Raises:
        ValueError: The pictures are not synthetic ones.
    """
    data = ClassDataModule(image_size=fields["image_size"], num_workers=0, **data_options)
    features, classes = {}, {}
    for split, count in zip(("train", "test"), counts):
        items = list(with_rows(transformed(data, split, count, data.eval_transform()), cache))
        rows = torch.tensor([item["row"] for item in items])
        features[split] = {"cls": cache.cls(rows), "mean": cache.means(rows)}
        # Neither objective is wronged by the choice of a feature if both count alike: their cosines are averaged.
        features[split]["both"] = torch.cat([F.normalize(part, dim=1) for part in features[split].values()], dim=1)
        classes[split] = {name: [item["classes"][name] for item in items] for name in items[0]["classes"]}
    results: dict[str, float] = {}
    for name in classes["train"]:
        train, held_out = number_classes(classes["train"][name], classes["test"][name])
        results[f"{name}/majority"] = majority_accuracy(train, held_out)
        for feature in features["train"]:
            given = (features["train"][feature], train, features["test"][feature], held_out)
            for k in NEIGHBOURS:
                results[f"{name}/{feature}/knn{k}"] = knn_accuracy(*given, k=k, temperature=temperature)
            results[f"{name}/{feature}/linear"] = linear_probe(*given)
    means: dict[str, list[float]] = {}
    for name, value in results.items():
        means.setdefault(name.split("/", 1)[1], []).append(value)
    return {**results, **{name: sum(values) / len(values) for name, values in means.items()}}
