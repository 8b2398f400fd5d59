"""Read shard sets at random, from any process, from disk or over the network."""

import hashlib
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from data_modules.shards.cache import CachedFolder, ShardCache
from data_modules.shards.codecs import check_fields, decode_sample
from data_modules.shards.format import KIT_NORMALS_FRAME, ShardError, field_of, parse_manifest
from data_modules.shards.index import Entry, ShardIndex, index_path, parse_index
from data_modules.shards.storage import Folder, RemoteFolder, open_source, read_checked
from data_modules.shards.writer import check_crc

MAX_OPEN_SHARDS = 64
#: Samples whose bytes may wait for their turn, and connections that fetch them.
MAX_AHEAD, CONNECTIONS = 128, 16


class ShardDataset(Dataset[dict[str, Any]]):
    """A shard set as a map-style dataset of raw samples. Files are opened on first use, per process.

    Args:
        source: The set's folder, its ``manifest.json``, or an fsspec URL of either (``s3://``, ``https://``, ...).
        fields: What to decode (see ``FIELDS``); None for everything. What a sample does not have is left out.
        required: Fields that the set must have.
        per_person: Give a person instead of an image: the length is the number of people in the set, and an item is
            the person's image with the flat fields ``box``, ``keypoints``, ``visibility``, ``area``, ``iscrowd`` and
            ``person_id`` of that person (those that the set has), without ``people``.
        min_size: Smallest (height, width) of the image that will do, see ``read_image``; only where ``fields`` has
            nothing that counts in the image's pixels.
        cache: Keep whole shards of a URL on disk; by default only the parts that are needed are fetched, each time.
        storage_options: For the file system of a URL; see ``open_source``.

    Attributes:
        manifest: The set's manifest.
        counts: int64, items in each shard: samples, or people.
        digest: Changes whenever what an item number means does.

    Raises:
        ShardError: The manifest cannot be used, or no sample of the set has a required field.
        StorageError: There is no manifest, or it cannot be read.
    """

    def __init__(
        self,
        source: str | Path,
        fields: Collection[str] | None = None,
        required: Collection[str] = ("image",),
        per_person: bool = False,
        *,
        min_size: tuple[int, int] | None = None,
        cache: ShardCache | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        self.folder, name = open_source(source, storage_options)
        if cache is not None and isinstance(self.folder, RemoteFolder):
            self.folder = CachedFolder(self.folder, cache)
        path = self.folder.where(name)
        self.manifest = read_checked(self.folder, name, lambda data: parse_manifest(data, path))
        self.fields = check_fields(fields)
        self.per_person, self.min_size = per_person, min_size
        if min_size is not None and not self.fields <= {"image", "meta"}:
            raise ShardError(f"{path}: min_size changes the image's size; it goes with the fields image and meta alone")
        for name in sorted(check_fields(required)):
            if name not in self.manifest["fields"]:
                present = ", ".join(self.manifest["fields"])
                raise ShardError(f"{path}: no sample has {name!r}; the set has {present or 'no known fields'}")
        unit = "people" if per_person else "samples"
        if not all(unit in shard for shard in self.manifest["shards"]):
            raise ShardError(f"{path}: does not count people; write manifest and index again with make_manifest")
        self.counts = np.array([shard[unit] for shard in self.manifest["shards"]], np.int64)
        self.digest = self.manifest["digest"] + (":people" if per_person else "")
        # A list, since bisect takes a fraction of what searchsorted does for a single number.
        self._first: list[int] = [0, *np.cumsum(self.counts).tolist()]
        self._state: _State | None = None

    def __len__(self) -> int:
        return self._first[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return raw sample (or person) ``index``; negative numbers count from the end.

        Raises:
            ShardError: The shard or its index is damaged, or a member does not decode.
            StorageError: Shard or index are missing, or cannot be reached.
        """
        position, number = self._locate(index)
        fetching = self._current().ahead.pop((position, number), None)
        members = fetching.result() if fetching else self._fetch(position, number)
        shard = self._shard(position)
        sample, person = shard.index.find(number, self.per_person)
        key, frame = shard.index.key(sample), self.manifest.get("normals_frame", KIT_NORMALS_FRAME)
        try:
            return decode_sample(
                members, self.fields, key=key, normals_frame=frame, person=person, min_size=self.min_size
            )
        except ShardError as error:
            raise ShardError(f"{shard.path}: {error}") from None

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return several items; those of a URL are fetched at the same time."""
        self.prefetch(indices)
        return [self[index] for index in indices]

    def prefetch(self, indices: Iterable[int]) -> None:
        """Begin to fetch items that are read next, without waiting; does nothing for a set on disk."""
        if not self.folder.is_remote:
            return
        state = self._current()
        for position, number in map(self._locate, indices):
            if (position, number) in state.ahead:
                continue
            if len(state.ahead) >= MAX_AHEAD:
                state.ahead.popitem(last=False)[1].cancel()
            state.ahead[position, number] = state.threads().submit(self._fetch, position, number)

    def prefetch_shards(self, indices: Iterable[int]) -> None:
        """Begin to open the shards of items that are read later, and with a cache to fetch them, without waiting."""
        if not self.folder.is_remote:
            return
        state = self._current()
        for position in {self._locate(index)[0] for index in indices} - set(state.open):
            state.threads().submit(self._shard, position)

    def key(self, index: int) -> str:
        """Return the key of the sample that item ``index`` is, or is a person of; also where its tar is damaged.

        Raises:
            ShardError: The shard's index, which holds the keys, is damaged.
            StorageError: Shard or index are missing, or cannot be reached.
        """
        position, number = self._locate(index)
        try:
            shard_index = self._shard(position).index
        except ShardError:
            shard_index = _read_index(self.folder, self.manifest["shards"][position])
        return shard_index.key(shard_index.find(number, self.per_person)[0])

    def read_encoded(self, index: int) -> dict[str, bytes]:
        """Return all members of the sample of item ``index``, extension -> bytes, checked against their crc32."""
        position, number = self._locate(index)
        shard = self._shard(position)
        sample, _ = shard.index.find(number, self.per_person)
        return shard.read(sample, shard.index.entries(sample))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_state": None}

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the shard's position in the manifest, and the item's number in it."""
        length = self._first[-1]
        if not -length <= index < length:
            raise IndexError(f"item {index} of {self.folder.where('')}, which has {length}")
        index = int(index) % length
        position = bisect_right(self._first, index) - 1
        return position, index - self._first[position]

    def _current(self) -> "_State":
        if self._state is None or self._state.process != os.getpid():
            self._state = _State()
        return self._state

    def _shard(self, position: int) -> "_OpenShard":
        state = self._current()
        with state.lock:
            slot = state.open.setdefault(position, _Slot())
            state.open.move_to_end(position)
            if len(state.open) > MAX_OPEN_SHARDS:
                state.open.popitem(last=False)
        with slot.lock:
            if slot.shard is None:
                slot.shard = _OpenShard(self.folder, self.manifest["shards"][position])
            return slot.shard

    def _fetch(self, position: int, number: int) -> dict[str, bytes]:
        """Return the members of an item that the fields need."""
        shard = self._shard(position)
        sample, _ = shard.index.find(number, self.per_person)
        if shard.wanted is None:
            shard.wanted = frozenset(filter(self._is_wanted, shard.index.extensions))
        return shard.read(sample, shard.index.entries(sample, shard.wanted))

    def _is_wanted(self, extension: str) -> bool:
        name = field_of(extension)
        return name == "json" or name in self.fields


class _State:
    """What one process has open and under way."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.lock = threading.Lock()
        self.open: OrderedDict[int, _Slot] = OrderedDict()
        self.ahead: OrderedDict[tuple[int, int], Future] = OrderedDict()
        self.pool: ThreadPoolExecutor | None = None

    def threads(self) -> ThreadPoolExecutor:
        self.pool = self.pool or ThreadPoolExecutor(CONNECTIONS, "shards")
        return self.pool


class _Slot:
    """Lets one thread open a shard and the others wait for it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.shard: _OpenShard | None = None


class _OpenShard:
    """An open tar and its index."""

    def __init__(self, folder: Folder, stated: dict[str, Any]) -> None:
        self.path = folder.where(stated["name"])
        #: Extensions of the members that the data set decodes, once it knows.
        self.wanted: frozenset[str] | None = None
        self._file = folder.open(stated)
        self.index = _read_index(folder, stated)
        size = self.index.tar_bytes if self._file.size is None else self._file.size
        if not size == self.index.tar_bytes == stated["bytes"]:
            raise ShardError(
                f"{self.path}: {size} bytes, its index says {self.index.tar_bytes}, the manifest {stated['bytes']}: "
                "the tar is cut off, or index or manifest belong to another one"
            )
        people = int(self.index.first_person[-1])
        if people != stated.get("people", people):
            raise ShardError(
                f"{self.path}: its index counts {people} people, the manifest {stated['people']}; "
                "write both again with make_manifest"
            )

    def read(self, sample: int, entries: list[Entry]) -> dict[str, bytes]:
        """Return the members of ``entries``, extension -> bytes, fetched once more if they are damaged."""
        for attempt in (1, 2):
            contents = self._file.read([(entry.offset, entry.size) for entry in entries])
            try:
                for entry, data in zip(entries, contents):
                    check_crc(self.path, self.index.key(sample), entry, data)
                break
            except ShardError:
                if attempt == 2:
                    raise
                self._file.renew()
        return {entry.extension: data for entry, data in zip(entries, contents)}


def _read_index(folder: Folder, stated: dict[str, Any]) -> ShardIndex:
    """Return the index of a shard that the manifest lists, checked to be the one that it means."""
    path = folder.where(stated["name"])

    def parse(data: bytes) -> ShardIndex:
        index = parse_index(data, index_path(path))
        if len(index) != stated["samples"]:
            raise ShardError(
                f"{path}: its index has {len(index)} samples, the manifest says {stated['samples']}; "
                "the index belongs to another tar"
            )
        if "index_sha256" in stated and hashlib.sha256(data).hexdigest() != stated["index_sha256"]:
            raise ShardError(
                f"{path}: its index is not the one that the manifest lists: it belongs to another tar, or was "
                "made again; write the manifest again with make_manifest"
            )
        return index

    return read_checked(folder, index_path(stated["name"]).name, parse)
