"""Raw samples to tar members and back.

The encodings were chosen by ``benchmarks/encodings.py``; docs/data.md has the table.
"""

import io
import math
from collections.abc import Callable, Collection
from typing import Any

import cv2
import numpy as np

from data_modules.image_headers import image_format, image_size
from data_modules.images import ImageError, read_image
from data_modules.shards import planes
from data_modules.shards.format import (
    DENSE_FIELDS,
    FIELDS,
    KIT_NORMALS_FRAME,
    NORMALS_FRAMES,
    ShardError,
    canonical_json,
    check_key,
    field_of,
)
from data_modules.shards.records import decode_record, encode_record, load_record, take_person

JPEG_QUALITY = 95

#: Member extension that ``encode_sample`` gives to each dense field.
EXTENSIONS = {
    "image": "jpg",
    "alpha": "alpha.u8.zst",
    "normals": "normals.q14.zst",
    "depth": "depth.q16.zst",
    "albedo": "albedo.u8.zst",
    "parts": "parts.u8.zst",
    "foreground": "foreground.u8.zst",
}
_ENCODERS: dict[str, Callable[[np.ndarray], bytes]] = {
    "alpha": planes.encode_smaller,
    "normals": planes.encode_normals,
    "depth": planes.encode_depth,
    "albedo": planes.encode_smaller,
    "parts": planes.encode_plain,
    "foreground": planes.encode_smaller,
}
_DTYPES = {"image": "uint8", "alpha": "uint8", "normals": "float32", "depth": "float32"}
_DTYPES |= {"albedo": "uint8", "parts": "uint8", "foreground": "uint8"}
_CHANNELS = {"image": 3, "normals": 3, "albedo": 3, "foreground": 3}


def encode_sample(sample: dict[str, Any]) -> dict[str, bytes]:
    """Encode a raw sample; equal samples give equal bytes (with the same versions of OpenCV and zstandard).

    Args:
        sample: ``key`` and ``image`` uint8 (H, W, 3) RGB; optionally ``alpha`` uint8 (H, W), ``normals``
            float32 (H, W, 3) in the kit's frame (x right, y up, z to the camera; zeros where undefined),
            ``depth`` float32 (H, W) metres along z (0 where undefined), ``albedo`` uint8 (H, W, 3), ``parts``
            uint8 (H, W), ``foreground`` uint8 (H, W, 3), ``intrinsics`` (3, 3), ``meta`` (JSON-able), and either
            ``box`` (4,) xyxy, ``keypoints`` (K, 2) and ``visibility`` (K,) of one person, or ``people``, a list of
            dicts with these, ``id`` (int or str), ``area`` (float) and ``iscrowd`` (bool); of them ``id`` and ``box``
            are compulsory. Pixel coordinates are continuous: pixel (row i, column j) covers [j, j+1) x [i, i+1).

    Returns:
        Member extension -> bytes, in the order of the extensions.

    Raises:
        ShardError: An unknown field, or one whose type, shape or values cannot be stored.
    """
    key = sample.get("key", "")
    if "image" not in sample:
        raise ShardError(f"sample {key!r}: no image; every sample has one")
    size = np.shape(sample["image"])[:2]
    picture = {EXTENSIONS["image"]: _encode_dense("image", sample["image"], size, key)}
    labels = encode_labels({name: value for name, value in sample.items() if name != "image"}, size)
    return dict(sorted((picture | labels).items()))


def encode_labels(sample: dict[str, Any], image_size: tuple[int, ...]) -> dict[str, bytes]:
    """Encode all of a raw sample but its image, for writers that store an image file's own bytes beside it.

    Args:
        sample: As for ``encode_sample``, without ``image``.
        image_size: (height, width) of the image as ``read_image`` gives it.

    Returns:
        Member extension -> bytes, in the order of the extensions.

    Raises:
        ShardError: As for ``encode_sample``.
    """
    key = check_key(sample.get("key", ""))
    unknown = sorted(set(sample) - set(FIELDS) - {"key"})
    if unknown:
        raise ShardError(f"sample {key!r}: unknown field {unknown[0]!r}; the fields are {', '.join(FIELDS)}")
    members = {
        EXTENSIONS[name]: _encode_dense(name, sample[name], image_size, key)
        for name in DENSE_FIELDS
        if name in sample and name != "image"
    }
    try:
        members["json"] = canonical_json(encode_record(key, image_size, sample))
    except ShardError as error:
        raise ShardError(f"sample {key!r}: {error}") from None
    return dict(sorted(members.items()))


