"""``python -m s2kit data``: make, import, check and look at sets of samples."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from s2kit.errors import UserError
from s2kit.tools.arguments import OneLineParser, whole
from s2kit.tools.data_check import add_index, add_stats, add_verify, require_set
from s2kit.tools.data_import import add_import, add_pack

_DESCRIPTION = """\
Make, import, check and look at data. A set is a folder of shards (tars) with a manifest.json; docs/data.md says more.

  python -m s2kit data synth --out people --count 500      render 500 synthetic people with all labels
  python -m s2kit data pack photos --out set/train         pack a folder of photographs, byte for byte
  python -m s2kit data import lip LIP --out lip/train      import a public data set
  python -m s2kit data verify set/train                    check every checksum, picture and label
  python -m s2kit data show people                         draw 32 samples with every label
"""
_SYNTH = """\
Render synthetic people: dressed adult bodies in rooms, outdoors or before pictures, with image, alpha, normals, depth,
albedo, 29 part classes, 308 keypoints with visibility, box and camera. The same seed gives the same bytes, whatever the
number of workers. Interrupted, the same command continues; when the set is finished it does nothing.
"""
_SHOW = """\
Draw samples of a set into one picture, each with every label that it has: image, alpha, normals (blue faces the camera,
red faces right, green faces up), depth (bright is near), albedo, foreground, parts, and people with box and keypoints
(rings are occluded).
"""
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def main(args: list[str]) -> int:
    """Run one of the sub-commands; return the exit code.

    Raises:
        UserError: what the user can mend, in one line.
        SystemExit: of argparse, code 2, for wrong usage.
    """
    options = _parser().parse_args(args)
    try:
        return options.run(options)
    except (ValueError, OSError, RuntimeError) as error:
        raise UserError(" ".join(str(error).split())) from error


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m s2kit data", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_synth(commands.add_parser("synth", help="render synthetic people with all labels", description=_SYNTH))
    add_pack(commands)
    add_import(commands)
    add_index(commands)
    add_verify(commands)
    add_stats(commands)
    _add_show(commands.add_parser("show", help="draw samples with every label into one picture", description=_SHOW))
    return parser


def _add_synth(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder for the shards and manifest.json"
    )
    parser.add_argument("--count", required=True, type=whole(1), metavar="N", help="number of samples")
    parser.add_argument(
        "--image-size",
        nargs=2,
        type=int,
        default=(256, 192),
        metavar=("H", "W"),
        help="height and width in pixels (default: 256 192)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="another seed, other people (default: 0)")
    parser.add_argument("--workers", type=int, metavar="W", help="rendering processes (default: one per core)")
    parser.add_argument(
        "--samples-per-pixel",
        type=int,
        default=12,
        metavar="N",
        help="paths traced per pixel; more is less grainy and slower (default: 12)",
    )
    parser.add_argument(
        "--backgrounds",
        type=Path,
        metavar="DIR",
        help="folder of images to use as backgrounds instead of the built-in ones",
    )
    parser.add_argument(
        "--variant",
        default="auto",
        metavar="NAME",
        help="Mitsuba variant: cuda_ad_rgb (NVIDIA GPU), llvm_ad_rgb (needs LLVM 16 or newer; DRJIT_LIBLLVM_PATH "
        "may name it), scalar_rgb (works everywhere); default: auto, the first of them that works",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=_synth)


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="a set: the folder with manifest.json, or a URL of it")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the picture, .png, .jpg or .webp (default: DIR/contact_sheet.png)"
    )
    parser.add_argument(
        "--count", type=whole(1, 10000), default=32, metavar="N", help="number of samples (default: 32)"
    )
    parser.add_argument(
        "--seed", type=whole(0), metavar="S", help="draw a random choice of samples (default: the first ones)"
    )
    parser.add_argument(
        "--tile-height", type=whole(16, 4096), default=160, metavar="H", help="height of a picture (default: 160)"
    )
    parser.set_defaults(run=_show)


def _synth(options: argparse.Namespace) -> int:
    from data_modules.synth import generate

    manifest = generate(
        options.out,
        options.count,
        image_size=tuple(options.image_size),
        seed=options.seed,
        workers=options.workers,
        samples_per_pixel=options.samples_per_pixel,
        backgrounds=options.backgrounds,
        progress=not options.quiet,
        variant=options.variant,
    )
    print(f"{options.count} samples: {manifest}")
    print(f"look at them: python -m s2kit data show {options.out}")
    return 0


def _show(options: argparse.Namespace) -> int:
    from data_modules.shards import ShardDataset
    from data_modules.shards.format import manifest_path
    from s2kit.inference.drawing import write_image
    from s2kit.tools.contact_sheet import draw_sheet, sheet_schemas

    remote = "://" in options.folder
    if not remote:
        require_set(Path(options.folder))
    elif options.out is None:
        raise UserError(f"--out is not given: where to write the picture of {options.folder}")
    samples = ShardDataset(options.folder)
    # A schema of the user's own lies beside the manifest; from a URL it is not fetched, and its labels are not drawn.
    folder = Path() if remote else manifest_path(options.folder).parent
    out = options.out or folder / "contact_sheet.png"
    if out.suffix.lower() not in _PICTURES:
        raise UserError(f"--out {out}: the name must end in one of {', '.join(_PICTURES)}")
    numbers = np.arange(len(samples))
    if options.seed is not None:
        numbers = np.random.default_rng(options.seed).permutation(numbers)
    chosen = numbers[: options.count]
    if not len(chosen):
        raise UserError(f"{options.folder}: the set has no samples")
    schemas = sheet_schemas(folder, samples.manifest)
    write_image(out, draw_sheet([samples[int(number)] for number in chosen], options.tile_height, schemas=schemas))
    print(f"{len(chosen)} of {len(samples)} samples: {out}")
    return 0
