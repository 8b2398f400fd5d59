"""Label arrays as bytes: quantise, predict, split into byte planes, compress with zstd.

A member is one zstd frame. Its content is a 32-byte little-endian header ``<4sBBBBIIdd`` (magic ``S2PL``, version,
coding, channels, bits, height, width, offset, step) and then the planes, row-major, one after the other. The codings:

====  ==============  =================================================================================
 id    name            planes
====  ==============  =================================================================================
  1    labels          bytes as they are
  2    smooth          bytes of each channel, predicted
  3    depth           16-bit codes, predicted: 0 = no value, else ``offset + step * code``
  4    normals         two 16-bit octahedral coordinates of ``bits`` bits, predicted; both 0 = no value
  5    float           the four bytes of each little-endian float32, one plane each
====  ==============  =================================================================================

"Predicted" stores ``residual = x[i, j] - x[i-1, j] - x[i, j-1] + x[i-1, j-1]`` (zero outside, modulo the word), its
sign folded into the lowest bit; a 16-bit plane is then stored as all high bytes followed by all low bytes. On smooth
surfaces that leaves small numbers, and undoing it is two running sums.
"""

import struct
import threading
from typing import NamedTuple

import cv2
import numpy as np
import zstandard

LABELS, SMOOTH, DEPTH, NORMALS, FLOAT = 1, 2, 3, 4, 5
PLANES_VERSION = 1
MAX_PIXELS = 1 << 27
MAX_CHANNELS = 4

_MAGIC = b"S2PL"
_HEADER = struct.Struct("<4sBBBBIIdd")
_BYTES_PER_PIXEL = {LABELS: 1, SMOOTH: 1, DEPTH: 2, NORMALS: 2, FLOAT: 4}
_PEEK_ABOVE = 1 << 26
_local = threading.local()


class PlanesError(ValueError):
    """A member that is not what its header says."""


class Header(NamedTuple):
    """What the first 32 bytes of a decompressed member say."""

    coding: int
    channels: int
    bits: int
    height: int
    width: int
    offset: float
    step: float

    @property
    def size(self) -> int:
        """Bytes of the header and the planes."""
        pixels = self.height * self.width
        return _HEADER.size + pixels * self.channels * _BYTES_PER_PIXEL[self.coding]


def encode_labels(labels: np.ndarray, level: int = 3) -> bytes:
    """Encode uint8 ``(H, W)`` labels without loss."""
    return _compress(LABELS, labels.shape, [np.ascontiguousarray(labels)], level=level)


def encode_smooth(values: np.ndarray, level: int = 3) -> bytes:
    """Encode uint8 ``(H, W)`` or ``(H, W, C)`` values without loss."""
    channels = [values] if values.ndim == 2 else [values[..., c] for c in range(values.shape[2])]
    return _compress(SMOOTH, values.shape, [_fold(_residual(channel)) for channel in channels], level=level)


def encode_float(values: np.ndarray, level: int = 3) -> bytes:
    """Encode float32 ``(H, W)`` or ``(H, W, C)`` values without loss."""
    channels = values[None] if values.ndim == 2 else np.moveaxis(values, 2, 0)
    raw = np.ascontiguousarray(channels, "<f4").view(np.uint8).reshape(*channels.shape, 4)
    return _compress(
        FLOAT, values.shape, [np.ascontiguousarray(raw[..., byte]) for byte in range(4)], level=level
    )


def encode_depth(depth: np.ndarray, finest_step: float = 2.0**-15, level: int = 3) -> bytes:
    """Encode float32 ``(H, W)`` positive metres; 0 means no value and comes back as exactly 0.

    The step is ``finest_step`` metres, or what 65534 steps need to span the range; the error is half a step.

    Raises:
        PlanesError: A value is negative or not finite.
    """
    if not np.isfinite(depth).all() or (depth < 0).any():
        raise PlanesError("depth must be finite and not negative; 0 where there is no value")
    inside = depth > 0
    near, far = (float(depth[inside].min()), float(depth[inside].max())) if inside.any() else (0.0, 0.0)
    step = max(finest_step, (far - near) / 65534)
    codes = np.where(inside, np.rint((depth.astype(np.float64) - near) / step) + 1, 0).astype(np.uint16)
    return _compress(DEPTH, depth.shape, _split(codes), 16, near - step, step, level)


