"""Write shard sets: deterministic tars, an index beside each, and the manifest last."""

import hashlib
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from data_modules.shards.codecs import encode_sample
from data_modules.shards.format import (
    JSON_FIELDS,
    KIT_NORMALS_FRAME,
    MANIFEST_FORMAT,
    MANIFEST_NAME,
    MANIFEST_VERSION,
    SCHEMAS,
    ShardError,
    canonical_json,
    check_key,
    check_schemas,
    field_of,
    manifest_digest,
    split_member_name,
)
from data_modules.shards.index import Entry, ShardIndex, build_index, index_path, index_tar, read_index, replace_file
from data_modules.shards.records import count_people, parse_loosely

_RECORD = 20 * tarfile.BLOCKSIZE
#: Keys of a manifest that are counted, and that ``info`` may not hold.
RESERVED = {"format", "version", "samples", "people", "bytes", "shards", "fields", "image_sizes", "digest"}


class ShardWriter:
    """Writes samples into ``folder/prefix-000000.tar``, ``-000001.tar``, ... and on a clean exit the manifest.

    Equal samples give equal files. Every file appears under its name only when it is whole, the manifest last;
    after an exception the finished shards stay, and ``resume=True`` goes on behind them.

    Args:
        folder: Where the set goes; made if needed.
        prefix: Beginning of the shards' names.
        samples_per_shard: Samples in each shard but the last.
        info: Further keys of the manifest, such as ``licence``, ``source``, ``generator``; JSON-able. ``schemas``
            names what ``keypoints`` and ``parts`` number, where it is not what ``format.SCHEMAS`` says.
        resume: Keep the shards of an interrupted run. ``count`` then says how many samples are there already:
            go on with sample number ``count``.

    Raises:
        ShardError: The folder holds shards of this prefix already and ``resume`` is off, or they do not fit.
    """

    def __init__(
        self,
        folder: str | Path,
        prefix: str = "samples",
        samples_per_shard: int = 64,
        info: dict[str, Any] | None = None,
        resume: bool = False,
    ) -> None:
        self.folder = Path(folder).expanduser()
        self.prefix = check_key(prefix)
        self.samples_per_shard = samples_per_shard
        self.info = dict(info or {})
        if samples_per_shard < 1:
            raise ShardError(f"samples_per_shard is {samples_per_shard}, it must be at least 1")
        if "/" in prefix:
            raise ShardError(f"prefix {prefix!r} must be a plain name")
        taken = sorted(RESERVED & set(self.info))
        if taken:
            raise ShardError(f"info may not hold {taken[0]!r}: the writer sets that key of the manifest")
        canonical_json(self.info)
        if "schemas" in self.info:
            self.info["schemas"] = check_schemas(self.info["schemas"])
        self.folder.mkdir(parents=True, exist_ok=True)
        present = sorted(self.folder.glob(f"{prefix}-*.tar"))
        if present and not resume:
            raise ShardError(f"{present[0]}: is there already; give an empty folder, or resume=True to go on")
        # From here on the set is unfinished, and an old manifest would say otherwise.
        (self.folder / MANIFEST_NAME).unlink(missing_ok=True)
        self._totals = _Totals()
        self._open: _OpenShard | None = None
        for number, path in enumerate(present):
            self._adopt(path, self._shard_path(number), last=path == present[-1])

    @property
    def count(self) -> int:
        """Number of samples written so far, those of a resumed run included."""
        return self._totals.samples + (len(self._open.samples) if self._open else 0)

    def write(self, sample: dict[str, Any]) -> None:
        """Encode and append a raw sample (see ``encode_sample``)."""
        self.write_encoded(sample.get("key", ""), encode_sample(sample))

    def write_encoded(self, key: str, members: dict[str, bytes]) -> None:
        """Append a sample that is encoded already.

        Raises:
            ShardError: The key or an extension is not usable, or the shard has the key already.
        """
        check_key(key)
        if not members:
            raise ShardError(f"sample {key!r}: no members")
        if self._open is None:
            self._open = _OpenShard(self._shard_path(len(self._totals.shards)))
        self._open.append(key, members)
        if len(self._open.samples) == self.samples_per_shard:
            self._finish_shard()

    def close(self) -> Path:
        """Finish the last shard, write the manifest and return its path."""
        if self._open:
            self._finish_shard()
        return self._totals.write_manifest(self.folder, self.info)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._open:
            self._open.discard()

    def _finish_shard(self) -> None:
        shard, self._open = self._open, None
        self._totals.add(*shard.finish())

    def _shard_path(self, number: int) -> Path:
        return self.folder / f"{self.prefix}-{number:06d}.tar"

    def _adopt(self, path: Path, expected: Path, last: bool) -> None:
        if path != expected:
            raise ShardError(f"{path}: cannot go on behind it, {expected.name} is missing; give an empty folder")
        stated, statistics = scan_shard(path)
        if stated["samples"] == self.samples_per_shard:
            self._totals.add(stated, statistics)
        elif last and stated["samples"] < self.samples_per_shard:
            # The shorter shard at the end of a finished set: it is written again with what follows.
            path.unlink()
            index_path(path).unlink(missing_ok=True)
        else:
            raise ShardError(
                f"{path}: holds {stated['samples']} samples, samples_per_shard is {self.samples_per_shard}; "
                "give an empty folder or the number that the shards were made with"
            )


