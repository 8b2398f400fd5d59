"""Class lists of part segmentation: names, left-right flips and colours (spec 4.3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from s2kit.schemas.files import SchemaError, check_entries, read_schema


@dataclass(frozen=True)
class PartClass:
    """One class: its id, name, RGB colour, and the id it becomes in a mirrored image."""

    id: int
    name: str
    flip: int
    color: tuple[int, int, int]


@dataclass(frozen=True)
class ClassList:
    """An ordered list of classes; label maps hold their ids, or `ignore_index` where there is no label."""

    name: str
    classes: tuple[PartClass, ...]
    ignore_index: int

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(entry.name for entry in self.classes)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Name -> id."""
        return {entry.name: entry.id for entry in self.classes}

    @cached_property
    def flip_table(self) -> np.ndarray:
        """uint8 (256,): `flip_table[labels]` is what a mirrored label map holds; other values stay."""
        table = np.arange(256, dtype=np.uint8)
        table[: len(self)] = [entry.flip for entry in self.classes]
        return table

    @cached_property
    def colors(self) -> np.ndarray:
        """uint8 (C, 3), RGB."""
        return np.array([entry.color for entry in self.classes], dtype=np.uint8)


@lru_cache(maxsize=16)
def load_class_list(name: int | str | Path = 29) -> ClassList:
    """Loads and checks a class list: a packaged one by name ("sapiens2-29") or number of classes, or a file by path.

    Raises:
        SchemaError: no such list, or it contradicts itself; the message names the file and the class.
    """
    file, data = read_schema("parts", name)
    try:
        classes = tuple(PartClass(**{**entry, "color": tuple(entry["color"])}) for entry in data["classes"])
        schema = ClassList(data["name"], classes, data["ignore_index"])
    except KeyError as error:
        raise SchemaError(f"{file}: {error} is missing") from error
    except TypeError as error:
        raise SchemaError(f"{file}: a class has a wrong or missing field: {error}") from error
    check_entries(file, schema.classes)
    if not len(classes) <= schema.ignore_index <= 255:
        raise SchemaError(f"{file}: ignore_index {schema.ignore_index} must be from {len(classes)} to 255")
    return schema
