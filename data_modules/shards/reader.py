"""Read shard sets at random, from any process."""

import os
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from data_modules.shards.codecs import check_fields, decode_sample
from data_modules.shards.format import KIT_NORMALS_FRAME, ShardError, field_of, manifest_path, read_manifest
from data_modules.shards.index import Entry, ShardIndex, index_path, read_index
from data_modules.shards.writer import check_crc

MAX_OPEN_SHARDS = 64


class ShardDataset(Dataset[dict[str, Any]]):
    """A shard set as a map-style dataset of raw samples. Files are opened on first use, per process.

    Args:
        source: The set's folder, or its ``manifest.json``.
        fields: What to decode (see ``FIELDS``); None for everything. What a sample does not have is left out.
        required: Fields that the set must have.
        per_person: Give a person instead of an image: the length is the number of people in the set, and an item is
            the person's image with the flat fields ``box``, ``keypoints``, ``visibility``, ``area``, ``iscrowd`` and
            ``person_id`` of that person (those that the set has), without ``people``.

    Attributes:
        manifest: The set's manifest.
        counts: int64, items in each shard: samples, or people.
        digest: Changes whenever what an item number means does.

    Raises:
        ShardError: The manifest cannot be used, or no sample of the set has a required field.
    """

    def __init__(
        self,
        source: str | Path,
        fields: Collection[str] | None = None,
        required: Collection[str] = ("image",),
        per_person: bool = False,
    ) -> None:
        path = manifest_path(source)
        self.folder = path.parent
        self.manifest = read_manifest(path)
        self.fields = check_fields(fields)
        self.per_person = per_person
        for name in sorted(check_fields(required)):
            if name not in self.manifest["fields"]:
                present = ", ".join(self.manifest["fields"])
                raise ShardError(f"{path}: no sample has {name!r}; the set has {present or 'no known fields'}")
        unit = "people" if per_person else "samples"
        if not all(unit in shard for shard in self.manifest["shards"]):
            raise ShardError(f"{path}: does not count people; write manifest and index again with make_manifest")
        self.counts = np.array([shard[unit] for shard in self.manifest["shards"]], np.int64)
        self.digest = self.manifest["digest"] + (":people" if per_person else "")
        self._first = np.concatenate([[0], np.cumsum(self.counts)])
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._pid = os.getpid()

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return raw sample (or person) ``index``; negative numbers count from the end.

        Raises:
            ShardError: Shard or index are missing or damaged, or a member does not decode.
        """
        shard, number, person = self._find(index)
        key = shard.index.key(number)
        wanted = [e for e in shard.index.entries(number) if self._is_wanted(e.extension)]
        members = shard.read(number, wanted)
        frame = self.manifest.get("normals_frame", KIT_NORMALS_FRAME)
        try:
            return decode_sample(members, self.fields, key=key, normals_frame=frame, person=person)
        except ShardError as error:
            raise ShardError(f"{shard.path}: {error}") from None

    def key(self, index: int) -> str:
        """Return the key of the sample that item ``index`` is, or is a person of."""
        shard, number, _ = self._find(index)
        return shard.index.key(number)

    def read_encoded(self, index: int) -> dict[str, bytes]:
        """Return all members of the sample of item ``index``, extension -> bytes, checked against their crc32."""
        shard, number, _ = self._find(index)
        return shard.read(number, shard.index.entries(number))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict(), "_pid": None}

    def _is_wanted(self, extension: str) -> bool:
        name = field_of(extension)
        return name == "json" or name in self.fields

    def _find(self, index: int) -> tuple["_OpenShard", int, int | None]:
        """Return shard, number of the sample in it, and number of the person in the sample."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {self.folder}, which has {len(self)}")
        index = int(index) % len(self)
        position = int(np.searchsorted(self._first, index, "right")) - 1
        shard, number = self._shard(position), index - int(self._first[position])
        if not self.per_person:
            return shard, number, None
        sample = int(np.searchsorted(shard.first_person, number, "right")) - 1
        return shard, sample, number - int(shard.first_person[sample])

    def _shard(self, position: int) -> "_OpenShard":
        if self._pid != os.getpid():
            self._open, self._pid = OrderedDict(), os.getpid()
        shard = self._open.get(position)
        if shard is None:
            entry = self.manifest["shards"][position]
            shard = self._open[position] = _OpenShard(self.folder / entry["name"], entry)
            if len(self._open) > MAX_OPEN_SHARDS:
                self._open.popitem(last=False)
        else:
            self._open.move_to_end(position)
        return shard


class _OpenShard:
    """An open tar and its index. The file closes with the last reference: another thread may still be reading."""

    def __init__(self, path: Path, stated: dict[str, Any]) -> None:
        self.path = path
        self._file = -1
        try:
            self._file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:
            raise ShardError(f"{path}: the shard is missing, although the manifest names it") from None
        except OSError as error:
            raise ShardError(f"{path}: not readable ({error})") from None
        self.index: ShardIndex = read_index(index_path(path))
        size = os.fstat(self._file).st_size
        if not size == self.index.tar_bytes == stated["bytes"]:
            raise ShardError(
                f"{path}: {size} bytes, its index says {self.index.tar_bytes}, the manifest {stated['bytes']}: "
                "the tar is cut off, or index or manifest belong to another one"
            )
        if len(self.index) != stated["samples"]:
            raise ShardError(
                f"{path}: its index has {len(self.index)} samples, the manifest says {stated['samples']}; "
                "the index belongs to another tar"
            )
        people = self.index.people
        self.first_person = None if people is None else np.concatenate([[0], np.cumsum(people, dtype=np.int64)])
        if "people" in stated and (people is None or self.first_person[-1] != stated["people"]):
            raise ShardError(
                f"{path}: its index and the manifest count people differently; write both again with make_manifest"
            )

    def read(self, number: int, entries: list[Entry]) -> dict[str, bytes]:
        members = {}
        for entry in entries:
            # pread, not mmap: a file cut off under the reader is then a short read and not a fatal signal.
            data = os.pread(self._file, entry.size, entry.offset)
            check_crc(self.path, self.index.key(number), entry, data)
            members[entry.extension] = data
        return members

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)
