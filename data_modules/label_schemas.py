"""Shard sets that number their labels otherwise than a task: converted on loading where the kit knows how."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from data_modules.shards import ShardDataset
from data_modules.shards.format import MANIFEST_NAME
from data_modules.transforms.pose import check_keypoints
from data_modules.transforms.segmentation import check_labels
from s2kit.errors import UserError
from s2kit.pose.conversion import convert_keypoints
from s2kit.schemas import LabelMap, load_class_list, load_keypoint_set, load_label_map
from s2kit.schemas.files import PACKAGED

#: ``convert(sample) -> sample`` of raw samples.
Convert = Callable[[dict[str, Any]], dict[str, Any]]


class ConvertedSet(ShardDataset):
    """A shard set whose raw samples pass through ``convert``; number, order and digest stay."""

    def __init__(self, part: ShardDataset, convert: Convert) -> None:
        vars(self).update(vars(part))
        self.convert = convert

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.convert(super().__getitem__(index))


def in_schema(kind: str, wanted: str, sets: Sequence[ShardDataset]) -> list[ShardDataset]:
    """Return the sets with their labels in the schema that the task reads; one's own files are taken as they are.

    Keypoints are converted to sets with no more points, as ``s2kit.pose.convert_keypoints`` does it; parts by the
    packaged label maps.

    Args:
        kind: ``keypoints`` or ``parts``.
        wanted: Name of a packaged schema, or a path.
        sets: The opened sets, whose manifests name their schema.

    Raises:
        UserError: If a set follows another packaged schema, from which nothing leads to ``wanted``.
    """
    found = []
    for part in sets:
        named = part.manifest.get("schemas", {}).get(kind)
        if named == wanted or named not in PACKAGED[kind] or wanted not in PACKAGED[kind]:
            found.append(part)
            continue
        ways = (_keypoint_ways if kind == "keypoints" else _part_ways)(named)
        if wanted not in ways:
            known = f"can become {' or '.join(ways)}" if ways else "can become nothing else"
            raise UserError(
                f"{part.folder.where(MANIFEST_NAME)}: it says that {kind} are {named!r}, and data.schema is "
                f"{wanted!r}: {named} {known}; set data.schema and model.schema so"
            )
        found.append(ConvertedSet(part, ways[wanted]))
    return found


def _keypoint_ways(source: str) -> dict[str, Convert]:
    """Return the conversions from a keypoint set, by target.

    What a larger set has more would never be learned, and nothing would say so.
    """
    count = len(load_keypoint_set(source))
    smaller = [name for name in PACKAGED["keypoints"] if len(load_keypoint_set(name)) < count]
    return {target: partial(_convert_keypoints, source=source, target=target) for target in smaller}


def _convert_keypoints(sample: dict[str, Any], source: str, target: str) -> dict[str, Any]:
    if "keypoints" not in sample:
        return sample
    check_keypoints(sample, load_keypoint_set(source))
    keypoints, visibility = convert_keypoints(sample["keypoints"], sample["visibility"], source, target)
    return {**sample, "keypoints": keypoints, "visibility": visibility}


def _part_ways(source: str) -> dict[str, Convert]:
    """Return the label maps from a class list, by target: they are called ``SOURCE-to-...``."""
    maps = [load_label_map(name) for name in PACKAGED["labels"] if name.startswith(f"{source}-to-")]
    return {labels.target: partial(_convert_parts, source=source, labels=labels) for labels in maps}


def _convert_parts(sample: dict[str, Any], source: str, labels: LabelMap) -> dict[str, Any]:
    if "parts" not in sample:
        return sample
    check_labels(sample["key"], sample["parts"], load_class_list(source))
    return {**sample, "parts": np.ascontiguousarray(labels.apply(sample["parts"]))}
