"""A user's own pictures: which files are meant, what the outputs are called, and reading them without surprises."""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from data_modules.image_headers import HeaderError, image_format, image_size, is_cut_off, is_plain_jpeg
from s2kit.errors import UserError

try:
    import simplejpeg
except ImportError:  # the extra "speed"
    simplejpeg = None

#: Extensions, in any case, that ``list_images`` takes from a folder. A file named directly may have any.
EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")

#: Default limit of ``read_image`` on a picture's pixels: 200 million, 600 MB once decoded.
MAX_PIXELS = 200_000_000


class ImageError(UserError):
    """A picture cannot be read.

    Attributes:
        path: The file's path, or what the bytes were called.
        reason: What is wrong with it.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(str(path), reason)
        self.path, self.reason = str(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


_REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}


def read_image(
    source: str | Path | bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    name: str | None = None,
    min_size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Read a picture as 8-bit RGB, upright.

    JPEG (also CMYK), PNG, WebP, BMP, TIFF, GIF and AVIF, recognised by content. The EXIF orientation is applied.
    Grayscale becomes three equal channels and a palette its colours. Alpha is dropped, not blended: where a picture
    is fully transparent, its hidden colours show. 16 bits are divided by 257, so that 65535 becomes 255; floating
    point is taken as 0..1. Of several pages or frames the first is read. Colour profiles are not applied.

    Args:
        source: A path, or the bytes of a file.
        max_pixels: Largest number of pixels, checked in the header before decoding.
        name: What to call bytes in an error.
        min_size: Smallest (height, width) that will do. A JPEG is then decoded at 1/2, 1/4 or 1/8 of its size where
            both sides stay at least that large, which takes less time and averages pixels rather than dropping them.
            A pixel is then a block of the picture, the last ones in part beyond its edge. Other formats come whole.

    Returns:
        uint8 (H, W, 3) RGB, contiguous.

    Raises:
        ImageError: If the file is missing, a folder, empty, no picture, cut off, damaged or too large.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        path, data = name or "<bytes>", bytes(source)
    else:
        path, data = name or str(source), _read_file(source)
    try:
        form = image_format(data)
        height, width = image_size(data, form)
    except HeaderError as error:
        raise ImageError(path, str(error)) from None
    if height * width > max_pixels:
        raise ImageError(
            path, f"it has {width} x {height} = {width * height} pixels, more than the limit of {max_pixels}"
        )
    if is_cut_off(data, form):
        raise ImageError(path, "the JPEG file is cut off: its end is missing")
    factor = _reduction(height, width, min_size, data) if min_size and form == "jpeg" else 1
    image = _decode_fast(data, height, width, factor) if form == "jpeg" and simplejpeg is not None else None
    return _to_eight_bits(_decode(data, path, form, factor), path) if image is None else image


def _read_file(source: str | Path) -> bytes:
    path = Path(source)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ImageError(path, "there is no such file") from None
    except IsADirectoryError:
        raise ImageError(path, "it is a folder, not a picture") from None
    except OSError as error:
        raise ImageError(path, f"it cannot be read: {error.strerror or error}") from None


def _reduction(height: int, width: int, min_size: tuple[int, int], data: bytes) -> int:
    """Return by how much a picture may shrink and still have ``min_size``, also if EXIF turns it."""
    sizes = [(height, width)] if is_plain_jpeg(data) else [(height, width), (width, height)]
    for factor in (8, 4, 2):
        if all(-(-side // factor) >= least for size in sizes for side, least in zip(size, min_size)):
            return factor
    return 1


def _decode_fast(data: bytes, height: int, width: int, factor: int) -> np.ndarray | None:
    """Decode a plain JPEG to the very pixels that OpenCV gives, but sooner; None if this is not possible."""
    if not is_plain_jpeg(data):
        return None
    try:
        least = {"min_height": -(-height // factor), "min_width": -(-width // factor)} if factor > 1 else {}
        return simplejpeg.decode_jpeg(data, "RGB", **least)
    except ValueError:
        return None  # OpenCV knows more kinds, and says more about what is wrong


def _decode(data: bytes, path: str, form: str, factor: int) -> np.ndarray:
    # Others than JPEG blue-green-red, and converted here: decoding 16-bit TIFF straight to RGB returns uninitialised
    # memory in OpenCV 5.0.
    straight = form == "jpeg" and factor == 1
    flags = cv2.IMREAD_COLOR_RGB if straight else _REDUCED.get(factor, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # the reason goes into the error
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ImageError(path, f"the {form.upper()} file cannot be decoded: {error.err or error}") from None
    finally:
        cv2.utils.logging.setLogLevel(level)
    if image is None:
        raise ImageError(path, f"the {form.upper()} file is damaged, cut off, or of a kind that OpenCV cannot decode")
    return image if straight else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _to_eight_bits(image: np.ndarray, path: str) -> np.ndarray:
    if image.dtype == np.uint8:
        return image
    if image.dtype == np.uint16:
        return cv2.convertScaleAbs(image, alpha=1 / 257)
    low, high = float(image.min()), float(image.max())
    if not (np.issubdtype(image.dtype, np.floating) and low >= 0 and high <= 1):
        raise ImageError(
            path, f"its values are {image.dtype} from {low:g} to {high:g}; 8 or 16 bits, or 0..1, can be shown"
        )
    return np.rint(image * 255).astype(np.uint8)


def list_images(source: str | Path, extensions: Sequence[str] = EXTENSIONS, what: str = "pictures") -> list[Path]:
    """List the pictures that ``source`` means, without opening them.

    Args:
        source: A picture; a folder, of which all pictures are taken that are not hidden (not those of its
            sub-folders), by extension in any case; a glob pattern (``**`` goes into sub-folders); or a ``.txt`` file
            with one path a line, relative to that file's folder, where empty lines and lines that begin with # are
            skipped.
        extensions: What is taken from folders and patterns, in lower case.
        what: What these are called in an error.

    Returns:
        The paths, sorted by name; those of a text file in its order.

    Raises:
        FileNotFoundError: If nothing is found.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        files = [file for file in path.iterdir() if _is_picture(file, extensions)]
        if not files:
            raise FileNotFoundError(f"the folder {path} holds no {what} ({', '.join(extensions)})")
        return sorted(files)
    if path.is_file():
        is_list = path.suffix.lower() == ".txt"
        return [path.parent / Path(name).expanduser() for name in listed(path)] if is_list else [path]
    if glob.has_magic(str(path)):
        files = [file for file in map(Path, glob.glob(str(path), recursive=True)) if _is_picture(file, extensions)]
        if not files:
            raise FileNotFoundError(f"the pattern {path} matches no {what} ({', '.join(extensions)})")
        return sorted(files)
    raise FileNotFoundError(f"there is no {path}: give a picture, a folder, a glob pattern or a list (.txt)")


