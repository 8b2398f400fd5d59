"""``python -m s2kit predict``: run models on a user's own pictures and videos."""

from __future__ import annotations

import argparse
import re
import sys
import time
import warnings
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2kit.errors import UserError
from s2kit.tools.arguments import OneLineParser, real, whole

if TYPE_CHECKING:
    import torch

    from s2kit.inference.inputs import Source
    from s2kit.inference.output_folder import OutputFolder
    from s2kit.inference.predictor import Predictor
    from s2kit.inference.results import ResultOptions
    from s2kit.tasks import Task

_DESCRIPTION = """\
Run trained models on your own pictures and videos: pose, segmentation, normals, pointmap, albedo, matting.

  python -m s2kit predict photo.jpg --weights runs/normals/version_0 --out results
  python -m s2kit predict FOLDER 'more/**/*.png' clip.mp4 https://example.org/a.jpg --weights NORMALS POSE --out results
  python -m s2kit predict people.txt --weights hf://owner/name --flip --scales 0.75 1 1.25 --out results

An INPUT is a picture, a folder, a glob pattern, a list (.txt, a path or address a line), a video, or an http(s) address
of a picture or video. Results have the picture's own size and lie in OUT/TASK/NAME.*; several models also draw one
sheet a picture, OUT/sheets/NAME.png. The same command goes on after an interruption. See docs/predict.md.

With --config this command is LightningCLI's instead: predict --config FILE --model.weights FILE --data.predict_path DIR
(all devices and strategies of the Trainer, whole pictures); its options: predict --config FILE --help.
"""
#: Pictures that are listed by name at the end.
_LISTED = 50
#: What a folder's results depend on, as options of the command.
_DECIDING = ("flip", "scales", "tile", "precision", "min_score", "nms", "draw", "keypoint_score", "raw")


def main(args: list[str]) -> int:
    """Run ``predict``; return the exit code: 1 if a picture could not be read.

    Raises:
        UserError: What the user can mend, in one line.
        SystemExit: Of argparse, code 2, for wrong usage.
    """
    parser = _parser()
    options = parser.parse_args(args)
    if not options.inputs:
        parser.error("no INPUT given: name pictures before --weights, which takes all names that follow it")
    if options.masks and options.mask_weights:
        parser.error("--masks and --mask-weights exclude each other: the masks are given, or made")
    if options.detector_weights and options.boxes not in (None, "detect"):
        parser.error(f"--detector-weights goes with --boxes detect, not with --boxes {options.boxes}")
    try:
        return _predict(options)
    except KeyboardInterrupt:
        print(f"to go on: the same command; what is done lies in {options.out}", file=sys.stderr)
        raise


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m s2kit predict", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("inputs", nargs="*", metavar="INPUT", help="picture, folder, pattern, list, video or address")
    add("--weights", nargs="+", required=True, metavar="W", help="models, one a task: a file, a run's folder, hf://...")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the results")

    group = parser.add_argument_group("how the networks run")
    add = group.add_argument
    add("--batch-size", type=whole(1), default=8, metavar="N", help="pictures, tiles or people a pass (default: 8)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    add("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the networks (default: fp32)")
    add("--compile", action="store_true", help="compile them: minutes at first, faster after that")
    flips = "average with the mirrored picture (default: as each model was built)"
    add("--flip", action=argparse.BooleanOptionalAction, default=None, help=flips)
    scales = "average over inputs of several sizes, factors on the model's own: --scales 0.75 1 1.25"
    add("--scales", nargs="+", type=real(0.1, 10), default=[1.0], metavar="S", help=scales)
    tiles = "large pictures in overlapping tiles: auto (of the model's input size) or HEIGHTxWIDTH in the picture"
    add("--tile", nargs="?", const="auto", type=_tile, metavar="HEIGHTxWIDTH", help=tiles)

    group = parser.add_argument_group("foreground, of normals, pointmap and albedo")
    add = group.add_argument
    add("--masks", metavar="DIR", help="folder of masks NAME.png or NAME.npy")
    add("--mask-weights", metavar="W", help="a segmentation model that makes the masks: all but the background")

    group = parser.add_argument_group("people, of pose")
    add = group.add_argument
    add("--boxes", metavar="B", help="file of boxes, 'whole' picture (default), or 'detect'")
    add("--detector-weights", metavar="FILE", help="of torchvision's Faster R-CNN (default: its published ones)")
    add("--min-score", type=real(0, 1), default=0.3, metavar="X", help="least score of a box (default: 0.3)")
    add("--nms", type=real(0, 1), default=0.3, metavar="X", help="largest overlap of two boxes, IoU (default: 0.3)")

    group = parser.add_argument_group("what is written")
    add = group.add_argument
    drawn = "overlay: NAME.png; panel: NAME_panel.png, beside the input; none (default: overlay)"
    add("--draw", nargs="+", choices=("overlay", "panel", "none"), default=["overlay"], help=drawn)
    shown = "least score of a keypoint that is drawn; files hold all of them (default: 0.3)"
    add("--keypoint-score", type=real(0, 1), default=0.3, metavar="X", help=shown)
    raw = "arrays, labels, keypoints (default: of pictures; of videos the poses alone)"
    add("--raw", action=argparse.BooleanOptionalAction, default=None, help=raw)
    sheets = "all tasks on one sheet a picture (default: with several tasks)"
    add("--sheet", action=argparse.BooleanOptionalAction, default=None, help=sheets)

    group = parser.add_argument_group("long runs")
    add = group.add_argument
    add("--part", type=_part, default=(1, 1), metavar="I/N", help="do the I-th of N parts, as one of N processes")
    add("--restart", action="store_true", help="do everything anew, whatever the folder says is done")
    return parser


def _tile(text: str) -> tuple[int, int] | str:
    if text == "auto":
        return text
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or min(int(side) for side in found.groups()) < 32:
        raise argparse.ArgumentTypeError(
            f"must be auto or HEIGHTxWIDTH, 32 or more each, such as 1024x768; got {text!r}"
        )
    return int(found[1]), int(found[2])


def _part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"must be I/N with I from 1 to N, such as 2/4; got {text!r}")
    return int(found[1]), int(found[2])


