"""From a raw sample to an item for surface normals: training augmentation, and the plain letterbox of evaluation."""

from typing import Any

import cv2
import numpy as np

from data_modules.transforms import photometric
from data_modules.transforms.geometry import (
    crop_matrix,
    flip_matrix,
    rotation_matrix,
    scale_matrix,
    source_region,
    translation_matrix,
    turn_normals,
    warp_image,
    warp_intrinsics,
    warp_labels,
)
from data_modules.transforms.regions import Region, person_box, random_region, region_around
from s2kit.inference.geometry import letterbox_rect


class SampleRejected(Exception):
    """A training sample has nothing to learn from; the loader skips and counts it, and never puts another in its place.

    Attributes:
        key: The sample's key.
        reason: What is wrong with it.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key, self.reason = key, reason

    def __str__(self) -> str:
        return f"sample {self.key!r} rejected: {self.reason}"


def normals_target(normals: np.ndarray, alpha: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Make the network's target: unit normals and where they hold.

    Args:
        normals: (h, w, 3) float32, zeros or not finite where undefined.
        alpha: (h, w) uint8 coverage, or None.

    Returns:
        ``normals`` (3, h, w) float32, of unit length or zero, and ``valid`` (1, h, w) bool: defined, finite and, with
        ``alpha``, covered by more than one half.
    """
    channels = cv2.split(normals)
    # Plane by plane and without masked writes: this is the costliest step of an item at 1024 x 768.
    square = sum(channel * channel for channel in channels)
    # Comparisons with NaN are false. A vector shorter than 0.1 is no normal but a blend with the undefined.
    valid = (square > 1e-2) & (square < np.inf)
    if alpha is not None:
        valid &= alpha > 127
    inverse = np.divide(1, np.sqrt(square), out=np.zeros_like(square), where=valid)
    planes = np.empty((3, *square.shape), np.float32)
    with np.errstate(invalid="ignore"):
        for plane, channel in zip(planes, channels):
            np.multiply(channel, inverse, out=plane)
    if not np.isfinite(square).all():
        np.copyto(planes, 0, where=~valid)  # NaN times 0 is NaN
    return planes, valid[None]


def _check(sample: dict[str, Any], labels: tuple[str, ...]) -> tuple[int, int]:
    """Return the picture's (H, W) after checking shapes and types."""
    key, image = sample.get("key"), sample["image"]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"sample {key!r}: 'image' must be uint8 (H, W, 3), got {image.dtype} {image.shape}")
    wanted = {"alpha": (np.uint8, image.shape[:2]), "normals": (np.float32, image.shape)}
    for name in labels:
        if name not in sample:
            raise KeyError(f"sample {key!r} has no {name!r}; it has {', '.join(sorted(sample))}")
    for name, (dtype, shape) in wanted.items():
        if name in sample and (sample[name].dtype != dtype or sample[name].shape != shape):
            raise ValueError(
                f"sample {key!r}: {name!r} must be {np.dtype(dtype)} {shape} like its image, "
                f"got {sample[name].dtype} {sample[name].shape}"
            )
    return image.shape[0], image.shape[1]


def _to_planes(image: np.ndarray) -> np.ndarray:
    return np.stack(cv2.split(image))


