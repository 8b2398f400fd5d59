"""Training augmentation of the tasks that letterbox their pictures: normals, pointmap, albedo."""

from typing import Any, ClassVar

import cv2
import numpy as np

from data_modules.transforms import photometric
from data_modules.transforms.checks import SampleRejected, check_sample, draw_steps, step_probabilities, to_planes
from data_modules.transforms.geometry import (
    crop_matrix,
    flip_matrix,
    outside_of,
    rotation_matrix,
    scale_matrix,
    source_region,
    translation_matrix,
    warp_image,
    warp_intrinsics,
)
from data_modules.transforms.regions import RegionChoice, random_region
from s2kit.inference.geometry import letterbox_rect

STEPS = ("photometric", "downsample", "scale", "crop", "flip", "rotate", "blur", "noise", "solarise")


class LetterboxTrainTransform:
    """A raw sample with labels of its pixels, augmented and fitted into the network's input.

    A task defines ``published``, ``required``, ``uses`` and ``targets``. The steps, in this order: colours
    (``photometric``; each of the four then has 0.5), ``downsample`` (down-up-sampling by U(0.1, 0.7)), random ``scale``
    U(0.5, 2), random ``crop``, ``flip``, letterbox, ``blur``, ``noise``, ``solarise``. ``rotate`` and the crop around
    the person are ours and off by default; they come before the random crop.

    All geometry is composed into one matrix, and picture and labels are resampled once with it: sharper than a chain
    of resamplings, cheaper, and the labels cannot drift from the picture. Two things follow. The letterbox undoes the
    geometry of the random scale, so that what remains of it is what it does to the picture: for factors below 1 a
    loss of resolution. And colours are changed at the network's size, after resampling: they act on single pixels, so
    the order hardly matters, and it is cheaper for large sources.

    Args:
        image_size: Network input (height, width).
        rotate_degrees: Largest angle of a rotation, either way.
        person_crop: Whether to show the region around the person rather than the whole picture.
        person_margin: Range of its side over the side of the person's box.
        person_jitter: Largest displacement of its centre, in sides of the box.
        min_valid: Smallest number of valid pixels.
        max_valid: Largest share of valid pixels; by default the task's published one.
        **probability: Probability of a step by its name; by default the published one.

    Raises:
        ValueError: If a probability or range makes no sense, or a step is not known.
    """

    #: Published probability of each step that the task has.
    published: ClassVar[dict[str, float]]
    #: Fields that a sample must have.
    required: ClassVar[tuple[str, ...]]
    #: Published largest share of valid pixels.
    published_max_valid: ClassVar[float] = 0.96

    def __init__(
        self,
        image_size: tuple[int, int] = (1024, 768),
        *,
        rotate_degrees: float = 30.0,
        person_crop: bool = False,
        person_margin: tuple[float, float] = (1.0, 1.5),
        person_jitter: float = 0.1,
        min_valid: int = 16,
        max_valid: float | None = None,
        **probability: float,
    ) -> None:
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.probability = step_probabilities({**dict.fromkeys(STEPS, 0.0), **self.published}, probability)
        self.rotate_degrees = rotate_degrees
        self.regions = RegionChoice(self.image_size, person_crop, person_margin, person_jitter)
        self.min_valid = min_valid
        self.max_valid = self.published_max_valid if max_valid is None else max_valid

    def targets(self, sample: dict[str, Any], matrix: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
        """Return the task's label maps as a picture of ``size`` shows them after ``matrix``.

        Args:
            sample: The raw sample, checked.
            matrix: (3, 3) source pixel -> target pixel.
            size: (h, w) of the target.

        Returns:
            (C, h, w) maps by name, among them ``valid`` (1, h, w) bool; the others are 0 where it is false.
        """
        raise NotImplementedError

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Make an item of a raw sample with ``image``, the task's labels, and optionally ``box``, ``intrinsics``.

        Returns:
            ``image`` uint8 (3, h, w), the task's maps (C, h, w) with ``valid`` bool (1, h, w), ``crop`` float32 (3, 3)
            source pixel -> network pixel, ``source_size`` int64 (H, W), ``key``, and ``intrinsics`` float32 (3, 3) of
            the network's pixels if the sample has them.

        Raises:
            SampleRejected: If too few or too many pixels are valid, a person-centred crop finds nobody, or the sample
                lacks a field.
            ValueError: If a field has a wrong type or shape.
        """
        source_size = check_sample(sample, self.required)
        does = draw_steps(self.probability, rng)
        matrix, size = self._geometry(sample, does, rng)
        rect = letterbox_rect(size, self.image_size)
        inner = (rect.height, rect.width)
        matrix = scale_matrix(rect.width / size[1], rect.height / size[0]) @ matrix
        crop = translation_matrix(rect.left, rect.top) @ matrix

        targets = self.targets(sample, matrix, inner)
        self._check_valid(sample["key"], targets["valid"])
        canvas = np.zeros((*self.image_size, 3), np.uint8)
        rows, columns = slice(rect.top, rect.top + rect.height), slice(rect.left, rect.left + rect.width)
        canvas[rows, columns] = self._picture(sample["image"], matrix, inner, does, rng)
        for name, change in (("blur", "blur"), ("noise", "add_noise"), ("solarise", "solarise")):
            if does[name]:
                canvas = getattr(photometric, change)(canvas, rng)
        item = {"key": sample["key"], "image": to_planes(canvas)}
        for name, value in targets.items():
            item[name] = value
            if inner != self.image_size:
                item[name] = np.zeros((len(value), *self.image_size), value.dtype)
                item[name][:, rows, columns] = value
        item["crop"] = crop.astype(np.float32)
        item["source_size"] = np.array(source_size, np.int64)
        if "intrinsics" in sample:
            item["intrinsics"] = warp_intrinsics(sample["intrinsics"], crop)
        return item

    def _check_valid(self, key: str, valid: np.ndarray) -> None:
        count, total = np.count_nonzero(valid), self.image_size[0] * self.image_size[1]
        if count < self.min_valid:
            raise SampleRejected(key, f"{count} valid pixels in the crop, at least {self.min_valid} needed")
        if count > self.max_valid * total:
            raise SampleRejected(key, f"{count / total:.1%} of the crop is valid, at most {self.max_valid:.0%} allowed")

    def _geometry(
        self, sample: dict[str, Any], does: dict[str, bool], rng: np.random.Generator
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """Return the matrix from the source to the region shown, turned and flipped, and its (height, width)."""
        degrees = rng.uniform(-1, 1) * self.rotate_degrees
        if not does["rotate"]:
            degrees = 0.0
        region, centre = self.regions.draw(sample, rng, degrees)
        if does["crop"]:
            region = random_region(region, rng)
        size = (region[3] - region[1], region[2] - region[0])
        matrix = crop_matrix(region, size)
        if degrees:
            matrix = matrix @ rotation_matrix(degrees, centre)
        return (flip_matrix(size[1]) @ matrix if does["flip"] else matrix), size

    def _picture(
        self,
        image: np.ndarray,
        matrix: np.ndarray,
        size: tuple[int, int],
        does: dict[str, bool],
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Return the picture (h, w, 3) without padding: degraded at the source, resampled, its colours changed."""
        factor = rng.uniform(0.5, 2.0)
        region = source_region(matrix, size, image.shape[:2], rim=0)
        if region is not None and (does["downsample"] or does["scale"]):
            x0, y0, x1, y1 = region
            image, matrix = image[y0:y1, x0:x1], matrix @ translation_matrix(x0, y0)
            if does["downsample"]:
                image = photometric.down_up_sample(image, rng)
            if does["scale"] and factor < 1:
                height, width = max(1, round((y1 - y0) * factor)), max(1, round((x1 - x0) * factor))
                image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
                matrix = matrix @ scale_matrix((x1 - x0) / width, (y1 - y0) / height)
        warped = warp_image(image, matrix, size)
        if not does["photometric"]:
            return warped
        changed = photometric.distort_colours(warped, rng)
        # The corners that a rotation leaves empty stay black.
        outside = outside_of(matrix, size, image.shape[:2])
        return changed if outside is None else cv2.copyTo(changed, (~outside).view(np.uint8))
