"""Keypoint sets: names, left-right flips, groups, OKS sigmas, colours and skeleton links (spec 4.2.5)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from s2kit.schemas.files import SchemaError, check_entries, read_schema

HALVES = ("upper", "lower", None)


@dataclass(frozen=True)
class Keypoint:
    """One keypoint.

    Attributes:
        id: position in the set.
        name: unique name.
        flip: id of the point it becomes in a mirrored image; its own id on the midline.
        half_body: "upper", "lower" or None, for the half-body crops of training.
        sigma: the OKS constant.
        color: RGB, 0 to 255.
        coco_wholebody: id among the 133 of COCO-WholeBody, or None; of the 308 points only.
        id_344: id in the source schema of 344 points; of the 308 points only.
    """

    id: int
    name: str
    flip: int
    half_body: str | None
    sigma: float
    color: tuple[int, int, int]
    coco_wholebody: int | None = None
    id_344: int | None = None


@dataclass(frozen=True)
class Link:
    """A line of the drawn skeleton between two keypoint ids, with its RGB colour."""

    start: int
    end: int
    color: tuple[int, int, int]


@dataclass(frozen=True)
class KeypointSet:
    """An ordered set of keypoints.

    Attributes:
        name: such as "keypoints_308".
        keypoints: in the order of their ids.
        links: of the skeleton to draw.
        groups: name -> ids; together the groups hold each keypoint once. "body" is in COCO's order of 17.
        odd_flip_pairs: pairs whose numbers do not match; kept because the published weights were trained so.
    """

    name: str
    keypoints: tuple[Keypoint, ...]
    links: tuple[Link, ...]
    groups: dict[str, tuple[int, ...]]
    odd_flip_pairs: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.keypoints)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(point.name for point in self.keypoints)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Name -> id."""
        return {point.name: point.id for point in self.keypoints}

    @cached_property
    def flip_map(self) -> np.ndarray:
        """int64 (K,): row i of a mirrored image's keypoints comes from row flip_map[i]."""
        return np.array([point.flip for point in self.keypoints], dtype=np.int64)

    @cached_property
    def sigmas(self) -> np.ndarray:
        """float64 (K,)."""
        return np.array([point.sigma for point in self.keypoints])

    @cached_property
    def colors(self) -> np.ndarray:
        """uint8 (K, 3), RGB."""
        return np.array([point.color for point in self.keypoints], dtype=np.uint8)

    def half(self, half_body: str) -> tuple[int, ...]:
        """Ids of the "upper" or "lower" half of the body."""
        return tuple(point.id for point in self.keypoints if point.half_body == half_body)


def _validate(file: str, schema: KeypointSet) -> None:
    check_entries(file, schema.keypoints)
    for point in schema.keypoints:
        if not point.sigma > 0:
            raise SchemaError(f"{file}: {point.name!r} has sigma {point.sigma}; it must be positive")
        if point.half_body not in HALVES:
            raise SchemaError(f"{file}: {point.name!r} has half_body {point.half_body!r}; use upper, lower or null")
    for key in ("coco_wholebody", "id_344"):
        values = [getattr(point, key) for point in schema.keypoints if getattr(point, key) is not None]
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise SchemaError(f"{file}: {key} values {twice} occur twice")
    grouped = sorted(index for ids in schema.groups.values() for index in ids)
    if grouped != list(range(len(schema))):
        wrong = sorted(index for index in {*grouped, *range(len(schema))} if grouped.count(index) != 1)
        raise SchemaError(f"{file}: groups must hold each keypoint once; these are missing or repeated: {wrong}")
    for first, second in schema.odd_flip_pairs:
        if schema.keypoints[first].flip != second:
            raise SchemaError(f"{file}: odd_flip_pairs lists {first} and {second}, which do not flip to each other")


@lru_cache(maxsize=16)
def load_keypoint_set(name: int | str | Path = 308) -> KeypointSet:
    """Loads and checks a keypoint set: a packaged one by name ("coco-17") or number of points (17), or a file by path.

    Raises:
        SchemaError: no such set, or it contradicts itself; the message names the file and the keypoint.
    """
    file, data = read_schema("keypoints", name)
    try:
        keypoints = tuple(Keypoint(**{**entry, "color": tuple(entry["color"])}) for entry in data["keypoints"])
        ids = {point.name: point.id for point in keypoints}
        links = tuple(Link(ids[entry["from"]], ids[entry["to"]], tuple(entry["color"])) for entry in data["links"])
        groups = {group: tuple(members) for group, members in data["groups"].items()}
        odd = tuple(tuple(pair) for pair in data.get("odd_flip_pairs", {}).get("pairs", ()))
        schema = KeypointSet(data["name"], keypoints, links, groups, odd)
    except KeyError as error:
        raise SchemaError(f"{file}: {error} is missing, or a link names a keypoint that is not there") from error
    except TypeError as error:
        raise SchemaError(f"{file}: a keypoint has a wrong or missing field: {error}") from error
    _validate(file, schema)
    return schema