class NormalsTrainTransform:
    """Training augmentation for normals; by default the published recipe (release, data 4.1 and 4.4).

    In this order: colours, down-up-sample, random scale, random crop, flip, letterbox, blur, noise, solarise.
    Rotation and the crop around the person are ours and off by default; they come before the random crop.

    All geometry is composed into one matrix, and picture and labels are resampled once with it: sharper than a chain
    of resamplings, cheaper, and the labels cannot drift from the picture. Two things follow. The letterbox undoes the
    geometry of the random scale, so that what remains of it is what it does to the picture: for factors below 1 a
    loss of resolution. And colours are changed at the network's size, after resampling: they act on single pixels, so
    the order hardly matters, and it is cheaper for large sources.

    Args:
        image_size: Network input (height, width).
        photometric: Probability of the colour changes (each of the four then has 0.5).
        downsample: Probability of down-up-sampling by U(0.1, 0.7).
        scale: Probability of the random scale U(0.5, 2).
        crop: Probability of the random crop.
        flip: Probability of the horizontal flip, which negates the normals' x.
        rotate: Probability of a rotation, which turns the normals' x and y.
        rotate_degrees: Largest angle of it, either way.
        person_crop: Whether to show the region around the person rather than the whole picture.
        person_margin: Range of its side over the side of the person's box.
        person_jitter: Largest displacement of its centre, in sides of the box.
        blur: Probability of the blur.
        noise: Probability of the noise.
        solarise: Probability of solarisation.
        min_valid: Smallest number of valid pixels.
        max_valid: Largest share of valid pixels.

    Raises:
        ValueError: If a probability or range makes no sense.
    """

    def __init__(
        self,
        image_size: tuple[int, int] = (1024, 768),
        *,
        photometric: float = 1.0,
        downsample: float = 0.2,
        scale: float = 0.3,
        crop: float = 0.3,
        flip: float = 0.3,
        rotate: float = 0.0,
        rotate_degrees: float = 30.0,
        person_crop: bool = False,
        person_margin: tuple[float, float] = (1.0, 1.5),
        person_jitter: float = 0.1,
        blur: float = 0.3,
        noise: float = 0.3,
        solarise: float = 0.3,
        min_valid: int = 16,
        max_valid: float = 0.96,
    ) -> None:
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.probability = {
            "photometric": photometric,
            "downsample": downsample,
            "scale": scale,
            "crop": crop,
            "flip": flip,
            "rotate": rotate,
            "blur": blur,
            "noise": noise,
            "solarise": solarise,
        }
        for name, value in self.probability.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value}: it is a probability, from 0 to 1")
        if not 0 < person_margin[0] <= person_margin[1]:
            raise ValueError(f"person_margin={person_margin}: it is a range (low, high) of positive factors")
        self.rotate_degrees, self.person_crop = rotate_degrees, person_crop
        self.person_margin, self.person_jitter = tuple(person_margin), person_jitter
        self.min_valid, self.max_valid = min_valid, max_valid

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Make an item of a raw sample with ``image``, ``normals``, and optionally ``alpha``, ``box``, ``intrinsics``.

        Returns:
            ``image`` uint8 (3, h, w), ``normals`` float32 (3, h, w), ``valid`` bool (1, h, w), ``crop`` float32 (3,
            3) source pixel -> network pixel, ``source_size`` int64 (H, W), ``key``, and ``intrinsics`` float32 (3, 3)
            of the network's pixels if the sample has them.

        Raises:
            SampleRejected: If too few or too many pixels are valid, or a person-centred crop finds nobody.
            KeyError: If the sample lacks a field.
            ValueError: If a field has a wrong type or shape.
        """
        source_size = _check(sample, ("normals",))
        # Drawn first and all of them, so that changing one probability leaves the choice of the other steps as it was.
        does = {name: bool(rng.random() < p) for name, p in self.probability.items()}
        matrix, size = self._geometry(sample, does, rng)
        rect = letterbox_rect(size, self.image_size)
        inner = (rect.height, rect.width)
        matrix = scale_matrix(rect.width / size[1], rect.height / size[0]) @ matrix
        crop = translation_matrix(rect.left, rect.top) @ matrix

        normals, valid = self._target(sample, matrix, rect)
        canvas = np.zeros((*self.image_size, 3), np.uint8)
        view = canvas[rect.top : rect.top + rect.height, rect.left : rect.left + rect.width]
        view[...] = self._picture(sample["image"], matrix, inner, does, rng)
        for name, change in (("blur", "blur"), ("noise", "add_noise"), ("solarise", "solarise")):
            if does[name]:
                canvas = getattr(photometric, change)(canvas, rng)
        item = {
            "key": sample["key"],
            "image": _to_planes(canvas),
            "normals": normals,
            "valid": valid,
            "crop": crop.astype(np.float32),
            "source_size": np.array(source_size, np.int64),
        }
        if "intrinsics" in sample:
            item["intrinsics"] = warp_intrinsics(sample["intrinsics"], crop)
        return item

    def _geometry(
        self, sample: dict[str, Any], does: dict[str, bool], rng: np.random.Generator
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """Return the matrix from the source to the region shown, turned and flipped, and its (height, width)."""
        source_size = sample["image"].shape[:2]
        degrees = rng.uniform(-1, 1) * self.rotate_degrees
        margin = rng.uniform(*self.person_margin)
        shift = rng.uniform(-self.person_jitter, self.person_jitter, 2)
        if not does["rotate"]:
            degrees = 0.0
        region: Region | None = (0, 0, source_size[1], source_size[0])
        centre = (source_size[1] / 2, source_size[0] / 2)
        if self.person_crop:
            box = person_box(sample)
            if box is None:
                raise SampleRejected(sample["key"], "its picture shows no person to crop to")
            region = region_around(box, source_size, self.image_size, margin, tuple(shift), degrees)
            if region is None:
                raise SampleRejected(sample["key"], f"its box {box.tolist()} lies outside the picture")
            centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        if does["crop"]:
            region = random_region(region, rng)
        size = (region[3] - region[1], region[2] - region[0])
        matrix = crop_matrix(region, size)
        if degrees:
            matrix = matrix @ rotation_matrix(degrees, centre)
        return (flip_matrix(size[1]) @ matrix if does["flip"] else matrix), size

    def _target(self, sample: dict[str, Any], matrix: np.ndarray, rect: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return ``normals`` (3, h, w) and ``valid`` (1, h, w) at the network's size."""
        inner = (rect.height, rect.width)
        labels = turn_normals(warp_labels(sample["normals"], matrix, inner), matrix)
        # The nearest pixel's alpha, as for the normals: a label holds where the pixel that it comes from is covered.
        alpha = warp_labels(sample["alpha"], matrix, inner) if "alpha" in sample else None
        labels, inside = normals_target(labels, alpha)
        count, total = np.count_nonzero(inside), self.image_size[0] * self.image_size[1]
        if count < self.min_valid:
            raise SampleRejected(sample["key"], f"{count} valid pixels in the crop, at least {self.min_valid} needed")
        if count > self.max_valid * total:
            raise SampleRejected(
                sample["key"], f"{count / total:.1%} of the crop is valid, at most {self.max_valid:.0%} allowed"
            )
        if inner == self.image_size:
            return labels, inside
        normals, valid = np.zeros((3, *self.image_size), np.float32), np.zeros((1, *self.image_size), bool)
        rows, columns = slice(rect.top, rect.top + rect.height), slice(rect.left, rect.left + rect.width)
        normals[:, rows, columns], valid[:, rows, columns] = labels, inside
        return normals, valid

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
        whole = image.shape[:2]
        region = source_region(matrix, size, whole, rim=0)
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
        if matrix[0, 1] or matrix[1, 0]:
            # The corners that a rotation leaves empty stay black.
            changed[warp_labels(np.ones(image.shape[:2], np.uint8), matrix, size) == 0] = 0
        return changed


