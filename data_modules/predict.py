"""A user's own pictures as a data set."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from data_modules.images import ImageError, list_images, output_stems, read_image


class PictureDataset(Dataset[dict[str, Any]]):
    """Pictures of any size, in the network's input.

    Args:
        path: A picture, a folder, a glob pattern, or a text file with one path a line.
        transform: ``transform(sample) -> item`` of a raw sample that is a picture alone.

    Raises:
        FileNotFoundError: If there is no picture at ``path``.
    """

    def __init__(self, path: str | Path, transform: Callable[[dict], dict]) -> None:
        self.files = list_images(path)
        self.stems = output_stems(self.files)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return ``image`` uint8 (3, h, w), ``crop``, ``source_size``, ``key``, ``path``.

        A file that cannot be read gives ``key`` (its path) and ``error`` (the reason) instead: the others go on.
        """
        file = self.files[index]
        try:
            picture = read_image(file)
        except ImageError as error:
            return {"key": str(file), "error": error.reason}
        item = self.transform({"key": self.stems[index], "image": picture})
        return {**item, "path": str(file)}
