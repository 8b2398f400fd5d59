"""``python -m s2kit data index``, ``data verify`` and ``data stats``: what a set is, and whether it is sound."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from s2kit.errors import UserError
from s2kit.tools.arguments import whole

INDEX = """\
Index the tars of a folder, which any program may have written in the WebDataset layout, and write manifest.json. Each
tar without an index is read from front to end; those that have one are kept. Interrupted, the same command continues.
"""
VERIFY = """\
Check a set from end to end: sizes and checksums of every file and member, every picture and label decoded, their sizes
and values, unique keys, left and right of keypoints, the frame of normals. Exit code 1 if anything is wrong.
Interrupted, the same command goes on behind the shards that it has finished; once it has ended, the next reads all.
"""
STATS = """\
Say what is in a set: samples, people, sizes, aspect ratios, labels, bytes per sample of each field, the time of
a core that decoding takes here; and of a part of the samples, class shares, visible keypoints, depths.
Interrupted, the same command goes on where it was.
"""
_SHOWN_PROBLEMS = 50
_SHOWN_ROWS = 12


def add_index(commands: Any) -> None:
    """Add ``data index`` to the sub-commands."""
    parser = commands.add_parser("index", help="make a set of tars that are there", description=INDEX)
    add = parser.add_argument
    add("folder", type=local_folder, metavar="DIR", help="holds the tars")
    add("--licence", metavar="TEXT", help="licence note for the manifest")
    add("--source", metavar="TEXT", help="where the data come from, for the manifest")
    add(
        "--normals-frame",
        choices=("opengl", "opencv", "directx"),
        help="axes of normals that do not say it themselves (default: opengl)",
    )
    add("--keypoints", metavar="SCHEMA", help="what keypoints are, such as coco-17 (default: sapiens2-308)")
    add("--parts", metavar="SCHEMA", help="what parts are, such as lip-20 (default: sapiens2-29)")
    add("--anew", action="store_true", help="index again what has an index")
    _add_common(parser)
    parser.set_defaults(run=_index)


def add_verify(commands: Any) -> None:
    """Add ``data verify`` to the sub-commands."""
    parser = commands.add_parser("verify", help="check every checksum, image and label", description=VERIFY)
    parser.add_argument("folder", type=local_folder, metavar="DIR", help="a set: the folder with manifest.json")
    parser.add_argument("--no-decode", dest="decode", action="store_false", help="check only sizes and checksums")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    _add_fresh(parser)
    _add_common(parser)
    parser.set_defaults(run=_verify)


def add_stats(commands: Any) -> None:
    """Add ``data stats`` to the sub-commands."""
    parser = commands.add_parser("stats", help="sizes, labels, bytes and decoding times", description=STATS)
    parser.add_argument("folder", type=local_folder, metavar="DIR", help="a set: the folder with manifest.json")
    parser.add_argument(
        "--sample", type=whole(1), default=256, metavar="N", help="number of samples to decode (default: 256)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    _add_fresh(parser)
    _add_common(parser)
    parser.set_defaults(run=_stats)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=whole(1, 4096), metavar="W", help="processes (default: one per core)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_fresh(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fresh", action="store_true", help="take over nothing from an interrupted call")


def _tell(text: str) -> None:
    print(text, file=sys.stderr)  # the output itself may be for a program


def count(number: int, what: str) -> str:
    """Return a number with its noun: "1 shard", "2 shards"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def local_folder(text: str) -> Path:
    """Type of an argument that is a set on this machine."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text} is a URL; give a folder on this machine ('data show' takes URLs)")
    return Path(text)


def require_set(folder: Path) -> None:
    """Check that a folder (or the path of a manifest) is a set.

    Raises:
        UserError: It is not; the text says what it is and what to do.
    """
    from data_modules.images import EXTENSIONS
    from data_modules.packing import leftover
    from data_modules.shards.format import MANIFEST_NAME, manifest_path

    if manifest_path(folder).is_file():
        return
    if not folder.exists():
        raise UserError(f"{folder}: there is no such folder")
    if not folder.is_dir():
        raise UserError(f"{folder}: not a set; give the folder that holds {MANIFEST_NAME}")
    inside = sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST_NAME}"))
    if inside:
        raise UserError(f"{folder}: holds the sets {', '.join(inside)}; give one of them, such as {folder / inside[0]}")
    if leftover(folder):
        raise UserError(f"{folder}: an unfinished set; give the command that began it once more")
    if next(folder.glob("*.tar"), None):
        raise UserError(f"{folder}: tars without {MANIFEST_NAME}; make it a set: python -m s2kit data index {folder}")
    if any(file.suffix.lower() in EXTENSIONS for file in folder.iterdir()):
        raise UserError(f"{folder}: pictures, not a set; pack them: python -m s2kit data pack {folder} --out SET")
    raise UserError(
        f"{folder}: not a set of samples, it has no {MANIFEST_NAME}; 'python -m s2kit data' says how to make one"
    )


def _index(options: argparse.Namespace) -> int:
    from data_modules.indexing import index_folder

    schemas = {name: value for name, value in (("keypoints", options.keypoints), ("parts", options.parts)) if value}
    info = {"licence": options.licence, "source": options.source, "normals_frame": options.normals_frame}
    info = {name: value for name, value in info.items() if value is not None} | (
        {"schemas": schemas} if schemas else {}
    )
    manifest, samples, made = index_folder(
        options.folder, info, anew=options.anew, workers=options.workers, progress=not options.quiet
    )
    print(f"{count(samples, 'sample')}, {count(made, 'tar')} indexed: {manifest}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from data_modules.verification import verify

    require_set(options.folder)
    report = verify(
        options.folder,
        decode=options.decode,
        workers=options.workers,
        progress=not (options.quiet or options.json),
        fresh=options.fresh,
        tell=_tell,
    )
    wrong = len(report.problems)
    if options.json:
        print(json.dumps({"folder": str(options.folder), "sound": not wrong, **dataclasses.asdict(report)}))
        return int(wrong > 0)
    for problem in report.problems[:_SHOWN_PROBLEMS]:
        where = ", ".join(filter(None, (problem.shard, f"sample {problem.sample!r}" if problem.sample else None)))
        print(f"{where or options.folder}: {problem.text}")
    if wrong > _SHOWN_PROBLEMS:
        print(f"... and {wrong - _SHOWN_PROBLEMS} more; --json lists them all")
    people = f", {report.people} people" if report.people else ""
    checked = f"{count(report.shards, 'shard')}, {count(report.samples, 'sample')}{people}, {report.size / 1e6:.1f} MB"
    if not wrong:
        print(f"{options.folder}: sound: {checked}")
        return 0
    print(f"s2kit: error: {options.folder}: {count(wrong, 'problem')} in {checked}", file=sys.stderr)
    return 1


def _stats(options: argparse.Namespace) -> int:
    from data_modules.summary import summarise

    require_set(options.folder)
    summary = summarise(
        options.folder,
        sampled=options.sample,
        workers=options.workers,
        progress=not (options.quiet or options.json),
        fresh=options.fresh,
        tell=_tell,
    )
    if options.json:
        print(json.dumps(summary))
    else:
        _print_summary(summary, options.folder)
    return 0


def _print_summary(summary: dict[str, Any], folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 100)
    mean = summary["bytes"] / max(summary["samples"], 1)
    facts = [
        ("samples", f"{summary['samples']} in {count(summary['shards'], 'shard')}"),
        ("bytes", f"{summary['bytes'] / 1e6:.1f} MB, {mean / 1e3:.1f} kB a sample"),
        ("licence", summary["licence"] or "not stated"),
        ("source", summary["source"] or "not stated"),
    ]
    if summary["people"]:
        facts.append(("people", f"{summary['people']}, {summary['people'] / max(summary['samples'], 1):.2f} an image"))
    image = summary["image"]
    if image:
        sides = [f"{image[name][0]} x {image[name][1]}" for name in ("smallest", "median", "largest")]
        facts.append(("height x width", f"{sides[0]} (smallest), {sides[1]} (median), {sides[2]} (largest)"))
        facts.append(("width / height", _shares(image["aspects"])))
    for name, text in (("alpha_covered", "covered by the person"), ("depth_metres", "depth")):
        if name in summary:
            value = summary[name]
            shown = (
                f"{100 * value:.1f} %" if isinstance(value, float) else f"{value['nearest']} to {value['farthest']} m"
            )
            facts.append((text, shown))
    table = Table(title=str(folder), show_header=False)
    for row in facts:
        table.add_row(*row)
    console.print(table)
    _print_fields(console, summary)
    if "keypoints" in summary:
        table = Table(
            "points", "visible", "occluded", "unlabelled", title=f"keypoints: {summary['schemas']['keypoints']}"
        )
        for group, shares in summary["keypoints"].items():
            table.add_row(group, *(f"{100 * shares[key]:.1f} %" for key in ("visible", "occluded", "unlabelled")))
        console.print(table)
    if "classes" in summary:
        largest = dict(sorted(summary["classes"].items(), key=lambda item: -item[1])[:_SHOWN_ROWS])
        console.print(f"classes ({summary['schemas']['parts']}), share of pixels: {_shares(largest)}", soft_wrap=True)


def _print_fields(console: Any, summary: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("field", "samples", "share", "kB a sample", "core ms", title=f"fields ({summary['decoded']} decoded)")
    for name, entry in summary["fields"].items():
        size, cost = entry.get("bytes_per_sample"), entry.get("decode_ms")
        table.add_row(
            name,
            str(entry["samples"]),
            f"{100 * entry['share']:.1f} %",
            "in json" if size is None else f"{size / 1e3:.1f}",
            "" if cost is None else f"{cost:.2f}",
        )
    console.print(table)


def _shares(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())
