"""What the schema files have in common: reading, and the checks on names, colours and flips."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

_OPPOSITE = {"left": "right", "right": "left", "l": "r", "r": "l"}


class SchemaError(ValueError):
    """A schema file contradicts itself; the message names the file and the entry."""


def read_schema(prefix: str, name: int | str | Path) -> tuple[str, dict]:
    """A packaged schema by its number of entries, or one of the user's by its path; and the name for messages.

    Raises SchemaError if there is no such file or it is not JSON.
    """
    if isinstance(name, int):
        source = resources.files("s2kit.schemas") / f"{prefix}_{name}.json"
        if not source.is_file():
            folder = resources.files("s2kit.schemas").iterdir()
            known = sorted(entry.name for entry in folder if entry.name.startswith(f"{prefix}_"))
            raise SchemaError(f"no schema {prefix}_{name}.json; packaged: {', '.join(known)}")
    else:
        source = Path(name)
        if not source.is_file():
            raise SchemaError(f"no schema file {source}")
    try:
        return str(source.name), json.loads(source.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise SchemaError(f"{source}: not JSON: {error}") from error


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