class _OpenShard:
    """A tar under its temporary name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(path.name + ".tmp")
        self.samples: list[tuple[str, list[Entry]]] = []
        self.people: list[int] = []
        self.statistics = ShardContents()
        self._keys: set[str] = set()
        self._file = open(self.temporary, "wb")  # noqa: SIM115 - it stays open from sample to sample
        self._sha = hashlib.sha256()
        self._offset = 0

    def append(self, key: str, members: dict[str, bytes]) -> None:
        if key in self._keys:
            raise ShardError(f"{self.path}: sample {key!r} is there already; keys must be unique")
        for extension in members:
            if split_member_name(f"{key}.{extension}") != (key, extension):
                raise ShardError(f"sample {key!r}: extension {extension!r} must be like 'jpg' or 'depth.q16.zst'")
        self._keys.add(key)
        entries = []
        for extension, data in sorted(members.items()):
            if not extension or extension != extension.lower() or "/" in extension or extension.startswith("."):
                raise ShardError(
                    f"sample {key!r}: extension {extension!r} must be lower case, without '/' or first '.'"
                )
            self._put(_tar_header(f"{key}.{extension}", len(data)))
            entries.append(Entry(extension, self._offset, len(data), zlib.crc32(data)))
            self._put(data)
            self._put(bytes(-len(data) % tarfile.BLOCKSIZE))
        self.samples.append((key, entries))
        self.people.append(self.statistics.add(members.keys(), members.get("json")))

    def finish(self) -> tuple[dict[str, Any], "ShardContents"]:
        end = self._offset + 2 * tarfile.BLOCKSIZE
        self._put(bytes(-(-end // _RECORD) * _RECORD - self._offset))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        index = build_index(self._offset, self.samples, self.people)
        data = index.to_bytes()
        # The index goes first: a tar under its final name always has one.
        replace_file(index_path(self.path), data)
        os.replace(self.temporary, self.path)
        return _describe(self.path.name, index, data, self._sha), self.statistics

    def discard(self) -> None:
        self._file.close()
        self.temporary.unlink(missing_ok=True)

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._sha.update(data)
        self._offset += len(data)


class ShardContents:
    """What the manifest says about the content of a shard's samples."""

    def __init__(self) -> None:
        self.fields: Counter[tuple[str, str]] = Counter()
        self.sizes: Counter[tuple[int, int]] = Counter()

    def add(self, extensions: Any, record: bytes | None) -> int:
        """Count a sample; return the number of people in it."""
        for extension in extensions:
            name = field_of(extension)
            if name and name != "json":
                self.fields[name, extension] += 1
        content = parse_loosely(record)
        for name in JSON_FIELDS:
            if name in content:
                self.fields[name, "json"] += 1
        size = content.get("image_size")
        if isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) for n in size):
            self.sizes[size[0], size[1]] += 1
        return count_people(content)

    def update(self, other: "ShardContents") -> None:
        self.fields.update(other.fields)
        self.sizes.update(other.sizes)


class _Totals:
    """The manifest as it grows."""

    def __init__(self) -> None:
        self.shards: list[dict[str, Any]] = []
        self.statistics = ShardContents()

    @property
    def samples(self) -> int:
        return sum(shard["samples"] for shard in self.shards)

    def add(self, shard: dict[str, Any], statistics: ShardContents) -> None:
        self.shards.append(shard)
        self.statistics.update(statistics)

    def write_manifest(self, folder: Path, info: dict[str, Any]) -> Path:
        fields: dict[str, Any] = {}
        for (name, extension), samples in sorted(self.statistics.fields.items()):
            entry = fields.setdefault(name, {"samples": 0, "members": []})
            entry["samples"] += samples
            entry["members"].append(extension)
        sizes = sorted(self.statistics.sizes.items())
        manifest = {
            "schemas": SCHEMAS,
            "normals_frame": KIT_NORMALS_FRAME,
            "licence": None,
            "source": None,
            **info,
            "format": MANIFEST_FORMAT,
            "version": MANIFEST_VERSION,
            "samples": self.samples,
            "people": sum(shard["people"] for shard in self.shards),
            "bytes": sum(shard["bytes"] for shard in self.shards),
            "shards": self.shards,
            "fields": fields,
            "image_sizes": [{"height": h, "width": w, "samples": n} for (h, w), n in sizes],
        }
        manifest["digest"] = manifest_digest(manifest)
        path = folder / MANIFEST_NAME
        replace_file(path, canonical_json(manifest) + b"\n")
        return path


