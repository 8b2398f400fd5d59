"""Image files as they are: their bytes, the member that they become, and the size that the reader will see."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from data_modules.image_headers import HeaderError, image_format, image_size, is_cut_off
from data_modules.images import MAX_PIXELS, ImageError, read_image
from data_modules.importers.base import RejectedError
from data_modules.shards.codecs import encode_labels
from data_modules.shards.format import ShardError

#: Formats whose files are stored byte for byte; others become PNG, which loses nothing of 8-bit colours.
_MEMBERS = {"jpeg": "jpg", "png": "png", "webp": "webp"}
_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width


@dataclass(frozen=True)
class Picture:
    """An image file.

    Attributes:
        extension: Of its member: jpg, png or webp, by content and not by name.
        data: The member's bytes; the file's own for these formats.
        size: (height, width) as ``read_image`` gives it, upright.
        orientation: The EXIF orientation, 1 to 8; 1 is as stored.
        pixels: uint8 (H, W, 3) RGB, where it was decoded.
    """

    extension: str
    data: bytes
    size: tuple[int, int]
    orientation: int
    pixels: np.ndarray | None


def load_picture(path: Path, decode: bool = True, data: bytes | None = None) -> Picture:
    """Read an image file.

    Args:
        path: The file, or the name for errors where ``data`` is given.
        decode: Decode it, which finds damage; otherwise only its header is read.
        data: Its bytes, where they are at hand.

    Raises:
        RejectedError: It is missing, damaged, too large or of an unknown format.
    """
    try:
        data = path.read_bytes() if data is None else data
        form = image_format(data)
        size = image_size(data, form)
        if size[0] * size[1] > MAX_PIXELS:
            raise HeaderError(f"it has {size[1]} x {size[0]} pixels, more than the limit of {MAX_PIXELS}")
        if is_cut_off(data, form):
            raise HeaderError("the JPEG file is cut off: its end is missing")
        pixels = read_image(data, name=str(path)) if decode or form not in _MEMBERS else None
    except OSError as error:
        raise RejectedError(f"{path}: {error.strerror or error}") from None
    except HeaderError as error:
        raise RejectedError(f"{path}: {error}") from None
    except ImageError as error:
        raise RejectedError(str(error)) from None
    if form not in _MEMBERS:
        done, encoded = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
        if not done:
            raise RejectedError(f"{path}: cannot be written as PNG")
        return Picture("png", encoded.tobytes(), pixels.shape[:2], 1, pixels)
    orientation = _orientation(data)
    upright = size[::-1] if orientation in _TURNED else size
    return Picture(_MEMBERS[form], data, pixels.shape[:2] if pixels is not None else upright, orientation, pixels)


def _orientation(data: bytes) -> int:
    try:
        with Image.open(io.BytesIO(data)) as image:
            value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises many kinds; a file that OpenCV decodes need not have sound EXIF
        return 1
    return value if value in range(1, 9) else 1


def require_size(path: Path, picture: Picture, size: tuple[int, int], stated_by: str) -> None:
    """Check that labels of (height, width) ``size`` are labels of the upright picture.

    Raises:
        RejectedError: The sizes differ, or EXIF turns the picture and the size cannot tell whether the labels know it.
    """
    turned = f", which its EXIF orientation {picture.orientation} turns" if picture.orientation != 1 else ""
    if tuple(size) != tuple(picture.size):
        raise RejectedError(
            f"{path}: {picture.size[0]} x {picture.size[1]} pixels{turned}, {stated_by} says {size[0]} x {size[1]}"
        )
    if picture.orientation != 1 and (picture.orientation not in _TURNED or size[0] == size[1]):
        raise RejectedError(
            f"{path}: its EXIF orientation is {picture.orientation}, and nothing says whether the labels are for the "
            "turned or the stored picture; store it upright without EXIF"
        )


def make_members(key: str, picture: Picture, labels: dict[str, Any]) -> dict[str, bytes]:
    """Return the members of a sample: the picture's own bytes and the encoded labels.

    Raises:
        RejectedError: A label does not fit the picture.
    """
    try:
        return {picture.extension: picture.data, **encode_labels({"key": key, **labels}, picture.size)}
    except ShardError as error:
        raise RejectedError(str(error)) from None


def read_plane(path: Path, colours: bool = False) -> np.ndarray:
    """Read a mask or map picture with the values that are stored: (H, W) or (H, W, C) uint8 or uint16.

    A palette's indices are kept, which OpenCV turns into colours; black and white become 0 and 255. With ``colours``
    anything becomes uint8 (H, W, 3) RGB.

    Raises:
        RejectedError: It is missing, damaged, too large or of an unknown format.
    """
    try:
        data = path.read_bytes()
        height, width = image_size(data, image_format(data))
        if height * width > MAX_PIXELS:
            raise HeaderError(f"it has {width} x {height} pixels, more than the limit of {MAX_PIXELS}")
        with Image.open(io.BytesIO(data)) as image:
            mode = image.mode
            if colours:
                return np.array(image.convert("RGB"))
            if mode in ("L", "P", "RGB", "RGBA", "LA", "I;16"):
                array = np.array(image)
            elif mode == "I":  # 16 bits in releases of Pillow before 11
                array = np.array(image).astype(np.uint16)
            else:
                array = np.array(image.convert("L")) if mode == "1" else None
    except OSError as error:
        raise RejectedError(f"{path}: {error.strerror or error}") from None
    except (HeaderError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RejectedError(f"{path}: {error}") from None
    if array is None:
        raise RejectedError(f"{path}: pixels of kind {mode!r}; masks and maps have 8 or 16 bits")
    # Pillow reads 16-bit colours as 8 bits, OpenCV keeps them.
    if array.ndim == 3 and data[:8] == b"\x89PNG\r\n\x1a\n" and data[24] == 16:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        array = array[..., [2, 1, 0, *range(3, array.shape[2])]]
    return array


def first_channel(array: np.ndarray) -> np.ndarray:
    """Return uint8 (H, W) of a mask: its first channel, 16 bits divided by 257, and 0/1 spread to 0/255."""
    plane = array if array.ndim == 2 else array[..., 0]
    if plane.dtype == np.uint16:
        plane = (plane.astype(np.uint32) * 255 + 32767) // 65535
    plane = np.ascontiguousarray(plane.astype(np.uint8))
    return plane * np.uint8(255) if plane.max(initial=0) == 1 else plane
