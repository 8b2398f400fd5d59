"""``python -m s2kit bench``: speed and memory of the backbone beside the `transformers` port, and of reading data."""

from __future__ import annotations

import argparse
import csv
import datetime
import multiprocessing
import os
import platform
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from s2kit.errors import UserError
from s2kit.tools.arguments import OneLineParser
from s2kit.tools.bench_backbone import LIVE_MEMORY, OURS, PASSES, PORT, Case, measure_memory, measure_times, median
from s2kit.tools.bench_data import DESCRIPTION, add_data

_DESCRIPTION = """\
Measure speed and memory.

  python -m s2kit bench backbone --arch sapiens2_0.1b --image-size 512 384
  python -m s2kit bench data                               what a sample costs to read, beside other readers
"""
_BACKBONE = """\
Time forward and forward+backward passes of a backbone and measure their peak memory, beside the Hugging Face
`transformers` port with the same weights and images. Times are medians of runs in turns in one process; each peak is
taken in a process of its own (on the CPU the growth of the resident set, on CUDA what torch allocated). A ratio is
ours / port: below 1 is faster, or less. On the CPU the seconds that it was busy are given too, which tell more than the
clock where others use the machine. Prints a table and writes a CSV with date, hardware and versions.
"""
_LEAST, _MOST = 1, 1000


def main(args: list[str]) -> int:
    """Run ``bench backbone`` or ``bench data``; return the exit code.

    Raises:
        UserError: what the user can mend, in one line.
        SystemExit: of argparse, code 2, for wrong usage.
    """
    options = _parser().parse_args(args)
    return options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m s2kit bench", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{backbone,data}")
    _add_backbone(commands.add_parser("backbone", help="time and memory of a backbone", description=_BACKBONE))
    add_data(commands.add_parser("data", help="CPU time per sample read", description=DESCRIPTION))
    return parser