def _predict(options: argparse.Namespace) -> int:
    # Said by torch of every norm in mixed precision; there is nothing to be done about it.
    warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")
    from data_modules.progress import ProgressBar
    from s2kit.inference.inputs import find_sources, name_in_folder, read_sources
    from s2kit.inference.output_folder import OutputFolder
    from s2kit.inference.results import COCO, ENDINGS, ResultOptions, ResultWriter

    # All mistakes that can be seen before a model is loaded come first.
    sources = find_sources(options.inputs, taken=[COCO], endings=ENDINGS)
    predictor = _predictor(options)
    sheet = len(predictor.tasks) > 1 if options.sheet is None else options.sheet
    results = ResultOptions(options.raw, tuple(draw for draw in options.draw if draw != "none"), sheet)
    folder = OutputFolder(options.out, _deciding(options, sheet), options.part, options.restart)
    with closing(folder):
        sources = name_in_folder(sources, folder, taken=[COCO], endings=ENDINGS)
        mine = sources[options.part[0] - 1 :: options.part[1]]
        left = [source for source in mine if not folder.is_done(source.where, source.name, source.stamp())]
        begin = time.monotonic()
        writer = ResultWriter(folder, predictor.tasks, results, {source.name: source for source in left})
        found = predictor(read_sources(left, 2 * options.batch_size))
        with closing(found), writer, ProgressBar("predict", len(mine), len(mine) - len(left)) as bar:
            for result in found:
                writer.put(result)
                if result.picture.frame is None or result.picture.frame.last:
                    bar.advance()
        _write_coco(predictor, results, folder, sources)
    seconds = time.monotonic() - begin
    before = f", {len(mine) - len(left)} were done before" if len(left) < len(mine) else ""
    print(f"{writer.written} of {len(left)} written to {options.out} in {seconds:.1f} s{before}")
    if predictor.boxes is not None and predictor.boxes.report():
        print(predictor.boxes.report(), file=sys.stderr)
    return _report_failures(writer.failed)


