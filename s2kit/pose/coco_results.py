"""Files of people's keypoints: COCO's keypoint results, and one JSON file a picture that says all that is known.

COCO counts pixels from 0 at the centre of the first one; in our own files, as everywhere here, that is 0.5. Numbers are
rounded: places to a hundredth of a pixel, scores to four digits. A keypoint whose place is not finite becomes 0, 0 with
score 0.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from s2kit.errors import UserError
from s2kit.models.checkpoints.writing import in_one_step
from s2kit.pose.conversion import convert_keypoints
from s2kit.pose.nms import person_confidence
from s2kit.schemas import load_keypoint_set
from s2kit.schemas.files import PACKAGED

#: What our own files say of their form.
FORM = "s2kit-pose-1"
_PERSON = 1  # COCO's category


@dataclass(frozen=True)
class PoseResult:
    """The people of one picture.

    Attributes:
        name: path or name of the picture; of a video's, ``VIDEO/000012``.
        size: (height, width).
        keypoints: (N, K, 3) x, y in continuous pixels, and score.
        boxes: (N, 4) x0, y0, x1, y1; box_scores: (N,).
        ids: (N,) who it is through a video, or None.
        seconds: when a video's picture is shown, or None.
    """

    name: str
    size: tuple[int, int]
    keypoints: np.ndarray
    boxes: np.ndarray
    box_scores: np.ndarray
    ids: np.ndarray | None = None
    seconds: float | None = None

    @property
    def scores(self) -> np.ndarray:
        """(N,) how certain each person is: the box's score times the mean of the keypoints' above 0.2 (spec 6.1)."""
        return person_confidence(np.nan_to_num(self.keypoints[..., 2]), self.box_scores)


def image_number(name: str) -> int:
    """Return a number for a picture: COCO's own if its name is one (``000000000139.jpg``), else one made of the name.

    The latter has 52 bits, is the same in every run, and is exact in every reader of JSON.
    """
    path = PurePath(name)
    # A video's pictures, which have no suffix, are numbered anew in each.
    if path.suffix and path.stem.isdecimal() and len(path.stem) <= 15:
        return int(path.stem)
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) >> 12


def coco_entries(
    result: PoseResult,
    schema: int | str | Path,
    target: int | str | Path | None = None,
    number: Callable[[str], int | None] = image_number,
) -> list[dict[str, Any]]:
    """Return the people of a picture as entries of COCO's keypoint results.

    Beside COCO's own fields each has ``file_name``, ``track_id`` in videos, and ``box_score``, which counts when the
    file serves as boxes: ``score`` is the pose's.

    Args:
        result: see `PoseResult`.
        schema: the keypoint set of its keypoints, as `load_keypoint_set` takes it.
        target: the keypoint set to write, such as ``coco-17``; None is the same.
        number: from a picture's name to its ``image_id``; where it gives None, ``image_number`` does.
    """
    keypoints = _finite(result.keypoints)
    if target is not None:
        points, values = convert_keypoints(keypoints[..., :2], keypoints[..., 2], schema, target)
        keypoints = np.concatenate([points, values[..., None]], axis=-1)
    found = number(result.name)
    image = image_number(result.name) if found is None else found
    entries = []
    for i, (points, box, score) in enumerate(zip(keypoints, result.boxes, result.scores)):
        # Where there is no keypoint COCO has 0, 0.
        known = points[:, 2] > 0
        places = np.where(known[:, None], points[:, :2] - 0.5, 0)
        x0, y0, x1, y1 = (float(v) for v in box)
        entry = {"image_id": image, "file_name": result.name, "category_id": _PERSON}
        if result.ids is not None:
            entry["track_id"] = int(result.ids[i])
        flat = [v for (x, y), s in zip(places, points[:, 2]) for v in (_place(x), _place(y), _score(s))]
        entry["bbox"] = [_place(v) for v in (x0, y0, x1 - x0, y1 - y0)]
        entry["keypoints"] = flat
        entry["score"], entry["box_score"] = _score(score), _score(result.box_scores[i])
        entries.append(entry)
    return entries


def write_coco_results(
    path: str | Path,
    results: Iterable[PoseResult],
    schema: int | str | Path,
    target: int | str | Path | None = None,
    number: Callable[[str], int | None] = image_number,
) -> int:
    """Write COCO's keypoint results of pictures, one person a line; pycocotools' ``loadRes`` reads them.

    The pictures may come from a generator: one is held at a time. The file is written under another name and then put
    in its place.

    Args:
        path: the file.
        results: of the pictures.
        schema, target, number: see `coco_entries`.

    Returns:
        How many people were written.

    Raises:
        s2kit.schemas.SchemaError: if ``schema`` cannot be converted to ``target``.
    """
    path, count = Path(path), 0

    def write(temporary: Path) -> None:
        nonlocal count
        with temporary.open("w", encoding="utf-8") as file:
            for result in results:
                for entry in coco_entries(result, schema, target, number):
                    file.write((",\n" if count else "[\n") + json.dumps(entry, allow_nan=False))
                    count += 1
            file.write("\n]\n" if count else "[]\n")

    path.parent.mkdir(parents=True, exist_ok=True)
    in_one_step(path, write)
    return count


def write_pose(path: str | Path, result: PoseResult, schema: int | str | Path) -> None:
    """Write all that is known of a picture's people as our own JSON, which `read_pose` reads."""
    text = json.dumps(pose_json(result, schema), allow_nan=False) + "\n"
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    in_one_step(Path(path), lambda temporary: temporary.write_text(text, encoding="utf-8"))


