"""Label maps: what the class ids or colours of a source's masks are in a class list of the kit (spec 4.3.2)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from s2kit.schemas.class_list import ClassList, load_class_list
from s2kit.schemas.files import SchemaError, read_schema

_COLOUR = re.compile(r"^\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*$")


@dataclass(frozen=True)
class LabelMap:
    """How a source's masks become label maps of `target`.

    Attributes:
        name: of the map.
        target: name of the class list, as manifests give it, or the path of the user's own.
        ids: source id 0 to 255 -> class id. Empty where masks are coloured.
        colors: source RGB -> class id. Empty where masks hold ids.
    """

    name: str
    target: str
    ids: dict[int, int]
    colors: dict[tuple[int, int, int], int]

    @property
    def classes(self) -> ClassList:
        return load_class_list(self.target)

    def apply(self, mask: np.ndarray) -> np.ndarray:
        """Maps uint8 (H, W) ids, or uint8 (H, W, 3) RGB colours, to class ids; what is not listed becomes ignored.

        Raises:
            SchemaError: the map is for ids and the mask is coloured, or the other way round.
        """
        ignored = self.classes.ignore_index
        if mask.ndim == 2:
            if not self.ids:
                raise SchemaError(f"label map {self.name} lists colours, and the mask holds one value a pixel")
            table = np.full(256, ignored, np.uint8)
            table[list(self.ids)] = list(self.ids.values())
            return table[mask]
        if not self.colors:
            raise SchemaError(f"label map {self.name} lists ids, and the mask has three channels that differ")
        packed = _pack(mask.astype(np.uint32))
        labels = np.full(mask.shape[:2], ignored, np.uint8)
        for color, label in self.colors.items():
            labels[packed == _pack(np.array(color, np.uint32))] = label
        return labels


def _pack(color: np.ndarray) -> np.ndarray:
    return color[..., 0] << 16 | color[..., 1] << 8 | color[..., 2]


@lru_cache(maxsize=16)
def load_label_map(name: str | Path) -> LabelMap:
    """Loads and checks a label map: a packaged one by name ("dome-34"), or a JSON or YAML file by path.

    A file holds `target` (a class list) and `map`: source ids, or colours as "r,g,b", each with the id or the name of a
    class.

    Raises:
        SchemaError: no such map, or an entry of it is wrong; the message names the file and the entry.
    """
    file, data = read_schema("labels", name)
    if "target" not in data or not isinstance(data.get("map"), dict) or not data["map"]:
        raise SchemaError(f"{file}: a label map has target (such as sapiens2-29) and map (source id: class)")
    target = str(data["target"])
    if not isinstance(name, str) or Path(name).suffix:
        # A class list of the user's lies beside the map that names it.
        beside = Path(name).parent / target
        target = str(beside) if beside.is_file() else target
    classes = load_class_list(target)
    ids: dict[int, int] = {}
    colors: dict[tuple[int, int, int], int] = {}
    for key, value in data["map"].items():
        label = _label(file, key, value, classes)
        match = _COLOUR.match(str(key))
        if match:
            colors[tuple(_byte(file, key, part) for part in match.groups())] = label
        else:
            ids[_byte(file, key, key)] = label
    if ids and colors:
        raise SchemaError(f"{file}: lists both ids and colours; masks have one of them")
    return LabelMap(str(data.get("name", Path(file).stem)), target, ids, colors)


def _byte(file: str, key: Any, text: Any) -> int:
    try:
        value = int(text)
    except (TypeError, ValueError):
        value = -1
    if not 0 <= value <= 255:
        raise SchemaError(f"{file}: {key!r} must be an id from 0 to 255, or a colour such as '255,0,0'")
    return value


def _label(file: str, key: Any, value: Any, classes: ClassList) -> int:
    if isinstance(value, str) and value in classes.ids:
        return classes.ids[value]
    ignored = classes.ignore_index
    if isinstance(value, bool) or not isinstance(value, int) or not (0 <= value < len(classes) or value == ignored):
        raise SchemaError(
            f"{file}: {key!r} becomes {value!r}, which is no class of {classes.name}; give a name or an id below "
            f"{len(classes)}, or {ignored} to ignore it"
        )
    return value