def _is_picture(file: Path, extensions: Sequence[str]) -> bool:
    return file.suffix.lower() in extensions and not file.name.startswith(".") and file.is_file()


def listed(path: Path) -> list[str]:
    """Return the lines of a list of pictures, without empty ones and those that begin with #.

    Raises:
        FileNotFoundError: If there are none, or it is no text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise FileNotFoundError(f"{path} is no text list of pictures: it is not UTF-8 text") from None
    names = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not names:
        raise FileNotFoundError(f"the list {path} names no pictures")
    return names


def output_stems(paths: Sequence[str | Path]) -> list[str]:
    """Return a name for the outputs of each picture, all different, also on file systems that ignore case.

    The whole stem is kept, dots included: ``a.b.jpg`` -> ``a.b``. Where stems collide, the extension joins
    (``a.jpg``, ``a.png`` -> ``a_jpg``, ``a_png``); where that collides, too (pictures of several folders), the
    folders from below the common one lead (``x_a_jpg``); and a number ends what is still equal, as the same picture
    given twice.
    """
    files = [Path(path) for path in paths]
    folders = [Path(os.path.abspath(file)).parent for file in files]
    common = Path(os.path.commonpath(folders)) if files else Path()
    candidates = []
    for file, folder in zip(files, folders):
        extended = f"{file.stem}_{file.suffix[1:]}" if file.suffix else file.stem
        candidates.append([file.stem, extended, "_".join([*folder.relative_to(common).parts, extended])])
    level, last = [0] * len(files), 2
    while True:
        names = [options[i] for options, i in zip(candidates, level)]
        counts = Counter(name.casefold() for name in names)
        clashing = [i for i, name in enumerate(names) if counts[name.casefold()] > 1 and level[i] < last]
        if not clashing:
            break
        for i in clashing:
            level[i] += 1
    taken = Counter(name.casefold() for name in names)
    used: set[str] = set()
    stems = []
    for name in names:
        stem, number = name, 1
        while stem.casefold() in used or (number > 1 and stem.casefold() in taken):
            number += 1
            stem = f"{name}_{number}"
        used.add(stem.casefold())
        stems.append(stem)
    return stems
