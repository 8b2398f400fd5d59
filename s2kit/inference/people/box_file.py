"""Boxes from a file: COCO's annotations or results, our own JSON, or CSV."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from s2kit.errors import UserError
from s2kit.inference.people.boxes import MAX_OVERLAP, MIN_SCORE, People, in_picture, make_people, select

#: What a file of boxes may be, for errors.
FORMATS = (
    "COCO annotations or results (bbox [x, y, width, height]), JSON {name: [[x0, y0, x1, y1, score], ...]}, or CSV "
    "with name,x0,y0,x1,y1,score (scores may be left out)"
)
#: COCO's category of people, where a file does not list its categories.
PERSON = 1


class BoxFile:
    """People's boxes from a file.

    A picture is found by its path, as far as the file gives it: ``people/a.jpg`` in the file is the picture
    ``/data/people/a.jpg``, and so is ``a.jpg``; a name without extension is that of any; COCO's numbers of images are
    those of pictures called so (``000000000139.jpg`` is 139). A picture that the file does not name has no people, and
    ``report`` counts these.

    Boxes with scores are a detector's: those below ``min_score`` go, and so does the less certain of two that overlap
    by more than ``nms``. Boxes without are all kept. Crowds, other categories than people, and boxes without area or
    outside of the picture are left out.

    Args:
        path: The file; see ``FORMATS``.
        min_score: Smallest score.
        nms: Largest overlap (IoU) of two boxes; None keeps all.

    Raises:
        UserError: If there is no such file, it is of another format, or a box makes no sense; the text names the entry.
    """

    def __init__(self, path: str | Path, min_score: float = MIN_SCORE, nms: float | None = MAX_OVERLAP) -> None:
        self.path, self.min_score, self.nms = Path(path), min_score, nms
        #: Rows x0, y0, x1, y1, score (NaN: none) and the number of the image in COCO (None: none), by place.
        self._rows: list[list[tuple[float, ...]]] = []
        self._numbers: list[int | None] = []
        self._by_name: dict[str, list[tuple[tuple[str, ...], int]]] = {}
        self._by_number: dict[int, int] = {}
        self._asked = self._unknown = self._unusable = self._low = 0
        self._few: list[str] = []
        for name, number, row in self._read():
            place = self._place(name, number)
            if row is not None:
                self._rows[place].append(row)
        if not self._rows:
            raise UserError(f"{path}: it holds no boxes")
        self.detects = any(not math.isnan(row[4]) for rows in self._rows for row in rows)

    def __call__(self, names: Sequence[str], pictures: Sequence[np.ndarray]) -> list[People]:
        """See ``BoxSource``.

        Raises:
            UserError: If several pictures of the file may be meant.
        """
        places = [self._find(name) for name in names]
        return [self._people(*one) for one in zip(names, places, (picture.shape[:2] for picture in pictures))]

    def report(self) -> str:
        parts = []
        if self._unknown:
            few = ", ".join(self._few) + (", ..." if self._unknown > len(self._few) else "")
            parts.append(f"it does not name {self._unknown} of {self._asked} pictures ({few}): taken as without people")
        if self._unusable:
            parts.append(f"{self._unusable} boxes have no area or lie outside of their picture and were left out")
        if self._low:
            parts.append(f"{self._low} boxes score below --min-score {self.min_score:g} and were left out")
        return f"{self.path}: {'; '.join(parts)}" if parts else ""

    def image_number(self, name: str) -> int | None:
        """Return the number of a picture in a COCO file; None if there is none."""
        place = self._find(name)
        return None if place is None else self._numbers[place]

    def _people(self, name: str, place: int | None, size: tuple[int, int]) -> People:
        self._asked += 1
        if place is None:
            self._unknown += 1
            if len(self._few) < 3:
                self._few.append(_parts(name)[-1])
            return make_people([])
        rows = np.array(self._rows[place], np.float64).reshape(-1, 5)
        plain = np.isnan(rows[:, 4])
        people = make_people(rows[:, :4], np.where(plain, 1, rows[:, 4]))
        usable = in_picture(people, size)
        self._unusable += people.number - usable.number
        if plain.all():
            return usable
        self._low += int((usable.scores < self.min_score).sum())
        return select(usable, self.min_score, self.nms)

    def _find(self, name: str) -> int | None:
        parts = _parts(name)
        stem, dot, _ = parts[-1].rpartition(".")
        found = self._matching(parts)
        if not found and dot:
            found = self._matching((*parts[:-1], stem))
        if not found and dot and stem.isdigit() and int(stem) in self._by_number:
            return self._by_number[int(stem)]
        if len(found) > 1:
            raise UserError(f"{self.path}: {name} may be any of {len(found)} pictures of this name: give longer paths")
        return found[0] if found else None

    def _matching(self, parts: tuple[str, ...]) -> list[int]:
        """Places of the pictures whose path ends as this one does; of several the one that agrees longest."""
        found: dict[int, list[int]] = {}
        for other, place in self._by_name.get(parts[-1], ()):
            common = min(len(parts), len(other))
            if parts[-common:] == other[-common:]:
                found.setdefault(common, []).append(place)
        return found[max(found)] if found else []

    def _place(self, name: str | None, number: int | None) -> int:
        """Place of a picture's rows, made if it is new."""
        if name is None:
            if number not in self._by_number:
                self._by_number[number] = self._new(number)
            return self._by_number[number]
        parts = _parts(name)
        for other, place in self._by_name.setdefault(parts[-1], []):
            if other == parts:
                return place
        place = self._new(number)
        self._by_name[parts[-1]].append((parts, place))
        return place

    def _new(self, number: int | None) -> int:
        self._rows.append([])
        self._numbers.append(number)
        return len(self._rows) - 1

    # ------------------------------------------------------------------------------------------------ formats

    def _read(self) -> Iterator[tuple[str | None, int | None, tuple[float, ...] | None]]:
        """Yield name, number and row of each box; a picture without boxes has one entry without row."""
        try:
            text = self.path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise UserError(f"{self.path}: no text; boxes come as {FORMATS}") from None
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UserError(f"{self.path}: the file of boxes cannot be read: {reason}") from None
        if not text.strip():
            raise UserError(f"{self.path}: the file is empty; boxes come as {FORMATS}")
        if text.lstrip()[0] not in "[{":
            return self._read_csv(text)
        try:
            content = json.loads(text)
        except ValueError as error:
            raise UserError(f"{self.path}: not valid JSON: {error}") from None
        if isinstance(content, list):
            return self._read_results(content)
        if "annotations" in content and "images" in content:
            return self._read_annotations(content)
        return self._read_own(content)

    def _read_own(self, content: dict[str, Any]) -> Iterator[tuple[str | None, int | None, tuple[float, ...] | None]]:
        for name, boxes in content.items():
            if not isinstance(boxes, list):
                raise UserError(f"{self.path}: {name!r} has no list of boxes; boxes come as {FORMATS}")
            yield name, None, None
            for box in boxes:
                yield name, None, self._row(name, box)

    def _read_csv(self, text: str) -> Iterator[tuple[str | None, int | None, tuple[float, ...] | None]]:
        for number, cells in enumerate(csv.reader(text.splitlines()), 1):
            cells = [cell.strip() for cell in cells]
            if not any(cells) or cells[0].startswith("#") or (number == 1 and cells[1:3] == ["x0", "y0"]):
                continue
            if len(cells) == 6 and not cells[5]:
                cells.pop()
            try:
                values = [float(cell) for cell in cells[1:]]
            except ValueError:
                values = []
            if len(values) not in (4, 5):
                raise UserError(f"{self.path}: line {number} is {','.join(cells)!r}; boxes come as {FORMATS}")
            yield cells[0], None, self._row(f"line {number}", values)

    def _read_annotations(
        self, content: dict[str, Any]
    ) -> Iterator[tuple[str | None, int | None, tuple[float, ...] | None]]:
        names = {}
        for image in content["images"]:
            if not isinstance(image, dict) or not {"id", "file_name"} <= set(image):
                raise UserError(f"{self.path}: an image has no id or no file_name: {_short(image)}")
            names[image["id"]] = image["file_name"]
            yield image["file_name"], _number(image["id"]), None
        people = [entry.get("id") for entry in content.get("categories") or () if entry.get("name") == "person"]
        for index, entry in enumerate(content["annotations"]):
            if entry.get("category_id", PERSON) not in (people or [PERSON]) or entry.get("iscrowd"):
                continue
            if entry.get("image_id") not in names:
                raise UserError(
                    f"{self.path}: annotations[{index}] is of image {entry.get('image_id')!r}, which is none"
                )
            yield names[entry["image_id"]], None, self._coco_row(f"annotations[{index}]", entry)

    def _read_results(self, content: list[Any]) -> Iterator[tuple[str | None, int | None, tuple[float, ...] | None]]:
        for index, entry in enumerate(content):
            where = f"entry {index}"
            if not isinstance(entry, dict) or "image_id" not in entry:
                raise UserError(f"{self.path}: {where} has no image_id: {_short(entry)}; boxes come as {FORMATS}")
            if entry.get("category_id", PERSON) != PERSON:
                continue
            number = _number(entry["image_id"])
            name = entry.get("file_name") or (None if number is not None else str(entry["image_id"]))
            yield name, number, self._coco_row(where, entry)

    def _coco_row(self, where: str, entry: dict[str, Any]) -> tuple[float, ...]:
        box = entry.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
            raise UserError(f"{self.path}: {where} has bbox {_short(box)}; it must be [x, y, width, height]")
        x, y, width, height = box
        if width < 0 or height < 0:
            raise UserError(f"{self.path}: {where} has bbox {box} of negative size; it must be [x, y, width, height]")
        # In our own results of poses "score" is the pose's.
        scores = [entry[name] for name in ("box_score", "score") if name in entry][:1]
        return self._row(where, [x, y, x + width, y + height, *scores])

    def _row(self, where: str, values: Any) -> tuple[float, ...]:
        numbers = isinstance(values, list) and all(isinstance(v, int | float) for v in values)
        if not numbers or len(values) not in (4, 5) or not all(math.isfinite(v) for v in values):
            raise UserError(
                f"{self.path}: {where} has the box {_short(values)}; it must be [x0, y0, x1, y1] or with score"
            )
        if values[2] < values[0] or values[3] < values[1]:
            raise UserError(
                f"{self.path}: {where} has the box {values}, which ends before it begins: give x0, y0, x1, y1 "
                f"(left, top, right, bottom), not width and height"
            )
        return (*values, math.nan) if len(values) == 4 else tuple(values)


def _parts(name: str | Path) -> tuple[str, ...]:
    return PurePosixPath(str(name).replace("\\", "/")).parts or ("",)


def _number(value: Any) -> int | None:
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, str) and value.isdigit() else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
