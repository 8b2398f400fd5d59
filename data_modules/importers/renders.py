"""Renders of scanned people: image, mask and normals, depth or albedo, as RenderPeople, THuman2.x, Hi4D are rendered.

The layout is that of spec 4.4 to 4.6: folders ``rgb``, ``mask``, ``normal``, ``depth``, ``albedo``,
``camera_intrinsics``, ``camera_extrinsics`` with files of the same names, in one place or in a folder for each scan.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_modules.images import EXTENSIONS
from data_modules.importers.base import Importer, ImportFailedError, RejectedError, Source, by_stem, key_of, unmatched
from data_modules.importers.frame_check import axis_agreement, check_frame
from data_modules.importers.pictures import first_channel, load_picture, make_members, read_plane, require_size
from data_modules.shards.format import NORMALS_FRAMES

#: What a field's folder may be called.
FOLDERS = {
    "image": ("rgb", "rgbs", "image", "images"),
    "mask": ("mask", "masks"),
    "normals": ("normal", "normals"),
    "depth": ("depth", "depths"),
    "albedo": ("albedo", "albedos"),
    "intrinsics": ("camera_intrinsics", "intrinsics"),
    "extrinsics": ("camera_extrinsics", "extrinsics"),
}
_EXTENSIONS = {
    "image": EXTENSIONS,
    "mask": (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"),
    "normals": (".npy", ".npz", ".png"),
    "depth": (".npy", ".npz", ".png"),
    "albedo": (".png", ".webp", ".jpg", ".jpeg", ".tif", ".tiff"),
    "intrinsics": (".txt", ".npy"),
    "extrinsics": (".txt", ".npy"),
}
#: v1 classes whose normals the release does not train on: face and neck, hair, lips, teeth, tongue (spec 4.4).
_V1_FACE_AND_HAIR = (2, 3, 23, 24, 25, 26, 27)
_MIN_PIXELS = 16
_CHECKED_SAMPLES = 16


@dataclass(frozen=True)
class RenderRecord:
    """Files of one sample, relative to the root, by what they hold."""

    key: str
    files: dict[str, str]


@dataclass(frozen=True)
class RendersImporter(Importer):
    """Images of people with masks and dense labels, in folders of the same names.

    The mask becomes `alpha`; labels outside of it are dropped, and where they are not finite. Only names that have an
    image, a mask and all asked labels are taken.

    Attributes:
        root: Holds the folders of `FOLDERS`, or folders that hold them.
        fields: What to import: "normals", "depth", "albedo". Depth needs intrinsics.
        normals_frame: Frame of the source's normals, a key of `NORMALS_FRAMES`; the data are compared with it.
        seg: Folder of ``<name>_seg.npy`` with the 28 classes of the first Sapiens: normals of face, neck, hair and
            mouth are dropped. It is scaled to the picture where it is smaller.
        depth_unit: Metres of one unit of depth; 0.001 for millimetres.
        pixel_centre: Coordinate that the intrinsics give the centre of the first pixel: 0 where pixels are counted
            (OpenCV, spec 4.5), 0.5 where the principal point of a centred camera is half the width.
        decode: Decode each image once, to find damage.
    """

    name = "renders"

    root: Path
    fields: tuple[str, ...]
    normals_frame: str | None = None
    seg: Path | None = None
    depth_unit: float = 1.0
    pixel_centre: float = 0.0
    decode: bool = True

    def scan(self) -> Source:
        if "normals" in self.fields and self.normals_frame not in NORMALS_FRAMES:
            raise ImportFailedError(f"the frame of the normals must be one of {', '.join(NORMALS_FRAMES)}")
        needed = ("image", "mask", *self.fields, *(("intrinsics",) if "depth" in self.fields else ()))
        records, missing = [], []
        for folder in self._scans(needed):
            files = {what: self._files(folder, what) for what in (*needed, "extrinsics")}
            for stem in files["image"]:
                present = {what: found[stem] for what, found in files.items() if stem in found}
                if all(what in present for what in needed):
                    records.append(RenderRecord(key_of(f"{(folder / stem).relative_to(self.root)}.key"), present))
                else:
                    missing.append(str((folder / stem).relative_to(self.root)))
        if not records:
            raise ImportFailedError(f"{self.root}: no name has all of {', '.join(needed)}")
        if "normals" in self.fields:
            self._check_frame(records)
        notes = unmatched(" and ".join(needed[1:]), missing) + self._camera_notes(records)
        info = {"source_normals_frame": self.normals_frame} if "normals" in self.fields else {}
        return Source(records, len(records), info, notes)

    def sample(self, record: RenderRecord) -> dict[str, bytes]:
        path = self.root / record.files["image"]
        picture = load_picture(path, self.decode)
        alpha = first_channel(read_plane(self.root / record.files["mask"]))
        require_size(path, picture, alpha.shape, record.files["mask"])
        labels: dict[str, Any] = {"alpha": alpha, "meta": self._meta(record)}
        if "normals" in self.fields:
            labels["normals"] = self._normals(record, alpha > 0)
        if "depth" in self.fields:
            labels["depth"] = self._depth(record, alpha > 0)
            labels["intrinsics"] = self._intrinsics(record)
        if "albedo" in self.fields:
            labels["albedo"] = self._albedo(record, alpha > 0)
        return make_members(record.key, picture, labels)

    def _scans(self, needed: tuple[str, ...]) -> list[Path]:
        """Folders that hold a folder of images, the root or some below it."""
        if not self.root.is_dir():
            raise ImportFailedError(f"{self.root}: no such folder")
        scans = list(_scans_below(self.root))
        if not scans:
            wanted = ", ".join("/".join(FOLDERS[what][:2]) for what in needed)
            raise ImportFailedError(f"{self.root}: no folders {wanted} in it or in a folder of it")
        return scans

    def _files(self, folder: Path, what: str) -> dict[str, str]:
        place = next((folder / name for name in FOLDERS[what] if (folder / name).is_dir()), None)
        if place is None:
            return {}
        return {
            stem: str((place / file).relative_to(self.root)) for stem, file in by_stem(place, _EXTENSIONS[what]).items()
        }

    def _check_frame(self, records: list[RenderRecord]) -> None:
        agreements = []
        for record in islice(records, 0, None, max(1, len(records) // _CHECKED_SAMPLES)):
            try:
                normals = self._normals(record, first_channel(read_plane(self.root / record.files["mask"])) > 0)
            except RejectedError:
                continue  # it is told of when its turn comes
            agreement = axis_agreement(normals, (normals != 0).any(axis=2))
            agreements += [agreement] if agreement is not None else []
        problem = check_frame(agreements, self.normals_frame)
        if problem:
            raise ImportFailedError(f"{self.root}: {problem}")

    def _camera_notes(self, records: list[RenderRecord]) -> tuple[str, ...]:
        if "depth" not in self.fields or self.pixel_centre != 0:
            return ()
        try:
            matrix = _matrix(self.root / records[0].files["intrinsics"], (3, 3))
            width = read_plane(self.root / records[0].files["mask"]).shape[1]
        except RejectedError:
            return ()
        if matrix[0, 2] != width / 2:
            return ()
        return (
            f"the principal point is {matrix[0, 2]:g}, half the width: such cameras mostly have the first pixel's "
            "centre at 0.5; if yours does, import with --pixel-centre 0.5",
        )

    def _meta(self, record: RenderRecord) -> dict[str, Any]:
        meta: dict[str, Any] = {"file": record.files["image"]}
        if "extrinsics" in record.files:
            meta["extrinsics"] = _matrix(self.root / record.files["extrinsics"], (4, 4)).tolist()
        return meta

    def _normals(self, record: RenderRecord, inside: np.ndarray) -> np.ndarray:
        path = self.root / record.files["normals"]
        normals = _array(path, "normal")
        if path.suffix.lower() == ".png":
            normals = normals[..., :3] / np.iinfo(normals.dtype).max * 2 - 1 if normals.ndim == 3 else normals
        if normals.shape != (*inside.shape, 3):
            raise RejectedError(f"{path}: {normals.shape}, the mask is {inside.shape}; normals are (H, W, 3)")
        normals = normals.astype(np.float32) * np.array(NORMALS_FRAMES[self.normals_frame], np.float32)
        length = np.linalg.norm(normals, axis=2)
        valid = inside & np.isfinite(length) & (length > 0.1)
        if self.seg is not None:
            valid &= ~np.isin(self._seg(record, inside.shape), _V1_FACE_AND_HAIR)
        _require_pixels(path, valid)
        # Adding 0 turns -0 into +0.
        return np.where(valid[..., None], normals / np.where(valid, length, 1)[..., None] + 0, 0).astype(np.float32)

    def _seg(self, record: RenderRecord, size: tuple[int, ...]) -> np.ndarray:
        path = self.seg / f"{Path(record.files['image']).stem}_seg.npy"
        seg = _array(path, "seg")
        if seg.ndim != 2 or seg.shape[0] * size[1] != seg.shape[1] * size[0]:
            raise RejectedError(f"{path}: {seg.shape}, the picture is {size}; they must have the same aspect")
        return cv2.resize(seg.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)

    def _depth(self, record: RenderRecord, inside: np.ndarray) -> np.ndarray:
        path = self.root / record.files["depth"]
        depth = _array(path, "depth").astype(np.float64) * self.depth_unit
        if depth.shape != inside.shape:
            raise RejectedError(f"{path}: {depth.shape}, the mask is {inside.shape}; depth is (H, W)")
        valid = inside & np.isfinite(depth) & (depth > 0)
        _require_pixels(path, valid)
        return np.where(valid, depth, 0).astype(np.float32)

    def _intrinsics(self, record: RenderRecord) -> np.ndarray:
        path = self.root / record.files["intrinsics"]
        matrix = _matrix(path, (3, 3))
        if not (matrix[0, 0] > 0 and matrix[1, 1] > 0 and abs(matrix[2, 2] - 1) < 1e-6):
            raise RejectedError(f"{path}: not a camera matrix [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]")
        matrix[:2, 2] += 0.5 - self.pixel_centre
        return matrix

    def _albedo(self, record: RenderRecord, inside: np.ndarray) -> np.ndarray:
        path = self.root / record.files["albedo"]
        albedo = load_picture(path).pixels
        if albedo.shape[:2] != inside.shape:
            raise RejectedError(f"{path}: {albedo.shape[:2]}, the mask is {inside.shape}")
        _require_pixels(path, inside)
        if (albedo[inside].std(axis=0) / 255 < 0.02).all():
            raise RejectedError(f"{path}: one colour all over the person; the albedo is missing")
        return np.where(inside[..., None], albedo, 0).astype(np.uint8)


def _scans_below(folder: Path) -> Iterator[Path]:
    """Folders that hold folders of images and of masks; those that do are not searched further."""
    inside = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    names = {entry.name for entry in inside}
    if names & set(FOLDERS["image"]) and names & set(FOLDERS["mask"]):
        yield folder
        return
    for entry in inside:
        yield from _scans_below(entry)


def _array(path: Path, name: str) -> np.ndarray:
    """The array of an .npy file, of an .npz file (the one called `name`, or its only one) or of a picture."""
    if path.suffix.lower() == ".png":
        return read_plane(path)
    try:
        content = np.load(path, allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            return content
        with content:
            chosen = name if name in content.files else content.files[0] if len(content.files) == 1 else None
            if chosen is None:
                raise RejectedError(f"{path}: has {', '.join(content.files)}, none of them {name!r}")
            return content[chosen]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RejectedError(f"{path}: not readable ({error})") from None


def _matrix(path: Path, shape: tuple[int, int]) -> np.ndarray:
    try:
        text = path.read_text() if path.suffix == ".txt" else None
        matrix = np.array(text.replace(",", " ").split(), float) if text is not None else np.load(path)
        matrix = matrix.reshape(shape).astype(np.float64)
    except (OSError, ValueError) as error:
        raise RejectedError(f"{path}: not a matrix of {shape[0]} x {shape[1]} numbers ({error})") from None
    if not np.isfinite(matrix).all():
        raise RejectedError(f"{path}: numbers that are not finite")
    return matrix


def _require_pixels(path: Path, valid: np.ndarray) -> None:
    if valid.sum() < _MIN_PIXELS:
        raise RejectedError(
            f"{path}: {int(valid.sum())} pixels with a value inside of the mask; {_MIN_PIXELS} are needed"
        )
