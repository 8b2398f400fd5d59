"""Make a set of synthetic humans: render in parallel, pack in order, continue after an interruption."""

from __future__ import annotations

import json
import numbers
import os
import shutil
from pathlib import Path
from typing import Any

from data_modules.locking import hold_alone
from data_modules.parallel import default_workers
from data_modules.progress import ProgressBar
from data_modules.shards import ShardWriter
from data_modules.shards.format import MANIFEST_NAME
from data_modules.synth.backgrounds import folder_digest
from data_modules.synth.pool import Pool
from data_modules.synth.staging import read_staged, staged_path
from data_modules.synth.variants import check_variant, choose_variant, require_packages
from data_modules.synth.worker import Settings, sample_key

GENERATOR_VERSION = 2
SAMPLES_PER_SHARD = 64
IMAGE_SIDE_RANGE = (32, 8192)
STAGING_NAME = ".staging"
_MAX_DEFAULT_GPU_WORKERS = 8


def generate(
    out: str | Path,
    count: int,
    image_size: tuple[int, int] = (256, 192),
    seed: int = 0,
    workers: int | None = None,
    samples_per_pixel: int = 12,
    backgrounds: str | Path | None = None,
    progress: bool = True,
    variant: str = "auto",
) -> Path:
    """Make `count` samples with all labels and write them as shards into `out`.

    Sample i depends on (seed, i) and on the settings only: any number of workers gives the same bytes, on one kind of
    machine and with the same versions of the packages. An interrupted call is continued by the next one with the same
    settings; a finished set is returned at once.

    Args:
        out: folder, made if needed; empty, or holding a set of these settings, finished or not.
        count: number of samples.
        image_size: (height, width) in pixels.
        seed: of the set, not negative.
        workers: processes, each with one thread and about 0.85 GB of memory; by default one per core.
        samples_per_pixel: paths traced per pixel; more is less grainy and slower in proportion.
        backgrounds: folder of images to stand behind the people instead of rooms and procedural backgrounds.
        progress: show a progress bar.
        variant: of Mitsuba: "auto", "cuda_ad_rgb", "llvm_ad_rgb" or "scalar_rgb". Variants agree in all labels; their
            pictures differ in the grain.

    Returns:
        Path of the set's manifest.

    Raises:
        ValueError: an argument is out of range, or `out` holds something else or a set of other settings.
        OSError: `out` cannot be written.
        RuntimeError: a package is missing, the variant does not work here, or a rendering process failed.
    """
    out = Path(out).expanduser()
    _check_numbers(count, image_size, seed, workers, samples_per_pixel)
    check_variant(variant)
    folder = Path(backgrounds).expanduser() if backgrounds is not None else None
    digest = folder_digest(folder) if folder else None
    settings = Settings(
        int(count),
        tuple(int(n) for n in image_size),
        int(seed),
        int(samples_per_pixel),
        digest,
        variant,
        GENERATOR_VERSION,
    )
    manifest = out / MANIFEST_NAME
    if manifest.exists():
        _check_same(settings, _finished_settings(manifest), out)
        return manifest
    require_packages()
    staging = _open_staging(out)
    with hold_alone(staging / "lock", out):
        settings = _begin(settings, staging, out)
        workers = workers or _default_workers(settings.variant)
        _render(settings, out, staging, folder, min(workers, settings.count), progress)
    shutil.rmtree(staging)
    return manifest


def _check_numbers(count, image_size, seed, workers, samples_per_pixel) -> None:
    low, high = IMAGE_SIDE_RANGE
    limits = [("count", count, 1, 10**8), ("seed", seed, 0, 2**63 - 1)]
    limits += [("samples_per_pixel", samples_per_pixel, 1, 2**16)]
    if workers is not None:
        limits.append(("workers", workers, 1, 4096))
    try:
        height, width = image_size
    except (TypeError, ValueError):
        raise ValueError(f"image_size must be (height, width), got {image_size!r}") from None
    limits += [("image_size: height", height, low, high), ("image_size: width", width, low, high)]
    for name, value, least, most in limits:
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"{name} must be a whole number from {least} to {most}, got {value!r}")


