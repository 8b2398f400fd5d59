"""Results as files: raw, drawn, side by side, on sheets, as videos."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from s2kit.inference import dense_drawing
from s2kit.inference.drawing import write_image
from s2kit.inference.output_folder import OutputFolder
from s2kit.inference.predictor import Frame, Result
from s2kit.inference.sheets import over_picture, panel, sheet
from s2kit.inference.video import VideoWriter

if TYPE_CHECKING:
    from s2kit.inference.inputs import Source
    from s2kit.tasks.base import Task

#: What ``ResultOptions.draw`` may hold.
DRAWINGS = ("overlay", "panel")
#: What names of files add to a picture's name, beside the suffix.
ENDINGS = ("_panel", "_labels", "_cutout")
#: Folder of the sheets, and COCO's keypoint results among the poses.
SHEETS, COCO = "sheets", "predictions"
#: Pixels of pictures whose results wait to be written, at most (or one picture): each takes tens of bytes a pixel.
PIXELS = 50_000_000


@dataclass(frozen=True)
class ResultOptions:
    """What is written.

    Attributes:
        raw: Whether raw results are written; None: of pictures, and of videos the poses alone, for the others take
            tens of megabytes a frame.
        draw: Some of ``DRAWINGS``.
        sheet: Whether all tasks are drawn on one sheet.
    """

    raw: bool | None = None
    draw: tuple[str, ...] = ("overlay",)
    sheet: bool = False

    def raw_of(self, task: Task, frame: Frame | None) -> bool:
        """Tell whether a task's raw result is written."""
        return self.raw if self.raw is not None else frame is None or task.takes_boxes


