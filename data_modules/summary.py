"""What is in a shard set: counts and sizes of all samples from the indices, values and decoding times of some."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from data_modules.journal import Stamped, array_of, open_journal, plain_array, stamp, stamp_shard
from data_modules.parallel import default_workers, run_parallel
from data_modules.progress import ProgressBar
from data_modules.shards.codecs import decode_sample
from data_modules.shards.format import DENSE_FIELDS, SCHEMAS, field_of, manifest_path, read_manifest
from data_modules.shards.index import index_path, read_index
from data_modules.shards.reader import ShardDataset
from data_modules.verification import class_list, keypoint_set, people_of

#: Widths by heights; a bin holds what is above the number before it.
ASPECTS = (0.5, 0.75, 0.95, 1.05, 1.34, 1.8, float("inf"))
_COUNTERS = ("bytes", "people", "seconds", "decoded")
_LISTS = ("sizes", "covered", "depths")


@dataclass
class _Part:
    """Sums of one shard, or of a chunk of decoded samples."""

    bytes: Counter[str] = field(default_factory=Counter)
    people: Counter[int] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    decoded: Counter[str] = field(default_factory=Counter)
    classes: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    visible: np.ndarray | None = None
    sizes: list[tuple[int, int]] = field(default_factory=list)
    covered: list[float] = field(default_factory=list)
    depths: list[tuple[float, float]] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        # Pairs, because JSON would make texts of the keys that are numbers.
        counters = {name: list(getattr(self, name).items()) for name in _COUNTERS}
        arrays = {"classes": plain_array(self.classes), "visible": None}
        if self.visible is not None:
            arrays["visible"] = plain_array(self.visible)
        return counters | arrays | {name: getattr(self, name) for name in _LISTS}

    @classmethod
    def of_plain(cls, plain: dict[str, Any]) -> Self:
        """Return what ``plain`` was made of."""
        counters = {name: Counter(dict(plain[name])) for name in _COUNTERS}
        arrays = {name: plain[name] and array_of(plain[name]) for name in ("classes", "visible")}
        return cls(**counters, **arrays, **{name: plain[name] for name in _LISTS})


def summarise(
    folder: str | Path,
    *,
    sampled: int = 256,
    workers: int | None = None,
    progress: bool = True,
    fresh: bool = False,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Return statistics of a set as plain values for JSON, going on where an interrupted call with ``sampled`` was.

    Args:
        folder: Of the set, or its manifest.
        sampled: Number of samples, evenly spread, that are decoded.
        workers: Processes; by default one per core.
        progress: Show a progress bar.
        fresh: Read everything, also what an interrupted call has read.
        tell: Called with one line if shards or decoded samples are taken over.

    Returns:
        ``samples, people, shards, bytes, licence, source, schemas``; ``fields`` (samples, share, bytes per sample,
        milliseconds of a core to decode it here); ``image`` (height and width of min, median, max; aspects: width by
        height -> share); ``people_per_image``; and of the decoded ones ``classes`` (share of labelled pixels),
        ``keypoints`` (per group the share of points that are visible, occluded, unlabelled), ``alpha_covered``,
        ``depth_metres``.

    Raises:
        ShardError: The set cannot be read.
    """
    path = manifest_path(folder)
    manifest = read_manifest(path)
    workers = workers or default_workers()
    indices = [(stamp_shard(path.parent, shard), path.parent / shard["name"]) for shard in manifest["shards"]]
    chosen = np.unique(np.linspace(0, manifest["samples"] - 1, min(sampled, manifest["samples"])).astype(int))
    chunks = _chunks(path, manifest, chosen, [mark for mark, _ in indices])
    with open_journal(path.parent, f"stats-{sampled}", fresh=fresh) as journal:
        counted, indices = journal.divide(indices, _Part.of_plain)
        decoded, chunks = journal.divide(chunks, _Part.of_plain)
        total = _Part()
        for part in counted + decoded:
            _add(total, part)
        left = sum(len(numbers) for _, (_, numbers) in chunks)
        taken = len(chosen) - left
        if tell and (counted or decoded):
            tell(
                f"{len(counted)} of {len(manifest['shards'])} shards and {taken} of {len(chosen)} decoded samples are "
                "taken over from an interrupted call; --fresh reads them, too"
            )
        whole = len(manifest["shards"]) + len(chosen)
        with ProgressBar("shards and samples", whole, len(counted) + taken, shown=progress) as bar:
            few = min(workers, max(1, len(indices) // 64))
            for mark, part in run_parallel(Stamped(_count_shard), indices, few):
                _add(total, part)
                journal.note(mark, part.plain())
                bar.advance()
            for mark, part in run_parallel(Stamped(_decode_some), chunks, min(workers, max(1, len(chunks)))):
                _add(total, part)
                journal.note(mark, part.plain())
                bar.advance(part.decoded["image"] or 1)
        return _summary(path.parent, manifest, total, len(chosen))


def _chunks(
    path: Path, manifest: dict[str, Any], chosen: np.ndarray, marks: list[str]
) -> list[tuple[str, tuple[Path, list[int]]]]:
    """The samples to decode, in parts, each with its stamp: of the numbers and of the shards that hold them."""
    ends = np.cumsum([shard["samples"] for shard in manifest["shards"]])
    chunks = []
    for numbers in np.array_split(chosen, max(1, len(chosen) // 16)):
        if len(numbers):
            holding = np.unique(np.searchsorted(ends, numbers, side="right"))
            mark = stamp(manifest.get("normals_frame"), numbers.tolist(), [marks[i] for i in holding])
            chunks.append((mark, (path, numbers.tolist())))
    return chunks


def _count_shard(tar: Path) -> _Part:
    index = read_index(index_path(tar))
    part = _Part()
    sizes = np.bincount(index.members["extension"], index.members["size"].astype(float), len(index.extensions))
    for extension, size in zip(index.extensions, sizes):
        part.bytes[field_of(extension) or "other"] += int(size)
    if index.people is not None:
        values, counts = np.unique(index.people, return_counts=True)
        part.people.update(dict(zip(values.tolist(), counts.tolist())))
    return part


def _decode_some(job: tuple[Path, list[int]]) -> _Part:
    path, numbers = job
    samples, part, warm = ShardDataset(path, required=()), _Part(), False
    frame = samples.manifest.get("normals_frame", "opengl")
    for number in [numbers[0], *numbers]:
        members = samples.read_encoded(number)
        sample: dict[str, Any] = {}
        for name in (*DENSE_FIELDS, "json"):
            own = {ext: data for ext, data in members.items() if field_of(ext) in (name, "json")}
            if not any(field_of(ext) == name for ext in own):
                continue
            start = time.thread_time()
            fields = (name,) if name != "json" else None
            sample |= decode_sample(
                own if name != "json" else {"json": members["json"]},
                fields,
                key=samples.key(number),
                normals_frame=frame,
            )
            part.seconds[name] += time.thread_time() - start
            part.decoded[name] += 1
        if number == numbers[0] and not warm:
            # The first decoding in a process pays for what the others find done.
            part, warm = _Part(), True
            continue
        _look(part, sample)
    return part


def _look(part: _Part, sample: dict[str, Any]) -> None:
    if "image" in sample:
        part.sizes.append(sample["image"].shape[:2])
    if "parts" in sample:
        part.classes += np.bincount(sample["parts"].ravel(), minlength=256)
    if "alpha" in sample:
        part.covered.append(float((sample["alpha"] > 127).mean()))
    if "depth" in sample and (sample["depth"] > 0).any():
        seen = sample["depth"][sample["depth"] > 0]
        part.depths.append((float(seen.min()), float(seen.max())))
    for person in people_of(sample):
        if "visibility" in person:
            flags = np.eye(3, dtype=np.int64)[np.minimum(person["visibility"], 2)]
            part.visible = flags if part.visible is None else part.visible + flags


def _add(total: _Part, part: _Part) -> None:
    for name in _COUNTERS:
        getattr(total, name).update(getattr(part, name))
    total.classes += part.classes
    if part.visible is not None:
        total.visible = part.visible if total.visible is None else total.visible + part.visible
    for name in _LISTS:
        getattr(total, name).extend(getattr(part, name))


def _summary(folder: Path, manifest: dict[str, Any], total: _Part, decoded: int) -> dict[str, Any]:
    samples = manifest["samples"]
    schemas = {**SCHEMAS, **manifest.get("schemas", {})}
    dense = {name: entry["samples"] for name, entry in manifest["fields"].items()}
    fields = {}
    for name, count in {**dense, "json": samples if total.bytes["json"] else 0}.items():
        fields[name] = {"samples": count, "share": count / max(samples, 1)}
        if total.bytes[name]:
            fields[name]["bytes_per_sample"] = round(total.bytes[name] / max(count, 1))
        if total.decoded[name]:
            fields[name]["decode_ms"] = round(1000 * total.seconds[name] / total.decoded[name], 3)
    summary: dict[str, Any] = {
        "samples": samples,
        "people": sum(people * count for people, count in total.people.items()),
        "shards": len(manifest["shards"]),
        "bytes": manifest["bytes"],
        "licence": manifest.get("licence"),
        "source": manifest.get("source"),
        "schemas": schemas,
        "fields": fields,
        "decoded": decoded,
        "image": _image_sizes(manifest, total),
    }
    if any(total.people):
        summary["people_per_image"] = {str(people): total.people[people] for people in sorted(total.people)}
    if total.classes.any():
        summary["classes"] = _class_shares(folder, schemas["parts"], total.classes)
    if total.visible is not None:
        summary["keypoints"] = _visibility(folder, schemas["keypoints"], total.visible)
    if total.covered:
        summary["alpha_covered"] = round(float(np.mean(total.covered)), 4)
    if total.depths:
        near, far = np.array(total.depths).T
        summary["depth_metres"] = {"nearest": round(float(near.min()), 3), "farthest": round(float(far.max()), 3)}
    return summary


def _image_sizes(manifest: dict[str, Any], total: _Part) -> dict[str, Any]:
    stated = manifest.get("image_sizes") or []
    rows = [(entry["height"], entry["width"], entry["samples"]) for entry in stated]
    rows = rows or [(*size, 1) for size in total.sizes]
    if not rows:
        return {}
    heights, widths, counts = np.array(rows).T
    order = np.argsort(heights * widths)
    middle = order[np.searchsorted(np.cumsum(counts[order]), counts.sum() / 2)]
    aspects = Counter()
    for ratio, count in zip(widths / heights, counts.tolist()):
        aspects[next(edge for edge in ASPECTS if ratio <= edge)] += count
    return {
        "smallest": [int(heights[order[0]]), int(widths[order[0]])],
        "median": [int(heights[middle]), int(widths[middle])],
        "largest": [int(heights[order[-1]]), int(widths[order[-1]])],
        "aspects": {
            _aspect_name(edge): round(aspects[edge] / int(counts.sum()), 4) for edge in ASPECTS if aspects[edge]
        },
    }


def _aspect_name(edge: float) -> str:
    before = ASPECTS[ASPECTS.index(edge) - 1] if edge != ASPECTS[0] else 0
    return f"above {before:g}" if edge == ASPECTS[-1] else f"{before:g} to {edge:g}"


def _class_shares(folder: Path, name: str, counts: np.ndarray) -> dict[str, float]:
    classes = class_list(folder, name)
    ignored = classes.ignore_index if classes else 255
    labelled = counts.sum() - counts[ignored]
    names = classes.names if classes else ()
    shares = {
        names[i] if i < len(names) else str(i): round(float(counts[i] / max(labelled, 1)), 6)
        for i in np.flatnonzero(counts).tolist()
        if i != ignored
    }
    return {**shares, "ignored": round(float(counts[ignored] / counts.sum()), 6)}


def _visibility(folder: Path, name: str, counts: np.ndarray) -> dict[str, Any]:
    schema = keypoint_set(folder, name)
    groups = schema.groups if schema and len(schema) == len(counts) else {"all": tuple(range(len(counts)))}
    result = {}
    for group, ids in groups.items():
        unlabelled, occluded, visible = counts[list(ids)].sum(axis=0) / max(1, counts[list(ids)].sum())
        shares = {"visible": visible, "occluded": occluded, "unlabelled": unlabelled}
        result[group] = {key: round(float(value), 4) for key, value in shares.items()}
    return result
