"""The prediction engine: pictures in, results out, in their order, with little memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from data_modules.images import ImageError
from s2kit.errors import UserError
from s2kit.inference.items import Job, PredictOptions, TaskRunner
from s2kit.inference.people import BoxSource, People, Tracker, WholePicture, in_picture, make_people

if TYPE_CHECKING:
    from s2kit.tasks.base import Task

#: Pictures of which no batch is full yet, in batches: after so many it runs as it is.
WAITING = 2


class Frame(NamedTuple):
    """What a picture is in a video.

    Attributes:
        video: The video's name.
        index: From 0; -1 of what is no frame but an error at the end.
        seconds: Since the first frame.
        fps: Of the video, on the average.
        last: Whether none follows.
    """

    video: str
    index: int
    seconds: float
    fps: Fraction
    last: bool = False


@dataclass
class Picture:
    """A picture to predict.

    Attributes:
        name: What its outputs are called.
        source: Its path or URL; of a video's frame with its number, ``clip.mp4/000012``.
        image: uint8 (H, W, 3) RGB; None if it could not be read.
        error: Why it could not be read, or not be predicted.
        frame: What it is in its video; None for a picture.
    """

    name: str
    source: str
    image: np.ndarray | None = None
    error: str | None = None
    frame: Frame | None = None


@dataclass
class Result:
    """What was predicted of a picture.

    Attributes:
        picture: The picture; its ``error`` says why nothing was.
        predictions: By task name, each at the picture's own size.
        people: Whose poses there are; None without poses.
        mask: The foreground, bool (H, W), if there is one.
    """

    picture: Picture
    predictions: dict[str, Any] = field(default_factory=dict)
    people: People | None = None
    mask: np.ndarray | None = None


#: ``masks(picture) -> bool (H, W) or None``; raises UserError.
FindMask = Callable[[Picture], np.ndarray | None]


@dataclass
class _Entry:
    """A picture under way: its jobs by task name, ``""`` for the one that makes its mask."""

    result: Result
    jobs: dict[str, Job] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return all(job.done for job in self.jobs.values())


class Predictor:
    """Runs one or several tasks over a stream of pictures.

    Network inputs of several pictures (whole pictures, tiles, people) share a batch. At most about two batches of
    pictures are under way, however long the stream.

    Args:
        tasks: In evaluation mode, on their device; one of each kind.
        options: How they run.
        boxes: Finds the people of pictures, for poses; by default the whole picture is one. In a video they are
            followed and get numbers.
        masks: Finds the foreground of a picture.
        mask_task: A segmentation model whose foreground (all but class 0) is the mask.

    Raises:
        UserError: If two tasks are of the same kind.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        options: PredictOptions | None = None,
        boxes: BoxSource | None = None,
        masks: FindMask | None = None,
        mask_task: Task | None = None,
    ) -> None:
        self.options = options or PredictOptions()
        names = [task.name for task in tasks]
        if twice := {name for name in names if names.count(name) > 1}:
            raise UserError(
                f"two models for {sorted(twice)[0]}: give one of each task, and run the others by themselves"
            )
        self.tasks = {task.name: task for task in tasks}
        finds = any(task.takes_boxes for task in tasks)
        self.boxes, self.masks, self.mask_task = (boxes or WholePicture()) if finds else None, masks, mask_task
        self._video, self._tracker = "", Tracker()

    def __call__(self, pictures: Iterable[Picture]) -> Iterator[Result]:
        """Yield a result for each picture, in their order."""
        with ThreadPoolExecutor(max_workers=max(1, min(8, os.cpu_count() or 1)), thread_name_prefix="s2kit") as pool:
            runners = {name: TaskRunner(task, self.options, pool) for name, task in self.tasks.items()}
            if self.mask_task is not None and self.mask_task not in self.tasks.values():
                runners[""] = TaskRunner(self.mask_task, self.options, pool)
            waiting: deque[_Entry] = deque()
            most = WAITING * self.options.batch_size
            for group in self._groups(pictures):
                waiting += self._enter(group, runners)
                for runner in runners.values():
                    while len(runner) >= self.options.batch_size:
                        runner.run()
                while len(waiting) > most and not waiting[0].done:
                    self._hurry(waiting[0], runners)
                while waiting and waiting[0].done:
                    yield self._leave(waiting.popleft())
            while waiting:
                if not waiting[0].done:
                    self._hurry(waiting[0], runners)
                while waiting and waiting[0].done:
                    yield self._leave(waiting.popleft())

    def _groups(self, pictures: Iterable[Picture]) -> Iterator[list[Picture]]:
        """Yield pictures one by one, or a few together where people are looked for in them."""
        size = min(self.options.batch_size, 4) if self.boxes is not None else 1
        group: list[Picture] = []
        for picture in pictures:
            group.append(picture)
            if len(group) == size:
                yield group
                group = []
        if group:
            yield group

    def _enter(self, group: list[Picture], runners: dict[str, TaskRunner]) -> list[_Entry]:
        people = self._people([picture for picture in group if picture.error is None])
        entries = []
        for picture in group:
            entry = _Entry(Result(picture, people=people.get(picture.name)))
            entries.append(entry)
            if picture.error is None and self.masks is not None:
                try:
                    entry.result.mask = self.masks(picture)
                except UserError as error:
                    picture.error = str(error)
            if picture.error is not None:
                continue
            for name, runner in runners.items():
                boxes = entry.result.people.boxes if runner.task.takes_boxes else None
                entry.jobs[name] = runner.push(picture.image, boxes)
        return entries

    def _people(self, group: list[Picture]) -> dict[str, People]:
        """Return the people of pictures by the pictures' names; what is wrong becomes the picture's error."""
        if self.boxes is None or not group:
            return {}
        try:
            found = self.boxes([picture.source for picture in group], [picture.image for picture in group])
        except UserError as error:
            if len(group) > 1:
                return {name: people for picture in group for name, people in self._people([picture]).items()}
            group[0].error = str(error)
            return {}
        return {picture.name: people for picture, people in zip(group, found)}

    def _settle(self, task: Task, result: Result, prediction: np.ndarray) -> tuple[People, np.ndarray]:
        """Leave out people that were found twice, and number those of a video, whose frames come here in order."""
        people, frame = result.people, result.picture.frame
        if getattr(self.boxes, "detects", False):
            rows = task.distinct(prediction, people.scores)
            people, prediction = people.take(rows), prediction[rows]
        if frame is not None and not isinstance(self.boxes, WholePicture):
            if frame.video != self._video or frame.index == 0:
                self._video, self._tracker = frame.video, Tracker()
            people = self._tracker.update(people)
        return people, prediction

    @staticmethod
    def _hurry(entry: _Entry, runners: dict[str, TaskRunner]) -> None:
        """Run what a picture waits for, full batch or not."""
        for name, job in entry.jobs.items():
            while not job.done:
                runners[name].run()

    def _leave(self, entry: _Entry) -> Result:
        result = entry.result
        errors = [job.error for job in entry.jobs.values() if job.error is not None]
        if errors:
            result.picture.error = errors[0]
            return result
        results = {name: job.result for name, job in entry.jobs.items()}
        if self.mask_task is not None and results:
            result.mask = results.pop("", results.get(self.mask_task.name)) > 0
        for name, prediction in results.items():
            task = self.tasks[name]
            if task.takes_boxes:
                result.people, prediction = self._settle(task, result, prediction)
            masked = result.mask is not None and task.takes_mask
            result.predictions[name] = task.apply_mask(prediction, result.mask) if masked else prediction
        return result


