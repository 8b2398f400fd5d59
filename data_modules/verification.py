"""Check a shard set from end to end: checksums, every picture, every label, and what the set says of itself."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from data_modules.importers.flip_check import check_flips
from data_modules.importers.frame_check import axis_agreement, check_frame
from data_modules.journal import Stamped, array_of, open_journal, plain_array, stamp_shard
from data_modules.parallel import default_workers, run_parallel
from data_modules.progress import ProgressBar
from data_modules.shards.codecs import decode_sample
from data_modules.shards.format import KIT_NORMALS_FRAME, SCHEMAS, ShardError, manifest_path, read_manifest
from data_modules.shards.index import ShardIndex, index_path, read_index
from data_modules.shards.writer import check_crc
from s2kit.schemas import ClassList, KeypointSet, SchemaError, load_class_list, load_keypoint_set

_UNIT_TOLERANCE = 0.01
_PEOPLE_PER_SHARD = 100
_MAX_FLIP_PEOPLE = 2000
_NORMALS_PER_SHARD = 2
_MAX_PROBLEMS_PER_SHARD = 1000


@dataclass(frozen=True)
class Problem:
    """What is wrong and where; `sample` is None for a whole shard, `shard` for the whole set."""

    shard: str | None
    sample: str | None
    text: str


@dataclass
class Report:
    """What ``verify`` found.

    Attributes:
        shards, samples, people, size: How much was checked; size in bytes of tars.
        problems: All that is wrong, shard by shard.
    """

    shards: int = 0
    samples: int = 0
    people: int = 0
    size: int = 0
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class _Job:
    folder: Path
    stated: dict[str, Any]
    schemas: dict[str, Any]
    normals_frame: str
    decode: bool
    people: int


@dataclass
class _Found:
    name: str
    size: int = 0
    samples: int = 0
    people: int = 0
    problems: list[Problem] = field(default_factory=list)
    within_reach: bool = True
    keys: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    points: list[np.ndarray] = field(default_factory=list)
    agreements: list[np.ndarray] = field(default_factory=list)

    def add(self, sample: str | None, text: str) -> None:
        if len(self.problems) < _MAX_PROBLEMS_PER_SHARD:
            self.problems.append(Problem(self.name, sample, " ".join(text.split())))

    def plain(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        numbers = {"name": self.name, "size": self.size, "samples": self.samples, "people": self.people}
        return numbers | {
            "problems": [asdict(problem) for problem in self.problems],
            "keys": plain_array(self.keys),
            "points": [plain_array(points) for points in self.points],
            "agreements": [plain_array(agreement) for agreement in self.agreements],
        }

    @classmethod
    def of_plain(cls, plain: dict[str, Any]) -> Self:
        """Return what ``plain`` was made of."""
        arrays = {
            "problems": [Problem(**problem) for problem in plain["problems"]],
            "keys": array_of(plain["keys"]),
            "points": [array_of(points) for points in plain["points"]],
            "agreements": [array_of(agreement) for agreement in plain["agreements"]],
        }
        return cls(**plain | arrays)


def verify(
    folder: str | Path,
    *,
    decode: bool = True,
    workers: int | None = None,
    progress: bool = True,
    fresh: bool = False,
    tell: Callable[[str], None] | None = None,
) -> Report:
    """Check a set, or go on where an interrupted call with the same options was.

    Shards that were finished before the interruption are not read again, unless they, their entries in the manifest or
    the schemas have changed since. A call that ends normally leaves nothing to go on from.

    Args:
        folder: Of the set, or its manifest.
        decode: Decode each picture and label and check their values; otherwise only checksums.
        workers: Processes; by default one per core.
        progress: Show a progress bar.
        fresh: Read everything, also what an interrupted call has read.
        tell: Called with one line if shards are taken over.

    Raises:
        ShardError: The manifest itself cannot be read.
    """
    path = manifest_path(folder)
    manifest = read_manifest(path)
    schemas = {**SCHEMAS, **manifest.get("schemas", {})}
    report = Report()
    report.problems += _check_set(path.parent, manifest, schemas)
    with open_journal(path.parent, "verify" if decode else "verify-no-decode", fresh=fresh) as journal:
        jobs = _jobs(path.parent, manifest, schemas, decode)
        found, rest = journal.divide(jobs, _Found.of_plain)
        if found and tell:
            tell(f"{len(found)} of {len(jobs)} shards are taken over from an interrupted call; --fresh reads them, too")
        workers = min(workers or default_workers(), max(1, len(rest)))
        taken = sum(shard.samples for shard in found)
        with ProgressBar("samples", manifest["samples"], taken, shown=progress) as bar:
            for stamp, shard in run_parallel(Stamped(_check_shard), rest, workers):
                found.append(shard)
                if shard.within_reach:
                    journal.note(stamp, shard.plain())
                bar.advance(shard.samples)
        found.sort(key=lambda shard: shard.name)
        for shard in found:
            report.shards, report.samples = report.shards + 1, report.samples + shard.samples
            report.people, report.size = report.people + shard.people, report.size + shard.size
            report.problems += shard.problems
        report.problems += _check_keys(path.parent, found)
        report.problems += _check_sides(path.parent, schemas, found)
    return report


def _jobs(folder: Path, manifest: dict[str, Any], schemas: dict[str, Any], decode: bool) -> list[tuple[str, _Job]]:
    """The shards to check, each with its stamp for the journal."""
    frame = manifest.get("normals_frame", KIT_NORMALS_FRAME)
    # Of many shards a few people each are enough, and all of them would not fit into memory.
    people = min(_PEOPLE_PER_SHARD, -(-2 * _MAX_FLIP_PEOPLE // max(1, len(manifest["shards"]))))
    own = [folder / f"{name}.json" for name in (schemas["keypoints"], schemas["parts"])]
    options = [decode, people, frame, schemas, [_digest(file) for file in own]]
    return [
        (stamp_shard(folder, stated, *options), _Job(folder, stated, schemas, frame, decode, people))
        for stated in manifest["shards"]
    ]


def _digest(file: Path) -> str | None:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def keypoint_set(folder: Path, name: str) -> KeypointSet | None:
    """Return the keypoint set that a manifest names: a packaged one or a file beside it; None if it is not there."""
    return _schema(folder, name, load_keypoint_set)


def class_list(folder: Path, name: str) -> ClassList | None:
    """Return the class list that a manifest names: a packaged one or a file beside it; None if it is not there."""
    return _schema(folder, name, load_class_list)


def _schema(folder: Path, name: str, load: Any) -> Any:
    own = folder / f"{name}.json"
    try:
        return load(str(own) if own.is_file() else name)
    except SchemaError:
        return None


def _check_set(folder: Path, manifest: dict[str, Any], schemas: dict[str, Any]) -> Iterator[Problem]:
    named = {shard["name"] for shard in manifest["shards"]}
    for tar in sorted(folder.glob("*.tar")):
        if tar.name not in named:
            yield Problem(tar.name, None, "the manifest does not name it; 'data index' writes the manifest anew")
    for kind, field_name, load in (("keypoints", "keypoints", keypoint_set), ("parts", "parts", class_list)):
        fields = manifest["fields"]
        used = field_name in fields or (kind == "keypoints" and "people" in fields)
        if used and load(folder, schemas[kind]) is None:
            yield Problem(
                None, None, f"no schema {schemas[kind]!r} for {kind}; put {schemas[kind]}.json into the folder"
            )


def _check_shard(job: _Job) -> _Found:
    found = _Found(job.stated["name"])
    path = job.folder / found.name
    index = _open_index(job, path, found)
    if index is None:
        return found
    found.samples = len(index)
    found.keys = np.array([_hash(index.key(i)) for i in range(len(index))], np.uint64)
    checker = _Checker(job.folder, job.schemas)
    with open(path, "rb") as file:
        for number in range(len(index)):
            key, members, damaged = index.key(number), {}, False
            for entry in index.entries(number):
                file.seek(entry.offset)
                data = file.read(entry.size)
                try:
                    check_crc(path, key, entry, data)
                except ShardError:
                    found.add(key, f"member {entry.extension!r}: its bytes have changed, the checksum differs")
                    damaged = True
                else:
                    members[entry.extension] = data
            if job.decode:
                _check_sample(job, checker, key, members, found, damaged)
    return found


def _open_index(job: _Job, path: Path, found: _Found) -> ShardIndex | None:
    stated = job.stated
    try:
        found.size = os.stat(path).st_size
        with open(path, "rb") as file:
            sha = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        found.add(None, f"cannot be read: {error.strerror or error}")
        found.within_reach = False
        return None
    if found.size != stated["bytes"]:
        found.add(None, f"has {found.size} bytes, the manifest says {stated['bytes']}: cut off, or another file")
    elif sha != stated.get("sha256", sha):
        found.add(None, "its sha256 is not the manifest's: its bytes have changed")
    try:
        data = index_path(path).read_bytes()
        if hashlib.sha256(data).hexdigest() != stated.get("index_sha256", hashlib.sha256(data).hexdigest()):
            found.add(None, "the sha256 of its index is not the manifest's")
        index = read_index(index_path(path))
    except OSError as error:
        found.add(None, f"its index cannot be read: {error.strerror or error}; 'data index' makes it")
        found.within_reach = False
        return None
    except ShardError as error:
        found.add(None, str(error))
        return None
    if len(index) != stated["samples"]:
        found.add(None, f"its index has {len(index)} samples, the manifest says {stated['samples']}")
    return index


def _check_sample(
    job: _Job, checker: _Checker, key: str, members: dict[str, bytes], found: _Found, damaged: bool
) -> None:
    """Decode the members that are sound and check their values; ``damaged`` says that others are not."""
    try:
        sample = decode_sample(members, key=key, normals_frame=job.normals_frame)
    except ShardError as error:
        # The report names the sample itself.
        found.add(key, str(error).removeprefix(f"sample {key!r}").lstrip(",: "))
        return
    if "image" not in sample and not damaged:
        found.add(key, "it has no image")
    for text in checker.problems(sample):
        found.add(key, text)
    people = people_of(sample)
    found.people += len(people)
    found.points += [p["keypoints"] for p in people if "keypoints" in p][: job.people - len(found.points)]
    if "normals" in sample and len(found.agreements) < _NORMALS_PER_SHARD:
        agreement = axis_agreement(sample["normals"], (sample["normals"] != 0).any(axis=2))
        found.agreements += [agreement] if agreement is not None else []


def people_of(sample: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the people of a raw sample: its ``people``, or the one of its flat fields, if there is one."""
    if "people" in sample:
        return sample["people"]
    flat = {name: sample[name] for name in ("box", "keypoints", "visibility") if name in sample}
    return [flat] if flat else []


