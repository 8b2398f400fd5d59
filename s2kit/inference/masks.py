"""Foreground masks from files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from data_modules.images import EXTENSIONS
from s2kit.errors import UserError
from s2kit.inference.predictor import Picture

#: What a mask's file may add to the picture's name: nothing, or what segmentations are written under.
ENDINGS = ("", "_mask", "_seg", "_labels")
SUFFIXES = (".npy", ".png", *(suffix for suffix in EXTENSIONS if suffix != ".png"))
#: Gray pictures that are nowhere brighter hold class ids, and every class but 0 is foreground.
MAX_ID = 63


class MaskFolder:
    """Masks in a folder, by the pictures' names: ``a.jpg`` has ``a.npy``, ``a.png``, ``a_seg.npy``, ``a_labels.png``...

    Frames of a video ``clip.mp4`` have theirs in a folder: ``clip/000012.png``.

    An array is true where it is not 0. A picture with a palette holds class ids, and so does a gray one whose values
    are all below 64; else what is brighter than half counts. A mask of another size is resized.

    Args:
        path: The folder.

    Raises:
        UserError: If it is no folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise UserError(f"--masks {path}: there is no such folder")

    def __call__(self, picture: Picture) -> np.ndarray:
        """Return the picture's foreground, bool (H, W).

        Raises:
            UserError: If there is none, or it cannot be read.
        """
        stems = [picture.name] if picture.frame else list(dict.fromkeys((picture.name, Path(picture.source).stem)))
        places = (self.path / f"{stem}{end}{suffix}" for stem in stems for end in ENDINGS for suffix in SUFFIXES)
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise UserError(f"it has no mask in {self.path}, such as {stems[-1]}.png")
        mask = read_mask(path)
        height, width = picture.image.shape[:2]
        if mask.shape == (height, width):
            return mask
        if abs(mask.shape[1] / mask.shape[0] / (width / height) - 1) > 0.02:
            raise UserError(
                f"its mask {path} is {mask.shape[1]} x {mask.shape[0]} pixels, of another shape than "
                f"the picture's {width} x {height}"
            )
        return cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT) > 0


def read_mask(path: Path) -> np.ndarray:
    """Read a mask, bool (H, W); see ``MaskFolder``.

    Raises:
        UserError: If it cannot be read, or is no map of one value a pixel.
    """
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
            threshold = 0
        else:
            with Image.open(path) as image:
                is_ids = image.mode == "P"
                values = np.asarray(image if is_ids else image.convert("L"))
            threshold = 0 if is_ids or values.max(initial=0) <= MAX_ID else 127
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"its mask {path} cannot be read: {' '.join(str(error).split())}") from None
    values = np.squeeze(values)
    if values.ndim != 2:
        raise UserError(f"its mask {path} has the shape {values.shape}, expected height x width")
    return values > threshold
