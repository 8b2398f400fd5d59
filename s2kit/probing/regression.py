"""Probes by numbers: what a picture's features say of its person and of its background, by linear regression."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from data_modules.base import TaskDataModule
from data_modules.transforms import EvalTransform
from s2kit.pose import convert_keypoints
from s2kit.probing.dense import transformed, with_rows
from s2kit.probing.features import FeatureCache
from s2kit.probing.linear import fit_ridge

#: Body points whose places are told: COCO's.
BODY = 17


class NumbersDataModule(TaskDataModule):
    """Whole pictures with ``numbers`` (see ``picture_numbers``)."""

    fields: ClassVar[tuple[str, ...]] = ("image", "alpha", "keypoints")
    required: ClassVar[tuple[str, ...]] = fields

    def eval_transform(self) -> Callable[[dict], dict]:
        fit = EvalTransform(self.image_size, labels=lambda sample: {})
        return lambda sample: {**fit(sample), "numbers": picture_numbers(sample)}


def picture_numbers(sample: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return what is to be told of a sample with ``image``, ``alpha`` and ``keypoints``.

    Returns:
        float64 vectors: ``keypoints`` (34,), the places of COCO's body points, 0 to 1 over the picture's width and
        height; ``area`` (1,), the share of it that the person covers; ``background`` (3,), the mean colour of the rest,
        0..255, or of the whole picture where there is no rest.
    """
    image, alpha, points = sample["image"].astype(np.float64), sample["alpha"] / 255.0, sample["keypoints"][:, :2]
    body, _ = convert_keypoints(points, np.ones(len(points)), len(points), BODY)
    rest = image[alpha < 0.5]
    return {
        "keypoints": (body / image.shape[1::-1]).astype(np.float64).ravel(),
        "area": np.array([alpha.mean()]),
        "background": (rest if len(rest) else image.reshape(-1, 3)).mean(axis=0),
    }


def explained(train_features: Tensor, train_values: Tensor, features: Tensor, values: Tensor) -> float:
    """Return the share of the variance of ``values`` (M, C) that a ridge regression on ``features`` (M, D) explains.

    It is fitted to training features (N, D) and values (N, C) as ``fit_ridge`` does; 1 is perfect, 0 what the mean of
    the training values gives, and below is worse. The variance is summed over the C numbers.
    """
    weight, bias = fit_ridge(train_features, train_values)
    error = (features.double() @ weight + bias - values).square().sum()
    return float(1 - error / (values - train_values.mean(dim=0)).square().sum().clamp(min=1e-12))


def run_regression_probes(
    cache: FeatureCache,
    fields: dict[str, Any],
    data_options: dict[str, Any],
    counts: tuple[int | None, int | None],
) -> dict[str, float]:
    """Return the shares of variance explained on held-out pictures, in %; arguments as for ``run_probe``.

    Returns:
        ``<feature>/<number>`` with features ``cls`` and ``mean`` and numbers as in ``picture_numbers``.
    """
    data = NumbersDataModule(image_size=fields["image_size"], num_workers=0, **data_options)
    features, values = {}, {}
    for split, count in zip(("train", "test"), counts):
        items = list(with_rows(transformed(data, split, count, data.eval_transform()), cache))
        rows = torch.tensor([item["row"] for item in items])
        features[split] = {"cls": cache.cls(rows), "mean": cache.means(rows)}
        values[split] = {
            name: torch.from_numpy(np.stack([item["numbers"][name] for item in items])) for name in items[0]["numbers"]
        }
    return {
        f"{feature}/{name}": 100
        * explained(features["train"][feature], values["train"][name], features["test"][feature], values["test"][name])
        for feature in features["train"]
        for name in values["train"]
    }
