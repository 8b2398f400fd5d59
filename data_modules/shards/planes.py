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
  4    octahedral two predicted signed octahedral coordinates of ``bits`` bits; both 0 = no value
  5    float      the four bytes of little-endian float32, lowest first, each a plane per channel
  6    stereo     two predicted signed stereographic coordinates of 14 bits; both 0 = no value
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

from data_modules.shards.directions import fold_octahedral, fold_stereographic, unfold_octahedral, unfold_stereographic
from data_modules.shards.scratch import scratch

PLAIN, PREDICTED, DEPTH, OCTAHEDRAL, FLOAT, STEREOGRAPHIC = 1, 2, 3, 4, 5, 6
PLANES_VERSION = 1
MAX_PIXELS = 1 << 27
ZSTD_LEVEL = 3
#: Normals are mostly entropy-coded: level 1 reads in two thirds of the time, and is 8 % larger.
NORMALS_ZSTD_LEVEL = 1
OCTAHEDRAL_BITS = 13
#: Residuals of octahedral codes of at most this many bits never wrap around in 16 bits.
NO_WRAP_BITS = 13

_MAGIC = b"S2PL"
_HEADER = struct.Struct("<4sBBBBIIIIIIdd")
_BYTES_PER_VALUE = {PLAIN: 1, PREDICTED: 1, DEPTH: 2, OCTAHEDRAL: 2, FLOAT: 4, STEREOGRAPHIC: 2}
_DIRECTIONS = (OCTAHEDRAL, STEREOGRAPHIC)
_PEEK_ABOVE = 1 << 26
_STRIP = 1 << 16  # pixels per step of a decoder: its few arrays then stay in the cache
_MAX_EXACT = 1 << 23  # float32 sums are exact while no result exceeds this
_MAX_SUM = 2**31 - 1
_MAX_METRES = 1e30
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


def encode_normals(normals: np.ndarray, bits: int | None = None) -> bytes:
    """Encode float32 ``(H, W, 3)`` normals of any length > 0; (0, 0, 0) comes back as exactly that.

    Args:
        normals: The normals.
        bits: Of an octahedral code; by default stereographic codes, or if they do not reach, 13 octahedral bits.

    Raises:
        PlanesError: A value is not finite.
    """
    if not np.isfinite(normals).all():
        raise PlanesError("normals must be finite; (0, 0, 0) where there is no value")
    if not 8 <= (bits or 8) <= 16:
        raise PlanesError(f"bits must be 8 to 16, not {bits}")
    coding, codes = STEREOGRAPHIC, fold_stereographic(normals) if bits is None else None
    if codes is None:
        coding, bits = OCTAHEDRAL, bits or OCTAHEDRAL_BITS
        codes = fold_octahedral(normals, bits)
    u, v = codes
    region = _region((u != 0) | (v != 0))
    header = _header(coding, (*normals.shape[:2], 2), region, bits or 14)
    return _compress(header, _split(u[region]) + _split(v[region]), NORMALS_ZSTD_LEVEL)


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
    channels = 3 if header.coding in _DIRECTIONS else header.channels
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
        if not np.isfinite(plane).all():
            raise PlanesError("a value is not finite")
        (out if header.channels == 1 else out[..., channel])[:] = plane


def _decode_depth(header: Header, planes: np.ndarray, out: np.ndarray) -> None:
    codes = _restore_words(planes[0], planes[1], "u")
    low, high = codes.min(), codes.max()
    if not -_MAX_EXACT < low <= high < _MAX_EXACT:
        codes = _restore_wrapped(planes[0], planes[1]).astype(np.float32)
    elif low < 0 or high > 65535:
        codes = (codes.astype(np.int32) & 65535).astype(np.float32)
    step, offset = np.float32(header.step), np.float32(header.offset)
    rows = max(1, _STRIP // header.columns)
    for top in range(0, header.rows, rows):
        part, target = codes[top + 1 : top + 1 + rows, 1:], out[top : top + rows]
        # The offset where there is a value: a code of at least 1.
        add = np.minimum(part, 1, out=scratch("a", part.shape))
        add *= offset
        np.multiply(part, step, out=target)
        target += add


def _decode_octahedral(header: Header, planes: np.ndarray, out: np.ndarray) -> None:
    if header.bits > NO_WRAP_BITS:
        u, v = (_restore_wrapped(high, low).view(np.int16).astype(np.float32) for high, low in (planes[:2], planes[2:]))
    else:
        u, v = _restore_words(*planes[:2], "u"), _restore_words(*planes[2:], "v")
    unfold_octahedral(u, v, header.bits, out)


def _decode_stereographic(header: Header, planes: np.ndarray, out: np.ndarray) -> None:
    unfold_stereographic(_restore_words(*planes[:2], "u"), _restore_words(*planes[2:], "v"), out)


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


def _restore_words(high: np.ndarray, low: np.ndarray, name: str) -> np.ndarray:
    """Undo the prediction of 16-bit codes whose residuals did not wrap around.

    Every partial sum is a whole number, and below 2**24 if no result exceeds 2**23: then the floats are exact.

    Returns:
        float32 (H + 1, W + 1), the codes behind a row and a column of zeros; the scratch array ``name``.
    """
    rows, columns = high.shape
    codes = scratch(name, (rows + 1, columns + 1))
    return cv2.integral(_residuals(high, low), sum=codes, sdepth=cv2.CV_32F)


def _restore_wrapped(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Undo the prediction of any 16-bit codes: uint16 (H + 1, W + 1), see ``_restore_words``; sums are below 2**53."""
    return cv2.integral(_residuals(high, low), sdepth=cv2.CV_64F).astype(np.int64).astype(np.uint16)


def _residuals(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    words = cv2.merge([low, high], dst=scratch("words", (*high.shape, 2), np.uint8))
    residual = scratch("residual", high.shape)
    np.copyto(residual, words.view("<i2")[..., 0])
    residual -= 128
    return residual


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


def _compress(header: Header, planes: list[np.ndarray], level: int = ZSTD_LEVEL) -> bytes:
    _check(header)
    content = b"".join([_HEADER.pack(_MAGIC, PLANES_VERSION, *header), *(plane.tobytes() for plane in planes)])
    return zstandard.ZstdCompressor(level=level).compress(content)


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
    channels = {PLAIN: (1, 3, 4), PREDICTED: (1, 3, 4), DEPTH: (1,), FLOAT: (1, 2, 3, 4)}
    channels |= dict.fromkeys(_DIRECTIONS, (2,))
    if header.channels not in channels.get(header.coding, ()):
        raise PlanesError(f"unknown coding {header.coding} with {header.channels} channels")
    if header.coding in _DIRECTIONS and not 8 <= header.bits <= 16:
        raise PlanesError(f"normals of {header.bits} bits; 8 to 16 exist")
    if not (abs(header.offset) < _MAX_METRES and abs(header.step) < _MAX_METRES):
        raise PlanesError(f"offset {header.offset} or step {header.step} is absurd")


_DECODERS = {
    PLAIN: _decode_plain,
    PREDICTED: _decode_predicted,
    DEPTH: _decode_depth,
    OCTAHEDRAL: _decode_octahedral,
    FLOAT: _decode_float,
    STEREOGRAPHIC: _decode_stereographic,
}
