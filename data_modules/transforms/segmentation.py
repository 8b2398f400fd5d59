"""From a raw sample to an item for part segmentation."""

from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np

from data_modules.transforms import photometric
from data_modules.transforms.backgrounds import Backgrounds
from data_modules.transforms.checks import SampleRejected, check_sample, draw_steps, step_probabilities, to_planes
from data_modules.transforms.geometry import outside_of
from data_modules.transforms.regions import RegionChoice
from data_modules.transforms.sample import warp_parts
from data_modules.transforms.stretched import StretchGeometry, Window
from s2kit.schemas import ClassList, load_class_list

BACKGROUND = 0


def check_labels(key: str, parts: np.ndarray, classes: ClassList) -> None:
    """Check that every label is a class or ignored.

    Raises:
        SampleRejected: If one is not.
    """
    wrong = np.ones(256, np.uint8)
    wrong[: len(classes)] = wrong[classes.ignore_index] = 0
    found = cv2.LUT(parts, wrong).view(bool)
    if found.any():
        value = int(parts[found].max())
        raise SampleRejected(
            key, f"it has the label {value}; {classes.name} has 0 to {len(classes) - 1}, and {classes.ignore_index}"
        )


def segmentation_labels(sample: dict[str, Any], classes: ClassList) -> dict[str, np.ndarray]:
    """Return ``labels`` int64 (H, W) of a raw sample at its own size; nothing if it has no parts.

    Raises:
        SampleRejected: If a label is no class.
    """
    if "parts" not in sample:
        return {}
    check_labels(sample["key"], sample["parts"], classes)
    return {"labels": sample["parts"].astype(np.int64)}


