"""Label arrays as bytes: quantise, predict, split into byte planes, compress with zstd.

A member is one zstd frame, so that ``zstd -d`` opens it anywhere. Its content is a 48-byte little-endian header
``<4sBBBBIIIIIIdd`` (magic ``S2PL``, version, coding, channels, bits; height and width of the array; top, left,
height and width of the region outside of which everything is zero; offset, step) and then the region's planes,
row-major, one after the other. The codings:

====  =========  =======================================================================================
 id    name       planes
====  =========  =======================================================================================
  1    plain      bytes as they are, channels interleaved
  2    predicted  bytes of each channel, predicted
  3    depth      predicted 16-bit codes: 0 = no value, else metres = ``offset + step * code``
  4    normals    two predicted signed octahedral coordinates of ``bits`` bits; both 0 = no value
  5    float      the four bytes of little-endian float32, lowest first, each a plane per channel
====  =========  =======================================================================================

"Predicted" stores ``r = x[i, j] - x[i-1, j] - x[i, j-1] + x[i-1, j-1]`` (zero outside the region, modulo the
word). 16-bit residuals are split as ``r + 128 = 256 * high + low``: all high bytes, then all low ones. On smooth
surfaces nearly all high bytes are zero, and undoing the prediction is one integral image, which OpenCV computes
about as fast as memory is read.
"""

import struct
import threading
from typing import NamedTuple

import cv2
import numpy as np
import zstandard

PLAIN, PREDICTED, DEPTH, NORMALS, FLOAT = 1, 2, 3, 4, 5
PLANES_VERSION = 1
MAX_PIXELS = 1 << 27
ZSTD_LEVEL = 3
NORMALS_BITS = 13
#: Residuals of codes of at most this many bits never wrap around in 16 bits.
NO_WRAP_BITS = 13

_MAGIC = b"S2PL"
_HEADER = struct.Struct("<4sBBBBIIIIIIdd")
_BYTES_PER_VALUE = {PLAIN: 1, PREDICTED: 1, DEPTH: 2, NORMALS: 2, FLOAT: 4}
_PEEK_ABOVE = 1 << 26
_STRIP = 1 << 15  # pixels per step of the normals' decoder: its few arrays then stay in the cache
_MAX_SUM = 2**31 - 1
_local = threading.local()


class PlanesError(ValueError):
    """Values that cannot be encoded, or a member that is not what its header says."""


class Header(NamedTuple):
    """What the first bytes of a decompressed member say."""

    coding: int
    channels: int
    bits: int
    height: int
    width: int
    top: int
    left: int
    rows: int
    columns: int
    offset: float
    step: float

    @property
    def size(self) -> int:
        """Bytes of the header and the planes."""
        values = self.rows * self.columns * self.channels
        return _HEADER.size + values * _BYTES_PER_VALUE[self.coding]


def encode_plain(values: np.ndarray) -> bytes:
    """Encode uint8 ``(H, W)`` or ``(H, W, C)`` values without loss: best for labels and flat colours."""
    region = _region(np.atleast_3d(values).any(2))
    return _compress(_header(PLAIN, values.shape, region), [values[region]])


def encode_predicted(values: np.ndarray) -> bytes:
    """Encode uint8 ``(H, W)`` or ``(H, W, C)`` values without loss: best for gradients."""
    channels = np.atleast_3d(values)
    region = _region(channels.any(2))
    planes = [_residual(channels[region][..., c]) for c in range(channels.shape[2])]
    return _compress(_header(PREDICTED, values.shape, region), planes)


def encode_smaller(values: np.ndarray) -> bytes:
    """Encode uint8 values without loss, plain or predicted, whichever is smaller."""
    return min(encode_plain(values), encode_predicted(values), key=len)


