"""What the data modules of dense labels share: augmentation by name, evaluation at the source's size."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from data_modules.base import TaskDataModule
from data_modules.transforms import EvalTransform


class DenseDataModule(TaskDataModule):
    """Pictures with a label for every pixel. A task defines ``fields``, ``augmentation`` and ``labels``.

    Args:
        augment: Options of the task's ``augmentation``; by default the published recipe.
        person_margin: Cut evaluation to the person's box, enlarged by this factor, as ``augment.person_crop`` does in
            training; by default the whole picture is scored.
        **kwargs: See ``TaskDataModule``.
    """

    #: The training transform, called with the network's input size and ``augment``.
    augmentation: ClassVar[Callable[..., Callable[..., dict[str, Any]]]]
    #: How evaluation and prediction fit a picture into the network's input: ``letterbox`` or ``stretch``.
    fit: ClassVar[str] = "letterbox"

    def __init__(
        self, augment: dict[str, Any] | None = None, person_margin: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.augment = augment or {}
        self.person_margin = person_margin

    def labels(self, sample: dict[str, Any]) -> dict[str, np.ndarray]:
        """Return the task's labels of a raw sample at its own size; an empty dict if it has none."""
        raise NotImplementedError

    def train_transform(self) -> Callable[..., dict]:
        return self.augmentation(self.image_size, **self.augment)

    def eval_transform(self) -> Callable[[dict], dict]:
        return EvalTransform(self.image_size, self.labels, self.fit, **self.evaluation_options())

    def evaluation_options(self) -> dict[str, Any]:
        """Return the options of ``EvalTransform``: what a sample must have, and what ``person_margin`` means."""
        cut = {} if self.person_margin is None else {"person_crop": True, "person_margin": self.person_margin}
        return {"required": self.required, **cut}

    def picture_transform(self) -> Callable[[dict], dict]:
        return EvalTransform(self.image_size, fit=self.fit)