class EvalTransform:
    """Letterbox of the picture; labels keep the source's size, so that results are compared at full resolution.

    With ``person_crop`` picture and labels are first cut to the region around the person, and that region takes the
    place of the source: ``source_size`` is its size, ``crop`` maps *its* pixels to the network's, and labels and
    ``intrinsics`` are those of its pixels.

    Args:
        image_size: Network input (height, width).
        person_crop: Whether to cut to the person.
        person_margin: Side of the region over side of the person's box.
    """

    def __init__(
        self, image_size: tuple[int, int] = (1024, 768), *, person_crop: bool = False, person_margin: float = 1.25
    ) -> None:
        if person_margin <= 0:
            raise ValueError(f"person_margin={person_margin}: it must be positive")
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.person_crop, self.person_margin = person_crop, person_margin

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Make an item of a raw sample: ``image`` alone (prediction), or with ``normals`` and optionally ``alpha``.

        Returns:
            ``image`` uint8 (3, h, w), ``crop`` float32 (3, 3) source pixel -> network pixel, ``source_size`` int64
            (H, W), ``key``; with normals ``normals`` float32 (3, H, W) and ``valid`` bool (1, H, W); ``intrinsics``
            float32 (3, 3) of the source's pixels if the sample has them.

        Raises:
            KeyError: If a person-centred crop finds no field that says where the person is.
            ValueError: If a field has a wrong type or shape, or a person-centred crop finds nobody.
        """
        _check(sample, ())
        region = self._region(sample)
        x0, y0, x1, y1 = region
        rows, columns = slice(y0, y1), slice(x0, x1)
        size = (y1 - y0, x1 - x0)
        rect = letterbox_rect(size, self.image_size)
        inner = scale_matrix(rect.width / size[1], rect.height / size[0])
        canvas = np.zeros((*self.image_size, 3), np.uint8)
        canvas[rect.top : rect.top + rect.height, rect.left : rect.left + rect.width] = warp_image(
            sample["image"][rows, columns], inner, (rect.height, rect.width)
        )
        item = {
            "key": sample["key"],
            "image": _to_planes(canvas),
            "crop": (translation_matrix(rect.left, rect.top) @ inner).astype(np.float32),
            "source_size": np.array(size, np.int64),
        }
        if "normals" in sample:
            alpha = sample["alpha"][rows, columns] if "alpha" in sample else None
            item["normals"], item["valid"] = normals_target(sample["normals"][rows, columns], alpha)
        if "intrinsics" in sample:
            item["intrinsics"] = warp_intrinsics(sample["intrinsics"], translation_matrix(-x0, -y0))
        return item

    def _region(self, sample: dict[str, Any]) -> Region:
        source_size = sample["image"].shape[:2]
        if not self.person_crop:
            return 0, 0, source_size[1], source_size[0]
        box = person_box(sample)
        region = box if box is None else region_around(box, source_size, self.image_size, self.person_margin)
        if region is None:
            raise ValueError(f"sample {sample['key']!r}: person_crop is set, but the picture shows no person")
        return region
