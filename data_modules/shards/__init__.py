"""Shard sets: WebDataset-layout tars with an index beside each and one manifest. See docs/data.md."""

from data_modules.shards.cache import ShardCache
from data_modules.shards.codecs import decode_sample, encode_sample
from data_modules.shards.format import FIELDS, NORMALS_FRAMES, ShardError, read_manifest
from data_modules.shards.index import index_tar
from data_modules.shards.reader import ShardDataset
from data_modules.shards.storage import StorageError
from data_modules.shards.writer import ShardWriter, make_manifest

__all__ = [
    "FIELDS",
    "NORMALS_FRAMES",
    "ShardCache",
    "ShardDataset",
    "ShardError",
    "ShardWriter",
    "StorageError",
    "decode_sample",
    "encode_sample",
    "index_tar",
    "make_manifest",
    "read_manifest",
]