def encode_float(values: np.ndarray) -> bytes:
    """Encode float32 ``(H, W)`` or ``(H, W, C)`` values without loss."""
    channels = np.atleast_3d(values)
    region = _region(channels.any(2))
    planar = np.ascontiguousarray(np.moveaxis(channels[region], 2, 0), "<f4")
    split = planar.view(np.uint8).reshape(*planar.shape, 4)
    return _compress(_header(FLOAT, values.shape, region), [split[..., byte] for byte in range(4)])


def encode_depth(depth: np.ndarray, finest_step: float = 2.0**-15) -> bytes:
    """Encode float32 ``(H, W)`` metres > 0 with an error of half a step; 0 means no value and stays exactly 0.

    The step is ``finest_step`` metres, or as much as 65534 steps need to span the range of values.

    Raises:
        PlanesError: A value is negative or not finite.
    """
    if not np.isfinite(depth).all() or (depth < 0).any():
        raise PlanesError("depth must be finite and not negative; 0 where there is no value")
    inside = depth > 0
    near, far = (float(depth[inside].min()), float(depth[inside].max())) if inside.any() else (0.0, 0.0)
    step = max(finest_step, (far - near) / 65534)
    codes = np.where(inside, np.rint((depth.astype(np.float64) - near) / step) + 1, 0).astype(np.int32)
    region = _region(inside)
    header = _header(DEPTH, depth.shape, region, bits=16, offset=near - step, step=step)
    return _compress(header, _split(codes[region]))


def encode_normals(normals: np.ndarray, bits: int = NORMALS_BITS) -> bytes:
    """Encode float32 ``(H, W, 3)`` normals of any length > 0; (0, 0, 0) comes back as exactly that.

    Raises:
        PlanesError: A value is not finite.
    """
    u, v = fold_octahedral(normals, bits)
    region = _region((u != 0) | (v != 0))
    header = _header(NORMALS, (*normals.shape[:2], 2), region, bits)
    return _compress(header, _split(u[region]) + _split(v[region]))


