"""``python -m s2kit probe``: what a backbone knows, without training it."""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from data_modules.base import SyntheticSets
from s2kit.errors import UserError
from s2kit.probing.backbones import load_backbone, random_backbone
from s2kit.probing.classes import run_class_probes
from s2kit.probing.dense import PROBES, Training, run_probe
from s2kit.probing.features import FeatureCache
from s2kit.probing.regression import run_regression_probes
from s2kit.report import show
from s2kit.tools.arguments import OneLineParser, real, whole

CLASSES, NUMBERS = "knn", "regression"
ALL = [*PROBES, CLASSES, NUMBERS]
#: Paths per pixel of the pictures that are made: those of the shipped experiments.
SAMPLES_PER_PIXEL = 8

_DESCRIPTION = """\
Score a frozen backbone: its features of labelled pictures are computed once, then each task trains a light head on
them, the same way for every backbone, and scores it on other people. knn needs no training: what the person does and
wears is told from the nearest pictures, and by a linear classifier. Nor does regression: where the person's joints
are, how much of the picture it covers and the background's colour, in % of variance explained.

  python -m s2kit probe --weights runs/pretrain/version_0/weights.safetensors --out probe.json
  python -m s2kit probe --random experiments/pretrain.yaml --probes normals knn

Pictures are synthetic people made on first use, or the sets DATA/train and DATA/test; see docs/pretraining.md.
"""


def main(args: list[str]) -> int:
    """Probe a backbone; return the exit code.

    Raises:
        UserError: What the user can mend, in one line.
        SystemExit: Of the parser, code 2, for wrong usage.
    """
    options = _parser().parse_args(args)
    size = tuple(options.image_size) if options.image_size else None
    if options.weights is not None:
        backbone, fields = load_backbone(options.weights, size)
    else:
        backbone, fields = random_backbone(_model_of(options.random), size, options.seed)
    backbone.to(_device(options.device))
    data, prepared = _data(options)
    if prepared is not None:
        for split in ("train", "test"):
            prepared.prepare(split)
    training = Training(steps=options.steps, batch_size=options.batch_size, lr=options.lr, seed=options.seed)
    about = {
        "weights": options.weights,
        "random": options.random,
        "arch": fields["arch"],
        "image_size": list(fields["image_size"]),
        "data": options.data or f"synthetic: {prepared.folder('train').name}, {prepared.folder('test').name}",
        "training": asdict(training),
    }
    results = probe(options.probes, FeatureCache(backbone), fields, data, (options.train, options.held_out), training)
    print_results(about, results)
    if options.out is not None:
        write_json(options.out, {**about, **results})
        print(f"written: {options.out}")
    return 0


