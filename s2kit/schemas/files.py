"""What the schema files have in common: reading, and the checks on names, colours and flips."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import yaml

#: What manifests and configs call the packaged schemas -> what follows the prefix in the file's name.
PACKAGED = {
    "keypoints": {"sapiens2-308": "308", "coco-wholebody-133": "133", "coco-17": "17", "openpose-25": "openpose_25"},
    "parts": {"sapiens2-29": "29", "sapiens1-28": "28", "lip-20": "lip_20", "cihp-20": "cihp_20"},
    "labels": {
        name: name
        for name in (
            "dome-34",
            "wide-52",
            "internal-32",
            "lip-20",
            "lip-20-to-29",
            "cihp-20",
            "cihp-20-to-29",
            "sapiens2-29-to-28",
        )
    },
}
_OPPOSITE = {"left": "right", "right": "left", "l": "r", "r": "l"}


class SchemaError(ValueError):
    """A schema file contradicts itself; the message names the file and the entry."""


def read_schema(prefix: str, name: int | str | Path) -> tuple[str, dict]:
    """A packaged schema or one of the user's, and the name for messages.

    Args:
        prefix: "keypoints", "parts" or "labels".
        name: a name of `PACKAGED`, such as "coco-17"; its number of entries, where only one has as many; or the path of
            a JSON file (of a YAML file for "labels").

    Raises SchemaError if there is no such schema or it cannot be parsed.
    """
    known = PACKAGED[prefix]
    packaged = known.get(str(name)) or (str(name) if str(name) in known.values() else None)
    source = resources.files("s2kit.schemas") / f"{prefix}_{packaged}.json" if packaged else Path(str(name))
    if not source.is_file():
        raise SchemaError(f"no schema {name}: give {', '.join(known)} or the path of a file")
    try:
        text = source.read_text(encoding="utf-8")
        data = yaml.safe_load(text) if source.name.endswith((".yaml", ".yml")) else json.loads(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        kind = "YAML" if source.name.endswith((".yaml", ".yml")) else "JSON"
        raise SchemaError(f"{source}: not {kind}: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise SchemaError(f"{source}: holds a {type(data).__name__}, a schema is an object")
    return str(source.name), data


def mirrored(name: str) -> str:
    """The name with left and right swapped."""
    return "_".join(_OPPOSITE.get(part, part) for part in name.lower().split("_"))


def check_entries(file: str, entries: Sequence) -> None:
    """Checks entries with id, name, color and flip.

    Ids are 0, 1, 2, ...; names are unique; colours are three bytes; the flip is an involution; it swaps left and
    right in the names, and changes nothing else but numbers (the mirrored point of a ring has another number).
    """
    names = set()
    for position, entry in enumerate(entries):
        where = f"{file}: {entry.name!r}"
        if entry.id != position:
            raise SchemaError(f"{where} has id {entry.id} at position {position}; ids must be 0, 1, 2, ...")
        if entry.name in names:
            raise SchemaError(f"{where} occurs twice")
        names.add(entry.name)
        if len(entry.color) != 3 or any(not 0 <= value <= 255 for value in entry.color):
            raise SchemaError(f"{where} has colour {entry.color}; it must be three numbers from 0 to 255")
        if not 0 <= entry.flip < len(entries):
            raise SchemaError(f"{where} flips to id {entry.flip}, which is not there")
        other = entries[entry.flip]
        if other.flip != entry.id:
            raise SchemaError(f"{where} ({entry.id}) flips to {other.name!r} ({other.id}), which flips to {other.flip}")
        plain, target = (re.sub(r"\d+", "", text) for text in (mirrored(entry.name), other.name.lower()))
        if plain != target:
            raise SchemaError(f"{where} flips to {other.name!r}; its mirrored name is {mirrored(entry.name)!r}")