def predict_images(
    task: Task,
    images: Sequence[Any],
    batch_size: int,
    flip: bool | None,
    scales: Sequence[float],
    tile: tuple[int, int] | Literal["auto"] | None,
    masks: Sequence[np.ndarray | None] | None,
    boxes: Sequence[np.ndarray | None] | None,
) -> list[Any]:
    """See ``Task.predict``."""
    _check_tile(tile)
    given_pictures = [found for image in images for found in _meant(image)]
    for what, given in (("masks", masks), ("boxes", boxes)):
        if given is not None and any(getattr(picture, "is_video", False) for picture in given_pictures):
            raise ValueError(f"{what} are given a picture; of a video give the frames, or use the command predict")
        if given is not None and len(given) != len(given_pictures):
            raise ValueError(
                f"{len(given_pictures)} pictures, but {len(given)} {what}: give one of each, or None, a picture"
            )
    if boxes is not None and not task.takes_boxes:
        raise ValueError(f"boxes are for poses; {task.name} takes the whole picture")
    if masks is not None and not task.takes_mask:
        raise ValueError(f"masks change normals, pointmaps and albedo; {task.name} takes none")
    task.eval()

    def read() -> Iterator[Picture]:
        for index, image in enumerate(_read(given_pictures, ahead=batch_size)):
            yield Picture(str(index), str(index), image)

    def find_people(names: Sequence[str], pictures: Sequence[np.ndarray]) -> list[People]:
        return [_given_people(name, boxes[int(name)], picture) for name, picture in zip(names, pictures)]

    def find_mask(picture: Picture) -> np.ndarray | None:
        mask = masks[int(picture.name)]
        if mask is not None and (mask.dtype != bool or mask.shape != picture.image.shape[:2]):
            raise ValueError(
                f"mask {picture.name}: it must be bool {picture.image.shape[:2]}, got {mask.dtype} {mask.shape}"
            )
        return mask

    predictor = Predictor(
        [task],
        PredictOptions(batch_size, flip, tuple(scales), tile),
        boxes=None if boxes is None else find_people,
        masks=None if masks is None else find_mask,
    )
    results = []
    for result in predictor(read()):
        if result.picture.error is not None:
            raise ValueError(f"picture {result.picture.name}: {result.picture.error}")
        results.append(result.predictions[task.name])
    return results