def _add_backbone(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--arch", nargs="+", default=["sapiens2_0.1b"], metavar="NAME", help="sizes (default: sapiens2_0.1b)")
    add("--image-size", nargs=2, type=int, default=(512, 384), metavar=("H", "W"), help="default: 512 384")
    add("--batch-size", type=int, default=1, metavar="N", help="images in a batch (default: 1)")
    add("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of weights and images (default: float32)")
    add(
        "--rope-dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of our rotary embedding (default: float32, as the port computes it; bfloat16 is the release's rule)",
    )
    add(
        "--checkpointing",
        choices=("none", "full", "selective"),
        default="none",
        help="what our backward pass computes again (default: none)",
    )
    add("--compile", action="store_true", help="compile each of our blocks")
    add("--passes", nargs="+", choices=PASSES, default=list(PASSES), help="default: both")
    add("--runs", type=int, default=5, metavar="N", help="timed runs of each, after a warm-up (default: 5)")
    add("--threads", type=int, default=0, metavar="N", help="CPU threads (default: torch's choice)")
    add("--no-peer", action="store_true", help="measure ours alone, without the port")
    add("--out", type=Path, metavar="FILE", help="CSV to write (default: none is written)")
    parser.set_defaults(run=_backbone)


def _backbone(options: argparse.Namespace) -> int:
    _check(options)
    peer = not options.no_peer
    rows: list[dict[str, Any]] = []
    print(_HEAD if peer else _HEAD_ALONE)
    for arch in options.arch:
        case = Case(
            arch,
            tuple(options.image_size),
            options.batch_size,
            _device(options.device),
            options.dtype,
            options.rope_dtype,
            options.checkpointing,
            options.compile,
            options.threads,
        )
        for row in _measure(case, options, peer):
            print(_line(row, peer), flush=True)
            rows.append(row)
    if peer and options.dtype == "float32":
        largest = max(row["output_difference"] for row in rows)
        print(f"largest difference between the outputs of the two: {largest:.1e}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        print(options.out)
    return 0


def _check(options: argparse.Namespace) -> None:
    """Refuse what would fail in a child process.

    Raises:
        UserError: a number out of range, an unknown size, an image that does not divide, a missing package.
    """
    from s2kit.models import backbone_config

    for name, value in (("--runs", options.runs), ("--batch-size", options.batch_size)):
        if not _LEAST <= value <= _MOST:
            raise UserError(f"{name} must be from {_LEAST} to {_MOST}, got {value}")
    if options.threads < 0:
        raise UserError(f"--threads must not be negative, got {options.threads}")
    for arch in options.arch:
        try:
            config = backbone_config(arch, tuple(options.image_size))
        except ValueError as error:
            raise UserError(f"--arch {arch} --image-size {' '.join(map(str, options.image_size))}: {error}") from error
        if config.window_tokenizer_depth is not None and not options.no_peer:
            raise UserError(f"--arch {arch}: the port has no window tokenizer; measure ours alone with --no-peer")
    if not options.no_peer and (find_spec("transformers") is None or _version("transformers") < "5"):
        raise UserError(
            f"the port to compare with is in transformers 5 or later (installed: {_version('transformers')}): pip "
            "install 'transformers>=5', or measure ours alone with --no-peer"
        )


def _device(asked: str | None) -> str:
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device")
    return asked or ("cuda" if torch.cuda.is_available() else "cpu")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a fresh process, which nothing else has filled or warmed."""
    environment = LIVE_MEMORY if function is measure_memory else {}
    with (
        _environment(environment),
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        return pool.submit(function, *arguments).result()


def _measure(case: Case, options: argparse.Namespace, peer: bool) -> list[dict[str, Any]]:
    timed = _in_child(measure_times, case, tuple(options.passes), options.runs, peer)
    rows = []
    for each in options.passes:
        row: dict[str, Any] = {
            "arch": case.arch,
            "height": case.image_size[0],
            "width": case.image_size[1],
            "batch_size": case.batch_size,
            "pass": each,
        }
        for name in (OURS, PORT) if peer else (OURS,):
            row[f"{name}_seconds"] = round(median(timed["seconds"][each][name]), 4)
            if case.device == "cpu":
                row[f"{name}_cpu_seconds"] = round(median(timed["cpu_seconds"][each][name]), 4)
            row[f"{name}_peak_mib"] = round(_in_child(measure_memory, case, name, each))
        if peer:
            row["time_ratio"] = round(_ratio(timed["seconds"][each]), 3)
            if case.device == "cpu":
                row["cpu_time_ratio"] = round(_ratio(timed["cpu_seconds"][each]), 3)
            row["memory_ratio"] = round(row[f"{OURS}_peak_mib"] / row[f"{PORT}_peak_mib"], 3)
            row["output_difference"] = float(f"{timed['difference']:.2e}")
        row |= {
            "runs": options.runs,
            "device": case.device,
            "dtype": case.dtype,
            "rope_dtype": case.rope_dtype,
            "checkpointing": case.checkpointing,
            "compile": case.compile,
            "threads": timed["threads"],
            "date": datetime.date.today().isoformat(),
            "hardware": timed["hardware"],
            "python": platform.python_version(),
            "torch": timed["torch"],
            "transformers": _version("transformers"),
            "s2kit": _version("s2kit"),
        }
        rows.append(row)
    return rows


def _ratio(seconds: dict[str, list[float]]) -> float:
    """The median of the ratios of neighbouring runs, which a machine that slows down for a while hardly changes."""
    return median([ours / port for ours, port in zip(seconds[OURS], seconds[PORT])])


_HEAD = (
    f"{'':32}{'seconds':>20}{'':10}{'CPU':>10}{'peak MiB':>20}\n{'':32}{'s2kit':>10}{'port':>10}{'ratio':>10}"
    f"{'ratio':>10}{'s2kit':>10}{'port':>10}{'ratio':>10}"
)
_HEAD_ALONE = f"{'':32}{'seconds':>10}{'peak MiB':>10}"


def _line(row: dict[str, Any], peer: bool) -> str:
    text = f"{row['arch']:<15}{row['pass']:<17}{row[f'{OURS}_seconds']:>10.3f}"
    if not peer:
        return text + f"{row[f'{OURS}_peak_mib']:>10}"
    text += f"{row[f'{PORT}_seconds']:>10.3f}{row['time_ratio']:>10.2f}{row.get('cpu_time_ratio', ''):>10}"
    return text + f"{row[f'{OURS}_peak_mib']:>10}{row[f'{PORT}_peak_mib']:>10}{row['memory_ratio']:>10.2f}"
