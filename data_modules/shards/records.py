"""What the ``json`` member of a sample says: its size, camera, boxes, keypoints and people."""

import json
from typing import Any

import numpy as np

from data_modules.shards.format import JSON_FIELDS, KIT_NORMALS_FRAME, SCHEMAS, ShardError

#: Fields of one person of an image beside ``id``, and the flat fields that ``take_person`` gives for them.
PERSON_FIELDS = ("box", "keypoints", "visibility", "area", "iscrowd")

_SHAPES = {"intrinsics": (3, 3), "box": (4,), "keypoints": (None, 2), "visibility": (None,)}


def encode_record(key: str, size: tuple[int, ...], sample: dict[str, Any]) -> dict[str, Any]:
    """Return what the ``json`` member of a raw sample says.

    Raises:
        ShardError: A value has another shape or type than ``encode_sample`` documents.
    """
    record: dict[str, Any] = {"key": key, "image_size": [int(size[0]), int(size[1])]}
    record["version"] = SCHEMAS["sample"]
    if "normals" in sample:
        record["normals_frame"] = KIT_NORMALS_FRAME
    for name in _SHAPES:
        if name in sample:
            record[name] = _encode_array(name, sample[name], name)
    if "people" in sample:
        flat = [name for name in PERSON_FIELDS if name in sample]
        if flat:
            raise ShardError(f"people and {flat[0]} are both given; a sample has people, or is of one person")
        record["people"] = _encode_people(sample["people"])
    if "meta" in sample:
        record["meta"] = sample["meta"]
    return record


def load_record(data: bytes, key: str | None) -> dict[str, Any]:
    """Parse a ``json`` member and check that it belongs to sample ``key``.

    Raises:
        ShardError: It is not an object in JSON, belongs to another sample or has an absurd ``image_size``.
    """
    where = f"sample {key!r}, member 'json'"
    try:
        record = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{where}: not JSON ({error})") from None
    if not isinstance(record, dict):
        raise ShardError(f"{where}: a {type(record).__name__}, it must be an object")
    if key is not None and record.get("key", key) != key:
        raise ShardError(f"{where}: belongs to sample {record['key']!r}")
    size = record.get("image_size", [1, 1])
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) for n in size)):
        raise ShardError(f"{where}: image_size {size!r} is not [height, width]")
    return record


def decode_record(record: dict[str, Any], wanted: set[str], key: str | None) -> dict[str, Any]:
    """Return the wanted fields that a loaded ``json`` member holds, as a raw sample has them.

    Raises:
        ShardError: One of them has the wrong shape, or holds what is not a number.
    """
    fields: dict[str, Any] = {}
    for name in JSON_FIELDS:
        if name not in wanted or name not in record:
            continue
        if name == "meta":
            fields[name] = record[name]
        elif name == "people":
            number = range(count_people(record))
            fields[name] = [_decode_person(record["people"][i], i, key) for i in number]
        else:
            fields[name] = _decode_array(name, record[name], name, key)
    return fields


def take_person(record: dict[str, Any], number: int, wanted: set[str], key: str | None) -> dict[str, Any]:
    """Return one person's ``person_id``, ``box``, ``keypoints``, ``visibility``, ``area`` and ``iscrowd``.

    Args:
        record: A loaded ``json`` member; one with flat fields has one person, whose ``person_id`` is 0.
        number: Of the person in the sample.
        wanted: Which of ``box``, ``keypoints`` and ``visibility`` to decode; the others are given where they are.
        key: Of the sample, for errors.

    Raises:
        ShardError: The sample has no such person, or a value is wrong.
    """
    if not 0 <= number < count_people(record):
        raise ShardError(
            f"sample {key!r}, member 'json': has {count_people(record)} people, its index says more than {number}; "
            "index the tar again"
        )
    if "people" not in record:
        names = [name for name in _SHAPES if name in wanted and name in PERSON_FIELDS and name in record]
        return {"person_id": 0, **{name: _decode_array(name, record[name], name, key) for name in names}}
    wanted = wanted | {"area", "iscrowd"}
    person = {name: value for name, value in record["people"][number].items() if name == "id" or name in wanted}
    decoded = _decode_person(person, number, key)
    return {"person_id": decoded.pop("id"), **decoded}