def encode_normals(normals: np.ndarray, bits: int = 14, level: int = 3) -> bytes:
    """Encode float32 ``(H, W, 3)`` normals of any length > 0; (0, 0, 0) comes back as exactly that.

    Octahedral map (Cigolle et al. 2014, "A Survey of Efficient Representations for Independent Unit Vectors"):
    project on |x| + |y| + |z| = 1, fold the half with z < 0 over the diagonals, keep x and y as ``bits``-bit codes.

    Raises:
        PlanesError: A value is not finite.
    """
    if not np.isfinite(normals).all():
        raise PlanesError("normals must be finite; (0, 0, 0) where there is no value")
    if not 8 <= bits <= 16:
        raise PlanesError(f"bits must be 8 to 16, not {bits}")
    half = (1 << (bits - 1)) - 1
    length = np.abs(normals).sum(-1, dtype=np.float64)
    inside = length > 0
    x, y, z = np.moveaxis(normals / np.where(inside, length, 1)[..., None], 2, 0)
    below = z < 0
    u = np.where(below, (1 - np.abs(y)) * np.copysign(1, x), x)
    v = np.where(below, (1 - np.abs(x)) * np.copysign(1, y), y)
    # Codes 1 .. 2 * half + 1: zero is left for "no value".
    codes = [np.where(inside, np.rint(t * half) + half + 1, 0).astype(np.uint16) for t in (u, v)]
    return _compress(NORMALS, normals.shape, [p for c in codes for p in _split(c)], bits, level=level)


def decode_planes(data: bytes | memoryview) -> tuple[Header, np.ndarray]:
    """Decode any member of this kind.

    Returns:
        The header and the array, ``(H, W)`` or ``(H, W, C)``: uint8 for labels and smooth values, float32 else.

    Raises:
        PlanesError: Not such a member, of a newer version, of an absurd size, or cut off.
    """
    content = _decompress(data)
    header = _read_header(content)
    if len(content) != header.size:
        raise PlanesError(f"{len(content)} bytes where {header.height} x {header.width} needs {header.size}")
    h, w, c = header.height, header.width, header.channels
    planes = np.frombuffer(content, np.uint8, offset=_HEADER.size).reshape(-1, h, w)
    if header.coding == LABELS:
        array = planes[0].copy()
    elif header.coding == SMOOTH:
        restored = [_restore(_unfold(plane)) for plane in planes]
        array = restored[0] if c == 1 else cv2.merge(restored)
    elif header.coding == FLOAT:
        array = np.moveaxis(planes.reshape(4, c, h, w), 0, 3).copy().view("<f4")[..., 0]
        array = array[0] if c == 1 else np.ascontiguousarray(np.moveaxis(array, 0, 2))
    elif header.coding == DEPTH:
        codes = _join(planes[0], planes[1])
        array = codes.astype(np.float32) * np.float32(header.step) + np.float32(header.offset)
        array[codes == 0] = 0
    else:
        array = _decode_normals(_join(planes[0], planes[1]), _join(planes[2], planes[3]), header.bits)
    return header, array


def _decode_normals(u: np.ndarray, v: np.ndarray, bits: int) -> np.ndarray:
    half = (1 << (bits - 1)) - 1
    scale, shift = np.float32(1 / half), np.float32(-(half + 1) / half)
    outside = u == 0
    x = u.astype(np.float32) * scale + shift
    y = v.astype(np.float32) * scale + shift
    z = 1 - np.abs(x) - np.abs(y)
    fold = np.maximum(-z, 0)
    x -= np.copysign(fold, x)
    y -= np.copysign(fold, y)
    inverse = 1 / np.sqrt(x * x + y * y + z * z)
    inverse[outside] = 0
    return cv2.merge([x * inverse, y * inverse, z * inverse])


