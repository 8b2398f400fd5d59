"""``python -m s2kit data pack`` and ``data import``: make a shard set of what is on disk."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2kit.errors import UserError
from s2kit.tools.arguments import real, whole
from s2kit.tools.data_check import count

if TYPE_CHECKING:
    from data_modules.importers import Importer
    from data_modules.packing import Packed

PACK = """\
Pack pictures without labels, for pretraining: a folder with its sub-folders, or a list (.csv, .tsv, .jsonl, .parquet)
with a column of paths. Files are stored byte for byte. Interrupted, the same command continues.
"""
IMPORT = """\
Make a set of a public data set or of one that is laid out like it. Images are stored byte for byte; source, licence
note and original ids are kept. Left and right of keypoints and the frame of normals are compared with the data.
Interrupted, the same command continues. docs/importers.md shows each layout.

  python -m s2kit data import coco --annotations person_keypoints_train2017.json --images train2017 --out coco/train
  python -m s2kit data import lip LIP --split train --out lip/train
"""
_FRAMES = ("opengl", "opencv", "directx")
_P3M_SPLITS = ("train", "P3M-500-P", "P3M-500-NP")
_SHOWN_NOTES = 20


def add_pack(commands: Any) -> None:
    """Add ``data pack`` to the sub-commands."""
    parser = commands.add_parser("pack", help="pack pictures without labels, from a folder or a list", description=PACK)
    parser.add_argument("pictures", type=Path, metavar="SOURCE", help="folder of pictures, or a list of them")
    parser.add_argument("--root", type=Path, metavar="DIR", help="folder that a list's paths are relative to")
    parser.add_argument("--image-column", metavar="NAME", help="column of the image (default: image, file or path)")
    parser.add_argument("--key-column", metavar="NAME", help="column of the samples' keys (default: the row's number)")
    parser.add_argument(
        "--min-side", type=whole(1), default=1, metavar="N", help="leave out pictures whose shorter side is smaller"
    )
    _add_common(parser, _plain)


def add_import(commands: Any) -> None:
    """Add ``data import`` and its importers to the sub-commands."""
    parser = commands.add_parser(
        "import",
        help="make a set of a labelled data set",
        description=IMPORT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = parser.add_subparsers(dest="importer", required=True, metavar="NAME")
    for name, (help_text, add_options, build) in IMPORTERS.items():
        own = names.add_parser(name, help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}.")
        add_options(own)
        _add_common(own, build)


def _add_common(parser: argparse.ArgumentParser, build: Callable[[argparse.Namespace], Importer]) -> None:
    add = parser.add_argument
    add("--out", required=True, type=Path, metavar="DIR", help="folder of the new set; empty or not there")
    add("--licence", metavar="TEXT", help="licence note for the manifest")
    add("--source", metavar="TEXT", help="where the data come from, for the manifest")
    add("--samples-per-shard", type=whole(1), default=256, metavar="N", help="(default: 256)")
    add("--prefix", default="samples", metavar="NAME", help="beginning of the shards' names (default: samples)")
    add("--workers", type=whole(1, 4096), metavar="W", help="processes (default: one per core)")
    add("--limit", type=whole(1), metavar="N", help="import only the first N samples, to try it out")
    add(
        "--max-rejected",
        type=real(0, 1),
        default=0.1,
        metavar="SHARE",
        help="stop when a larger share of samples cannot be used (default: 0.1)",
    )
    add(
        "--no-decode",
        dest="decode",
        action="store_false",
        help="look at the headers of images only, not whether they decode; several times as fast",
    )
    add("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=lambda options: _run(options, build))


def _run(options: argparse.Namespace, build: Callable[[argparse.Namespace], Importer]) -> int:
    from data_modules.packing import pack

    packed = pack(
        build(options),
        options.out,
        info={"licence": options.licence, "source": options.source},
        prefix=options.prefix,
        samples_per_shard=options.samples_per_shard,
        workers=options.workers,
        limit=options.limit,
        max_rejected=options.max_rejected,
        progress=not options.quiet,
    )
    _report(packed, options)
    return 0


def _report(packed: Packed, options: argparse.Namespace) -> None:
    people = f", {packed.people} people" if packed.people else ""
    done = "already finished" if packed.already else f"{packed.size / 1e6:.1f} MB"
    print(f"{count(packed.samples, 'sample')}{people}, {done}: {packed.manifest}")
    for note in packed.notes[:_SHOWN_NOTES]:
        print(f"note: {note}")
    if packed.rejected:
        key, reason = packed.rejected[0]
        listed = packed.manifest.with_name("rejected.jsonl")
        print(f"note: {count(len(packed.rejected), 'sample')} rejected, listed in {listed} (first: {key}: {reason})")
    if options.licence is None and not packed.already:
        print("note: no licence note in the manifest; --licence TEXT writes one")
    print(f"look at it: python -m s2kit data show {options.out}")


def _plain(options: argparse.Namespace) -> Importer:
    from data_modules.importers import FolderImporter, ListImporter

    if options.pictures.is_dir():
        for name, value in (
            ("--root", options.root),
            ("--image-column", options.image_column),
            ("--key-column", options.key_column),
        ):
            if value is not None:
                raise UserError(f"{name} is for lists, and {options.pictures} is a folder")
        return FolderImporter(options.pictures, options.min_side, options.decode)
    if not options.pictures.exists():
        raise UserError(f"{options.pictures}: no such folder or list of pictures")
    return ListImporter(
        options.pictures,
        options.root,
        options.image_column,
        options.key_column,
        options.min_side,
        options.decode,
    )


def _coco_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--annotations", required=True, type=Path, metavar="FILE", help="the JSON file")
    parser.add_argument("--images", required=True, type=Path, metavar="DIR", help="folder of the images it names")
    parser.add_argument("--keep-crowds", action="store_true", help="keep people marked as a crowd (iscrowd)")
    parser.add_argument("--keep-empty", action="store_true", help="keep images without people")
    _add_pixel_centre(parser, "0 in COCO")


def _coco_style_options(parser: argparse.ArgumentParser) -> None:
    _coco_options(parser)
    add = parser.add_argument
    add("--schema", required=True, metavar="NAME", help="coco-17, coco-wholebody-133, sapiens2-308, or your JSON file")
    add(
        "--fields",
        nargs="+",
        metavar="NAME",
        help="annotation fields with x, y, v of the points, in the schema's order (default: the schema's own)",
    )
    add("--box-field", default="bbox", metavar="NAME", help="annotation field with x, y, width, height (default: bbox)")
    add("--category", default="person", metavar="NAME", help="category to take; 'all' for every one (default: person)")


def _coco(schema: str) -> Callable[[argparse.Namespace], Importer]:
    def build(options: argparse.Namespace) -> Importer:
        from data_modules.importers import CocoImporter

        general = getattr(options, "schema", None)
        category = getattr(options, "category", "person")
        return CocoImporter(
            options.annotations,
            options.images,
            general or schema,
            fields=tuple(options.fields) if general and options.fields else None,
            box_field=getattr(options, "box_field", "bbox"),
            pixel_centre=options.pixel_centre,
            category=None if category == "all" else category,
            keep_crowds=options.keep_crowds,
            keep_empty=options.keep_empty,
            decode=options.decode,
        )

    return build


def _segmentation_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--images", required=True, type=Path, metavar="DIR", help="folder of images")
    add("--masks", required=True, type=Path, metavar="DIR", help="folder of masks with the same names")
    add(
        "--label-map",
        required=True,
        metavar="NAME",
        help="dome-34, wide-52, internal-32, lip-20, lip-20-to-29, cihp-20, cihp-20-to-29, or your JSON or YAML file",
    )
    add("--mask-ending", default="", metavar="TEXT", help="what masks have at the end of their names, such as _seg")
    add("--names", type=Path, metavar="FILE", help="take only the names in this file, one a line")


def _segmentation(options: argparse.Namespace) -> Importer:
    from data_modules.importers import SegmentationImporter

    return SegmentationImporter(
        options.images, options.masks, options.label_map, options.mask_ending, options.names, options.decode
    )


def _parsing_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", type=Path, metavar="DIR", help="where the archives were unpacked")
    parser.add_argument("--split", choices=("train", "val"), default="train", help="(default: train)")
    parser.add_argument("--to-29", action="store_true", help="as far as they go, the 29 classes instead of its own 20")


def _parsing(name: str) -> Callable[[argparse.Namespace], Importer]:
    def build(options: argparse.Namespace) -> Importer:
        from data_modules import importers

        return getattr(importers, name)(options.root, options.split, options.to_29, options.decode)

    return build


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", type=Path, metavar="DIR", help="folder with rgb, mask and the labels' folders")


def _add_pixel_centre(parser: argparse.ArgumentParser, where: str) -> None:
    parser.add_argument(
        "--pixel-centre",
        type=float,
        choices=(0.0, 0.5),
        default=0.0,
        metavar="0|0.5",
        help=f"coordinate of the first pixel's centre in the source: {where}, 0.5 if continuous (default: 0)",
    )


def _add_normals(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument(
        "--frame",
        required=required,
        choices=_FRAMES,
        help="the normals' axes: opengl (right, up, to the camera), opencv (right, down, forward), "
        "directx (right, down, to the camera)",
    )
    parser.add_argument(
        "--seg", type=Path, metavar="DIR", help="NAME_seg.npy with 28 classes: drop normals of face, neck, hair, mouth"
    )


def _add_depth(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--depth-unit", type=real(1e-9), default=1.0, metavar="M", help="metres of one unit; 0.001 for mm (default: 1)"
    )
    _add_pixel_centre(parser, "0 in OpenCV's cameras")


def _normals_options(parser: argparse.ArgumentParser) -> None:
    _add_root(parser)
    _add_normals(parser, required=True)


def _pointmap_options(parser: argparse.ArgumentParser) -> None:
    _add_root(parser)
    _add_depth(parser)


def _renders_options(parser: argparse.ArgumentParser) -> None:
    _add_root(parser)
    parser.add_argument(
        "--labels", nargs="+", required=True, choices=("normals", "depth", "albedo"), help="what to import"
    )
    _add_normals(parser, required=False)
    _add_depth(parser)


def _renders(*fields: str) -> Callable[[argparse.Namespace], Importer]:
    def build(options: argparse.Namespace) -> Importer:
        from data_modules.importers import RendersImporter

        chosen = fields or tuple(dict.fromkeys(options.labels))
        if "normals" in chosen and options.frame is None:
            raise UserError(f"--frame is not given: the normals' axes, one of {', '.join(_FRAMES)}")
        return RendersImporter(
            options.root,
            chosen,
            getattr(options, "frame", None),
            getattr(options, "seg", None),
            getattr(options, "depth_unit", 1.0),
            getattr(options, "pixel_centre", 0.0),
            options.decode,
        )

    return build


def _matting_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", required=True, type=Path, metavar="DIR", help="folder of images")
    parser.add_argument("--masks", required=True, type=Path, metavar="DIR", help="folder of masks with the same names")
    parser.add_argument("--foregrounds", type=Path, metavar="DIR", help="folder of straight foreground colours")


def _matting(options: argparse.Namespace) -> Importer:
    from data_modules.importers import MattingImporter

    return MattingImporter(options.images, options.masks, options.foregrounds, options.decode)


def _p3m_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", type=Path, metavar="DIR", help="P3M-10k, with train and validation in it")
    parser.add_argument("--split", choices=_P3M_SPLITS, default="train", help="(default: train)")


def _p3m(options: argparse.Namespace) -> Importer:
    from data_modules.importers import p3m

    return p3m(options.root, options.split, options.decode)


def _rgba_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="PNG or WebP pictures with transparency")


def _rgba(options: argparse.Namespace) -> Importer:
    from data_modules.importers import RgbaImporter

    return RgbaImporter(options.folder)


#: Name -> one line, its options, and how the importer is built of them.
IMPORTERS: dict[str, tuple[str, Callable, Callable[[argparse.Namespace], Importer]]] = {
    "coco": ("COCO keypoints: 17 points", _coco_options, _coco("coco-17")),
    "coco-wholebody": ("COCO-WholeBody: 133 points", _coco_options, _coco("coco-wholebody-133")),
    "sapiens2-308": ("the 308-point evaluation JSON of Sapiens2", _coco_options, _coco("sapiens2-308")),
    "coco-style": ("another COCO-style set, such as Human-Art", _coco_style_options, _coco("")),
    "segmentation": ("folders of images and class masks", _segmentation_options, _segmentation),
    "lip": ("Look Into Person: 20 classes", _parsing_options, _parsing("lip")),
    "cihp": ("Crowd Instance-level Human Parsing: 20 classes", _parsing_options, _parsing("cihp")),
    "normals": ("renders with normals: rgb, mask, normal", _normals_options, _renders("normals")),
    "pointmap": (
        "renders with depth and camera: rgb, mask, depth, camera_intrinsics",
        _pointmap_options,
        _renders("depth"),
    ),
    "albedo": ("renders with albedo: rgb, mask, albedo", _add_root, _renders("albedo")),
    "renders": ("renders with several labels at once", _renders_options, _renders()),
    "matting": ("folders of images and alpha masks", _matting_options, _matting),
    "p3m": ("P3M-10k: portraits with alpha masks", _p3m_options, _p3m),
    "rgba": ("pictures with transparency, for matting", _rgba_options, _rgba),
}