def _check_tile(tile: Any) -> None:
    pair = isinstance(tile, Sequence) and not isinstance(tile, str) and len(tile) == 2
    if tile not in (None, "auto") and not (pair and all(isinstance(side, int | np.integer) for side in tile)):
        raise ValueError(f"tile={tile!r}: give (height, width) in pixels, 'auto' or None")


def _meant(image: Any) -> Sequence[Any]:
    """Return what one of the given ``images`` means: the sources of a name, else the picture itself."""
    from s2kit.inference.inputs import find_sources

    if not isinstance(image, str | Path):
        return [image]
    try:
        return find_sources([str(image)])
    except UserError as error:
        raise ImageError(image, str(error)) from None


def _read(pictures: Sequence[Any], ahead: int) -> Iterator[np.ndarray]:
    """Yield the pictures (H, W, 3) of arrays, PIL's pictures and sources, which are read ahead of their turn."""
    from s2kit.inference.inputs import Source, read_sources

    index = 0
    for named, group in groupby(pictures, lambda picture: isinstance(picture, Source)):
        if named:
            for picture in read_sources(group, ahead):
                if picture.error is not None:
                    raise ImageError(picture.source, picture.error)
                yield picture.image
                index += 1
            continue
        for image in group:
            yield _array(image, index)
            index += 1


def _array(image: Any, index: int) -> np.ndarray:
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    array = np.ascontiguousarray(image)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise ValueError(
            f"picture {index}: it must be uint8 (H, W, 3) RGB, one of PIL's, or a path; got {array.dtype} {array.shape}"
        )
    return array


def _given_people(name: str, boxes: np.ndarray | None, picture: np.ndarray) -> People:
    if boxes is None:
        return WholePicture()([name], [picture])[0]
    found = np.asarray(boxes, np.float32)
    if found.size == 0:
        return make_people([])
    if found.ndim != 2 or found.shape[1] not in (4, 5):
        raise ValueError(f"boxes of picture {name}: must be (N, 4) x0, y0, x1, y1, got {found.shape}")
    people = make_people(found[:, :4], found[:, 4] if found.shape[1] == 5 else None)
    if in_picture(people, picture.shape[:2]).number < people.number:
        box = next(box for box in people.boxes if not in_picture(make_people(box), picture.shape[:2]).number)
        raise ValueError(f"boxes of picture {name}: {box.tolist()} (x0, y0, x1, y1) shows nothing of the picture")
    return people