def fold_octahedral(normals: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the signed octahedral codes of ``(H, W, 3)`` normals, two int32 ``(H, W)``.

    Octahedral map (Cigolle et al. 2014, "A Survey of Efficient Representations for Independent Unit Vectors"):
    project on ``|x| + |y| + |z| = 1``, fold the half with z < 0 over the diagonals, and keep x and y in
    ``2**bits - 1`` steps of -1 .. 1. The code (0, 0) is left for "no value"; (0, 0, 1) itself takes (1, 0).

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
    u, v = np.rint(u * half).astype(np.int32), np.rint(v * half).astype(np.int32)
    u[inside & (u == 0) & (v == 0)] = 1
    return u, v


def decode_planes(data: bytes | memoryview) -> tuple[Header, np.ndarray]:
    """Decode any member of this kind.

    Returns:
        The header and the array, ``(H, W)`` or ``(H, W, C)``: uint8 for plain and predicted, float32 else.

    Raises:
        PlanesError: Not such a member, of a newer version, of an absurd size, or cut off.
    """
    return decode_content(_decompress(data))


def decode_content(content: bytes) -> tuple[Header, np.ndarray]:
    """Decode the content of a member's frame, see ``decode_planes``."""
    header = _read_header(content)
    if len(content) != header.size:
        raise PlanesError(f"{len(content)} bytes where its header needs {header.size}")
    channels = 3 if header.coding == NORMALS else header.channels
    shape = (header.height, header.width, channels)[: 2 if channels == 1 else 3]
    array = np.zeros(shape, np.uint8 if header.coding in (PLAIN, PREDICTED) else np.float32)
    if header.rows:
        planes = np.frombuffer(content, np.uint8, offset=_HEADER.size).reshape(-1, header.rows, header.columns)
        bottom, right = header.top + header.rows, header.left + header.columns
        _DECODERS[header.coding](header, planes, array[header.top : bottom, header.left : right])
    return header, array


def _decode_plain(header: Header, planes: np.ndarray, out: np.ndarray) -> None:
    out[:] = planes.reshape(out.shape)


def _decode_predicted(header: Header, planes: np.ndarray, out: np.ndarray) -> None:
    restored = [_restore_bytes(plane) for plane in planes]
    if header.channels == 1:
        out[:] = restored[0]
    else:
        cv2.merge(restored, dst=out)


def _decode_float(header: Header, planes: np.ndarray, out: np.ndarray) -> None:
    split = planes.reshape(4, header.channels, header.rows, header.columns)
    for channel in range(header.channels):
        plane = cv2.merge(list(split[:, channel])).view("<f4")[..., 0]
        (out if header.channels == 1 else out[..., channel])[:] = plane


def _decode_depth(header: Header, planes: np.ndarray, out: np.ndarray) -> None:
    codes = _restore_words(planes[0], planes[1], 16)
    np.multiply(codes, np.float32(header.step), out=out)
    np.add(out, np.float32(header.offset), out=out, where=codes != 0)


def _decode_normals(header: Header, planes: np.ndarray, out: np.ndarray) -> None:
    u, v = (_restore_words(high, low, header.bits) for high, low in (planes[:2], planes[2:]))
    if header.bits > NO_WRAP_BITS:
        u, v = (codes.view(np.int16).astype(np.float32) for codes in (u, v))
    unfold_octahedral(u, v, header.bits, out)


def unfold_octahedral(u: np.ndarray, v: np.ndarray, bits: int, out: np.ndarray) -> None:
    """Turn signed octahedral codes into unit normals; (0, 0) becomes (0, 0, 0).

    Args:
        u: float32 (H, W) whole numbers; overwritten, as is ``v``.
        v: The same for the second coordinate.
        bits: Of the codes, see ``encode_normals``.
        out: float32 (H, W, 3) that takes the result.
    """
    half = np.float32((1 << (bits - 1)) - 1)
    strip = max(1, _STRIP // u.shape[1])
    for top in range(0, len(u), strip):
        x, y = u[top : top + strip].copy(), v[top : top + strip].copy()
        taxicab, other = np.abs(x), np.abs(y)
        taxicab += other
        z = half - taxicab
        if z.min() < 0:
            fold = np.minimum(z, 0)
            x += np.copysign(fold, -x)
            y += np.copysign(fold, -y)
        # numpy rounds every step correctly; cv2.magnitude is quicker, but its last bit depends on the alignment.
        length = x * x
        length += np.multiply(y, y, out=other)
        length += np.multiply(z, z, out=other)
        np.sqrt(length, out=length)
        scale = np.divide(1, length, out=length)
        x *= scale
        y *= scale
        z *= scale
        # x and y of "no value" are 0 already.
        np.copyto(z, 0, where=taxicab == 0)
        cv2.merge([x, y, z], dst=out[top : top + strip])


def _restore_bytes(residual: np.ndarray) -> np.ndarray:
    """Undo the prediction of a plane of bytes, in strips whose integral fits in 31 bits."""
    strip = max(1, _MAX_SUM // (255 * residual.shape[1]))
    restored = np.empty(residual.shape, np.uint8)
    for top in range(0, len(residual), strip):
        part = restored[top : top + strip]
        part[:] = cv2.integral(residual[top : top + strip], sdepth=cv2.CV_32S)[1:, 1:]
        if top:
            part += restored[top - 1]
    return restored


def _restore_words(high: np.ndarray, low: np.ndarray, bits: int) -> np.ndarray:
    """Undo the prediction of 16-bit codes: float32 codes if ``bits`` allow it, else uint16 codes modulo 2**16.

    Every partial sum is a whole number below 2**24 in the first case, 2**53 in the second, so the floats are exact.
    """
    residual = cv2.merge([low, high]).view("<i2")[..., 0].astype(np.float32)
    residual -= 128
    if bits <= NO_WRAP_BITS:
        return cv2.integral(residual, sdepth=cv2.CV_32F)[1:, 1:]
    return cv2.integral(residual, sdepth=cv2.CV_64F)[1:, 1:].astype(np.int64).astype(np.uint16)


def _residual(values: np.ndarray) -> np.ndarray:
    """Return what an integral image turns back into ``values``, modulo the word."""
    rows = np.diff(values, axis=0, prepend=values.dtype.type(0))
    return np.diff(rows, axis=1, prepend=values.dtype.type(0))


def _split(codes: np.ndarray) -> list[np.ndarray]:
    """Return the planes of high and low bytes of int32 codes."""
    residual = _residual(codes) + 128
    return [(residual >> 8).astype(np.uint8), residual.astype(np.uint8)]


def _region(inside: np.ndarray) -> tuple[slice, slice]:
    """Return the smallest rows and columns that hold everything ``inside``."""
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _header(
    coding: int,
    shape: tuple[int, ...],
    region: tuple[slice, slice],
    bits: int = 8,
    offset: float = 0.0,
    step: float = 0.0,
) -> Header:
    rows, columns = region
    channels = shape[2] if len(shape) == 3 else 1
    area = (rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
    return Header(coding, channels, bits, *shape[:2], *area, offset, step)


def _compress(header: Header, planes: list[np.ndarray]) -> bytes:
    _check(header)
    content = b"".join([_HEADER.pack(_MAGIC, PLANES_VERSION, *header), *(plane.tobytes() for plane in planes)])
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(content)


def _decompress(data: bytes | memoryview) -> bytes:
    try:
        size = zstandard.get_frame_parameters(data).content_size
        if size in (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR):
            raise PlanesError("the zstd frame does not tell its size")
        if size > _PEEK_ABOVE:
            # A frame may promise gigabytes in a few bytes: see what the header needs before allocating.
            with zstandard.ZstdDecompressor().stream_reader(data) as reader:
                header = _read_header(reader.read(_HEADER.size))
            if size != header.size:
                raise PlanesError(f"{size} bytes where its header needs {header.size}")
        if not hasattr(_local, "decompressor"):
            _local.decompressor = zstandard.ZstdDecompressor()
        return _local.decompressor.decompress(data)
    except zstandard.ZstdError as error:
        raise PlanesError(f"not a readable zstd frame ({error})") from None


def _read_header(content: bytes) -> Header:
    if len(content) < _HEADER.size:
        raise PlanesError("shorter than its header")
    magic, version, *rest = _HEADER.unpack_from(content)
    if magic != _MAGIC:
        raise PlanesError(f"begins with {magic!r}, not with {_MAGIC!r}")
    if version > PLANES_VERSION:
        raise PlanesError(f"coding version {version}; this s2kit reads up to {PLANES_VERSION}, update it")
    header = Header(*rest)
    _check(header)
    return header


def _check(header: Header) -> None:
    h, w = header.height, header.width
    if not 0 < h * w <= MAX_PIXELS:
        raise PlanesError(f"{h} x {w} pixels; 1 to {MAX_PIXELS} are possible")
    inside = header.top + header.rows <= h and header.left + header.columns <= w
    if not inside or bool(header.rows) != bool(header.columns):
        raise PlanesError(f"a region of {header.rows} x {header.columns} pixels leaves the {h} x {w} of the array")
    channels = {PLAIN: (1, 3, 4), PREDICTED: (1, 3, 4), DEPTH: (1,), NORMALS: (2,), FLOAT: (1, 2, 3, 4)}
    if header.channels not in channels.get(header.coding, ()):
        raise PlanesError(f"unknown coding {header.coding} with {header.channels} channels")
    if header.coding == NORMALS and not 8 <= header.bits <= 16:
        raise PlanesError(f"normals of {header.bits} bits; 8 to 16 exist")
    if not (np.isfinite(header.offset) and np.isfinite(header.step)):
        raise PlanesError("offset or step is not finite")


_DECODERS = {
    PLAIN: _decode_plain,
    PREDICTED: _decode_predicted,
    DEPTH: _decode_depth,
    NORMALS: _decode_normals,
    FLOAT: _decode_float,
}
