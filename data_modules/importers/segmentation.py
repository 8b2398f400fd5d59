"""Part segmentation: folders of images and of masks that hold class ids or colours; LIP and CIHP as they unpack."""

from __future__ import annotations

from collections.abc import Iterable
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
    first_folder,
    key_of,
    unmatched,
)
from data_modules.importers.pictures import load_picture, make_members, read_plane, require_size
from s2kit.schemas import LabelMap, SchemaError, load_label_map
from s2kit.schemas.files import PACKAGED

#: Pixels with a class other than background below which a sample is left out (spec 4.3.4).
MIN_LABELLED = 8


@dataclass(frozen=True)
class MaskRecord:
    """An image and its mask, relative to their folders."""

    key: str
    image: str
    mask: str


@dataclass(frozen=True)
class SegmentationImporter(Importer):
    """Images and masks of the same names in two folders.

    A mask is a picture whose values are class ids (gray or palette), or whose colours stand for classes; the label map
    says what they become. Pictures without a mask are left out.

    Attributes:
        images: Folder of images, sub-folders included.
        masks: Folder of masks; the path of a mask is that of its image but for the extension and `mask_ending`.
        label_map: Name of a packaged label map, or the path of a JSON or YAML file.
        mask_ending: What masks have at the end of their names, such as "_seg".
        names: A text file with one name (without extension) a line; only these are taken.
        decode: Decode each image once, to find damage.
    """

    name = "segmentation"

    images: Path
    masks: Path
    label_map: str
    mask_ending: str = ""
    names: Path | None = None
    decode: bool = True

    def scan(self) -> Source:
        labels = self._labels()
        masks = by_stem(self.masks, (".png", ".bmp", ".tif", ".tiff", ".gif", ".webp"), self.mask_ending)
        images = by_stem(self.images, EXTENSIONS)
        if self.images == self.masks:
            images = {stem: file for stem, file in images.items() if not stem.endswith(self.mask_ending or "\0")}
        wanted = self._wanted(images)
        records = [MaskRecord(key_of(images[stem]), images[stem], masks[stem]) for stem in wanted if stem in masks]
        if not records:
            ending = f" with the ending {self.mask_ending!r}" if self.mask_ending else ""
            raise ImportFailedError(f"{self.masks}: no mask has the name of an image in {self.images}{ending}")
        name, files = _class_list(labels)
        info = {"schemas": {"parts": name}, "label_map": labels.name}
        notes = unmatched("mask", [stem for stem in wanted if stem not in masks])
        return Source(records, len(records), info, notes, files)

    def sample(self, record: MaskRecord) -> dict[str, bytes]:
        labels = self._labels()
        path = self.images / record.image
        picture = load_picture(path, self.decode)
        mask = read_plane(self.masks / record.mask, colours=bool(labels.colors))
        require_size(path, picture, mask.shape[:2], record.mask)
        try:
            parts = labels.apply(mask if labels.colors else _ids(mask, self.masks / record.mask))
        except SchemaError as error:
            raise RejectedError(f"{self.masks / record.mask}: {error}") from None
        labelled = int(((parts != 0) & (parts != labels.classes.ignore_index)).sum())
        if labelled < MIN_LABELLED:
            raise RejectedError(f"{self.masks / record.mask}: {labelled} pixels of a class; {MIN_LABELLED} are needed")
        return make_members(record.key, picture, {"parts": parts, "meta": {"file": record.image}})

    def _labels(self) -> LabelMap:
        try:
            return load_label_map(self.label_map)
        except SchemaError as error:
            raise ImportFailedError(str(error)) from None

    def _wanted(self, images: dict[str, str]) -> Iterable[str]:
        if self.names is None:
            return list(images)
        try:
            text = self.names.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise ImportFailedError(f"{self.names}: {error.strerror or error}") from None
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        missing = [line for line in lines if line not in images]
        if missing:
            raise ImportFailedError(f"{self.names}: {len(missing)} of its names have no image (first: {missing[0]})")
        return sorted(set(lines))


def lip(root: Path, split: str = "train", to_29: bool = False, decode: bool = True) -> SegmentationImporter:
    """Return the importer of Look Into Person as its archives unpack.

    Args:
        root: Holds ``TrainVal_images`` and ``TrainVal_parsing_annotations``, or their ``train_images``,
            ``train_segmentations`` and so on; and ``train_id.txt``, ``val_id.txt``.
        split: "train" or "val".
        to_29: Give the classes of Sapiens2 where they have a counterpart, instead of LIP's own 20.
        decode: As for `SegmentationImporter`.
    """
    images, masks = f"{split}_images", f"{split}_segmentations"
    outer, inner = "TrainVal_images", "TrainVal_parsing_annotations"
    return SegmentationImporter(
        first_folder(root, images, f"{outer}/{images}", f"{outer}/{outer}/{images}", what="images"),
        first_folder(root, masks, f"{inner}/{masks}", f"{inner}/{inner}/{masks}", what="masks"),
        "lip-20-to-29" if to_29 else "lip-20",
        names=_first_file(root, f"{split}_id.txt", f"{outer}/{split}_id.txt", f"{outer}/{outer}/{split}_id.txt"),
        decode=decode,
    )


def cihp(root: Path, split: str = "train", to_29: bool = False, decode: bool = True) -> SegmentationImporter:
    """Return the importer of Crowd Instance-level Human Parsing as its archive unpacks.

    Args:
        root: Holds ``Training`` and ``Validation`` (or ``instance-level_human_parsing`` with them), each with
            ``Images``, ``Category_ids`` and a list of names.
        split: "train" or "val".
        to_29: Give the classes of Sapiens2 where they have a counterpart, instead of CIHP's own 20.
        decode: As for `SegmentationImporter`.
    """
    part = {"train": "Training", "val": "Validation"}[split]
    folder = first_folder(root, part, f"instance-level_human_parsing/{part}", what="pictures")
    return SegmentationImporter(
        first_folder(folder, "Images", what="images"),
        first_folder(folder, "Category_ids", what="masks"),
        "cihp-20-to-29" if to_29 else "cihp-20",
        names=_first_file(folder, f"{split}_id.txt"),
        decode=decode,
    )


def _first_file(root: Path, *candidates: str) -> Path | None:
    return next((root / candidate for candidate in candidates if (root / candidate).is_file()), None)


def _ids(mask: np.ndarray, path: Path) -> np.ndarray:
    """A mask as ids (H, W) where it can be: equal channels are ids, and an alpha channel says nothing."""
    if mask.dtype != np.uint8:
        if mask.max(initial=0) > 255:
            raise RejectedError(f"{path}: 16-bit values up to {mask.max()}; masks hold ids from 0 to 255")
        mask = mask.astype(np.uint8)
    if mask.ndim == 2:
        return mask
    colors = mask[..., :3] if mask.shape[2] > 2 else mask[..., :1]
    return np.ascontiguousarray(colors[..., 0]) if (colors == colors[..., :1]).all() else colors


def _class_list(labels: LabelMap) -> tuple[str, dict[str, bytes]]:
    """The class list's name for the manifest, and the file to keep beside it where it is the user's own."""
    if labels.target in PACKAGED["parts"]:
        return labels.target, {}
    name = labels.classes.name.lower().replace("_", "-")
    return name, {f"{name}.json": Path(labels.target).read_bytes()}