def probe(
    names: list[str],
    cache: FeatureCache,
    fields: dict[str, Any],
    data: dict[str, Any],
    counts: tuple[int | None, int | None],
    training: Training,
) -> dict[str, Any]:
    """Run probes; return ``probes`` (name -> metric -> value) and ``seconds`` (name -> of it, features included)."""
    results: dict[str, Any] = {"probes": {}, "seconds": {}}
    for name in names:
        started = time.monotonic()
        if name == CLASSES:
            results["probes"][name] = run_class_probes(cache, fields, data, counts)
        elif name == NUMBERS:
            results["probes"][name] = run_regression_probes(cache, fields, data, counts)
        else:
            results["probes"][name] = run_probe(name, cache, fields, data, counts, training)
        results["seconds"][name] = round(time.monotonic() - started, 2)
    return results


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m s2kit probe",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    whose = parser.add_mutually_exclusive_group(required=True)
    whose.add_argument("--weights", metavar="FILE", help="weights in any layout (docs/checkpoints.md)")
    whose.add_argument("--random", metavar="CONFIG", help="random weights, of the backbone that a config's model has")
    parser.add_argument(
        "--probes", nargs="+", choices=ALL, default=ALL, metavar="PROBE", help=f"of {', '.join(ALL)} (default: all)",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FILE.json", help="where to write the results")
    parser.add_argument(
        "--data", metavar="FOLDER", help="holds the shard sets train and test (default: synthetic people)"
    )
    parser.add_argument(
        "--train", type=whole(2), metavar="N", help="pictures to train heads on (default: 1000 synthetic, all of DATA)"
    )
    parser.add_argument(
        "--held-out", type=whole(1), metavar="N", help="pictures to score on (default: 400 synthetic, all of DATA)"
    )
    parser.add_argument(
        "--picture-size", type=whole(16), nargs=2, default=(128, 96), metavar=("HEIGHT", "WIDTH"),
        help="of the pictures that are made (default: 128 96)",
    )  # fmt: skip
    parser.add_argument(
        "--picture-seed", type=whole(0), default=1, metavar="N", help="of the people in them (default: 1)"
    )
    parser.add_argument(
        "--image-size", type=whole(16), nargs=2, metavar=("HEIGHT", "WIDTH"),
        help="the backbone's input (default: what the weights are for)",
    )  # fmt: skip
    parser.add_argument("--steps", type=whole(1), default=Training.steps, metavar="N", help="of each head")
    parser.add_argument("--batch-size", type=whole(1), default=Training.batch_size, metavar="N", help="of each head")
    parser.add_argument("--lr", type=real(0), default=Training.lr, metavar="X", help="of each head")
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="of heads, order and random backbones")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    return parser


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):
        raise UserError(f"--device {name}: there is no such device here; give auto, cpu or cuda") from None


def _model_of(config: str) -> dict[str, Any]:
    """Return the model's arguments in a config of ``fit``."""
    from s2kit.tools.plan import read_config

    if not Path(config).is_file():
        raise UserError(f"--random {config}: no such config")
    return read_config(["--config", config]).model.init_args.as_dict()


def _data(options: argparse.Namespace) -> tuple[dict[str, Any], SyntheticSets | None]:
    """Return where the pictures are, as options of a data module, and the sets to make, if any."""
    if options.data is not None:
        return {"root": options.data}, None
    options.train, options.held_out = options.train or 1000, options.held_out or 400
    sets = SyntheticSets(
        train=options.train,
        test=options.held_out,
        image_size=tuple(options.picture_size),
        samples_per_pixel=SAMPLES_PER_PIXEL,
        seed=options.picture_seed,
    )
    return {"synth": sets}, sets


def write_json(path: str | Path, content: dict[str, Any]) -> None:
    """Write a file that is there whole or not at all; what is not finite becomes null."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(_plain(content), indent=2, allow_nan=False) + "\n")
    os.replace(temporary, path)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_results(about: dict[str, Any], results: dict[str, Any]) -> None:
    """Print the metrics that tell backbones apart, each beside what is right by knowing nothing."""
    whose = about["weights"] or f"random weights ({about['random']})"
    table = Table(title=f"{whose}: {about['arch']}, frozen", title_justify="left")
    for column in ("probe", "metric", "backbone", "trivial", "s"):
        table.add_column(column, justify="left" if column in ("probe", "metric") else "right")
    for name, values in results["probes"].items():
        seconds = f"{results['seconds'][name]:.0f}"
        if name == CLASSES:
            for metric in ("cls/knn20", "mean/knn20", "both/knn20", "both/linear"):
                table.add_row(name, f"{metric}, %", show(values[metric]), show(values["majority"]), seconds)
                name = seconds = ""
            continue
        if name == NUMBERS:
            for metric, value in values.items():
                table.add_row(name, f"{metric}, % explained", show(value), "0", seconds)
                name = seconds = ""
            continue
        metric = PROBES[name].metric
        unit = PROBES[name].task.metric_units.get(metric, "")
        table.add_row(name, f"{metric}, {unit}", show(values[metric]), show(values.get(f"baseline_{metric}")), seconds)
    Console().print(table)