def decode_sample(
    members: dict[str, bytes],
    fields: Collection[str] | None = None,
    *,
    key: str | None = None,
    normals_frame: str = KIT_NORMALS_FRAME,
    person: int | None = None,
    min_size: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Decode the members of one sample.

    Args:
        members: Member extension -> bytes, as ``encode_sample`` or ``ShardDataset.read_encoded`` give them.
            Plain ``png``, ``webp`` and ``npy`` members of other writers are read too.
        fields: What to decode; None for everything. A field that the sample does not have is left out.
        key: The sample's key where no ``json`` member says it.
        normals_frame: Frame of normals where the ``json`` member does not say it, see ``NORMALS_FRAMES``.
        person: Number of the person whose ``person_id``, ``box``, ``keypoints``, ``visibility``, ``area`` and
            ``iscrowd`` to give, instead of ``people``.
        min_size: Smallest (height, width) of the image that will do, see ``read_image``. Nothing else in the sample is
            scaled, and sizes are not compared.

    Returns:
        A raw sample as ``encode_sample`` takes it; normals always in the kit's frame.

    Raises:
        ShardError: A member does not decode, or its size or type is wrong; the text names sample and member.
    """
    wanted = check_fields(fields)
    record = load_record(members["json"], key) if "json" in members else {}
    key = record.get("key", key)
    sample: dict[str, Any] = {} if key is None else {"key": key}
    for extension, data in members.items():
        name = field_of(extension)
        if name in wanted:
            sample[name] = _decode_member(name, extension, data, key, min_size)
    if min_size is None:
        _check_sizes(sample, record, key)
    if "normals" in sample:
        _to_kit_frame(sample["normals"], record.get("normals_frame", normals_frame), key)
    if person is None:
        return sample | decode_record(record, wanted, key)
    flat = take_person(record, person, wanted, key)
    return sample | decode_record(record, wanted & {"intrinsics", "meta"}, key) | flat


def check_fields(fields: Collection[str] | None) -> set[str]:
    """Return ``fields`` as a set, all of them for None.

    Raises:
        ShardError: One of them does not exist.
    """
    if isinstance(fields, str):
        fields = (fields,)
    wanted = set(FIELDS if fields is None else fields) - {"key"}
    unknown = sorted(wanted - set(FIELDS))
    if unknown:
        raise ShardError(f"unknown field {unknown[0]!r}; the fields are {', '.join(FIELDS)}")
    return wanted


def _encode_dense(name: str, array: Any, size: tuple[int, ...], key: str) -> bytes:
    wanted = (*size, _CHANNELS[name]) if name in _CHANNELS else tuple(size)
    if not isinstance(array, np.ndarray) or array.dtype != _DTYPES[name] or array.shape != wanted:
        got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ShardError(f"sample {key!r}: {name} is {got}, it must be {_DTYPES[name]} {wanted}")
    try:
        return (_encode_jpeg if name == "image" else _ENCODERS[name])(array)
    except (planes.PlanesError, cv2.error) as error:
        raise ShardError(f"sample {key!r}: {name}: {error}") from None


def _encode_jpeg(image: np.ndarray) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise planes.PlanesError(f"{image.shape[0]} x {image.shape[1]} does not fit in a JPEG")
    return data.tobytes()


def _decode_member(
    name: str, extension: str, data: bytes, key: str | None, min_size: tuple[int, int] | None
) -> np.ndarray:
    where = f"sample {key!r}, member {extension!r}"
    try:
        if extension.endswith(".zst"):
            array = planes.decode_planes(data)[1]
        elif extension.endswith(".npy"):
            array = _load_npy(data, _DTYPES[name])
        elif name in _CHANNELS:
            least = min_size if name == "image" else None
            array = read_image(data, max_pixels=planes.MAX_PIXELS, name="picture", min_size=least)
        else:
            array = _decode_gray(data)
    except (ImageError, EOFError, ValueError, cv2.error) as error:
        raise ShardError(f"{where}: does not decode: {error}") from None
    shape = "(H, W, 3)" if name in _CHANNELS else "(H, W)"
    fits = array.ndim == 3 and array.shape[2] == 3 if name in _CHANNELS else array.ndim == 2
    if array.dtype != _DTYPES[name] or not fits:
        raise ShardError(f"{where}: holds {array.dtype} {array.shape}, {name} must be {_DTYPES[name]} {shape}")
    return array


def _load_npy(data: bytes, dtype: str) -> np.ndarray:
    """Decode an array of numbers; floats of any precision become float32. What is allocated is what there is."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, kind = read(file)
    except Exception as error:  # the header is parsed as Python, and fails in as many ways
        raise ValueError(f"not the header of an array ({error})") from None
    content = memoryview(data)[file.tell() :]
    if kind.hasobject or kind.kind not in "buif" or math.prod(shape) * kind.itemsize != len(content):
        raise ValueError(f"{len(content)} bytes, the header says {kind} {shape}")
    array = np.frombuffer(content, kind).reshape(shape, order="F" if by_columns else "C")
    if kind.kind != "f" or dtype != "float32":
        return np.array(array, order="C")
    with np.errstate(over="ignore"):
        array = np.array(array, np.float32, order="C")
    if not np.isfinite(array).all():
        raise ValueError("a value is not finite")
    return array


def _decode_gray(data: bytes) -> np.ndarray:
    height, width = image_size(data, image_format(data))
    if height * width > planes.MAX_PIXELS:
        raise ValueError(f"{height} x {width} pixels, more than the limit of {planes.MAX_PIXELS}")
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if picture is None:
        raise ValueError("the picture is damaged or cut off")
    return picture


def _check_sizes(sample: dict[str, Any], record: dict[str, Any], key: str | None) -> None:
    sizes = {name: sample[name].shape[:2] for name in DENSE_FIELDS if name in sample}
    stated = record.get("image_size")
    expected = next(iter(sizes.values()), None) if stated is None else tuple(stated)
    for name, size in sizes.items():
        if size != expected:
            raise ShardError(
                f"sample {key!r}: {name} is {size[0]} x {size[1]}, the sample {expected[0]} x {expected[1]} pixels"
            )


def _to_kit_frame(normals: np.ndarray, frame: str, key: str | None) -> None:
    if not isinstance(frame, str) or frame not in NORMALS_FRAMES:
        known = ", ".join(NORMALS_FRAMES)
        raise ShardError(f"sample {key!r}: normals_frame {frame!r} is not known; it must be one of {known}")
    for axis, sign in enumerate(NORMALS_FRAMES[frame]):
        if sign < 0:
            # 0 - x, not -x: undefined normals stay +0 in every frame.
            np.subtract(0, normals[..., axis], out=normals[..., axis])
