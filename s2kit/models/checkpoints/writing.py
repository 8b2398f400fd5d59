"""Writing weights with what must accompany them: descriptions, checksums, shards, and the terms they are under."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from s2kit.models.checkpoints.errors import WeightsError
from s2kit.models.checkpoints.files import sha256

#: Files beside weights that state terms, by pattern.
TERMS = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*")
NOTICE_NAME = "NOTICE-SAPIENS2.txt"
NOTICE = """\
Terms of these weights

A conversion changes the names and the container of weights, and nothing about their terms.

Official Sapiens2 weights, and everything derived from them (conversions to another layout, casts to another precision,
fine-tuned and distilled models), are under the Sapiens2 License of Meta Platforms, Inc., which is at
https://github.com/facebookresearch/sapiens2/blob/main/LICENSE.md. Among other things it restricts uses, such as
biometric processing and surveillance, and asks that a copy of it goes with the weights and whatever is made of them.
If these weights are such, keep the license and this notice beside them and pass both on with every copy.

First-generation Sapiens weights are under the license that was published with them.

Weights that were trained from nothing with s2kit are under the terms of whoever trained them. s2kit's own license
(Apache-2.0) covers its code only, and no weights.
"""


def write_safetensors(
    state: Mapping[str, Tensor], folder: Path, name: str, metadata: dict[str, str], shard_bytes: int | None = None
) -> list[Path]:
    """Write ``NAME.safetensors`` with its SHA-256 beside it, or shards and their index, each file in one step.

    Args:
        state: The entries.
        folder: An existing folder.
        name: The stem of the file's name.
        metadata: Plain texts for the file's header.
        shard_bytes: Size above which the entries are spread over several files; None is one file.

    Returns:
        The files written: the weights, or the index first and then the shards.
    """
    shards = _split(state, shard_bytes)
    if len(shards) == 1:
        path = folder / f"{name}.safetensors"
        _write_with_sum(state, path, metadata)
        _remove_older(folder, name, [path])
        return [path]
    paths, weight_map = [], {}
    for number, names in enumerate(shards, 1):
        path = folder / f"{name}-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_with_sum({entry: state[entry] for entry in names}, path, metadata)
        paths.append(path)
        weight_map |= dict.fromkeys(names, path.name)
    total = sum(value.numel() * value.element_size() for value in state.values())
    index = folder / f"{name}.safetensors.index.json"
    write_json(index, {"metadata": {"total_size": total}, "weight_map": {entry: weight_map[entry] for entry in state}})
    _remove_older(folder, name, [index, *paths])
    return [index, *paths]


def _remove_older(folder: Path, name: str, written: list[Path]) -> None:
    """Remove what an earlier writing under this name left, so that whole and sharded weights never lie side by side."""
    kept = {path.name for path in written}
    ours = re.compile(rf"({re.escape(name)}(?:-\d+-of-\d+)?\.safetensors(?:\.index\.json)?)(?:\.sha256)?")
    for path in folder.iterdir():
        if (match := ours.fullmatch(path.name)) and match[1] not in kept:
            path.unlink()


def _split(state: Mapping[str, Tensor], shard_bytes: int | None) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, value in state.items():
        bytes_here = value.numel() * value.element_size()
        if shard_bytes is not None and shards[-1] and size + bytes_here > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += bytes_here
    return shards


def _write_with_sum(state: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    own = _apart({name: value.detach().cpu().contiguous() for name, value in state.items()})
    in_one_step(path, lambda temporary: save_file(own, temporary, metadata={"format": "pt", **metadata}))
    in_one_step(
        path.with_name(path.name + ".sha256"), lambda temporary: temporary.write_text(f"{sha256(path)}  {path.name}\n")
    )


def _apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy entries that share memory, as tied weights and views of one tensor do; safetensors refuses them."""
    seen: set[int] = set()
    for name, value in state.items():
        place = value.untyped_storage().data_ptr()
        if place in seen:
            state[name] = value.clone()
        seen.add(place)
    return state


def in_one_step(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under a temporary name beside its place and move it there, so that no half of it is ever seen."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        # safetensors makes files that only their owner may read, whatever the process's mask says.
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file in one step."""
    in_one_step(path, lambda temporary: temporary.write_text(json.dumps(content, indent=2) + "\n"))


def write_notice(folder: Path) -> None:
    """Write the notice on the terms of Sapiens2 weights into a folder."""
    in_one_step(folder / NOTICE_NAME, lambda temporary: temporary.write_text(NOTICE))


def write_terms(source: Path, target: Path, notice: bool = True) -> list[str]:
    """Copy what states terms in ``source`` into ``target``, with the notice on the terms of Sapiens2 if asked.

    Returns:
        The names of the files in ``target``.
    """
    copied = []
    if notice:
        write_notice(target)
        copied.append(NOTICE_NAME)
    for path in sorted(source.iterdir()) if source.is_dir() else ():
        if path.name != NOTICE_NAME and path.is_file() and any(fnmatch(path.name.upper(), term) for term in TERMS):
            if path.resolve() != (target / path.name).resolve():
                shutil.copyfile(path, target / path.name)
            copied.append(path.name)
    return copied


def check_new(folder: Path, overwrite: bool) -> None:
    """Check that a folder is new or empty, or may be written over.

    Raises:
        WeightsError: If it is neither, or no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise WeightsError(f"{folder}: is a file; name a folder to write to")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise WeightsError(f"{folder}: is not empty; name another folder, or say --overwrite")