class _Checker:
    """Checks the values of decoded samples against the schemas."""

    def __init__(self, folder: Path, schemas: dict[str, Any]) -> None:
        self._points = keypoint_set(folder, schemas["keypoints"])
        self._classes = class_list(folder, schemas["parts"])

    def problems(self, sample: dict[str, Any]) -> Iterator[str]:
        """Yield what is wrong with a sample."""
        if "parts" in sample and self._classes:
            known = np.zeros(256, bool)
            known[: len(self._classes)] = known[self._classes.ignore_index] = True
            counts = np.bincount(sample["parts"].ravel(), minlength=256)
            wrong = np.flatnonzero((counts > 0) & ~known)
            if len(wrong):
                known_as = f"{self._classes.name} has {len(self._classes)}"
                yield f"parts: {counts[wrong[0]]} pixels of class {wrong[0]}; {known_as}"
        if "normals" in sample:
            length = np.linalg.norm(sample["normals"], axis=2)
            off = ~((length == 0) | (np.abs(length - 1) < _UNIT_TOLERANCE))
            if off.any():
                yield f"normals: {int(off.sum())} are not of unit length (or not finite), such as {length[off][0]:.3g}"
        if "depth" in sample and not (np.isfinite(sample["depth"]) & (sample["depth"] >= 0)).all():
            yield "depth: some values are negative or not finite"
        if "intrinsics" in sample and not (
            np.isfinite(sample["intrinsics"]).all() and (sample["intrinsics"][[0, 1], [0, 1]] > 0).all()
        ):
            yield "intrinsics: not a camera matrix with positive focal lengths"
        if "depth" in sample and "intrinsics" not in sample:
            yield "depth without intrinsics"
        people = people_of(sample)
        ids = [person["id"] for person in people if "id" in person]
        if len(set(ids)) < len(ids):
            yield "people: two have the same id"
        for number, person in enumerate(people):
            where = f"people[{number}]: " if "people" in sample else ""
            yield from (where + text for text in self._person(person, sample.get("image")))

    def _person(self, person: dict[str, Any], image: np.ndarray | None) -> Iterator[str]:
        size = image.shape[:2] if image is not None else None
        if "box" in person:
            x0, y0, x1, y1 = (float(value) for value in person["box"])
            # A synthetic person may be out of the picture: then its box is empty and at 0.
            if not (x1 > x0 and y1 > y0) and (x0, y0, x1, y1) != (0, 0, 0, 0):
                yield f"box {x0:g}, {y0:g}, {x1:g}, {y1:g} is empty; it must be left, top, right, bottom"
            elif size and (x0 >= size[1] or y0 >= size[0] or x1 < 0 or y1 < 0):
                yield f"box {x0:g}, {y0:g}, {x1:g}, {y1:g} lies outside of the {size[0]} x {size[1]} image"
        if "keypoints" not in person:
            return
        points, visibility = person["keypoints"], person.get("visibility")
        if self._points and len(points) != len(self._points):
            yield f"{len(points)} keypoints; {self._points.name} has {len(self._points)}"
            return
        if visibility is None or len(visibility) != len(points):
            yield "keypoints without as many visibility flags"
            return
        labelled = points[visibility > 0]
        if not np.isfinite(labelled).all():
            yield "labelled keypoints without a position"
        elif size and len(labelled):
            # Points outside of the picture are labels, too; twice its size away, something else is wrong.
            far = (labelled < -np.array(size[::-1])).any(axis=1) | (labelled > 2 * np.array(size[::-1])).any(axis=1)
            if far.any():
                x, y = labelled[far][0]
                yield f"a keypoint at {x:g}, {y:g}, far outside of the {size[0]} x {size[1]} image"


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def _check_keys(folder: Path, found: list[_Found]) -> list[Problem]:
    """Keys that occur twice in the set. Within a shard the index cannot hold them."""
    keys = np.concatenate([shard.keys for shard in found]) if found else np.zeros(0, np.uint64)
    values, counts = np.unique(keys, return_counts=True)
    twice = set(values[counts > 1].tolist())
    problems, first = [], {}
    for shard in found:
        if not twice or not np.isin(shard.keys, list(twice)).any():
            continue
        index = read_index(index_path(folder / shard.name))
        for number in range(len(index)):
            key = index.key(number)
            if _hash(key) in twice and first.setdefault(key, shard.name) != shard.name:
                problems.append(Problem(shard.name, key, f"{first[key]} has a sample of this key, too"))
    return problems


def _check_sides(folder: Path, schemas: dict[str, Any], found: list[_Found]) -> list[Problem]:
    """What can be seen only in many samples: left and right of keypoints, the frame of normals."""
    problems = []
    schema = keypoint_set(folder, schemas["keypoints"])
    points = [row for shard in found for row in shard.points if schema and len(row) == len(schema)]
    if points:
        step = max(1, len(points) // _MAX_FLIP_PEOPLE)
        text = check_flips(schema, np.array(points[::step]))
        problems += [Problem(None, None, f"keypoints: {text}")] if text else []
    text = check_frame([agreement for shard in found for agreement in shard.agreements], KIT_NORMALS_FRAME)
    return problems + ([Problem(None, None, text)] if text else [])
