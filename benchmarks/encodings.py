"""Size, speed and error of ways to store a human image and its labels, on one core.

    python benchmarks/encodings.py --size 1024 768 --out benchmarks/results/encodings.csv

The data are made here: a person of capsules with folds and skin relief on about 40 % of the picture, in front of a
textured background. Decoding always ends in the array that a training sample needs (normals and depth as float32,
zeros where undefined), so the cost of undoing a code is counted. Times are CPU time of the one thread, the best of
repeated runs. Encodings named "shards" are the ones that ``data_modules.shards`` writes.
"""

import argparse
import csv
import datetime
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import lz4.frame
import numpy as np
import zstandard

from data_modules.shards import directions, planes

CAPSULES = [  # x, y, x, y, radius in a picture of 1024 x 768 pixels; distance; part; albedo
    (384, 120, 384, 165, 90, 0, 3, (224, 178, 150)),
    (384, 90, 384, 110, 96, 25, 4, (62, 42, 30)),
    (384, 210, 384, 250, 55, 0, 3, (224, 178, 150)),
    (384, 300, 384, 520, 165, 0, 23, (40, 80, 150)),
    (240, 290, 130, 440, 62, -20, 23, (40, 80, 150)),
    (130, 440, 100, 620, 48, -40, 6, (224, 178, 150)),
    (530, 290, 640, 430, 62, 20, 23, (40, 80, 150)),
    (640, 430, 690, 600, 48, 30, 15, (224, 178, 150)),
    (300, 570, 275, 940, 88, 10, 13, (70, 66, 62)),
    (475, 570, 505, 940, 88, -10, 13, (70, 66, 62)),
    (275, 960, 250, 985, 60, -30, 9, (150, 30, 30)),
    (505, 960, 530, 985, 60, -50, 18, (150, 30, 30)),
]


