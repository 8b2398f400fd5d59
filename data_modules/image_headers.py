"""Format and size of an image file from its first bytes, before anything is decoded.

A file of a few bytes can declare a picture of any size, and a decoder allocates what is declared.
"""

import struct

_END_OF_JPEG = b"\xff\xd9"


class HeaderError(ValueError):
    """The bytes do not begin with the header of a picture in a known format; the text says why."""


def image_format(data: bytes) -> str:
    """Return ``jpeg``, ``png``, ``webp``, ``bmp``, ``tiff``, ``gif`` or ``avif``, by content and never by name.

    Raises:
        HeaderError: If it is none of them.
    """
    for name, magics in (
        ("jpeg", (b"\xff\xd8\xff",)),
        ("png", (b"\x89PNG\r\n\x1a\n",)),
        ("gif", (b"GIF87a", b"GIF89a")),
        ("bmp", (b"BM",)),
        ("tiff", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    ):
        if data.startswith(magics):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp":
        brands = data[8 : 8 + 64]
        if b"avif" in brands or b"avis" in brands:
            return "avif"
        raise HeaderError("it is a HEIF/HEIC or video file; save it as JPEG or PNG")
    if not data:
        raise HeaderError("the file is empty")
    start = data[:256].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg", b"<head")):
        raise HeaderError("it holds text (HTML or XML), not a picture; was a web page saved in its place?")
    raise HeaderError(f"it is no JPEG, PNG, WebP, BMP, TIFF, GIF or AVIF file; it begins with {data[:8]!r}")


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """Return the (height, width) that the header of a file in format ``name`` declares, before any EXIF rotation.

    Raises:
        HeaderError: If the header is cut off or makes no sense.
    """
    try:
        height, width = _READERS[name](data)
    except (struct.error, IndexError):
        raise HeaderError(f"its {name.upper()} header is cut off") from None
    if height < 1 or width < 1:
        raise HeaderError(f"its {name.upper()} header declares {width} x {height} pixels (width x height)")
    return height, width


def is_cut_off(data: bytes, name: str) -> bool:
    """Return whether a JPEG lacks its end marker, as an interrupted download or a full disk leaves it.

    Decoders fill the missing part with grey and report nothing. The decoders of the other formats refuse such files.
    """
    if name != "jpeg" or data.endswith(_END_OF_JPEG):
        return False
    return data.find(_END_OF_JPEG, _jpeg_scan(data)) < 0


def is_plain_jpeg(data: bytes) -> bool:
    """Return whether a file is an 8-bit grey or YCbCr JPEG that nothing in its header turns or recolours.

    Such a file is the same picture to every decoder. EXIF may turn one, and an Adobe segment may state other colours.
    """
    plain = False
    try:
        for marker, offset in _jpeg_segments(data):
            if marker in (0xE1, 0xEE) or (0xC3 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
                return False
            if 0xC0 <= marker <= 0xC2:
                plain = data[offset + 2] == 8 and data[offset + 7] in (1, 3)
    except (struct.error, IndexError):
        return False
    return plain


def _jpeg_segments(data: bytes):
    """Yield (marker, offset of its content) up to the start of the first scan."""
    offset = 2
    while True:
        while data[offset] != 0xFF:  # tolerate stuffing between segments, as decoders do
            offset += 1
        while data[offset] == 0xFF:
            offset += 1
        marker = data[offset]
        yield marker, offset + 1
        if marker == 0xDA:
            return
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            offset += 1
        else:
            offset += 1 + struct.unpack_from(">H", data, offset + 1)[0]


def _jpeg_scan(data: bytes) -> int:
    try:
        return next((offset for marker, offset in _jpeg_segments(data) if marker == 0xDA), len(data))
    except (struct.error, IndexError):
        return len(data)


def _jpeg_size(data: bytes) -> tuple[int, int]:
    for marker, offset in _jpeg_segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return struct.unpack_from(">HH", data, offset + 3)
    raise HeaderError("its JPEG header has no frame")


def _png_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", data, 16)
    return height, width


def _gif_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", data, 6)
    return height, width


def _bmp_size(data: bytes) -> tuple[int, int]:
    (header,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header == 12 else "<ii", data, 18)
    return abs(height), width


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[27:30], "little"), 1 + int.from_bytes(data[24:27], "little")
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return height & 0x3FFF, width & 0x3FFF
    raise HeaderError(f"its WEBP header has the unknown part {kind!r}")


def _tiff_size(data: bytes) -> tuple[int, int]:
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    offset = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    count = struct.unpack_from(order + ("Q" if big else "H"), data, offset)[0]
    offset += 8 if big else 2
    entry, value = (20, 12) if big else (12, 8)
    sides = {}
    for index in range(min(count, 4096)):
        tag, kind = struct.unpack_from(order + "HH", data, offset + index * entry)
        if tag in (256, 257):
            form = {3: "H", 4: "I", 16: "Q"}.get(kind, "I")
            sides[tag] = struct.unpack_from(order + form, data, offset + index * entry + value)[0]
    if len(sides) < 2:
        raise HeaderError("its TIFF header declares no size")
    return sides[257], sides[256]


def _avif_size(data: bytes) -> tuple[int, int]:
    # A picture made of tiles has several of these boxes; the whole picture's is the largest.
    sizes, offset = [], data.find(b"ispe")
    while offset >= 0:
        width, height = struct.unpack_from(">II", data, offset + 8)
        sizes.append((height, width))
        offset = data.find(b"ispe", offset + 4, 1 << 20)
    if not sizes:
        raise HeaderError("its AVIF header declares no size")
    return max(sizes, key=lambda size: size[0] * size[1])


_READERS = {
    "jpeg": _jpeg_size,
    "png": _png_size,
    "gif": _gif_size,
    "bmp": _bmp_size,
    "webp": _webp_size,
    "tiff": _tiff_size,
    "avif": _avif_size,
}
