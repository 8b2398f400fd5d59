"""Shard sets: WebDataset-layout tars with an index beside each and one manifest. See docs/data.md.

Names are resolved on first use, so that a process that only writes or checks shards does not import torch.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "FIELDS": "format",
    "NORMALS_FRAMES": "format",
    "ShardCache": "cache",
    "ShardDataset": "reader",
    "ShardError": "format",
    "ShardWriter": "writer",
    "StorageError": "storage",
    "decode_sample": "codecs",
    "encode_sample": "codecs",
    "index_tar": "index",
    "make_manifest": "writer",
    "read_manifest": "format",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"data_modules.shards.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'data_modules.shards' has no attribute {name!r}; it has {', '.join(_HOMES)}")