def transfer_colours(image: np.ndarray, mask: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Give what is under ``mask`` the mean and deviation of another picture, in Lab (Reinhard; release, data 4.3.3).

    Args:
        image: (h, w, 3) uint8 RGB.
        mask: (h, w) bool.
        target: (h', w', 3) uint8 RGB.

    Returns:
        (h, w, 3) uint8; beside the mask as it was.
    """
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2Lab)
    mean, deviation = cv2.meanStdDev(lab, mask=mask.view(np.uint8))
    # Every fourth pixel tells mean and deviation well enough.
    target_mean, target_deviation = cv2.meanStdDev(cv2.cvtColor(target[::4, ::4].copy(), cv2.COLOR_RGB2Lab))
    gain = target_deviation / np.maximum(deviation, 1e-6)
    values = np.arange(256) * gain + (target_mean - mean * gain)  # (3, 256)
    table = np.clip(np.rint(np.abs(values)), 0, 255).astype(np.uint8).T[None]
    changed = cv2.cvtColor(cv2.LUT(lab, np.ascontiguousarray(table)), cv2.COLOR_Lab2RGB)
    return cv2.copyTo(changed, mask.view(np.uint8), image.copy())


class SegmentationTrainTransform:
    """Training augmentation for segmentation; by default the published recipe (release, data 4.3.3).

    The steps: ``background`` (what is labelled 0 is replaced by a random picture, and the person re-coloured to fit),
    ``resize`` by U(0.4, 2), ``crop`` (of which up to 10 are tried until there is more than one class and none has more
    than 75 %), ``blur``, ``noise``, ``rotate`` by up to 60 degrees, ``flip`` (which swaps left and right classes),
    ``photometric``, and a stretch to the network's input. Geometry comes first and in one step, the rest acts at the
    network's size: see ``StretchGeometry``. Outside the source the picture is black; the label is ignored beside a
    picture that a crop pads, and background in the corners that a rotation leaves.

    Args:
        image_size: Network input (height, width).
        schema: Class list: a packaged one by name or number of classes, or a file.
        backgrounds: Folder, glob pattern or list of pictures without people; without it backgrounds stay as they are.
            So do those of samples whose ``meta`` says ``"in_the_wild": true``: they are varied as they are.
        scale: Range of the resize.
        rotate_degrees: Largest angle of a rotation, either way.
        person_crop, person_margin, person_jitter: As in ``LetterboxTrainTransform``; off by default.
        min_foreground: Smallest share of pixels with a class that is not background.
        **probability: Probability of a step by its name; by default the published one.

    Raises:
        ValueError: If a probability or range makes no sense, or a step is not known.
        SchemaError: If there is no such class list.
    """

    published: ClassVar[dict[str, float]] = {
        "background": 0.8,
        "resize": 1.0,
        "crop": 0.3,
        "blur": 0.3,
        "noise": 0.3,
        "rotate": 0.5,
        "flip": 0.5,
        "photometric": 1.0,
    }
    #: Largest share of one class in a crop.
    max_share: ClassVar[float] = 0.75

    def __init__(
        self,
        image_size: tuple[int, int] = (1024, 768),
        *,
        schema: int | str | Path = 29,
        backgrounds: str | Path | None = None,
        scale: tuple[float, float] = (0.4, 2.0),
        rotate_degrees: float = 60.0,
        person_crop: bool = False,
        person_margin: tuple[float, float] = (1.0, 1.5),
        person_jitter: float = 0.1,
        min_foreground: float = 0.01,
        **probability: float,
    ) -> None:
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.probability = step_probabilities(self.published, probability)
        self.classes = load_class_list(schema)
        self.backgrounds = None if backgrounds is None else Backgrounds(backgrounds)
        self.geometry = StretchGeometry(self.image_size, scale, rotate_degrees)
        self.regions = RegionChoice(self.image_size, person_crop, person_margin, person_jitter)
        self.min_foreground = min_foreground

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Make an item of a raw sample with ``image``, ``parts``, and optionally ``box``, ``alpha`` and ``meta``.

        Returns:
            ``image`` uint8 (3, h, w), ``labels`` int64 (h, w), ``crop`` float32 (3, 3) source pixel -> network pixel,
            ``source_size`` int64 (H, W), ``key``.

        Raises:
            SampleRejected: If too little is foreground, a label is no class, a person-centred crop finds nobody, or the
                sample lacks a field.
            ValueError: If a field has a wrong type or shape.
        """
        source_size = check_sample(sample, ("parts",))
        parts = sample["parts"]
        check_labels(sample["key"], parts, self.classes)
        does = draw_steps(self.probability, rng)
        region, _ = self.regions.draw(sample, rng)
        view = self.geometry.draw(region, does, rng, lambda window: self._is_mixed(parts, window))

        labels = warp_parts(parts, view.matrix, view.size, self.classes)
        outside, corners = outside_of(view.matrix, view.size, source_size), view.off_canvas()
        if outside is not None and corners is not None:
            labels[outside & corners] = BACKGROUND
        image = view.picture(sample["image"], fill=0)
        if does["background"] and self.backgrounds and not sample.get("meta", {}).get("in_the_wild"):
            person = labels != BACKGROUND if outside is None else (labels != BACKGROUND) & ~outside
            behind = self.backgrounds.draw(self.image_size, rng)
            image = transfer_colours(image, person, behind)
            cv2.copyTo(behind, (labels == BACKGROUND).view(np.uint8), image)
        for name, change in (("blur", "blur"), ("noise", "add_noise"), ("photometric", "distort_colours")):
            if does[name]:
                image = getattr(photometric, change)(image, rng)
        classes = (labels != BACKGROUND) & (labels != self.classes.ignore_index)
        share = np.count_nonzero(classes) / labels.size
        if share < self.min_foreground:
            raise SampleRejected(
                sample["key"], f"{share:.2%} of the crop is foreground, at least {self.min_foreground:.2%} needed"
            )
        return {
            "key": sample["key"],
            "image": to_planes(image),
            "labels": labels.astype(np.int64),
            "crop": view.matrix.astype(np.float32),
            "source_size": np.array(source_size, np.int64),
        }

    def _is_mixed(self, parts: np.ndarray, window: Window) -> bool:
        """Return whether a crop shows several classes and none too much of; every fourth pixel is looked at."""
        x0, y0, x1, y1 = (round(edge) for edge in window)
        step = max(1, min(x1 - x0, y1 - y0) // 128)
        counts = np.bincount(parts[max(0, y0) : max(0, y1) : step, max(0, x0) : max(0, x1) : step].ravel())
        counts[self.classes.ignore_index :] = 0
        return np.count_nonzero(counts) > 1 and counts.max() < self.max_share * counts.sum()
