"""Finished samples that wait to be packed: one file each, whole or not there at all."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

_MAGIC = b"S2STAGE1"


def staged_path(folder: Path, index: int) -> Path:
    """File of sample `index`."""
    return folder / f"{index:08d}.sample"


def write_staged(folder: Path, index: int, members: dict[str, bytes]) -> None:
    """Write the encoded members of a sample under a temporary name and rename it."""
    body = b"".join(members.values())
    sizes = json.dumps({name: len(data) for name, data in members.items()}).encode()
    head = _MAGIC + len(sizes).to_bytes(4, "little") + zlib.crc32(sizes + body).to_bytes(4, "little")
    path = staged_path(folder, index)
    temporary = path.with_suffix(f".tmp{os.getpid()}")
    temporary.write_bytes(head + sizes + body)
    os.replace(temporary, path)


def read_staged(folder: Path, index: int) -> dict[str, bytes] | None:
    """Return the members of a sample, or None if it is not there or damaged."""
    try:
        data = staged_path(folder, index).read_bytes()
    except FileNotFoundError:
        return None
    start = len(_MAGIC) + 8
    count = int.from_bytes(data[len(_MAGIC) : len(_MAGIC) + 4], "little")
    crc = int.from_bytes(data[len(_MAGIC) + 4 : start], "little")
    if not data.startswith(_MAGIC) or zlib.crc32(data[start:]) != crc:
        return None
    sizes = json.loads(data[start : start + count])
    members, offset = {}, start + count
    for name, size in sizes.items():
        members[name] = data[offset : offset + size]
        offset += size
    return members
