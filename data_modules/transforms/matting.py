"""From a raw sample to an item for matting: coverage, and the premultiplied colour of the person."""

from pathlib import Path
from typing import Any, ClassVar
from zlib import crc32

import cv2
import numpy as np

from data_modules.transforms import photometric
from data_modules.transforms.backgrounds import Backgrounds
from data_modules.transforms.checks import check_sample, draw_steps, step_probabilities, to_planes
from data_modules.transforms.compositing import OPAQUE, composite, estimate_foreground, premultiply, straighten
from data_modules.transforms.evaluation import EvalTransform
from data_modules.transforms.regions import RegionChoice, alpha_box
from data_modules.transforms.stretched import StretchGeometry, Window

_WHITE = 255


def matting_target(image: np.ndarray, alpha: np.ndarray, foreground: np.ndarray | None) -> dict[str, np.ndarray]:
    """Make the network's targets.

    Args:
        image: (h, w, 3) uint8.
        alpha: (h, w) uint8.
        foreground: (h, w, 3) uint8 straight colours, or None where they are not known: then the picture's own where
            it is wholly covered, and nothing where it is not covered (release, matting 12).

    Returns:
        ``alpha`` (1, h, w) float32 in 0..1; ``foreground`` (3, h, w) float32 in 0..1, premultiplied; ``valid`` (1, h,
        w) bool, where the foreground is known. Alpha is known everywhere.
    """
    planes = np.empty((3, *alpha.shape), np.float32)
    if foreground is None:
        opaque = alpha >= OPAQUE
        valid = opaque | (alpha == 0)
        for plane, channel in zip(planes, cv2.split(cv2.copyTo(image, opaque.view(np.uint8)))):
            np.multiply(channel, np.float32(1 / 255), out=plane)
    else:
        valid = np.ones(alpha.shape, bool)
        for plane, channel in zip(planes, cv2.split(foreground)):
            cv2.multiply(channel, alpha, dst=plane, scale=1 / 255**2, dtype=cv2.CV_32F)
    return {"alpha": alpha[None].astype(np.float32) / 255, "foreground": planes, "valid": valid[None]}