def make_sample(size: tuple[int, int], seed: int = 0) -> dict[str, np.ndarray]:
    """Return a raw sample of capsules: image, alpha, normals, depth, albedo, parts."""
    height, width = size
    scale = 0.9 * min(height / 1024, width / 768)
    shift = (0.5 * width - 384 * scale, 0.5 * height - 540 * scale) * 2
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32) + 0.5
    surface = np.full(size, np.inf, np.float32)
    parts, albedo = np.zeros(size, np.uint8), np.zeros((*size, 3), np.float32)
    for *line, radius, distance, part, colour in CAPSULES:
        ax, ay, bx, by = (v * scale + s for v, s in zip(line, shift))
        dx, dy = bx - ax, by - ay
        along = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0, 1)
        inner = (radius * scale) ** 2 - (x - ax - along * dx) ** 2 - (y - ay - along * dy) ** 2
        this = np.where(inner > 0, distance * scale - np.sqrt(np.maximum(inner, 0)), np.inf)
        nearer = this < surface
        surface[nearer], parts[nearer], albedo[nearer] = this[nearer], part, colour
    inside = np.isfinite(surface)
    folds = sum(_noise(rng, size, sigma * scale) * amount * scale for sigma, amount in ((14, 2.5), (4, 0.25)))
    relief = np.where(inside, surface + folds, 0)
    slope_y, slope_x = np.gradient(relief)
    normals = np.dstack([slope_x, -slope_y, np.ones(size)])
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    # Differences across the outline are not surface.
    clean = cv2.erode(inside.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    normals[~clean] = 0
    cloth = 1 + 0.25 * ((x + 0.4 * y) // max(12 * scale, 1) % 2) * (parts == 23) + 0.1 * _noise(rng, size, 1.5)
    albedo = np.clip(albedo * cloth[..., None], 0, 255) * clean[..., None]
    light = np.clip(normals @ np.array([0.4, 0.5, 0.77]), 0.1, 1)[..., None]
    background = 120 + np.dstack([20 * _noise(rng, size, s * scale) for s in (60, 40, 50)])
    background += 12 * _noise(rng, size, 1.0)[..., None]
    picture = np.where(clean[..., None], albedo * light, background) + rng.normal(0, 1.5, (*size, 3))
    return {
        "image": np.clip(picture, 0, 255).astype(np.uint8),
        "alpha": cv2.GaussianBlur(clean.astype(np.uint8) * 255, (3, 3), 0),
        "normals": normals.astype(np.float32),
        "depth": np.where(clean, 3 + relief * (0.0018 / scale), 0).astype(np.float32),
        "albedo": albedo.astype(np.uint8),
        "parts": parts * clean,
    }


def _noise(rng: np.random.Generator, size: tuple[int, int], sigma: float) -> np.ndarray:
    noise = cv2.GaussianBlur(rng.standard_normal(size).astype(np.float32), (0, 0), max(sigma, 0.5))
    return noise / noise.std()


@dataclass(frozen=True)
class Encoding:
    """One way to store one field."""

    field: str
    name: str
    encode: Callable[[np.ndarray], Any]
    decode: Callable[[Any], np.ndarray]


def zstd(data: bytes, level: int = 3) -> bytes:
    return zstandard.ZstdCompressor(level=level).compress(data)


_decompressor = zstandard.ZstdDecompressor()
unzstd = _decompressor.decompress


def picture(extension: str, *options: int, flags: int = cv2.IMREAD_UNCHANGED) -> tuple[Callable, Callable]:
    """Return encoder and decoder through OpenCV; three channels are RGB on our side."""

    def encode(array: np.ndarray) -> bytes:
        array = array if array.ndim == 2 else cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
        return cv2.imencode(extension, array, list(options))[1].tobytes()

    def decode(data: bytes) -> np.ndarray:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        return array if array.ndim == 2 else cv2.cvtColor(array, cv2.COLOR_BGR2RGB, dst=array)

    return encode, decode


def plain(size: tuple[int, int], kind: str, channels: tuple[int, ...] = ()) -> tuple[Callable, Callable]:
    """Return encoder and decoder of an array's own bytes, in ``kind``."""

    def decode(data: bytes) -> np.ndarray:
        array = np.frombuffer(data, kind).reshape(*size, *channels)
        return array.astype(np.float32 if array.dtype.kind == "f" else array.dtype)

    return lambda array: np.ascontiguousarray(array, kind).tobytes(), decode


def packed(pair: tuple[Callable, Callable], pack: Callable, unpack: Callable) -> tuple[Callable, Callable]:
    encode, decode = pair
    return lambda array: pack(encode(array)), lambda data: decode(unpack(data))


def shards(encode: Callable, **options: Any) -> tuple[Callable, Callable]:
    return lambda array: encode(array, **options), lambda data: planes.decode_planes(data)[1]


def shards_lz4(encode: Callable, **options: Any) -> tuple[Callable, Callable]:
    """Return the shards' own planes, but compressed with lz4: what zstd itself brings."""

    def decode(data: bytes) -> np.ndarray:
        content = lz4.frame.decompress(data)
        return planes.decode_content(content)[1]

    return lambda array: lz4.frame.compress(unzstd(encode(array, **options))), decode


def png16_normals() -> tuple[Callable, Callable]:
    encode, decode = picture(".png")

    def restore(data: bytes) -> np.ndarray:
        return (decode(data).astype(np.float32) - 32768) * np.float32(1 / 32767)

    return lambda n: encode(np.rint(n * 32767 + 32768).astype(np.uint16)), restore


def octahedral(size: tuple[int, int], bits: int, delta: bool = False) -> tuple[Callable, Callable]:
    """Return an octahedral code without the shards' prediction: interleaved, or left neighbour and byte planes."""
    word = np.int8 if bits <= 8 else np.int16

    def encode(normals: np.ndarray) -> bytes:
        u, v = (code.astype(word) for code in directions.fold_octahedral(normals, bits))
        if not delta:
            return np.dstack([u, v]).tobytes()
        left = [np.diff(code, axis=1, prepend=word(0)) for code in (u, v)]
        split = [code.view(np.uint8).reshape(*size, 2) for code in left]
        return b"".join(code[..., byte].tobytes() for code in split for byte in (1, 0))

    def decode(data: bytes) -> np.ndarray:
        if delta:
            high_u, low_u, high_v, low_v = np.frombuffer(data, np.uint8).reshape(4, *size)
            words = [cv2.merge([low_u, high_u]), cv2.merge([low_v, high_v])]
            u, v = (np.add.accumulate(w.view(np.int16)[..., 0], axis=1, dtype=np.int16) for w in words)
        else:
            u, v = np.moveaxis(np.frombuffer(data, word).reshape(*size, 2), 2, 0)
        out = np.empty((*size, 3), np.float32)
        # Behind a row and a column of zeros, as undoing a prediction leaves them.
        u, v = (np.pad(codes.astype(np.float32), ((1, 0), (1, 0))) for codes in (u, v))
        directions.unfold_octahedral(u, v, bits, out)
        return out

    return encode, decode


def scaled_depth(to_code: Callable, to_depth: Callable, pair: tuple[Callable, Callable]) -> tuple[Callable, Callable]:
    """Return encoder and decoder of depth as 16-bit codes, 0 = no value, stored by ``pair``."""
    encode, decode = pair

    def restore(data: bytes) -> np.ndarray:
        codes = decode(data)
        depth = to_depth(codes.astype(np.float32))
        depth[codes == 0] = 0
        return depth

    return lambda d: encode(np.where(d > 0, np.rint(to_code(np.maximum(d, 1e-6))), 0).astype(np.uint16)), restore


def run_lengths(size: tuple[int, int]) -> tuple[Callable, Callable]:
    def encode(labels: np.ndarray) -> bytes:
        flat = labels.ravel()
        starts = np.flatnonzero(np.diff(flat, prepend=flat[0] + 1))
        lengths = np.diff(starts, append=flat.size).astype("<u4")
        return zstd(len(starts).to_bytes(4, "little") + lengths.tobytes() + flat[starts].tobytes())

    def decode(data: bytes) -> np.ndarray:
        content = unzstd(data)
        count = int.from_bytes(content[:4], "little")
        lengths = np.frombuffer(content, "<u4", count, 4)
        return np.repeat(np.frombuffer(content, np.uint8, count, 4 + 4 * count), lengths).reshape(size)

    return encode, decode


def encodings(size: tuple[int, int]) -> Iterator[Encoding]:
    """Yield everything that is compared."""
    level, strategy = cv2.IMWRITE_PNG_COMPRESSION, cv2.IMWRITE_PNG_STRATEGY
    quality, sampling = cv2.IMWRITE_JPEG_QUALITY, cv2.IMWRITE_JPEG_SAMPLING_FACTOR
    full, half = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420
    lz4_pair, zstd_pair = (lz4.frame.compress, lz4.frame.decompress), (zstd, unzstd)
    half_float = plain(size, "<f2", (3,))
    for name, pair in {
        "PNG, 3 x 16 bits": png16_normals(),
        "float16": half_float,
        "float16, lz4": packed(half_float, *lz4_pair),
        "float16, zstd": packed(half_float, *zstd_pair),
        "float32 byte planes, zstd": shards(planes.encode_float),
        "octahedral 2 x 16 bits": octahedral(size, 16),
        "octahedral 2 x 16 bits, lz4": packed(octahedral(size, 16), *lz4_pair),
        "octahedral 2 x 16 bits, zstd": packed(octahedral(size, 16), *zstd_pair),
        "octahedral 2 x 16 bits, left delta, byte planes, lz4": packed(octahedral(size, 16, True), *lz4_pair),
        "octahedral 2 x 16 bits, left delta, byte planes, zstd": packed(octahedral(size, 16, True), *zstd_pair),
        "octahedral 2 x 12 bits, left delta, byte planes, zstd": packed(octahedral(size, 12, True), *zstd_pair),
        "octahedral 2 x 8 bits, zstd": packed(octahedral(size, 8), *zstd_pair),
        "octahedral 2 x 16 bits, predicted, zstd": shards(planes.encode_normals, bits=16),
        "octahedral 2 x 14 bits, predicted, zstd": shards(planes.encode_normals, bits=14),
        "octahedral 2 x 13 bits, predicted, lz4": shards_lz4(planes.encode_normals, bits=13),
        "octahedral 2 x 13 bits, predicted, zstd (shards, if z < -0.597)": shards(planes.encode_normals, bits=13),
        "stereographic 2 x 14 bits, predicted, zstd (shards)": shards(planes.encode_normals),
        "octahedral 2 x 12 bits, predicted, zstd": shards(planes.encode_normals, bits=12),
    }.items():
        yield Encoding("normals", name, *pair)
    log_step = np.log(1000) / 65534
    words = plain(size, "<u2")
    millimetres = (lambda d: d * 1000, lambda c: c * np.float32(1e-3))
    logarithm = (lambda d: np.log(d / 0.1) / log_step + 1, lambda c: 0.1 * np.exp((c - 1) * np.float32(log_step)))
    for name, pair in {
        "PNG, 16 bits, millimetres": scaled_depth(*millimetres, picture(".png")),
        "16 bits, millimetres, zstd": scaled_depth(*millimetres, packed(words, *zstd_pair)),
        "16 bits, logarithm of 0.1 to 100 m, zstd": scaled_depth(*logarithm, packed(words, *zstd_pair)),
        "float16, zstd": packed(plain(size, "<f2"), *zstd_pair),
        "float32, zstd": packed(plain(size, "<f4"), *zstd_pair),
        "float32 byte planes, zstd": shards(planes.encode_float),
        "16 bits, steps of 2^-14 m, predicted, zstd": shards(planes.encode_depth, finest_step=2.0**-14),
        "16 bits, steps of 2^-15 m, predicted, lz4": shards_lz4(planes.encode_depth),
        "16 bits, steps of 2^-15 m, predicted, zstd (shards)": shards(planes.encode_depth),
        "16 bits over the range, predicted, zstd": shards(planes.encode_depth, finest_step=1e-12),
    }.items():
        yield Encoding("depth", name, *pair)
    names = {
        "default": cv2.IMWRITE_PNG_STRATEGY_DEFAULT,
        "filtered": cv2.IMWRITE_PNG_STRATEGY_FILTERED,
        "RLE": cv2.IMWRITE_PNG_STRATEGY_RLE,
        "Huffman": cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY,
    }
    for field in ("parts", "alpha"):
        for name, value in names.items():
            yield Encoding(field, f"PNG level 1, {name}", *picture(".png", level, 1, strategy, value))
        yield Encoding(field, "PNG level 6, default", *picture(".png", level, 6, strategy, names["default"]))
        yield Encoding(field, "lz4", *packed(plain(size, "u1"), *lz4_pair))
        chosen = " (shards)" if field == "parts" else " (shards, if smaller)"
        yield Encoding(field, f"zstd{chosen}", *shards(planes.encode_plain))
        chosen = "" if field == "parts" else " (shards, if smaller)"
        yield Encoding(field, f"predicted, zstd{chosen}", *shards(planes.encode_predicted))
        yield Encoding(field, "run lengths, zstd", *run_lengths(size))
    colour = cv2.IMREAD_COLOR
    for name, pair in {
        "PNG level 1, RLE": picture(".png", level, 1, strategy, names["RLE"], flags=colour),
        "PNG level 6, default": picture(".png", level, 6, strategy, names["default"], flags=colour),
        "WebP lossless": picture(".webp", cv2.IMWRITE_WEBP_QUALITY, 101, flags=colour),
        "JPEG 95, 4:4:4": picture(".jpg", quality, 95, sampling, full, flags=colour),
        "lz4": packed(plain(size, "u1", (3,)), *lz4_pair),
        "zstd (shards, if smaller)": shards(planes.encode_plain),
        "predicted, zstd (shards, if smaller)": shards(planes.encode_predicted),
    }.items():
        yield Encoding("albedo", name, *pair)
    for name, pair in {
        "JPEG 90, 4:2:0": picture(".jpg", quality, 90, sampling, half, flags=colour),
        "JPEG 95, 4:2:0 (shards)": picture(".jpg", quality, 95, sampling, half, flags=colour),
        "JPEG 95, 4:4:4": picture(".jpg", quality, 95, sampling, full, flags=colour),
        "WebP 90": picture(".webp", cv2.IMWRITE_WEBP_QUALITY, 90, flags=colour),
        "PNG level 1, RLE": picture(".png", level, 1, strategy, names["RLE"], flags=colour),
    }.items():
        yield Encoding("image", name, *pair)


def best_time(function: Callable[[], Any], seconds: float) -> float:
    """Return the least CPU time of repeated calls, in seconds."""
    best, until = np.inf, time.perf_counter() + seconds
    for _ in range(1000):
        start = time.thread_time()
        function()
        best = min(best, time.thread_time() - start)
        if time.perf_counter() > until:
            break
    return best


def errors(field: str, truth: np.ndarray, decoded: np.ndarray) -> tuple[float, float, str]:
    """Return the largest and the mean error inside, and its unit; what is 0 must come back as exactly 0."""
    if field == "normals":
        inside = truth.any(-1)
        a, b = truth[inside].astype(np.float64), decoded[inside].astype(np.float64)
        error = np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(-1)))
        unit = "degrees"
    else:
        inside = truth > 0 if field == "depth" else np.ones(truth.shape, bool)
        error = np.abs(truth[inside].astype(np.float64) - decoded[inside])
        error, unit = (error * 1000, "mm") if field == "depth" else (error, "levels")
    if field in ("normals", "depth") and decoded[~inside].any():
        raise AssertionError(f"{field}: pixels without a value came back with one")
    return float(error.max()), float(error.mean()), unit


