"""COCO-style keypoint annotations: COCO (17), COCO-WholeBody (133), 308 points of Sapiens2, Human-Art and others."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_modules.importers.base import Importer, ImportFailedError, Source, key_of
from data_modules.importers.flip_check import check_flips
from data_modules.importers.pictures import load_picture, make_members, require_size
from s2kit.schemas import KeypointSet, SchemaError, load_keypoint_set
from s2kit.schemas.files import PACKAGED

#: Annotation fields of a schema's points, one after the other; each holds x, y, v of its points.
FIELDS = {
    "coco-17": ("keypoints",),
    "coco-wholebody-133": ("keypoints", "foot_kpts", "face_kpts", "lefthand_kpts", "righthand_kpts"),
    "sapiens2-308": ("goliath_wholebody_kpts",),
}
#: Fields that say whether another one was annotated at all (COCO-WholeBody).
_VALID = {
    "foot_kpts": "foot_valid",
    "face_kpts": "face_valid",
    "lefthand_kpts": "lefthand_valid",
    "righthand_kpts": "righthand_valid",
}
_CHECKED_PEOPLE = 2000


@dataclass(frozen=True)
class ImageRecord:
    """An image of a COCO file: (height, width) stated by it, and its people as raw samples have them."""

    key: str
    file: str
    size: tuple[int, int]
    people: list[dict[str, Any]]
    meta: dict[str, Any]


@dataclass(frozen=True)
class CocoImporter(Importer):
    """Images with the keypoints of their people, one sample an image.

    People without a labelled point, with an empty box or marked as a crowd are left out, and images without people.
    COCO counts pixels, so that (0, 0) is the centre of the first one; it becomes (0.5, 0.5). Boxes are continuous
    there already.

    Attributes:
        annotations: The JSON file.
        images: Folder that the file names of the JSON are relative to.
        schema: Name of a keypoint set, or the path of the user's own.
        fields: Annotation fields that hold x, y, v of the points; None for those of `FIELDS`.
        box_field: Annotation field of the box, x, y, width, height.
        pixel_centre: Coordinate that the file gives the centre of the first pixel: 0 in COCO, 0.5 where coordinates
            are continuous.
        category: Name of the category to take; None for all.
        keep_crowds: Keep people marked as a crowd, as `iscrowd`; some evaluations need them.
        keep_empty: Keep images without people.
        decode: Decode each image once, to find damage.
    """

    name = "coco"

    annotations: Path
    images: Path
    schema: str = "coco-17"
    fields: tuple[str, ...] | None = None
    box_field: str = "bbox"
    pixel_centre: float = 0.0
    category: str | None = "person"
    keep_crowds: bool = False
    keep_empty: bool = False
    decode: bool = True

    def scan(self) -> Source:
        schema, fields = self._load_schema()
        content = self._read(fields)
        categories, notes = self._check_categories(content, schema)
        people, left_out = self._people(content, schema, fields, categories)
        points = [p["keypoints"] for entries in people.values() for p in entries if not p.get("iscrowd")]
        problem = check_flips(schema, np.array(points[:_CHECKED_PEOPLE]).reshape(-1, len(schema), 2))
        if problem:
            raise ImportFailedError(f"{self.annotations}: {problem}; check the order of the points and the schema")
        records = self._records(content, people)
        if not records:
            raise ImportFailedError(f"{self.annotations}: no image has people with labelled {' and '.join(fields)}")
        notes += tuple(f"{count} people left out: {reason}" for reason, count in sorted(left_out.items()))
        name, files = _schema_name(self.schema, schema)
        about = content.get("info")
        source = {}
        if isinstance(about, dict) and about.get("description"):
            source = {"source": str(about["description"])}
        info = {**source, "schemas": {"keypoints": name}, "keypoints_pixel_centre": self.pixel_centre}
        return Source(records, len(records), info, notes, files)

    def sample(self, record: ImageRecord) -> dict[str, bytes]:
        path = self.images / record.file
        picture = load_picture(path, self.decode)
        require_size(path, picture, record.size, self.annotations.name)
        return make_members(record.key, picture, {"people": record.people, "meta": record.meta})

    def _load_schema(self) -> tuple[KeypointSet, tuple[str, ...]]:
        try:
            schema = load_keypoint_set(self.schema)
        except SchemaError as error:
            raise ImportFailedError(str(error)) from None
        return schema, self.fields or FIELDS.get(self.schema, ("keypoints",))

    def _read(self, fields: tuple[str, ...]) -> dict[str, Any]:
        def slim(entry: dict[str, Any]) -> dict[str, Any]:
            # While parsing: a file of 150 000 people with 133 points does not fit in memory as Python numbers.
            entry.pop("segmentation", None)
            for name in fields:
                if isinstance(entry.get(name), list):
                    try:
                        entry[name] = np.array(entry[name], np.float64).astype(np.float32)
                    except (TypeError, ValueError):
                        continue  # a category's list of names
            return entry

        try:
            with open(self.annotations, encoding="utf-8") as file:
                content = json.load(file, object_hook=slim)
        except OSError as error:
            raise ImportFailedError(f"{self.annotations}: {error.strerror or error}") from None
        except ValueError as error:
            raise ImportFailedError(f"{self.annotations}: not JSON ({error})") from None
        if not isinstance(content, dict) or not all(
            isinstance(content.get(n), list) for n in ("images", "annotations")
        ):
            raise ImportFailedError(
                f"{self.annotations}: not a COCO file; it must hold the lists images and annotations"
            )
        if not self.images.is_dir():
            raise ImportFailedError(f"{self.images}: no such folder of images")
        return content

    def _check_categories(
        self, content: dict[str, Any], schema: KeypointSet
    ) -> tuple[set[Any] | None, tuple[str, ...]]:
        """Ids of the category to take, and notes; its names of points must be the schema's."""
        entries = [entry for entry in content.get("categories") or [] if isinstance(entry, dict)]
        if self.category is None or not entries:
            chosen, ids = entries, None
        else:
            chosen = [entry for entry in entries if entry.get("name") == self.category]
            if not chosen:
                names = ", ".join(str(entry.get("name")) for entry in entries)
                raise ImportFailedError(f"{self.annotations}: no category {self.category!r}; it has {names}")
            ids = {entry.get("id") for entry in chosen}
        notes: tuple[str, ...] = ()
        for entry in chosen:
            stated = entry.get("keypoints")
            if isinstance(stated, list) and stated and all(isinstance(name, str) for name in stated):
                notes += self._check_names(stated, schema)
        return ids, notes

    def _check_names(self, stated: list[str], schema: KeypointSet) -> tuple[str, ...]:
        """Compare names; a note where they cannot be."""
        body = schema.groups.get("body", ())
        # Files of 133 and 308 points list the names of the 17 body points only.
        ours = schema.names if len(stated) == len(schema) else tuple(schema.names[i] for i in body)
        if len(stated) != len(ours):
            return (
                f"the category lists {len(stated)} names and {schema.name} has {len(schema)} points: they were not "
                "compared",
            )
        for number, (theirs, name) in enumerate(zip(stated, ours)):
            if _plain(theirs) != _plain(name):
                raise ImportFailedError(
                    f"{self.annotations}: its keypoint {number} is {theirs!r}, that of {schema.name} is {name!r}; give "
                    "the schema that the file follows with --schema"
                )
        return ()

    def _people(
        self, content: dict[str, Any], schema: KeypointSet, fields: tuple[str, ...], categories: set[Any] | None
    ) -> tuple[dict[Any, list[dict[str, Any]]], Counter[str]]:
        sizes = {image.get("id"): self._size(number, image) for number, image in enumerate(content["images"])}
        people: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        left_out: Counter[str] = Counter()
        for number, entry in enumerate(content["annotations"]):
            if categories is not None and entry.get("category_id") not in categories:
                continue
            image = entry.get("image_id")
            if image not in sizes:
                raise ImportFailedError(f"{self.annotations}: annotations[{number}] is of image {image!r}, not listed")
            person = self._person(number, entry, schema, fields, sizes[image])
            if isinstance(person, str):
                left_out[person] += 1
            else:
                people[image].append(person)
        return people, left_out

    def _size(self, number: int, image: dict[str, Any]) -> tuple[int, int]:
        size = (image.get("height"), image.get("width"))
        if not isinstance(image.get("file_name"), str) or not all(isinstance(n, int) and n > 0 for n in size):
            raise ImportFailedError(f"{self.annotations}: images[{number}] lacks file_name, height or width")
        return size

    def _person(
        self, number: int, entry: dict[str, Any], schema: KeypointSet, fields: tuple[str, ...], size: tuple[Any, Any]
    ) -> dict[str, Any] | str:
        """A person as raw samples have it, or why there is none."""
        crowd = bool(entry.get("iscrowd"))
        if crowd and not self.keep_crowds:
            return "a crowd"
        box = _clipped(entry.get(self.box_field), size)
        if box is None:
            return f"no {self.box_field} within the image"
        points = self._points(number, entry, fields, len(schema))
        visibility = np.where(points[:, 2] >= 1.5, 2, np.where(points[:, 2] > 0, 1, 0)).astype(np.uint8)
        visibility[~np.isfinite(points[:, :2]).all(axis=1)] = 0
        if not visibility.any() and not crowd:
            return "no labelled keypoint"
        if (points[visibility > 0, :2] <= 0).all() and not crowd:
            return "all keypoints at 0 or below"
        position = np.where(visibility[:, None] > 0, points[:, :2] + np.float32(0.5 - self.pixel_centre), np.nan)
        person: dict[str, Any] = {"id": entry.get("id", number), "box": box}
        person |= {"keypoints": position.astype(np.float32), "visibility": visibility}
        if isinstance(entry.get("area"), int | float):
            person["area"] = float(entry["area"])
        return person | ({"iscrowd": True} if crowd else {})

    def _points(self, number: int, entry: dict[str, Any], fields: tuple[str, ...], count: int) -> np.ndarray:
        groups = []
        for name in fields:
            values = entry.get(name)
            if not isinstance(values, np.ndarray):
                if entry.get("iscrowd"):
                    return np.zeros((count, 3), np.float32)
                has = ", ".join(sorted(field for field, value in entry.items() if isinstance(value, list | np.ndarray)))
                raise ImportFailedError(
                    f"{self.annotations}: annotations[{number}] has no list {name!r}; its lists are {has or 'none'}"
                )
            group = values.reshape(-1, 3).copy() if values.ndim == 1 and values.size % 3 == 0 else values
            if group.ndim != 2 or group.shape[1] != 3:
                raise ImportFailedError(
                    f"{self.annotations}: annotations[{number}].{name} has {values.size} numbers, not x, y, v of each"
                )
            if entry.get(_VALID.get(name, "")) is False:
                group[:, 2] = 0
            groups.append(group)
        points = np.concatenate(groups)
        if len(points) != count:
            raise ImportFailedError(
                f"{self.annotations}: annotations[{number}] has {len(points)} keypoints in {' + '.join(fields)}, "
                f"{self.schema} has {count}"
            )
        return points

    def _records(self, content: dict[str, Any], people: dict[Any, list[dict[str, Any]]]) -> list[ImageRecord]:
        licences = {entry.get("id"): entry for entry in content.get("licenses") or [] if isinstance(entry, dict)}
        records: dict[str, ImageRecord] = {}
        for number, image in enumerate(content["images"]):
            found = people.get(image.get("id"), [])
            if not found and not self.keep_empty:
                continue
            file, size = image["file_name"], self._size(number, image)
            if file.startswith("/") or ".." in Path(file).parts:
                raise ImportFailedError(
                    f"{self.annotations}: images[{number}].file_name {file!r} leads out of the folder"
                )
            meta: dict[str, Any] = {"image_id": image["id"], "file": file}
            licence = licences.get(image.get("license"))
            if licence:
                meta["licence"] = licence.get("url") or licence.get("name")
            if image.get("coco_url") or image.get("flickr_url"):
                meta["url"] = image.get("flickr_url") or image["coco_url"]
            key = key_of(file)
            if key in records:
                raise ImportFailedError(f"{self.annotations}: two images would have the key {key!r} (images[{number}])")
            records[key] = ImageRecord(key, file, size, found, meta)
        return [records[key] for key in sorted(records)]


def _plain(name: str) -> str:
    """A keypoint's name without how it is written: "Left Big-Toe" and "left_bigtoe" are the same."""
    return "".join(character for character in name.lower() if character.isalnum())


def _clipped(box: Any, size: tuple[Any, Any]) -> np.ndarray | None:
    """x, y, width, height as x, y, x, y within the image; None where that is empty."""
    if not isinstance(box, list | np.ndarray) or len(box) != 4:
        return None
    x, y, width, height = (float(value) for value in box)
    rows, columns = size
    corners = np.array([max(x, 0), max(y, 0), min(x + width, columns), min(y + height, rows)], np.float32)
    return corners if corners[2] > corners[0] and corners[3] > corners[1] else None


def _schema_name(given: str, schema: KeypointSet) -> tuple[str, dict[str, bytes]]:
    """The name for the manifest, and the file to keep beside it where the schema is the user's own."""
    if given in PACKAGED["keypoints"]:
        return given, {}
    name = schema.name.lower().replace("_", "-")
    return name, {f"{name}.json": Path(given).read_bytes()}
