"""What a shard set is made of: names, limits, the manifest, and the one error all of it raises."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from s2kit.errors import UserError

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = "s2kit-shards"
MANIFEST_VERSION = 1
INDEX_SUFFIX = ".index"

#: Fields of a raw sample that are arrays of the image's size, each in a member of its own.
DENSE_FIELDS = ("image", "alpha", "foreground", "normals", "depth", "albedo", "parts")
#: Fields of a raw sample that live in the ``json`` member.
JSON_FIELDS = ("intrinsics", "box", "keypoints", "visibility", "people", "meta")
FIELDS = DENSE_FIELDS + JSON_FIELDS

#: Signs that turn normals of a stated frame into the kit's (x right, y up, z to the camera).
NORMALS_FRAMES = {
    "opengl": (1, 1, 1),  # x right, y up, z to the camera: the kit's own
    "opencv": (1, -1, -1),  # x right, y down, z forward
    "directx": (1, -1, 1),  # x right, y down, z to the camera
}
KIT_NORMALS_FRAME = "opengl"

#: Label sets that ``keypoints`` and ``parts`` of a sample follow unless ``info["schemas"]`` names others.
SCHEMAS: dict[str, Any] = {"keypoints": "sapiens2-308", "parts": "sapiens2-29", "sample": 1}

# The same split as the webdataset package: folders may hold dots, the name up to its first dot is the key.
_MEMBER_NAME = re.compile(r"^((?:.*/)?[^./]+)\.([^/\n]+)\Z")
_KEY = re.compile(r"^[^./\\\x00-\x1f\x7f]+(/[^./\\\x00-\x1f\x7f]+)*\Z")
_SCHEMA_NAME = re.compile(r"^[a-z0-9]+([-_.][a-z0-9]+)*\Z")
_MAX_NAME = 1024


class ShardError(UserError):
    """A shard, index or manifest that cannot be used; the text names the file, the sample and the member."""


def canonical_json(value: Any) -> bytes:
    """Return ``value`` as UTF-8 JSON with sorted keys, no spaces and no NaN: equal values give equal bytes.

    Raises:
        ShardError: ``value`` holds something that JSON cannot.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except (TypeError, ValueError) as error:
        raise ShardError(f"not writable as JSON: {error}; use str, int, finite float, list and dict") from None


def check_key(key: str) -> str:
    """Return ``key`` if a tar member and the webdataset package can carry it.

    Raises:
        ShardError: The key is empty, too long, absolute, holds a dot, a backslash or a control character.
    """
    if not isinstance(key, str) or not _KEY.match(key) or len(key.encode()) > _MAX_NAME // 2:
        raise ShardError(
            f"sample key {key!r} is not usable: a key is a relative name such as 'person_000001' without "
            "dots, backslashes, control characters or empty parts"
        )
    return key


def split_member_name(name: str) -> tuple[str, str] | None:
    """Split ``folder/key.normals.q14.zst`` into key and extension; None where there is no extension."""
    match = _MEMBER_NAME.match(name.removeprefix("./"))
    return (match[1], match[2].lower()) if match else None


def field_of(extension: str) -> str | None:
    """Return the raw-sample field that a member's extension holds, or None for an unknown one.

    ``jpg``, ``jpeg``, ``png`` and ``webp`` alone are the image; otherwise the first part names the field.
    ``json`` holds several fields and gives ``"json"``.
    """
    first = extension.split(".", 1)[0]
    if extension in ("jpg", "jpeg", "png", "webp"):
        return "image"
    if extension == "json":
        return "json"
    return first if first in DENSE_FIELDS and "." in extension else None


def check_schemas(schemas: Any) -> dict[str, Any]:
    """Return the ``schemas`` of a manifest, what is not named taken from ``SCHEMAS``.

    Raises:
        ShardError: Another key than those of ``SCHEMAS``, a name that is no text, or a newer version of ``sample``.
    """
    unknown = sorted(set(schemas) - set(SCHEMAS)) if isinstance(schemas, dict) else [schemas]
    if unknown:
        raise ShardError(f"schemas names {unknown[0]!r}; it may name {', '.join(SCHEMAS)}")
    for name in ("keypoints", "parts"):
        value = schemas.get(name, SCHEMAS[name])
        if not isinstance(value, str) or not _SCHEMA_NAME.match(value):
            raise ShardError(f"schemas.{name} is {value!r}, it must be a name such as {SCHEMAS[name]!r}")
    if schemas.get("sample", 1) != SCHEMAS["sample"]:
        raise ShardError(f"schemas.sample is {schemas['sample']!r}, this s2kit knows version {SCHEMAS['sample']}")
    return SCHEMAS | schemas


