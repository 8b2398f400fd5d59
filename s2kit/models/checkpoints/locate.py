"""From what a user names to files: a file, a folder, a set of shards, or ``hf://owner/name[@revision][/file]``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s2kit.models.checkpoints.errors import WeightsError
from s2kit.models.checkpoints.files import check_path, first_line, refuse_text
from s2kit.models.checkpoints.hub import PREFIX, download

INDEX_SUFFIX = ".index.json"
#: Names that hold weights, in a folder; the first kind that is there is taken.
_KINDS = ((".safetensors",), (".ckpt", ".pth", ".pt", ".bin"))


@dataclass
class Source:
    """Files of one set of weights.

    Attributes:
        name: as the user named it, for messages.
        files: one file, or shards in the order of their names.
        folder: where they are, with what lies beside them.
        shard_of: entry -> file name, of an index; empty for one file.
    """

    name: str
    files: tuple[Path, ...]
    folder: Path
    shard_of: dict[str, str] = field(default_factory=dict)


def locate(source: str | Path) -> Source:
    """Find the files of a set of weights; of the hub's, they are downloaded.

    Raises:
        FileNotFoundError: If there is nothing at a path.
        WeightsError: If it is unclear which file of a folder is meant, shards are missing, a path leads nowhere, or
            the hub has no such thing or cannot be reached.
    """
    name = str(source)
    if name.startswith(PREFIX):
        path = download(name, choose)
        return _of_file(path, name)
    path = Path(source).expanduser()
    if not path.is_dir():
        check_path(path)
        return _of_file(path, name)
    names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    jsons = {entry: read_json(path / entry) for entry in ("config.json", "model.json") if (path / entry).is_file()}
    return _of_file(path / choose(names, jsons, name), name)


def read_json(path: Path) -> Any:
    """Read a JSON file; WeightsError if it is not one."""
    try:
        text = path.read_bytes()
        if not text.lstrip().startswith((b"{", b"[")):
            refuse_text(path, text[:4096])
        return json.loads(text)
    except WeightsError:
        raise
    except (ValueError, OSError) as error:
        raise WeightsError(f"{path}: not valid JSON ({first_line(error)})") from error


def choose(names: Sequence[str], jsons: dict[str, Any], where: str) -> str:
    """Choose the file of weights, or the index of shards, among the names of a folder.

    What a file in the folder names comes first: ``transformers_weights`` of ``config.json``; then
    ``weights.safetensors`` beside our ``model.json``, ``model.safetensors`` beside a ``config.json``, an index of
    shards, and then the only file of its kind, safetensors before pickles.

    Raises:
        WeightsError: If there is none, or more than one.
    """
    config = jsons.get("config.json")
    named = config.get("transformers_weights") if isinstance(config, dict) else None
    if isinstance(named, str):
        if named not in names:
            raise WeightsError(f"{where}: its config.json names {named} as transformers_weights, which is not there")
        return named
    for json_name, weights in (("model.json", "weights.safetensors"), ("config.json", "model.safetensors")):
        if json_name in names and weights in names:
            return weights
    indices = [name for name in names if name.endswith(INDEX_SUFFIX)]
    indices = [name for name in indices if ".safetensors" in name] or indices
    if len(indices) == 1:
        return indices[0]
    for suffixes in _KINDS:
        found = indices or [name for name in names if name.endswith(suffixes)]
        if len(found) > 1:
            shards = [name for name in found if "-of-" in name]
            if len(shards) == len(found):
                raise WeightsError(f"{where}: holds shards ({found[0]}, ...) without their index ({INDEX_SUFFIX})")
            listed = ", ".join(found[:6]) + (f" and {len(found) - 6} more" if len(found) > 6 else "")
            raise WeightsError(f"{where}: holds several files of weights; name the one that is meant: {listed}")
        if found:
            return found[0]
    inner = " (its checkpoints are in checkpoints/: name one)" if "checkpoints" in names else ""
    raise WeightsError(f"{where}: a folder without weights (*.safetensors, *.ckpt, *.pth, *.pt, *.bin){inner}")


def _of_file(path: Path, name: str) -> Source:
    if not path.name.endswith(INDEX_SUFFIX):
        return Source(name, (path,), path.parent)
    check_path(path)
    index = read_json(path)
    shard_of = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shard_of, dict) or not shard_of or not all(isinstance(v, str) for v in shard_of.values()):
        raise WeightsError(f"{path}: no index of shards: it has no weight_map from entries to files")
    shards = sorted(set(shard_of.values()))
    outside = [shard for shard in shards if Path(shard).name != shard]
    if outside:
        raise WeightsError(f"{path}: names a shard outside of its folder: {outside[0]}")
    missing = [shard for shard in shards if not (path.parent / shard).exists()]
    if missing:
        raise WeightsError(f"{path}: {len(missing)} of {len(shards)} shards are missing: {', '.join(missing[:4])}")
    return Source(name, tuple(path.parent / shard for shard in shards), path.parent, dict(shard_of))