def measure(size: tuple[int, int], seconds: float, fields: list[str]) -> Iterator[dict[str, Any]]:
    """Yield a row per encoding."""
    sample = make_sample(size)
    for encoding in encodings(size):
        if encoding.field not in fields:
            continue
        array = sample[encoding.field]
        data = encoding.encode(array)
        decoded = encoding.decode(data)
        if decoded.shape != array.shape or decoded.dtype != array.dtype:
            raise AssertionError(f"{encoding}: decodes to {decoded.dtype} {decoded.shape}")
        largest, mean, unit = errors(encoding.field, array, decoded)
        encode_time = best_time(lambda e=encoding, a=array: e.encode(a), seconds / 2)
        decode_time = best_time(lambda e=encoding, d=data: e.decode(d), seconds)
        yield {
            "field": encoding.field,
            "encoding": encoding.name,
            "height": size[0],
            "width": size[1],
            "kilobytes": round(len(data) / 1000, 1),
            "encode_ms": round(encode_time * 1e3, 2),
            "decode_ms": round(decode_time * 1e3, 2),
            "decoded_per_second": round(1 / decode_time),
            "max_error": f"{largest:.3g}",
            "mean_error": f"{mean:.3g}",
            "unit": unit,
        }


def machine() -> str:
    """Return date, processor and versions in one line."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.open() if line.startswith("model name")]
    versions = {"python": platform.python_version(), "numpy": np.__version__, "opencv": cv2.__version__}
    versions |= {"zstandard": zstandard.__version__, "lz4": lz4.__version__}
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{datetime.date.today()}; {names[0]} ({len(names)} cores, one used); {text}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 768), metavar=("H", "W"))
    parser.add_argument("--seconds", type=float, default=0.5, help="spent on each time that is measured")
    parser.add_argument("--fields", nargs="+", default=["normals", "depth", "parts", "alpha", "albedo", "image"])
    parser.add_argument("--out", type=Path, help="CSV to write")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    about = machine()
    print(about)
    rows = []
    for row in measure(tuple(options.size), options.seconds, options.fields):
        rows.append({**row, "about": about})
        print("| " + " | ".join(str(row[name]) for name in row if name not in ("height", "width")) + " |", flush=True)
    if options.out:
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
