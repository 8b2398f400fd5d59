"""``python -m s2kit bench data``: what reading a sample costs, beside the bare decoder and other readers."""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_modules.memory import keep_freed_memory
from s2kit.errors import UserError
from s2kit.tools.bench_backbone import median, processor

DESCRIPTION = """\
Time how samples are read on one core: the bare JPEG decoders in a loop over bytes in memory, `ShardDataset` at random
(images alone, each label alone, everything), the `webdataset` package on the same tars, and a folder of the same files
through Pillow. They take turns in one process, and what counts is CPU time, which others on the machine hardly change.
A ratio is the fastest bare decoder's time over that of the row: 1 is as fast as decoding alone. Without SET a set of
pictures with all labels is made. Prints a table and writes a CSV with date, hardware and versions.
"""
_BARE = ("OpenCV, bytes in memory", "simplejpeg, bytes in memory", "Pillow, bytes in memory")


@dataclass(frozen=True)
class Reader:
    """One way to read: ``read()`` yields every sample once, ``size`` is what a sample of it takes on disk, in bytes."""

    name: str
    read: Callable[[], Iterator[Any]]
    size: float


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``bench data``."""
    add = parser.add_argument
    add(
        "folder",
        nargs="?",
        type=Path,
        metavar="SET",
        help="a shard set on disk with JPEG images (default: one is made)",
    )
    add("--image-size", nargs=2, type=int, default=(1024, 768), metavar=("H", "W"), help="made set (default: 1024 768)")
    add("--count", type=int, default=24, metavar="N", help="samples read in a turn (default: 24)")
    add("--runs", type=int, default=7, metavar="N", help="turns of each, after a warm-up (default: 7)")
    add("--out", type=Path, metavar="FILE", help="CSV to write (default: none is written)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure, print and write; return the exit code.

    Raises:
        UserError: A number out of range, or a set without JPEG images.
    """
    for name, value, least in (("--count", options.count, 1), ("--runs", options.runs, 1)):
        if not least <= value <= 100_000:
            raise UserError(f"{name} must be from {least} to 100000, got {value}")
    if min(options.image_size) < 16 or max(options.image_size) > 8192:
        raise UserError(f"--image-size must be 16 to 8192 a side, got {' x '.join(map(str, options.image_size))}")
    cv2.setNumThreads(1)
    keep_freed_memory()  # as the processes of a loader do, for every reader alike
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder
        if folder is None:
            folder = Path(scratch) / "set"
            make_set(folder, options.count, tuple(options.image_size))
        readers = list(_readers(folder, Path(scratch), options.count))
        seconds = measure(readers, options.runs)
    rows = _rows(readers, seconds, options)
    print(f"{'':44}{'CPU ms':>9}{'samples/s':>11}{'MB/s':>8}{'kB':>8}{'ratio':>8}")
    for row in rows:
        print(
            f"{row['reader']:<44}{row['cpu_ms']:>9.3f}{row['samples_per_s']:>11.0f}{row['mb_per_s']:>8.0f}"
            f"{row['kb']:>8.0f}{row['ratio']:>8.2f}"
        )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        print(options.out)
    return 0