def matting_labels(sample: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the targets at the source's size; nothing if the sample has no alpha."""
    if "alpha" not in sample:
        return {}
    return matting_target(sample["image"], sample["alpha"], sample.get("foreground"))


def is_cutout(sample: dict[str, Any]) -> bool:
    """Return whether a sample has no background of its own: its picture is the foreground wherever that shows at all.

    That is what a picture with transparency is imported as; what its file hides under alpha 0 is no background.
    """
    if "foreground" not in sample:
        return False
    covered = (sample["alpha"] > 0).view(np.uint8)
    return np.array_equal(cv2.copyTo(sample["image"], covered), cv2.copyTo(sample["foreground"], covered))


class MattingEvalTransform(EvalTransform):
    """Evaluation of matting: a stretched picture, and labels at the size of the source.

    A cut-out (``is_cutout``) is laid over a background that its key decides, the same in every evaluation.

    Args:
        image_size: Network input (height, width).
        backgrounds: As for ``MattingTrainTransform``.
        **options: ``required``, ``person_crop`` and ``person_margin`` of ``EvalTransform``.
    """

    def __init__(
        self, image_size: tuple[int, int] = (1024, 768), backgrounds: str | Path | None = None, **options: Any
    ) -> None:
        super().__init__(image_size, matting_labels, "stretch", **options)
        self.backgrounds = Backgrounds(backgrounds)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Make an item as ``EvalTransform`` does, with ``alpha``, ``foreground`` and ``valid``."""
        size = check_sample(sample, self.required)
        if is_cutout(sample):
            behind = self.backgrounds.draw(size, np.random.default_rng(crc32(sample["key"].encode())))
            sample = sample | {"image": composite(sample["foreground"], sample["alpha"], behind)}
        return super().__call__(sample)


class MattingTrainTransform:
    """Training augmentation for matting; by default the published recipe (release, matting 12).

    The steps: ``composite`` (a cut-out, see ``is_cutout``, is laid over a random background, in linear light),
    ``recomposite`` (a picture with its own background gets another one, over which its foreground is laid, estimated
    where it is not known: ours, off by default), ``jpeg`` (quality 30 to 60), ``person`` (the person's box with 0 to
    10 % of its width around it, in the picture's aspect), ``resize`` by U(0.4, 2), ``crop``, ``rotate`` by up to 60
    degrees, ``flip``, a stretch to the network's input, and ``photometric``, the same for picture and foreground.

    Geometry comes first and in one step (see ``StretchGeometry``), the background is drawn at the network's size, and
    the JPEG is written last but for the colours. So alpha, foreground and background of an item give its picture, up
    to what JPEG changes. Outside the source alpha is 0, and a picture that keeps its background is white.

    Where a sample has no ``foreground``, its colour is not known at soft rims, and not supervised there (``valid``).
    A recomposited picture is made of the estimate, and so that *is* its foreground: exact, if not what the camera saw.

    Args:
        image_size: Network input (height, width).
        backgrounds: Folder, glob pattern or list of pictures without people; without it, clouds of colour.
        scale: Range of the resize.
        rotate_degrees: Largest angle of a rotation, either way.
        person_crop, person_margin, person_jitter: As in ``LetterboxTrainTransform``; off by default. Takes the place
            of ``person``.
        **probability: Probability of a step by its name; by default the published one.

    Raises:
        ValueError: If a probability or range makes no sense, or a step is not known.
    """

    published: ClassVar[dict[str, float]] = {
        "composite": 1.0,
        "recomposite": 0.0,
        "person": 0.5,
        "resize": 1.0,
        "crop": 0.5,
        "rotate": 0.5,
        "flip": 0.5,
        "jpeg": 0.5,
        "photometric": 0.5,
    }

    def __init__(
        self,
        image_size: tuple[int, int] = (1024, 768),
        *,
        backgrounds: str | Path | None = None,
        scale: tuple[float, float] = (0.4, 2.0),
        rotate_degrees: float = 60.0,
        person_crop: bool = False,
        person_margin: tuple[float, float] = (1.0, 1.5),
        person_jitter: float = 0.1,
        **probability: float,
    ) -> None:
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.probability = step_probabilities(self.published, probability)
        self.backgrounds = Backgrounds(backgrounds)
        self.geometry = StretchGeometry(self.image_size, scale, rotate_degrees)
        self.regions = RegionChoice(self.image_size, person_crop, person_margin, person_jitter)

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Make an item of a raw sample with ``image``, ``alpha``, and optionally ``foreground`` and ``box``.

        Returns:
            ``image`` uint8 (3, h, w), ``alpha`` float32 (1, h, w), ``foreground`` float32 (3, h, w) premultiplied and
            in 0..1, ``valid`` bool (1, h, w) where the foreground is known, ``crop`` float32 (3, 3) source pixel ->
            network pixel, ``source_size`` int64 (H, W), ``key``.

        Raises:
            SampleRejected: If a person-centred crop finds nobody, or the sample lacks a field.
            ValueError: If a field has a wrong type or shape.
            ImageError: If a background cannot be read.
        """
        source_size = check_sample(sample, ("alpha",))
        does = draw_steps(self.probability, rng)
        region, _ = self.regions.draw(sample, rng)
        window = self._window(sample["alpha"], region, does, rng)
        view = self.geometry.draw(window, does, rng)
        known = "foreground" in sample
        composes = does["composite" if is_cutout(sample) else "recomposite"]

        alpha = view.picture(sample["alpha"], fill=0)
        image = foreground = behind = None
        if not (known and composes):
            image = view.picture(sample["image"], fill=_WHITE)
        if known:
            foreground = straighten(view.picture(premultiply(sample["foreground"], sample["alpha"]), fill=0), alpha)
        elif composes:
            foreground = estimate_foreground(image, alpha)
        if composes:
            behind = self.backgrounds.draw(self.image_size, rng)
        distort = photometric.draw_distortion(rng)
        if does["photometric"]:
            image, foreground, behind = (
                None if picture is None else distort(picture) for picture in (image, foreground, behind)
            )
        if composes:
            image = composite(foreground, alpha, behind)
        targets = matting_target(image, alpha, foreground)
        if does["jpeg"]:
            image = photometric.compress(image, rng)
        return {
            "key": sample["key"],
            "image": to_planes(image),
            **targets,
            "crop": view.matrix.astype(np.float32),
            "source_size": np.array(source_size, np.int64),
        }

    def _window(self, alpha: np.ndarray, region: Window, does: dict[str, bool], rng: np.random.Generator) -> Window:
        """Return the part of the source to start from; around the person it may reach beyond the picture."""
        margins = rng.uniform(0, 0.1, 4)
        box = alpha_box(alpha, 0) if does["person"] and not self.regions.person_crop else None
        if box is None:
            return region
        x0, y0, x1, y1 = box + margins * (box[2] - box[0]) * [-1, -1, 1, 1]
        aspect = alpha.shape[1] / alpha.shape[0]
        wide, high = max(x1 - x0, (y1 - y0) * aspect), max(y1 - y0, (x1 - x0) / aspect)
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        return x - wide / 2, y - high / 2, x + wide / 2, y + high / 2
