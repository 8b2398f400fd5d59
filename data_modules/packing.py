"""Write what an importer finds as a shard set: in parallel, a shard a process, and on again after an interruption."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from data_modules.importers.base import Importer, ImportFailedError, RejectedError, Source, digest_of, printable
from data_modules.locking import hold_alone
from data_modules.parallel import default_workers, run_parallel
from data_modules.progress import ProgressBar
from data_modules.shards.format import MANIFEST_NAME, canonical_json, check_key, read_manifest
from data_modules.shards.index import replace_file
from data_modules.shards.writer import ShardContents, scan_shard, write_manifest, write_shard

SAMPLES_PER_SHARD = 256
#: Where an unfinished set keeps its settings and what was rejected.
STAGING_NAME = ".packing"
REJECTED_NAME = "rejected.jsonl"
#: Samples seen before the share of rejected ones is judged.
_JUDGED_FROM = 200


@dataclass(frozen=True)
class Packed:
    """What ``pack`` did.

    Attributes:
        manifest: Path of the set's manifest.
        samples: In the set.
        people: In the set.
        size: Bytes of its shards.
        rejected: Key and reason of each sample that was left out.
        notes: Lines of the importer.
        already: The set was finished before, and nothing was done.
    """

    manifest: Path
    samples: int
    people: int
    size: int
    rejected: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    already: bool = False


@dataclass(frozen=True)
class _Job:
    importer: Importer
    folder: Path
    name: str
    records: list[Any]

    @property
    def note(self) -> Path:
        return self.folder / STAGING_NAME / f"{self.name}.json"


@dataclass(frozen=True)
class _Shard:
    name: str
    records: int
    entry: dict[str, Any] | None = None
    contents: ShardContents | None = None
    rejected: list[tuple[str, str]] = field(default_factory=list)


def pack(
    importer: Importer,
    out: str | Path,
    *,
    info: dict[str, Any] | None = None,
    prefix: str = "samples",
    samples_per_shard: int = SAMPLES_PER_SHARD,
    workers: int | None = None,
    limit: int | None = None,
    max_rejected: float = 0.1,
    progress: bool = True,
) -> Packed:
    """Import into a new set, or go on with an interrupted import of the same source and settings.

    A shard holds the samples of ``samples_per_shard`` records, less those that were rejected, so that the same source
    gives the same bytes with any number of workers and after any interruption. Rejected ones are listed in
    ``rejected.jsonl`` beside the manifest.

    Args:
        importer: What to import.
        out: Folder of the set; made if needed, and empty or with what an interrupted call left.
        info: Keys of the manifest, such as ``licence`` and ``source``; they go before the importer's.
        prefix: Beginning of the shards' names.
        samples_per_shard: Records that go into one shard.
        workers: Processes; by default one per core.
        limit: Import only the first so many records.
        max_rejected: Largest share of rejected samples; more end the import with an error.
        progress: Show a progress bar.

    Raises:
        ImportFailedError: The source cannot be imported, too much of it was rejected, or ``out`` holds something else.
    """
    out = Path(out).expanduser()
    if "/" in check_key(prefix):
        raise ImportFailedError(f"prefix {prefix!r} must be a plain name")
    settings = _settings(importer, samples_per_shard, prefix, limit, info)
    if (out / MANIFEST_NAME).exists():
        return _finished(out, settings)
    source = importer.scan()
    staging = _open_staging(out)
    with hold_alone(staging / "lock", out):
        _begin(staging / "settings.json", settings, out)
        records = islice(source.records, limit)
        total = source.total if limit is None or source.total is None else min(limit, source.total)
        jobs = _jobs(importer, out, records, samples_per_shard, prefix)
        shards = _run(jobs, workers or default_workers(), total, max_rejected, progress)
        packed = _finish(out, source, shards, settings, info)
    shutil.rmtree(staging)
    return packed


def _settings(
    importer: Importer, samples_per_shard: int, prefix: str, limit: int | None, info: dict[str, Any] | None
) -> dict[str, Any]:
    fields = {name: _plain(value) for name, value in asdict(importer).items()}
    return {
        "importer": importer.name,
        "options": fields,
        "samples_per_shard": samples_per_shard,
        "prefix": prefix,
        "limit": limit,
        "info": info or {},
    }


def _plain(value: Any) -> Any:
    # Absolute, so that the same call from another folder is another source.
    return str(value.absolute()) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def _finished(out: Path, settings: dict[str, Any]) -> Packed:
    manifest = read_manifest(out)
    if manifest.get("packed_from") != digest_of([canonical_json(settings)]):
        raise ImportFailedError(f"{out}: holds a finished set of another source or other options; give an empty folder")
    return Packed(out / MANIFEST_NAME, manifest["samples"], manifest.get("people", 0), manifest["bytes"], already=True)


def _open_staging(out: Path) -> Path:
    staging = out / STAGING_NAME
    foreign = sorted(entry.name for entry in out.iterdir()) if out.is_dir() else []
    if foreign and not staging.is_dir():
        raise ImportFailedError(f"{out}: is not empty (it holds {foreign[0]}); give an empty or a new folder")
    staging.mkdir(parents=True, exist_ok=True)
    return staging


def _begin(noted: Path, settings: dict[str, Any], out: Path) -> None:
    """Compare with what an interrupted call left, or note the settings of a new set."""
    data = canonical_json(settings)
    if not noted.exists():
        replace_file(noted, data)
    elif noted.read_bytes() != data:
        try:
            found = json.loads(noted.read_bytes())
        except ValueError:
            found = {}
        flat, other = ({**s.get("options", {}), **s} for s in (found, settings))
        name = next((name for name in other if name != "options" and flat.get(name) != other[name]), "importer")
        raise ImportFailedError(
            f"{out}: holds an unfinished import with {name} = {flat.get(name)}, and {name} = {other.get(name)} is "
            "asked for; give the same options, or another folder"
        )


def _jobs(importer: Importer, out: Path, records: Iterable[Any], size: int, prefix: str) -> Iterator[_Job]:
    rest, number = iter(records), 0
    while chunk := list(islice(rest, size)):
        yield _Job(importer, out, f"{prefix}-{number:06d}.tar", chunk)
        number += 1


def _run(jobs: Iterator[_Job], workers: int, total: int | None, max_rejected: float, progress: bool) -> list[_Shard]:
    shards, seen, lost = [], 0, 0
    with ProgressBar("samples", total, shown=progress) as bar:
        for shard in run_parallel(_make_shard, jobs, workers):
            shards.append(shard)
            seen, lost = seen + shard.records, lost + len(shard.rejected)
            bar.advance(shard.records)
            if seen >= _JUDGED_FROM:
                _judge(seen, lost, max_rejected, shard)
    if not shards:
        raise ImportFailedError("the source has no samples")
    _judge(seen, lost, max_rejected, max(shards, key=lambda shard: len(shard.rejected)))
    return sorted(shards, key=lambda shard: shard.name)


def _judge(seen: int, lost: int, max_rejected: float, shard: _Shard) -> None:
    if lost == seen or lost > max_rejected * seen:
        reason = shard.rejected[-1][1] if shard.rejected else "see the others"
        raise ImportFailedError(
            f"{lost} of {seen} samples cannot be used, more than the share of {max_rejected:g} that --max-rejected "
            f"allows; the last: {reason}"
        )


def _make_shard(job: _Job) -> _Shard:
    """Write one shard, or find it written by an interrupted call. Runs in a working process."""
    path, digest = job.folder / job.name, digest_of(job.records)
    if job.note.exists():
        note = json.loads(job.note.read_bytes())
        if note["digest"] != digest:
            raise ImportFailedError(
                f"{path}: the source has changed since it was written; give another folder, or delete this one"
            )
        rejected = [tuple(entry) for entry in note["rejected"]]
        if len(rejected) == len(job.records):
            return _Shard(job.name, len(job.records), rejected=rejected)
        return _Shard(job.name, len(job.records), *scan_shard(path), rejected)
    rejected: list[tuple[str, str]] = []
    samples = _samples(job, rejected)
    first = next(samples, None)
    written: tuple[Any, ...] = ()
    if first is not None:
        written = write_shard(path, _chain(first, samples))
    replace_file(job.note, canonical_json({"digest": digest, "rejected": rejected}))
    return _Shard(job.name, len(job.records), *written or (None, None), rejected)


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _samples(job: _Job, rejected: list[tuple[str, str]]) -> Iterator[tuple[str, dict[str, bytes]]]:
    for record in job.records:
        try:
            members = job.importer.sample(record)
        except RejectedError as error:
            rejected.append((record.key, printable(" ".join(str(error).split()))))
        else:
            yield record.key, members


def _finish(
    out: Path, source: Source, shards: list[_Shard], settings: dict[str, Any], info: dict[str, Any] | None
) -> Packed:
    rejected = [entry for shard in shards for entry in shard.rejected]
    if rejected:
        lines = [canonical_json({"key": key, "reason": reason}) + b"\n" for key, reason in rejected]
        replace_file(out / REJECTED_NAME, b"".join(lines))
    for name, content in source.files.items():
        replace_file(out / name, content)
    written = [(shard.entry, shard.contents) for shard in shards if shard.entry is not None]
    stated = {name: value for name, value in (info or {}).items() if value is not None}
    described = {
        **source.info,
        **stated,
        "importer": settings["importer"],
        "packed_from": digest_of([canonical_json(settings)]),
    }
    manifest = write_manifest(out, written, described)
    entries = [entry for entry, _ in written]
    return Packed(
        manifest,
        sum(entry["samples"] for entry in entries),
        sum(entry["people"] for entry in entries),
        sum(entry["bytes"] for entry in entries),
        tuple(rejected),
        source.notes,
    )


def leftover(folder: Path) -> bool:
    """Return whether a folder holds an unfinished import."""
    return (folder / STAGING_NAME).is_dir() and not (folder / MANIFEST_NAME).exists()