def _finished_settings(manifest: Path) -> dict[str, Any]:
    try:
        found = json.loads(manifest.read_text("utf-8"))["generator"]
        return Settings.from_json(found).to_json()
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{manifest} is not the manifest of a set of synthetic humans; choose another folder"
        ) from None


def _check_same(settings: Settings, found: dict[str, Any], out: Path) -> None:
    for name, wanted in settings.to_json().items():
        if found[name] != wanted and not (name == "variant" and wanted == "auto"):
            raise ValueError(
                f"{out} holds a set with {name} = {_shown(found[name])}, and {name} = {_shown(wanted)} is asked for; "
                f"choose another folder, or delete this one"
            )


def _shown(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, list) else str(value)


def _open_staging(out: Path) -> Path:
    staging = out / STAGING_NAME
    try:
        foreign = sorted(entry.name for entry in out.iterdir()) if out.exists() else []
        if foreign and not staging.is_dir():
            raise ValueError(f"{out} is not empty (it holds {foreign[0]}); choose an empty or a new folder")
        staging.mkdir(parents=True, exist_ok=True)
        probe = staging / "probe"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise OSError(f"cannot write into {out}: {error.strerror or error}") from error
    return staging


def _begin(settings: Settings, staging: Path, out: Path) -> Settings:
    """Compare with what an interrupted call left, or note the settings of a new set; the variant comes out chosen."""
    noted = staging / "settings.json"
    if noted.exists():
        found = json.loads(noted.read_text("utf-8"))
        _check_same(settings, found, out)
        variant = choose_variant(found["variant"])
    else:
        height, width = settings.image_size
        variant = choose_variant(settings.variant, height * width * settings.samples_per_pixel)
    settings = Settings(**{**vars(settings), "variant": variant})
    temporary = noted.with_suffix(".tmp")
    temporary.write_text(json.dumps(settings.to_json(), indent=1), "utf-8")
    os.replace(temporary, noted)
    return settings


def _default_workers(variant: str) -> int:
    cores = default_workers()
    return min(cores, _MAX_DEFAULT_GPU_WORKERS) if variant.startswith("cuda") else cores


def _render(
    settings: Settings, out: Path, staging: Path, backgrounds: Path | None, workers: int, progress: bool
) -> None:
    info = {
        "source": "s2kit synthetic humans (bodies: Anny, rendered by Mitsuba 3)",
        "licence": "CC0-1.0" if backgrounds is None else None,
        "generator": settings.to_json(),
    }
    with ShardWriter(out, "synth", SAMPLES_PER_SHARD, info, resume=True) as writer:
        packer = _Packer(writer, staging, settings.count)
        missing = packer.missing()
        with ProgressBar("synthetic humans", settings.count, settings.count - len(missing), progress) as bar:
            packer.pack()
            if missing:
                with Pool(settings, staging, backgrounds, min(workers, len(missing))) as pool:
                    for _ in pool.run(missing):
                        packer.pack()
                        bar.advance()
        if writer.count != settings.count:
            raise RuntimeError(
                f"{out}: {writer.count} of {settings.count} samples were packed; a staged one is damaged"
            )


class _Packer:
    """Moves samples from the staging folder to the shards, in order, and forgets those of finished shards."""

    def __init__(self, writer: ShardWriter, staging: Path, count: int) -> None:
        self._writer, self._staging, self._count = writer, staging, count
        self._kept_from = writer.count

    def missing(self) -> list[int]:
        """Numbers of the samples that are neither packed nor staged, damaged ones among them."""
        rest = range(self._writer.count, self._count)
        return [index for index in rest if read_staged(self._staging, index) is None]

    def pack(self) -> None:
        """Append every sample that is next in order."""
        while self._writer.count < self._count:
            index = self._writer.count
            members = read_staged(self._staging, index)
            if members is None:
                return
            self._writer.write_encoded(sample_key(index), members)
            if self._writer.count % SAMPLES_PER_SHARD == 0:
                for done in range(self._kept_from, self._writer.count):
                    staged_path(self._staging, done).unlink()
                self._kept_from = self._writer.count