def count_people(record: Any) -> int:
    """Return the number of people that a loaded ``json`` member describes; one for flat keypoints or a flat box."""
    if not isinstance(record, dict):
        return 0
    if "people" in record:
        people = record["people"]
        return len(people) if isinstance(people, list) and all(isinstance(person, dict) for person in people) else 0
    return int("keypoints" in record or "box" in record)


def parse_loosely(data: bytes | None) -> dict[str, Any]:
    """Return the object in a ``json`` member of any writer; empty where there is none."""
    try:
        record = json.loads(data) if data else {}
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _encode_people(people: Any) -> list[dict[str, Any]]:
    if not isinstance(people, list | tuple):
        raise ShardError(f"people is {type(people).__name__}, it must be a list with a dict for each person")
    records, points = [], set()
    for number, person in enumerate(people):
        where = f"people[{number}]"
        unknown = sorted(set(person) - {"id", *PERSON_FIELDS})
        if unknown:
            raise ShardError(f"{where} has the unknown key {unknown[0]!r}; a person has id, {', '.join(PERSON_FIELDS)}")
        identity = person.get("id")
        if isinstance(identity, bool) or not isinstance(identity, int | str | np.integer):
            raise ShardError(f"{where} has the id {identity!r}, it must be a whole number or a text")
        record = {"id": identity if isinstance(identity, str) else int(identity)}
        if "box" not in person:
            raise ShardError(f"{where} has no box")
        if ("keypoints" in person) != ("visibility" in person):
            raise ShardError(f"{where} has only one of keypoints and visibility")
        record |= {name: _encode_array(name, person[name], f"{where}.{name}") for name in _SHAPES if name in person}
        if "keypoints" in record:
            points |= {len(record["keypoints"]), len(record["visibility"])}
        if "area" in person:
            record["area"] = _short_floats(np.float32(person["area"]))
        if "iscrowd" in person:
            record["iscrowd"] = bool(person["iscrowd"])
        records.append(record)
    if len(points) > 1:
        raise ShardError(f"people have {' and '.join(map(str, sorted(points)))} keypoints; all must have as many")
    return records


def _encode_array(name: str, values: Any, where: str) -> Any:
    array, shape = np.asarray(values), _SHAPES[name]
    if array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape)):
        raise ShardError(f"{where} has shape {array.shape}, it must be {shape}")
    if name != "visibility":
        return _short_floats(array)
    if not np.isin(array, (0, 1, 2)).all():
        raise ShardError(f"{where} holds {array[~np.isin(array, (0, 1, 2))][0]}, it must be 0, 1 or 2")
    return array.astype(int).tolist()


def _short_floats(array: np.ndarray) -> Any:
    """Return nested lists with the shortest decimals that give the same float32 back; NaN becomes None."""
    if array.ndim:
        return [_short_floats(row) for row in array]
    value = np.float32(array)
    return float(str(value)) if np.isfinite(value) else None


def _decode_person(person: dict[str, Any], number: int, key: str | None) -> dict[str, Any]:
    where = f"people[{number}]"
    decoded = {"id": person.get("id", number)}
    for name in PERSON_FIELDS:
        if name not in person:
            continue
        if name in _SHAPES:
            decoded[name] = _decode_array(name, person[name], f"{where}.{name}", key)
        elif name == "iscrowd":
            decoded[name] = bool(person[name])
        elif isinstance(person[name], int | float) and abs(person[name]) < 2**64:
            decoded[name] = float(person[name])
        else:
            raise ShardError(f"sample {key!r}, member 'json': {where}.{name} is {person[name]!r}, not a number")
    return decoded


def _decode_array(name: str, value: Any, where: str, key: str | None) -> np.ndarray:
    where = f"sample {key!r}, member 'json': {where}"
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ShardError(f"{where} is not an array of numbers") from None
    shape = _SHAPES[name]
    if array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape)):
        raise ShardError(f"{where} has shape {array.shape}, it must be {shape}")
    if name == "visibility":
        if not np.isin(array, (0, 1, 2)).all():
            raise ShardError(f"{where} holds {array[~np.isin(array, (0, 1, 2))][0]:g}, it must be 0, 1 or 2")
        return array.astype(np.uint8)
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    # Only keypoints may be unknown.
    if np.isinf(array).any() or (name != "keypoints" and np.isnan(array).any()):
        raise ShardError(f"{where} is not finite")
    return array
