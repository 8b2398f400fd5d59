"""Matting: P3M-10k, image and mask folders, and pictures with transparency."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_modules.images import EXTENSIONS
from data_modules.importers.base import (
    Importer,
    ImportFailedError,
    RejectedError,
    Source,
    by_stem,
    files_below,
    first_folder,
    key_of,
    unmatched,
)
from data_modules.importers.pictures import first_channel, load_picture, make_members, read_plane, require_size

#: Splits of P3M-10k -> their folder, and what their folder of images is called.
P3M_SPLITS = {
    "train": ("train", "blurred_image"),
    "P3M-500-P": ("validation/P3M-500-P", "blurred_image"),
    "P3M-500-NP": ("validation/P3M-500-NP", "original_image"),
}
_MASKS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True)
class MattingRecord:
    """An image with its mask and, where there is one, its foreground, relative to their folders."""

    key: str
    image: str
    mask: str | None
    foreground: str | None


@dataclass(frozen=True)
class MattingImporter(Importer):
    """Images, masks and optionally foregrounds of the same names in folders.

    A mask's first channel is the coverage (16 bits are scaled). One with four channels gives the coverage in its last
    and the straight foreground colour in the others.

    Attributes:
        images: Folder of images, sub-folders included.
        masks: Folder of masks.
        foregrounds: Folder of foreground colours, straight, not premultiplied; None if there are none.
        decode: Decode each image once, to find damage.
    """

    name = "matting"

    images: Path
    masks: Path
    foregrounds: Path | None = None
    decode: bool = True

    def scan(self) -> Source:
        images, masks = by_stem(self.images, EXTENSIONS), by_stem(self.masks, _MASKS)
        colours = by_stem(self.foregrounds, _MASKS) if self.foregrounds else {}
        records = [
            MattingRecord(key_of(images[stem]), images[stem], masks[stem], colours.get(stem))
            for stem in images
            if stem in masks
        ]
        if not records:
            raise ImportFailedError(f"{self.masks}: no mask has the name of an image in {self.images}")
        notes = unmatched("mask", [stem for stem in images if stem not in masks])
        return Source(records, len(records), {}, notes)

    def sample(self, record: MattingRecord) -> dict[str, bytes]:
        path, mask_path = self.images / record.image, self.masks / record.mask
        picture, mask = load_picture(path, self.decode), read_plane(mask_path)
        require_size(path, picture, mask.shape[:2], record.mask)
        labels = {"meta": {"file": record.image}}
        has_colour = mask.ndim == 3 and mask.shape[2] == 4
        labels["alpha"] = first_channel(mask[..., 3] if has_colour else mask)
        if record.foreground:
            colour_path = self.foregrounds / record.foreground
            colour = load_picture(colour_path)
            require_size(colour_path, colour, picture.size, record.image)
            labels["foreground"] = _covered(colour.pixels, labels["alpha"])
        elif has_colour:
            labels["foreground"] = _covered(mask[..., :3], labels["alpha"])
        _require_person(mask_path, labels["alpha"])
        return make_members(record.key, picture, labels)


@dataclass(frozen=True)
class RgbaImporter(Importer):
    """Pictures with transparency: the file itself, its alpha, and its colours as the straight foreground.

    Attributes:
        folder: Of PNG or WebP pictures, sub-folders included.
    """

    name = "rgba"

    folder: Path

    def scan(self) -> Source:
        records = [
            MattingRecord(key_of(path), str(path), None, None)
            for path in files_below(self.folder, (".png", ".webp", ".tif", ".tiff"))
        ]
        if not records:
            raise ImportFailedError(f"{self.folder}: no .png, .webp or .tif pictures in it")
        if len({record.key for record in records}) < len(records):
            raise ImportFailedError(f"{self.folder}: pictures have the same name but for the extension")
        return Source(records, len(records))

    def sample(self, record: MattingRecord) -> dict[str, bytes]:
        path = self.folder / record.image
        picture, plane = load_picture(path), read_plane(path)
        if plane.ndim != 3 or plane.shape[2] != 4:
            raise RejectedError(f"{path}: it has no transparency")
        if picture.orientation != 1:
            raise RejectedError(f"{path}: its EXIF orientation is {picture.orientation}; store it upright without EXIF")
        alpha = first_channel(plane[..., 3])
        _require_person(path, alpha)
        if alpha.min() == 255:
            raise RejectedError(f"{path}: no pixel of it is transparent")
        labels = {"alpha": alpha, "foreground": _covered(picture.pixels, alpha), "meta": {"file": record.image}}
        return make_members(record.key, picture, labels)


def p3m(root: Path, split: str = "train", decode: bool = True) -> MattingImporter:
    """Return the importer of P3M-10k as its archive unpacks.

    Args:
        root: Holds ``train`` (``blurred_image``, ``mask``, perhaps ``fg_map``) and ``validation``.
        split: One of `P3M_SPLITS`.
        decode: As for `MattingImporter`.
    """
    where, images = P3M_SPLITS[split]
    folder = first_folder(root, where, what=f"the split {split}")
    colours = folder / "fg_map"
    return MattingImporter(
        first_folder(folder, images, what="images"),
        first_folder(folder, "mask", what="masks"),
        colours if colours.is_dir() else None,
        decode=decode,
    )


def _covered(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The foreground colour as 8 bits, 0 where nothing of it shows."""
    if colour.dtype == np.uint16:
        colour = (colour.astype(np.uint32) * 255 + 32767) // 65535
    return np.where(alpha[..., None] > 0, colour, 0).astype(np.uint8)


def _require_person(path: Path, alpha: np.ndarray) -> None:
    if not alpha.any():
        raise RejectedError(f"{path}: no pixel of it is covered")
