"""Make a set of tars that other programs wrote: indices in parallel, then the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_modules.parallel import default_workers, run_parallel
from data_modules.progress import ProgressBar
from data_modules.shards.format import ShardError, read_manifest
from data_modules.shards.index import index_path, index_tar, read_index
from data_modules.shards.writer import RESERVED, ShardContents, scan_shard, write_manifest


@dataclass(frozen=True)
class _Job:
    tar: Path
    anew: bool


def index_folder(
    folder: str | Path,
    info: dict[str, Any] | None = None,
    *,
    anew: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> tuple[Path, int, int]:
    """Index the tars of a folder that have no index, and write its manifest.

    An index appears only when it is whole, so an interrupted call goes on where it was.

    Args:
        folder: Holds the tars.
        info: Keys of the manifest, as for ``make_manifest``; others are kept from a manifest that is there.
        anew: Make also the indices that are there.
        workers: Processes; by default one per core.
        progress: Show a progress bar.

    Returns:
        The manifest's path, the number of samples, and the number of tars that were indexed.

    Raises:
        ShardError: There is no tar, or one of them cannot be read.
    """
    folder = Path(folder).expanduser()
    tars = sorted(folder.glob("*.tar"))
    if not folder.is_dir():
        raise ShardError(f"{folder}: no such folder")
    if not tars:
        raise ShardError(f"{folder}: no *.tar in it")
    info = _kept(folder) | (info or {})
    workers = min(workers or default_workers(), len(tars))
    scans, made = {}, 0
    with ProgressBar("tars", len(tars), shown=progress) as bar:
        for name, indexed, scan in run_parallel(_index, [_Job(tar, anew) for tar in tars], workers):
            scans[name], made = scan, made + indexed
            bar.advance()
    manifest = write_manifest(folder, [scans[tar.name] for tar in tars], info)
    return manifest, sum(entry["samples"] for entry, _ in scans.values()), made


def _kept(folder: Path) -> dict[str, Any]:
    """What a manifest that is there says beside what the writer counts."""
    try:
        manifest = read_manifest(folder)
    except ShardError:
        return {}
    return {name: value for name, value in manifest.items() if name not in RESERVED}


def _index(job: _Job) -> tuple[str, bool, tuple[dict[str, Any], ShardContents]]:
    needed = job.anew or not _is_sound(job.tar)
    if needed:
        index_tar(job.tar)
    return job.tar.name, needed, scan_shard(job.tar)


def _is_sound(tar: Path) -> bool:
    """Whether a tar has an index that belongs to it; an old or broken one is made again."""
    try:
        return read_index(index_path(tar)).tar_bytes == tar.stat().st_size
    except (ShardError, OSError):
        return False