def make_manifest(folder: str | Path, info: dict[str, Any] | None = None) -> Path:
    """Write the manifest of all ``*.tar`` in ``folder``, indexing those that have no index; return its path.

    Args:
        folder: Holds the tars, of any writer.
        info: As for ``ShardWriter``; ``normals_frame`` states the frame of normals that do not say it
            themselves.

    Raises:
        ShardError: There is no tar, or one of them cannot be read.
    """
    folder = Path(folder).expanduser()
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise ShardError(f"{folder}: no *.tar in it")
    for path in paths:
        if not index_path(path).exists():
            index_tar(path)
    return write_manifest(folder, map(scan_shard, paths), info)


def write_shard(
    path: str | Path, samples: Iterable[tuple[str, dict[str, bytes]]]
) -> tuple[dict[str, Any], ShardContents]:
    """Write one shard and its index; return what ``write_manifest`` needs of it. For sets written by many processes.

    Args:
        path: The tar; it appears under this name only when it is whole.
        samples: Key and encoded members of each sample.

    Raises:
        ShardError: As ``ShardWriter.write_encoded``.
    """
    shard = _OpenShard(Path(path))
    try:
        for key, members in samples:
            shard.append(check_key(key), members)
    except BaseException:
        shard.discard()
        raise
    return shard.finish()


def write_manifest(
    folder: str | Path, shards: Iterable[tuple[dict[str, Any], ShardContents]], info: dict[str, Any] | None = None
) -> Path:
    """Write the manifest of shards that ``write_shard`` wrote or ``scan_shard`` read, in this order.

    Args:
        folder: Holds the shards.
        shards: What these functions return.
        info: As for ``ShardWriter``.
    """
    info = dict(info or {})
    if "schemas" in info:
        info["schemas"] = check_schemas(info["schemas"])
    totals = _Totals()
    for shard in shards:
        totals.add(*shard)
    return totals.write_manifest(Path(folder), info)


def scan_shard(path: Path) -> tuple[dict[str, Any], ShardContents]:
    """Read an indexed tar and return its entry in a manifest and what is in it; an index of version 1 is made again.

    Raises:
        ShardError: The tar does not fit its index.
    """
    index = read_index(index_path(path))
    if index.people is None:
        index = read_index(index_tar(path))
    sha, statistics = hashlib.sha256(), ShardContents()
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size != index.tar_bytes:
            raise ShardError(
                f"{path}: {size} bytes, its index says {index.tar_bytes}; the tar is cut off or another one"
            )
        while chunk := file.read(1 << 20):
            sha.update(chunk)
        for number in range(len(index)):
            contents = {}
            for entry in index.entries(number):
                file.seek(entry.offset)
                contents[entry.extension] = data = file.read(entry.size)
                check_crc(path, index.key(number), entry, data)
            people = statistics.add(contents.keys(), contents.get("json"))
            if people != index.people[number]:
                raise ShardError(
                    f"{path}: sample {index.key(number)!r} has {people} people, its index says "
                    f"{index.people[number]}; make the index again with index_tar"
                )
    return _describe(path.name, index, index_path(path).read_bytes(), sha), statistics


def check_crc(path: str | Path, key: str, entry: Entry, data: bytes) -> None:
    """Raise ShardError if ``data`` is not what the index says of it."""
    if len(data) != entry.size or zlib.crc32(data) != entry.crc32:
        raise ShardError(
            f"{path}: sample {key!r}, member {entry.extension!r}: crc32 is {zlib.crc32(data):08x}, the index "
            f"says {entry.crc32:08x}; the shard is damaged or the index belongs to another tar"
        )


def _describe(name: str, index: ShardIndex, data: bytes, sha: Any) -> dict[str, Any]:
    return {
        "name": name,
        "samples": len(index),
        "people": int(index.people.sum()),
        "bytes": index.tar_bytes,
        "sha256": sha.hexdigest(),
        "index_sha256": hashlib.sha256(data).hexdigest(),
    }


def _tar_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8")