def manifest_digest(manifest: dict[str, Any]) -> str:
    """Return the sha256 of the manifest's canonical JSON without its own ``digest``."""
    body = {name: value for name, value in manifest.items() if name != "digest"}
    return hashlib.sha256(canonical_json(body)).hexdigest()


def manifest_path(folder_or_manifest: str | Path) -> Path:
    """Return the manifest's path of a shard set given as its folder or its manifest."""
    path = Path(folder_or_manifest).expanduser()
    return path / MANIFEST_NAME if path.is_dir() or path.suffix != ".json" else path


def read_manifest(folder_or_manifest: str | Path) -> dict[str, Any]:
    """Read and check a manifest (its keys are listed in docs/data.md).

    Raises:
        ShardError: It is missing, is not a manifest, was made by a newer version, or was changed afterwards.
    """
    path = manifest_path(folder_or_manifest)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ShardError(
            f"{path}: no such file; a shard set is a folder with {MANIFEST_NAME}, as `python -m s2kit data pack`, "
            "`data import` and `data index` make it"
        ) from None
    except OSError as error:
        raise ShardError(f"{path}: not a readable manifest ({error})") from None
    return parse_manifest(data, path)


def parse_manifest(data: bytes, path: str | Path) -> dict[str, Any]:
    """Check a manifest's content.

    Args:
        data: The content.
        path: Where it comes from, for errors.

    Raises:
        ShardError: It is not a manifest, was made by a newer version, or was changed afterwards.
    """
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{path}: not a readable manifest ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST_FORMAT:
        raise ShardError(f'{path}: not a manifest of shards; it must say "format": "{MANIFEST_FORMAT}"')
    version = manifest.get("version")
    if not isinstance(version, int) or not 1 <= version <= MANIFEST_VERSION:
        raise ShardError(
            f"{path}: manifest version {version!r}, this s2kit reads versions up to {MANIFEST_VERSION}; "
            "update s2kit to read it"
        )
    if manifest.get("digest") != manifest_digest(manifest):
        raise ShardError(
            f"{path}: its digest does not fit its content, so it was edited or damaged; "
            "write it again with make_manifest"
        )
    shards = manifest.get("shards")
    if not (isinstance(shards, list) and all(map(_is_complete, shards)) and isinstance(manifest.get("fields"), dict)):
        raise ShardError(f"{path}: fields and shards (name, samples, bytes) are not complete; use make_manifest")
    names = [shard["name"] for shard in shards]
    for name in names:
        if Path(name).name != name or name in ("", ".", ".."):
            raise ShardError(f"{path}: shard name {name!r} leaves the folder; names must be plain file names")
    for unit in ("samples", "people", "bytes"):
        if unit in manifest and manifest[unit] != sum(shard.get(unit, 0) for shard in shards):
            raise ShardError(f"{path}: {unit} is {manifest[unit]!r}, which is not the sum of its shards'")
    try:
        check_schemas(manifest.get("schemas", {}))
    except ShardError as error:
        raise ShardError(f"{path}: {error}") from None
    frame = manifest.get("normals_frame", KIT_NORMALS_FRAME)
    if not isinstance(frame, str) or frame not in NORMALS_FRAMES:
        raise ShardError(f"{path}: normals_frame {frame!r} is not known; it must be one of {', '.join(NORMALS_FRAMES)}")
    return manifest


def _is_complete(shard: Any) -> bool:
    """Return whether an entry of a manifest has all that reading the shard takes."""
    if not isinstance(shard, dict) or not isinstance(shard.get("name"), str):
        return False
    counts = [shard.get("samples"), shard.get("bytes"), shard.get("people", 0)]
    sums = [shard.get("sha256", ""), shard.get("index_sha256", "")]
    return all(isinstance(n, int) and 0 <= n < 2**62 for n in counts) and all(isinstance(text, str) for text in sums)