class ResultWriter:
    """Writes results by a few threads, in the results' order where it matters (videos).

    Args:
        folder: Where to.
        tasks: By name.
        options: What to write.
        sources: By name: what is noted as done.
    """

    def __init__(
        self, folder: OutputFolder, tasks: dict[str, Task], options: ResultOptions, sources: dict[str, Source]
    ) -> None:
        self.folder, self.tasks, self.options, self.sources = folder, tasks, options, sources
        self.written = 0
        #: (source, reason) of what could not be read or predicted.
        self.failed: list[tuple[str, str]] = []
        self._threads = max(1, min(8, os.cpu_count() or 1))
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="s2kit-write")
        self._pending: deque[tuple[Result, Future[tuple[dict[str, np.ndarray], set[str]]], int]] = deque()
        self._videos: dict[str, VideoWriter] = {}
        self._video_files: set[str] = set()
        self._frame_errors: list[tuple[str, str]] = []

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self._pool.shutdown(cancel_futures=True)
            for writer in self._videos.values():
                writer.discard()

    def put(self, result: Result) -> None:
        """Take a result; returns before it is written, but not far before."""
        pixels = 0 if result.picture.image is None else result.picture.image.size // 3
        self._pending.append((result, self._pool.submit(self._write, result), pixels))
        while len(self._pending) > 2 * self._threads or (self._pixels() > PIXELS and len(self._pending) > 1):
            self._settle()

    def _pixels(self) -> int:
        return sum(pixels for *_, pixels in self._pending)

    def finish(self) -> None:
        """Wait until everything is written."""
        while self._pending:
            self._settle()

    def _settle(self) -> None:
        result, future, _ = self._pending.popleft()
        drawn, files = future.result()
        picture = result.picture
        if picture.error is not None:
            failed = self.failed if picture.frame is None else self._frame_errors
            failed.append((picture.source, picture.error))
        if picture.frame is not None:
            # Of the files of frames, of which there may be thousands, the folders are noted.
            self._video_files.update(os.path.dirname(file) for file in files)
            self._add_frame(picture.frame, drawn)
        elif picture.error is None:
            self._note(picture.name, files)

    def _note(self, name: str, files: set[str]) -> None:
        source = self.sources[name]
        self.folder.note(source.where, name, source.stamp(), files)
        self.written += 1

    # ---------------------------------------------------------------------------------------------------- one picture

    def _write(self, result: Result) -> tuple[dict[str, np.ndarray], set[str]]:
        """Write the files of a result.

        Returns:
            The drawings of a video's frame, by relative path without suffix, and the relative paths of the files.
        """
        picture = result.picture
        if picture.error is not None:
            return {}, set()
        drawings = self._draw(result)
        with self.folder.stage() as stage:
            for name, task in self.tasks.items():
                if self.options.raw_of(task, picture.frame):
                    stem = stage / name / picture.name
                    stem.parent.mkdir(parents=True, exist_ok=True)
                    task.write(stem, result.predictions[name], picture.image, result)
            if picture.frame is None:
                for place, drawing in drawings.items():
                    write_image(stage / f"{place}.png", drawing)
            files = {file.relative_to(stage).as_posix() for file in stage.rglob("*") if file.is_file()}
        picture.image, result.predictions, result.mask = None, {}, None
        return drawings if picture.frame is not None else {}, files

    def _draw(self, result: Result) -> dict[str, np.ndarray]:
        picture, mask = result.picture, result.mask
        name = picture.name if picture.frame is None else picture.frame.video
        drawings: dict[str, np.ndarray] = {}
        views: list[dict[str, np.ndarray]] = []
        for task_name, task in self.tasks.items():
            prediction = result.predictions[task_name]
            if "overlay" in self.options.draw:
                drawn = task.draw(prediction, picture.image, result)
                drawings[f"{task_name}/{name}"] = over_picture(drawn, picture.image, mask if task.takes_mask else None)
            if "panel" in self.options.draw or self.options.sheet:
                shown = task.views(prediction, picture.image, result)
                relit = _relit(result) if task_name == "albedo" else {}
                # On a sheet the first view of each is sure to have a cell.
                views += [shown, relit] if relit else [shown]
            if "panel" in self.options.draw:
                drawings[f"{task_name}/{name}_panel"] = panel(picture.image, {**shown, **relit})
        if self.options.sheet:
            drawings[f"{SHEETS}/{name}"] = sheet(picture.image, views)
        return drawings

    # --------------------------------------------------------------------------------------------------------- videos

    def _add_frame(self, frame: Frame, drawings: dict[str, np.ndarray]) -> None:
        for place, drawing in drawings.items():
            if place not in self._videos:
                path = self.folder.path / f"{place}.mp4"
                self._videos[place] = VideoWriter(path, frame.fps, drawing.shape[:2])
            self._videos[place].write(drawing, frame.seconds)
        if not frame.last:
            return
        for place, writer in self._videos.items():
            writer.close()
            self._video_files.add(f"{place}.mp4")
        if not self._frame_errors:
            self._note(frame.video, self._video_files)
        elif len(self._frame_errors) == 1:
            self.failed += self._frame_errors
        else:
            # One line a video, which may have thousands of frames; the last error is that of the file, if it has one.
            where, reason = self.sources[frame.video].where, self._frame_errors[0][1]
            self.failed.append((where, f"{len(self._frame_errors)} errors in its frames, the first: {reason}"))
            if self._frame_errors[-1][0] == where:
                self.failed.append(self._frame_errors[-1])
        self._videos.clear()
        self._video_files, self._frame_errors = set(), []


def _relit(result: Result) -> dict[str, np.ndarray]:
    """Draw albedo and normals together under other light, by title; nothing unless both were predicted."""
    if not {"albedo", "normals"} <= result.predictions.keys():
        return {}
    albedo, normals = result.predictions["albedo"], result.predictions["normals"]
    drawn = dense_drawing.draw_relit(albedo, normals, normals.any(axis=-1))
    return {f"re{title}": picture for title, picture in drawn.items()}


def raw_files(folder: Path, names: Iterable[str], suffix: str) -> Iterator[Path]:
    """Yield the raw files of one task that are there, in the order of the names; of a video's frames in theirs."""
    for name in names:
        if (folder / f"{name}{suffix}").is_file():
            yield folder / f"{name}{suffix}"
        else:
            yield from sorted((folder / name).glob(f"*{suffix}"))
