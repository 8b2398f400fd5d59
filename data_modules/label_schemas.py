"""Whether a shard set numbers its labels as a task does."""

from typing import Any

from s2kit.errors import UserError
from s2kit.schemas.files import PACKAGED


def check_schema(kind: str, wanted: str, manifest: dict[str, Any], source: str) -> None:
    """Check that a set's manifest names the schema that the task reads; one's own files are not compared.

    Args:
        kind: ``keypoints`` or ``parts``.
        wanted: Name of a packaged schema, or a path.
        manifest: The set's manifest.
        source: Where the set is, for the error.

    Raises:
        UserError: If both are packaged schemas, and not the same.
    """
    named = manifest.get("schemas", {}).get(kind)
    if named in PACKAGED[kind] and wanted in PACKAGED[kind] and named != wanted:
        raise UserError(f"{source}: its manifest says {kind} are {named!r}, and data.schema is {wanted!r}")
