"""People found by torchvision's Faster R-CNN."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from s2kit.errors import UserError
from s2kit.inference.people.boxes import MAX_OVERLAP, MIN_SCORE, People, WholePicture, in_picture, make_people, select
from s2kit.models.checkpoints import WeightsError, compare
from s2kit.models.checkpoints.files import check_path, first_line, read_file
from s2kit.models.checkpoints.layouts import unwrap

_URL = "https://download.pytorch.org/models/"
#: torchvision's detectors, the most accurate first (box AP on COCO val2017: 46.7, 37.0, 32.8), and their files.
FILES = {
    "fasterrcnn_resnet50_fpn_v2": "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth",
    "fasterrcnn_resnet50_fpn": "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
    "fasterrcnn_mobilenet_v3_large_fpn": "fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7.pth",
}
#: Label of people; 0 is the background.
PERSON = 1
_CLASSES = "roi_heads.box_predictor.cls_score.weight"


class Detector:
    """Finds people with one of torchvision's Faster R-CNN detectors (``FILES``), which one, the weights tell.

    Args:
        weights: A file; or the name of a detector, whose published file is taken from torch's hub folder or
            downloaded to it. By default the most accurate one that is in that folder, and else the most accurate one;
            on a processor the smallest one, which takes a tenth of the time.
        device: Where it runs.
        min_score: Smallest score of a box.
        nms: Largest overlap (IoU) of two boxes; the less certain one goes. None leaves torchvision's 0.5.
        fallback: ``whole`` takes the whole picture for one person where nobody is found; None takes nobody.

    Raises:
        UserError: If the weights are not there and cannot be downloaded, or are no such detector's; the text says what
            to do.
    """

    detects = True

    def __init__(
        self,
        weights: str | Path | None = None,
        device: str | torch.device = "cpu",
        min_score: float = MIN_SCORE,
        nms: float | None = MAX_OVERLAP,
        fallback: Literal["whole"] | None = None,
    ) -> None:
        self.min_score, self.nms, self.fallback = min_score, nms, fallback
        self.device = torch.device(device)
        self.model = load_detector(find_weights(weights, small=self.device.type == "cpu"), min_score).to(self.device)
        self._empty = self._asked = 0

    @torch.inference_mode()
    def __call__(self, names: Sequence[str], pictures: Sequence[np.ndarray]) -> list[People]:
        """See ``BoxSource``. Pictures of one size go through the network together: padding would change results."""
        found: list[People] = [make_people([])] * len(pictures)
        for size in {picture.shape for picture in pictures}:
            rows = [row for row, picture in enumerate(pictures) if picture.shape == size]
            with torch.autocast(self.device.type, enabled=False):
                outputs = self.model([self._tensor(pictures[row]) for row in rows])
            for row, output in zip(rows, outputs):
                found[row] = self._people(output, pictures[row])
        return found

    def report(self) -> str:
        what = "taken whole" if self.fallback else "without results"
        return f"the detector found nobody in {self._empty} of {self._asked} pictures: {what}" if self._empty else ""

    def _tensor(self, picture: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(picture)).to(self.device).permute(2, 0, 1).float() / 255

    def _people(self, output: dict[str, Tensor], picture: np.ndarray) -> People:
        person = output["labels"] == PERSON
        boxes, scores = (output[name][person].float().cpu().numpy() for name in ("boxes", "scores"))
        people = select(in_picture(make_people(boxes, scores), picture.shape[:2]), self.min_score, self.nms)
        self._asked += 1
        if people.number:
            return people
        self._empty += 1
        return WholePicture()([""], [picture])[0] if self.fallback == "whole" else people


def find_weights(weights: str | Path | None = None, small: bool = False) -> Path:
    """Return the file of a detector's weights, downloaded if need be; see ``Detector``.

    Args:
        weights: A file, the name of a detector, or None for any.
        small: Whether the smallest one is preferred to the most accurate one.

    Raises:
        UserError: If there is no such file, or it cannot be downloaded.
    """
    if weights is not None and str(weights) not in FILES:
        try:
            check_path(Path(weights).expanduser())
        except (FileNotFoundError, WeightsError) as error:
            raise UserError(f"--detector-weights: {error}; give a file, or one of {', '.join(FILES)}") from None
        return Path(weights).expanduser()
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    names = list(FILES)[:: -1 if small else 1] if weights is None else [str(weights)]
    for name in names:
        if (folder / FILES[name]).is_file():
            return folder / FILES[name]
    return _download(FILES[names[0]], folder)


def _download(file: str, folder: Path) -> Path:
    prefix = re.search(r"-([0-9a-f]{8})\.", file)[1]
    try:
        os.makedirs(folder, exist_ok=True)
        torch.hub.download_url_to_file(_URL + file, str(folder / file), hash_prefix=prefix)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"the person detector has no weights here, and {_URL}{file} cannot be downloaded ({first_line(error)}): "
            f"download it elsewhere and put it into {folder}, or give it with --detector-weights FILE; or do without "
            f"a detector, with --boxes FILE or --boxes whole"
        ) from None
    return folder / file


def load_detector(path: Path, min_score: float = MIN_SCORE) -> nn.Module:
    """Build the detector whose weights a file holds.

    Args:
        path: A file of torchvision, or of its training script (``model``), as ``.pth`` or ``.safetensors``; people are
            class 1, after the background.
        min_score: Boxes below are left out early.

    Returns:
        The detector in evaluation mode: a list of float (3, H, W) RGB in 0..1 to a list of ``boxes``, ``labels``,
        ``scores``.

    Raises:
        UserError: If the file cannot be read, or holds something else.
    """
    from torchvision.models import detection

    try:
        state, _ = unwrap(read_file(path)[0], str(path))
    except WeightsError as error:
        raise UserError(str(error)) from None
    name = _model_of(state)
    if name is None:
        few = ", ".join(list(state)[:3])
        raise UserError(f"{path}: holds no detector of {', '.join(FILES)}; its first entries are {few}")
    options: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": len(state[_CLASSES])}
    model = getattr(detection, name)(**options, box_score_thresh=min_score)
    # Published files were trained with frozen statistics, which do not count batches.
    counters = {key: value for key, value in model.state_dict().items() if key.endswith("num_batches_tracked")}
    mismatch = compare({**counters, **state}, model)
    if mismatch:
        raise UserError(f"{path}: does not fit {name}: {mismatch.describe()}")
    model.load_state_dict({**counters, **state})
    if name == "fasterrcnn_resnet50_fpn":
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0  # as torchvision has it with its published weights
    return model.eval()


def _model_of(state: dict[str, Tensor]) -> str | None:
    """Return the name of the detector that has entries of these names; None if none."""
    if _CLASSES not in state or state[_CLASSES].ndim != 2:
        return None
    if "backbone.body.0.0.weight" in state:
        return "fasterrcnn_mobilenet_v3_large_fpn"
    if "backbone.body.conv1.weight" not in state:
        return None
    return "fasterrcnn_resnet50_fpn" if "roi_heads.box_head.fc6.weight" in state else "fasterrcnn_resnet50_fpn_v2"
