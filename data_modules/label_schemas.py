"""Whether shard sets number their labels as a task does."""

from collections.abc import Sequence

from data_modules.shards import ShardDataset
from data_modules.shards.format import MANIFEST_NAME
from s2kit.errors import UserError
from s2kit.schemas.files import PACKAGED


def check_schema(kind: str, wanted: str, sets: Sequence[ShardDataset]) -> None:
    """Check that the sets' manifests name the schema that the task reads; one's own files are not compared.

    Args:
        kind: ``keypoints`` or ``parts``.
        wanted: Name of a packaged schema, or a path.
        sets: The opened sets.

    Raises:
        UserError: If both are packaged schemas, and not the same.
    """
    for part in sets:
        named = part.manifest.get("schemas", {}).get(kind)
        if named in PACKAGED[kind] and wanted in PACKAGED[kind] and named != wanted:
            raise UserError(
                f"{part.folder.where(MANIFEST_NAME)}: it says that {kind} are {named!r}, and data.schema is {wanted!r}"
            )