def pose_json(result: PoseResult, schema: int | str | Path) -> dict[str, Any]:
    """Return what `write_pose` writes."""
    people = []
    for i, (points, box) in enumerate(zip(_finite(result.keypoints), result.boxes)):
        person: dict[str, Any] = {} if result.ids is None else {"id": int(result.ids[i])}
        person["score"] = _score(result.scores[i])
        person["box"] = [_place(v) for v in box]
        person["box_score"] = _score(result.box_scores[i])
        person["keypoints"] = [[_place(x), _place(y), _score(s)] for x, y, s in points]
        people.append(person)
    head: dict[str, Any] = {"form": FORM, "picture": result.name, "height": result.size[0], "width": result.size[1]}
    if result.seconds is not None:
        head["seconds"] = round(float(result.seconds), 6)
    names = load_keypoint_set(schema).names
    return {**head, "schema": _public_name(schema), "keypoint_names": list(names), "people": people}


def read_pose(path: str | Path) -> tuple[PoseResult, str]:
    """Read a file of `write_pose`: the people of its picture, and the name of the keypoint set.

    Raises:
        UserError: if it is no such file.
    """
    try:
        said = json.loads(Path(path).read_text(encoding="utf-8"))
        if said["form"] != FORM:
            raise UserError(f"{path}: its form is {said['form']!r}, expected {FORM!r}")
        people, count = said["people"], len(said["keypoint_names"])
        ids = [person["id"] for person in people if "id" in person]
        return PoseResult(
            name=said["picture"],
            size=(said["height"], said["width"]),
            keypoints=np.array([person["keypoints"] for person in people], np.float32).reshape(-1, count, 3),
            boxes=np.array([person["box"] for person in people], np.float32).reshape(-1, 4),
            box_scores=np.array([person["box_score"] for person in people], np.float32),
            ids=np.array(ids, np.int64) if ids else None,
            seconds=said.get("seconds"),
        ), said["schema"]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no file of poses as this kit writes them ({type(error).__name__}: {error})") from None


def _public_name(schema: int | str | Path) -> str:
    """A packaged keypoint set's name, or that of a file."""
    known = PACKAGED["keypoints"]
    return next((name for name, file in known.items() if str(schema) in (name, file)), Path(str(schema)).name)


def _finite(keypoints: np.ndarray) -> np.ndarray:
    """Keypoints as float64, with 0, 0, 0 in place of what is not finite."""
    return np.where(np.isfinite(keypoints).all(axis=-1, keepdims=True), keypoints, 0).astype(np.float64)


def _place(value: float) -> float:
    return round(float(value), 2)


def _score(value: float) -> float:
    return round(float(value), 4)
