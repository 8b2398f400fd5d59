"""What a user gives as input: pictures and videos by file, folder, pattern, list or address, read ahead in order."""

from __future__ import annotations

import os
import queue
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlsplit

from data_modules.images import EXTENSIONS, ImageError, list_images, listed, output_stems, read_image
from s2kit.errors import UserError
from s2kit.inference import video
from s2kit.inference.fetching import fetch, fetch_to, is_url
from s2kit.inference.predictor import Frame, Picture

if TYPE_CHECKING:
    from s2kit.inference.output_folder import OutputFolder

T = TypeVar("T")
_THREADS = max(1, min(8, os.cpu_count() or 1))


@dataclass(frozen=True)
class Source:
    """A picture or a video.

    Attributes:
        where: Path or URL.
        name: What its outputs are called, different for all sources.
        is_video: Whether it is a video.
    """

    where: str
    name: str
    is_video: bool

    def stamp(self) -> list[int] | None:
        """Return size and time of change of a local file, to tell whether it is still the same; None if unknown."""
        try:
            found = os.stat(self.where)
        except OSError:
            return None
        return [found.st_size, found.st_mtime_ns]


def find_sources(inputs: Sequence[str], taken: Iterable[str] = (), endings: Iterable[str] = ()) -> list[Source]:
    """Return the pictures and videos that ``inputs`` mean, in their order, without opening them.

    Args:
        inputs: Files, folders, glob patterns, lists (``.txt``, a file or address a line) and http(s) addresses.
        taken: Names that no source may have.
        endings: What is added to names: of ``a`` and ``a_panel`` no two files have the same name.

    Raises:
        UserError: If one of them means nothing.
    """
    found: list[str] = []
    for given in inputs:
        found += _expand(given)
    files = [_path_of(where) for where in found]
    names = _apart(output_stems(files), taken, endings)
    return [Source(where, name, video.is_video(file)) for where, name, file in zip(found, names, files)]


def name_in_folder(
    sources: Sequence[Source], folder: OutputFolder, taken: Iterable[str] = (), endings: Iterable[str] = ()
) -> list[Source]:
    """Return the sources with the names they had in a folder; a new one whose name is another's there gets a free one.

    Args:
        sources: Of ``find_sources``.
        folder: Where their outputs go.
        taken, endings: See ``find_sources``.
    """
    left = {source.where: iter(folder.names_of(source.where)) for source in sources}
    kept = [next(left[source.where], None) for source in sources]
    endings = ("", *endings)
    held = [f"{name}{ending}" for name in folder.names() for ending in endings]
    new = [source.name for source, name in zip(sources, kept) if name is None]
    free = iter(_apart(new, [*taken, *held], endings[1:]))
    return [replace(source, name=name or next(free)) for source, name in zip(sources, kept)]


def _expand(given: str) -> list[str]:
    if is_url(given):
        return [given]
    try:
        if Path(given).suffix.lower() == ".txt" and Path(given).is_file():
            folder = Path(given).parent
            return [name if is_url(name) else str(folder / Path(name).expanduser()) for name in listed(Path(given))]
        return [str(path) for path in list_images(given, (*EXTENSIONS, *video.EXTENSIONS), "pictures or videos")]
    except FileNotFoundError as error:
        raise UserError(str(error)) from None


def _path_of(where: str) -> Path:
    if not is_url(where):
        return Path(where)
    address = urlsplit(where)
    return Path(address.hostname or "web") / Path(unquote(address.path).lstrip("/") or "index")


def _apart(names: Sequence[str], taken: Iterable[str], endings: Iterable[str]) -> list[str]:
    """Return the names, numbered where one with an ending is another's."""
    endings = ("", *endings)
    used = Counter(f"{name}{ending}".casefold() for name in names for ending in endings)
    used.update(name.casefold() for name in taken)
    apart = []
    for name in names:
        number, free = 1, name
        while any(used[f"{free}{ending}".casefold()] > (number == 1) for ending in endings):
            number += 1
            free = f"{name}_{number}"
        if number > 1:
            used.update(f"{free}{ending}".casefold() for ending in endings)
            used.subtract(f"{name}{ending}".casefold() for ending in endings)
        apart.append(free)
    return apart


def read_picture(source: Source) -> Picture:
    """Read a picture from a file or the web; what is wrong with it goes into its ``error``."""
    try:
        where = source.where
        image = read_image(fetch(where), name=where) if is_url(where) else read_image(where)
        return Picture(source.name, where, image)
    except ImageError as error:
        return Picture(source.name, source.where, error=error.reason)


def in_order(jobs: Iterable[Callable[[], T]], pool: ThreadPoolExecutor, ahead: int) -> Iterator[T]:
    """Yield the results of jobs in their order, of which ``ahead`` are begun before they are asked for."""
    pending: deque[Future[T]] = deque()
    try:
        for job in jobs:
            pending.append(pool.submit(job))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def frames_of(source: Source) -> Iterator[Picture]:
    """Yield the frames of a video; its last one says so. What is wrong comes as a last picture with an ``error``."""
    held: Picture | None = None
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(source.where)
            if is_url(source.where):
                path = Path(folder) / f"video{_path_of(source.where).suffix}"
                fetch_to(source.where, path)
            with video.VideoReader(path) as reader:
                for index, seconds, image in reader:
                    if held is not None:
                        yield held
                    frame = Frame(source.name, index, seconds, reader.fps)
                    held = Picture(f"{source.name}/{index:06d}", f"{source.where}/{index:06d}", image, frame=frame)
    except ImageError as error:
        if held is not None:
            yield held
        frame = Frame(source.name, -1, 0.0, Fraction(25), last=True)
        yield Picture(source.name, source.where, error=error.reason, frame=frame)
        return
    if held is not None:
        yield replace(held, frame=held.frame._replace(last=True))


def read_sources(sources: Iterable[Source], ahead: int) -> Iterator[Picture]:
    """Yield the pictures and the frames of ``sources`` in order; up to ``ahead`` of them are read before their turn."""
    with ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="s2kit-read") as pool:
        yield from in_order(_jobs(sources, ahead), pool, ahead)


def _jobs(sources: Iterable[Source], ahead: int) -> Iterator[Callable[[], Picture]]:
    for source in sources:
        if not source.is_video:
            yield partial(read_picture, source)
            continue
        with closing(in_background(frames_of(source), ahead)) as frames:
            for picture in frames:
                yield partial(_same, picture)


def _same(picture: Picture) -> Picture:
    return picture


def in_background(items: Iterator[T], ahead: int) -> Iterator[T]:
    """Yield ``items``, which a thread of its own makes, up to ``ahead`` before their turn."""
    ready: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(maxsize=max(1, ahead))
    stopped = threading.Event()

    def put(entry: tuple[bool, T | BaseException | None]) -> bool:
        while not stopped.is_set():
            try:
                ready.put(entry, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((True, item)):
                    return
            put((False, None))
        except BaseException as error:  # handed over to who asked
            put((False, error))
        finally:
            items.close()

    thread = threading.Thread(target=work, name="s2kit-frames", daemon=True)
    thread.start()
    try:
        while True:
            going_on, item = ready.get()
            if not going_on:
                if item is not None:
                    raise item
                return
            yield item
    finally:
        stopped.set()
        thread.join()