def _predictor(options: argparse.Namespace) -> Predictor:
    from s2kit.inference.items import PredictOptions
    from s2kit.inference.masks import MaskFolder
    from s2kit.inference.people import open_boxes
    from s2kit.inference.predictor import Predictor
    from s2kit.tasks import TASKS

    run = PredictOptions(
        options.batch_size, options.flip, tuple(options.scales), options.tile, options.precision, options.compile
    )
    masks = MaskFolder(options.masks) if options.masks else None
    device = _device(options.device)
    if device.type == "cpu" and options.precision == "fp16":
        raise UserError("--precision fp16: processors compute it slowly or not at all; take bf16 or fp32")
    loaded = {weights: _load(weights, device) for weights in options.weights}
    tasks, mask_task = sorted(loaded.values(), key=lambda task: list(TASKS).index(task.name)), None
    if options.mask_weights:
        mask_task = loaded.get(options.mask_weights) or _load(options.mask_weights, device)
        if mask_task.name != "segmentation":
            raise UserError(f"--mask-weights {options.mask_weights}: a model for {mask_task.name}, not segmentation")
    if (masks or mask_task) and not any(task.takes_mask for task in tasks):
        raise UserError("masks are for normals, pointmap and albedo, and none of the models is one of these")
    if options.tile and not any(task.takes_tiles for task in tasks):
        print("s2kit: --tile: poses need no tiles, each person is cut out at full resolution", file=sys.stderr)
    boxes = None
    if any(task.takes_boxes for task in tasks):
        detector = {"weights": options.detector_weights, "device": device}
        boxes = open_boxes(options.boxes or "whole", **detector, min_score=options.min_score, nms=options.nms)
        for task in (task for task in tasks if task.takes_boxes):
            task.drawn_score = options.keypoint_score
    elif options.boxes:
        raise UserError(f"--boxes {options.boxes}: boxes are for poses, and none of the models is one for pose")
    return Predictor(tasks, run, boxes, masks, mask_task)


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return device


def _load(weights: str, device: torch.device) -> Task:
    from s2kit.tasks import load_task

    task = load_task(None, weights).to(device)
    task.requires_grad_(False)
    return task


def _deciding(options: argparse.Namespace, sheet: bool) -> dict[str, Any]:
    """Return the options that decide what a folder's results are."""
    paths = {name: getattr(options, name) for name in ("mask_weights", "detector_weights", "boxes", "masks")}
    paths = {name: given and _absolute(given) for name, given in paths.items()}
    weights, stamps = [_absolute(given) for given in options.weights], {}
    for given in (*weights, paths["mask_weights"], paths["detector_weights"], paths["boxes"]):
        path = Path(given or "")
        if given and path.exists():
            files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
            stamps[given] = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    own = {name: getattr(options, name) for name in _DECIDING}
    return {"weights": weights, **own, "sheet": sheet, **paths, "files": stamps}


def _absolute(given: str) -> str:
    """Return a path so that it is the same however it is given; an address, or the name of a detector, as it is."""
    return str(Path(given).resolve()) if Path(given).exists() else given


def _write_coco(predictor: Predictor, results: ResultOptions, folder: OutputFolder, sources: list[Source]) -> None:
    """Write all poses that the folder holds, also of other inputs, in one file as COCO's keypoint results."""
    from s2kit.inference.people import BoxFile
    from s2kit.inference.results import COCO, raw_files
    from s2kit.pose.coco_results import image_number, read_pose, write_coco_results

    names = dict.fromkeys([*(source.name for source in sources), *folder.names()])
    for name, task in predictor.tasks.items():
        if task.takes_boxes and results.raw is not False:
            number = predictor.boxes.image_number if isinstance(predictor.boxes, BoxFile) else image_number
            poses = (read_pose(file)[0] for file in raw_files(folder.path / name, names, ".json"))
            write_coco_results(folder.path / name / f"{COCO}.json", poses, task.hparams.schema, number=number)


def _report_failures(failed: list[tuple[str, str]]) -> int:
    for source, reason in failed[:_LISTED]:
        print(f"s2kit: {source}: {reason}", file=sys.stderr)
    if failed:
        more = f", of which the first {_LISTED} are named" if len(failed) > _LISTED else ""
        print(f"s2kit: error: {len(failed)} could not be read or predicted{more}", file=sys.stderr)
    return int(bool(failed))
