"""A picture of many samples with every label drawn: the quickest way to see that data is right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_modules.shards.format import SCHEMAS
from data_modules.verification import class_list, keypoint_set, people_of
from s2kit.inference.drawing import draw_normals, fit_height
from s2kit.schemas import ClassList, KeypointSet, load_class_list, load_keypoint_set

_OCCLUDED, _VISIBLE = 1, 2
_GAP = 4
_IGNORED_COLOUR = (255, 255, 255)
_BOX_COLOUR = (255, 255, 255)


@dataclass(frozen=True)
class SheetSchemas:
    """What keypoints and parts of a set are; None where the schema is not known, and they are not drawn."""

    keypoints: KeypointSet | None
    parts: ClassList | None


def sheet_schemas(folder: Path, manifest: dict[str, Any]) -> SheetSchemas:
    """Return the schemas that a manifest names, packaged ones or files beside it."""
    names = {**SCHEMAS, **manifest.get("schemas", {})}
    return SheetSchemas(keypoint_set(folder, names["keypoints"]), class_list(folder, names["parts"]))


def draw_sheet(
    samples: list[dict[str, Any]], tile_height: int = 160, columns: int = 2, schemas: SheetSchemas | None = None
) -> np.ndarray:
    """Draw raw samples side by side, `columns` to a row; (h, w, 3) uint8 RGB.

    A sample shows its image, alpha, normals ((n + 1) / 2 as RGB: blue to the camera, red to the right, green up), depth
    (bright is near), albedo, foreground, parts in the colours of their classes, and people with skeleton and box; what
    it does not have is left out. Occluded keypoints are rings. Without `schemas`, labels are the kit's own 308 points
    and 29 classes.
    """
    strips = [draw_sample(sample, tile_height, schemas) for sample in samples]
    width = max(strip.shape[1] for strip in strips)
    strips = [np.pad(s, ((0, _GAP), (0, width - s.shape[1] + 2 * _GAP), (0, 0)), constant_values=16) for s in strips]
    strips += [np.full_like(strips[0], 16)] * (-len(strips) % columns)
    rows = [np.hstack(strips[first : first + columns]) for first in range(0, len(strips), columns)]
    return np.vstack(rows)


def draw_sample(sample: dict[str, Any], height: int, schemas: SheetSchemas | None = None) -> np.ndarray:
    """One raw sample as a strip of pictures of the given height."""
    schemas = schemas or SheetSchemas(load_keypoint_set(308), load_class_list(29))
    tiles = [sample["image"]]
    if "alpha" in sample:
        tiles.append(np.repeat(sample["alpha"][..., None], 3, axis=2))
    if "normals" in sample:
        tiles.append(draw_normals(sample["normals"], (sample["normals"] != 0).any(axis=2)))
    if "depth" in sample:
        tiles.append(_draw_depth(sample["depth"]))
    tiles += [sample[name] for name in ("albedo", "foreground") if name in sample]
    if "parts" in sample and schemas.parts:
        classes = schemas.parts
        colours = np.full((256, 3), _IGNORED_COLOUR, np.uint8)
        colours[: len(classes)] = classes.colors
        tiles.append(colours[sample["parts"]])
    tiles = [fit_height(tile, height) for tile in tiles]
    people = people_of(sample)
    if people:
        tiles.append(_draw_people(sample["image"], people, height, schemas.keypoints))
    return np.hstack(tiles)


def _draw_depth(depth: np.ndarray) -> np.ndarray:
    seen = depth > 0
    if not seen.any():
        return np.zeros((*depth.shape, 3), np.uint8)
    near, far = depth[seen].min(), depth[seen].max()
    scaled = 255 - 215 * (depth - near) / max(far - near, 1e-6)
    picture = cv2.applyColorMap(np.clip(scaled, 0, 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1].copy()
    picture[~seen] = 0
    return picture


def _draw_people(
    image: np.ndarray, people: list[dict[str, Any]], height: int, schema: KeypointSet | None
) -> np.ndarray:
    picture = np.ascontiguousarray(fit_height(image, height) // 2)
    for person in people:
        _draw_person(picture, person, height / image.shape[0], schema)
    return picture


def _draw_person(picture: np.ndarray, person: dict[str, Any], scale: float, schema: KeypointSet | None) -> None:
    def pixel(point: np.ndarray) -> tuple[int, int]:
        return int(point[0] * scale), int(point[1] * scale)

    if "box" in person and person["box"][2] > person["box"][0]:
        cv2.rectangle(picture, pixel(person["box"][:2]), pixel(person["box"][2:]), _BOX_COLOUR, 1)
    if schema is None or "keypoints" not in person or len(person["keypoints"]) != len(schema):
        return
    points, seen = person["keypoints"], person["visibility"]
    for link in schema.links:
        if seen[link.start] and seen[link.end]:
            colour = tuple(int(c) for c in link.color)
            cv2.line(picture, pixel(points[link.start]), pixel(points[link.end]), colour, 1, cv2.LINE_AA)
    for point in schema.keypoints:
        colour = tuple(int(c) for c in point.color)
        if seen[point.id] == _VISIBLE:
            cv2.circle(picture, pixel(points[point.id]), 1, colour, -1)
        elif seen[point.id] == _OCCLUDED:
            cv2.circle(picture, pixel(points[point.id]), 2, colour, 1)