def make_set(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write a set of pictures with the grain of photographs, and labels of a curved, wrinkled surface on half of it."""
    from data_modules.shards import ShardWriter

    rng = np.random.default_rng(0)
    height, width = size
    y, x = (np.mgrid[:height, :width] + 0.5) / np.array([height, width]).reshape(2, 1, 1) * 2 - 1
    with ShardWriter(folder, samples_per_shard=max(1, -(-count // 3)), info={"source": "bench data"}) as writer:
        for number in range(count):
            # Noise of every scale with amplitude in proportion to it, as in photographs.
            octaves = [2**octave for octave in range(int(np.log2(min(size))) - 1)]
            relief = sum(scale * _noise(rng, size, scale) for scale in octaves)
            inside = (x / 0.8) ** 2 + (y / 0.8) ** 2 < 1
            folds = cv2.GaussianBlur(relief, (0, 0), 6)
            slope_y, slope_x = np.gradient(folds * 0.1)
            depth = 3 - 0.3 * np.sqrt(np.maximum(1 - x * x - y * y, 0)) + 1e-4 * folds
            classes = 1 + np.digitize(folds, np.linspace(folds.min(), folds.max(), 20))
            normals = np.dstack([slope_x + x, -slope_y - y, np.ones(size)])
            normals = np.where(inside[..., None], normals / np.linalg.norm(normals, axis=-1, keepdims=True), 0)
            shade = 128 + 45 * relief / relief.std()
            image = np.clip(shade[..., None] + rng.normal(0, 4, (*size, 3)) + (0, 8, -8), 0, 255).astype(np.uint8)
            writer.write(
                {
                    "key": f"picture_{number:06d}",
                    "image": image,
                    "alpha": cv2.GaussianBlur(inside.astype(np.uint8) * 255, (5, 5), 0),
                    "normals": normals.astype(np.float32),
                    "depth": np.where(inside, depth, 0).astype(np.float32),
                    "albedo": image // 8 * 8 * inside[..., None],
                    "parts": (classes * inside).astype(np.uint8),
                }
            )


def measure(readers: list[Reader], runs: int) -> list[list[float]]:
    """Return for each reader the CPU seconds per sample of each turn. All read once before anything counts."""
    seconds: list[list[float]] = [[] for _ in readers]
    for turn in range(-1, runs):
        for number, reader in enumerate(readers):
            begin, count = time.process_time(), 0
            for _ in reader.read():
                count += 1
            if turn >= 0:
                seconds[number].append((time.process_time() - begin) / count)
    return seconds


def _noise(rng: np.random.Generator, size: tuple[int, int], scale: int) -> np.ndarray:
    small = rng.standard_normal((size[0] // scale + 2, size[1] // scale + 2)).astype(np.float32)
    return cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC)


def _readers(folder: Path, scratch: Path, count: int) -> Iterator[Reader]:
    from data_modules.shards import ShardDataset

    everything = ShardDataset(folder)
    chosen = np.random.default_rng(0).permutation(len(everything))[:count].tolist()
    files = [everything.read_encoded(index) for index in chosen]
    pictures = [next((data for name, data in file.items() if name in ("jpg", "jpeg")), None) for file in files]
    if None in pictures:
        raise UserError(f"{folder}: sample {everything.key(chosen[pictures.index(None)])!r} has no JPEG image")
    picture_size = float(np.mean(list(map(len, pictures))))
    yield from _bare(pictures, picture_size)
    for name in ("image", *(name for name in everything.manifest["fields"] if name != "image"), None):
        samples = ShardDataset(folder, fields=None if name is None else (name,))
        needed = [sum(len(d) for n, d in f.items() if samples._is_wanted(n)) for f in files]
        title = "s2kit: everything" if name is None else f"s2kit: {name}"
        yield Reader(title, lambda samples=samples: map(samples.__getitem__, chosen), float(np.mean(needed)))
    yield from _webdataset(folder, picture_size)
    yield from _pillow_folder(pictures, scratch / "files", picture_size)


def _bare(pictures: list[bytes], size: float) -> Iterator[Reader]:
    arrays = [np.frombuffer(data, np.uint8) for data in pictures]
    yield Reader(_BARE[0], lambda: (cv2.imdecode(array, cv2.IMREAD_COLOR_RGB) for array in arrays), size)
    if find_spec("simplejpeg"):
        import simplejpeg

        yield Reader(_BARE[1], lambda: (simplejpeg.decode_jpeg(data, "RGB") for data in pictures), size)
    if find_spec("PIL"):
        yield Reader(_BARE[2], lambda: (_pillow(io.BytesIO(data)) for data in pictures), size)


def _webdataset(folder: Path, size: float) -> Iterator[Reader]:
    if not find_spec("webdataset"):
        return
    import webdataset

    tars = [str(path) for path in sorted(folder.glob("*.tar"))]

    def read() -> Iterator[Any]:
        pictures = webdataset.WebDataset(
            tars, shardshuffle=False, empty_check=False, select_files=lambda name: name.endswith((".jpg", ".jpeg"))
        )
        return iter(pictures.decode("rgb8").to_tuple("jpg;jpeg"))

    yield Reader("webdataset: image, in the order of the tars", read, size)


def _pillow_folder(pictures: list[bytes], folder: Path, size: float) -> Iterator[Reader]:
    if not find_spec("PIL"):
        return
    folder.mkdir()
    paths = [folder / f"{number}.jpg" for number in range(len(pictures))]
    for path, data in zip(paths, pictures):
        path.write_bytes(data)
    yield Reader("Pillow: image, from a folder of files", lambda: map(_pillow, paths), size)


def _pillow(file: Any) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(file).convert("RGB"))


def _rows(readers: list[Reader], seconds: list[list[float]], options: argparse.Namespace) -> list[dict[str, Any]]:
    bare = [values for reader, values in zip(readers, seconds) if reader.name in _BARE]
    fastest = min(bare, key=median)
    rows = []
    for reader, values in zip(readers, seconds):
        taken = median(values)
        rows.append(
            {
                "reader": reader.name,
                "cpu_ms": round(1000 * taken, 4),
                "samples_per_s": round(1 / taken, 1),
                "mb_per_s": round(reader.size / taken / 1e6, 1),
                "kb": round(reader.size / 1e3, 1),
                # Of neighbouring turns, which a machine that slows down for a while hardly changes.
                "ratio": round(median([a / b for a, b in zip(fastest, values)]), 3),
                "set": str(options.folder.name) if options.folder else "made",
                "image_size": "x".join(map(str, options.image_size)) if options.folder is None else "",
                "count": options.count,
                "runs": options.runs,
                "date": datetime.date.today().isoformat(),
                "hardware": processor(),
                "python": platform.python_version(),
                **{name: _version(name) for name in ("numpy", "opencv-python-headless", "simplejpeg", "zstandard")},
                **{name: _version(name) for name in ("pillow", "webdataset", "s2kit")},
            }
        )
    return rows


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