def _residual(values: np.ndarray) -> np.ndarray:
    """Return what the running sums of both axes turn back into ``values`` (modulo the word)."""
    out = values.copy()
    out[1:] -= values[:-1]
    rows = out.copy()
    out[:, 1:] -= rows[:, :-1]
    return out


def _restore(residual: np.ndarray) -> np.ndarray:
    np.add.accumulate(residual, axis=0, out=residual)
    return np.add.accumulate(residual, axis=1, out=residual)


def _fold(values: np.ndarray) -> np.ndarray:
    """Move the sign to the lowest bit (0, -1, 1, -2 -> 0, 1, 2, 3), so that small numbers have zero high bits."""
    signed = values.view(f"i{values.itemsize}")
    return ((signed << 1) ^ (signed >> (8 * values.itemsize - 1))).view(values.dtype)


def _unfold(folded: np.ndarray) -> np.ndarray:
    one = folded.dtype.type(1)
    return (folded >> one) ^ -(folded & one)


def _split(codes: np.ndarray) -> list[np.ndarray]:
    folded = _fold(_residual(codes))
    return [(folded >> 8).astype(np.uint8), folded.astype(np.uint8)]


def _join(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    folded = cv2.merge([low, high]).view("<u2")[..., 0]
    return _restore(_unfold(folded))


def _compress(
    coding: int,
    shape: tuple[int, ...],
    planes: list[np.ndarray],
    bits: int = 8,
    offset: float = 0.0,
    step: float = 0.0,
    level: int = 3,
) -> bytes:
    height, width = shape[:2]
    channels = 2 if coding == NORMALS else (shape[2] if len(shape) == 3 else 1)
    if not 0 < height * width <= MAX_PIXELS:
        raise PlanesError(f"{height} x {width} pixels; from 1 up to {MAX_PIXELS} are possible")
    header = _HEADER.pack(_MAGIC, PLANES_VERSION, coding, channels, bits, height, width, offset, step)
    content = b"".join([header, *(plane.tobytes() for plane in planes)])
    return zstandard.ZstdCompressor(level=level).compress(content)


def _decompress(data: bytes | memoryview) -> bytes:
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    try:
        size = zstandard.get_frame_parameters(data).content_size
        if size in (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR) or size < _HEADER.size:
            raise PlanesError("the zstd frame does not tell its size")
        if size > _PEEK_ABOVE:
            # A frame may promise gigabytes in a few bytes: see what the header asks for before allocating.
            with zstandard.ZstdDecompressor().stream_reader(data) as reader:
                header = _read_header(reader.read(_HEADER.size))
            if size != header.size:
                raise PlanesError(f"{size} bytes where {header.height} x {header.width} needs {header.size}")
        return _local.decompressor.decompress(data)
    except zstandard.ZstdError as error:
        raise PlanesError(f"not a readable zstd frame ({error})") from None


def _read_header(content: bytes) -> Header:
    if len(content) < _HEADER.size:
        raise PlanesError("shorter than its header")
    magic, version, *rest = _HEADER.unpack_from(content)
    header = Header(*rest)
    if magic != _MAGIC:
        raise PlanesError(f"begins with {magic!r}, not with {_MAGIC!r}")
    if version > PLANES_VERSION:
        raise PlanesError(f"coding version {version}; this s2kit reads up to {PLANES_VERSION}, update it")
    if header.coding not in _BYTES_PER_PIXEL or not 1 <= header.channels <= MAX_CHANNELS:
        raise PlanesError(f"unknown coding {header.coding} with {header.channels} channels")
    if not 0 < header.height * header.width <= MAX_PIXELS:
        raise PlanesError(f"{header.height} x {header.width} pixels; from 1 up to {MAX_PIXELS} are possible")
    if header.coding == NORMALS and (header.channels != 2 or not 8 <= header.bits <= 16):
        raise PlanesError(f"normals of {header.channels} channels and {header.bits} bits; 2 of 8 to 16 exist")
    if header.coding in (LABELS, DEPTH) and header.channels != 1:
        raise PlanesError(f"{header.channels} channels in a coding of one")
    if not (np.isfinite(header.offset) and np.isfinite(header.step)):
        raise PlanesError("offset or step is not finite")
    return header
