"""Videos in and out, by PyAV (extra ``video``): upright RGB pictures with their times, and H.264 that browsers play."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from data_modules.images import ImageError

#: Extensions, in any case, of what is taken for a video.
EXTENSIONS = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".m2ts", ".mts", ".ts"),
    *(".wmv", ".flv", ".3gp", ".ogv"),
)
#: Encoders by falling preference; the wheels of PyAV hold the first one. Not every player plays the last two.
ENCODERS = ("libx264", "libopenh264", "libvpx-vp9", "mpeg4")
#: Constant quality of libx264 (smaller is better): text and thin lines stay sharp.
QUALITY = "18"
#: Ticks a second of a written video's clock, at least.
_TICKS = 12_000
#: Seconds, and share of the stated length, by which a video may end early without being taken for cut off.
_MAY_LACK = (1.0, 0.02)
#: Codes of BT.709 and of the limited range in FFmpeg's (and ITU-T H.273's) tables.
_BT709, _LIMITED = 1, 1


class VideoError(ImageError):
    """A video cannot be read or written; ``path`` and ``reason`` as an ``ImageError`` has them."""


def is_video(path: str | Path) -> bool:
    """Tell by the extension whether a file is a video."""
    return Path(path).suffix.lower() in EXTENSIONS


def _pyav(path: str | Path) -> Any:
    try:
        import av
    except ImportError:
        raise VideoError(path, "videos need PyAV: pip install 's2kit[video]'") from None
    return av


class VideoReader:
    """The pictures of a video as a player shows them, one at a time.

    Rotation and mirroring that the file asks for are applied, pixels that are not square are made so, and times are
    those of the file, so that a variable frame rate is kept. High dynamic range is not mapped to the standard one.

    Args:
        path: The file.

    Attributes:
        size: (height, width) of the pictures.
        fps: Mean number of pictures a second.
        frames: About how many there are, as the file says; None if it does not.

    Raises:
        VideoError: If PyAV is missing, or the file is missing, empty, no video, or its first picture cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._av = _pyav(path)
        self._open: list[Any] = []
        with self._container() as container:
            stream = self._stream(container)
            self.fps = Fraction(stream.average_rate or stream.guessed_rate or 25)
            self.frames: int | None = stream.frames or None
            if self.frames is None and container.duration:
                self.frames = max(1, round(container.duration / self._av.time_base * self.fps))
            first = next((frames[0] for _, frames, _ in self._packets(container, stream) if frames), None)
            if first is None:
                raise VideoError(path, "it has no picture that can be decoded")
            # Pixels that are not square: as wide as they are shown.
            ratio = stream.sample_aspect_ratio
            width = max(1, round(first.width * ratio)) if ratio else first.width
            self._stored = (first.height, width)
            # Asked of the first picture only: one that was asked is not freed before the garbage collection.
            self._axes = _display_matrix(first)
            turned = abs(self._axes[0, 0]) < abs(self._axes[1, 0])
            self.size = (width, first.height) if turned else (first.height, width)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        for container in self._open:
            container.close()
        self._open.clear()

    def __iter__(self) -> Iterator[tuple[int, float, np.ndarray]]:
        """Yield the number from 0, the seconds since the first picture, and the picture, uint8 (H, W, 3) RGB.

        Raises:
            VideoError: After the last picture that can be read, if parts of the file are damaged or its end is missing.
        """
        container = self._container()
        self._open.append(container)
        try:
            yield from self._pictures(container)
        finally:
            container.close()
            if container in self._open:
                self._open.remove(container)

    def _pictures(self, container: Any) -> Iterator[tuple[int, float, np.ndarray]]:
        stream = self._stream(container)
        damage, end, index, start, seconds = "", 0.0, 0, None, 0.0
        for until, frames, error in self._packets(container, stream):
            end = max(end, until)
            if error is not None:
                damage = damage or f"damaged after {index} pictures ({seconds:.2f} s): {_words(error)}"
            for frame in frames:
                time = float(frame.time) if frame.time is not None else None
                start = time if start is None else start
                seconds = float(index / self.fps) if time is None or start is None else time - start
                yield index, seconds, self._upright(frame)
                index += 1
        if not damage and container.duration:
            stated = (container.duration + max(0, container.start_time or 0)) / self._av.time_base
            if stated - end > max(_MAY_LACK[0], _MAY_LACK[1] * stated):
                damage = f"cut off after {index} pictures: {stated - end:.1f} of {stated:.1f} s are missing"
        if damage:
            raise VideoError(self.path, damage)

    def _packets(self, container: Any, stream: Any) -> Iterator[tuple[float, Sequence[Any], Exception | None]]:
        """Yield for each packet of the file the second that it ends at, its pictures, and what is wrong with it."""
        # The decoder stays in the mode that works on one picture at a time: with several, errors get lost.
        packets = container.demux()
        while True:
            until, frames, wrong = 0.0, (), None
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                if packet.pts is not None:
                    until = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                if packet.stream is stream:
                    frames = packet.decode()
            except self._av.FFmpegError as error:
                wrong = error
            yield until, frames, wrong

    def _upright(self, frame: Any) -> np.ndarray:
        height, width = self._stored
        picture = frame.to_ndarray(format="rgb24", width=width, height=height)
        (a, b), (c, d) = self._axes
        if abs(a) < abs(c):
            picture, a, d = picture.transpose(1, 0, 2), c, b
        return np.ascontiguousarray(picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])

    def _container(self) -> Any:
        if self.path.is_file() and not self.path.stat().st_size:
            raise VideoError(self.path, "the file is empty")
        try:
            return self._av.open(str(self.path))
        except self._av.error.InvalidDataError as error:
            raise VideoError(self.path, f"it is no video that can be read, or cut off: {_words(error)}") from None
        except (self._av.FFmpegError, OSError) as error:
            raise VideoError(self.path, _words(error)) from None

    def _stream(self, container: Any) -> Any:
        # The best one: the first may be a cover.
        stream = container.streams.best("video")
        if stream is None:
            raise VideoError(self.path, "it has no video track")
        return stream


def _words(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return text[:1].lower() + text[1:]


def _display_matrix(frame: Any) -> np.ndarray:
    """(2, 2) of a frame: where its x axis goes and where its y axis goes, as FFmpeg's display.h has it."""
    data = frame.side_data.get("DISPLAYMATRIX")
    return np.eye(2, dtype=np.int64) if data is None else np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2]


class VideoWriter:
    """An MP4 file of H.264 (4:2:0, BT.709, index at the front), written whole or not at all.

    A side of an odd number of pixels, which the format cannot have, is made longer by one: its last pixels are
    repeated. Without a single picture no file is written.

    Args:
        path: The file.
        fps: Pictures a second.
        size: (height, width) of the pictures.

    Raises:
        VideoError: If PyAV is missing, it has no encoder, or the file cannot be written.
    """

    def __init__(self, path: str | Path, fps: Fraction | float, size: tuple[int, int]) -> None:
        self.path, self.size = Path(path), (int(size[0]), int(size[1]))
        self._av = _pyav(path)
        self.fps = Fraction(fps).limit_denominator(1_000_000)
        if self.fps <= 0 or min(self.size) < 1:
            raise VideoError(path, f"it cannot have {float(self.fps):g} pictures a second of {size} pixels")
        self._tick = Fraction(1, self.fps.numerator * -(-_TICKS // self.fps.numerator))
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self._container: Any = None
        self._stream: Any = None
        self._last, self.written = -1, 0

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def write(self, picture: np.ndarray, seconds: float | None = None) -> None:
        """Add a picture.

        Args:
            picture: uint8 (H, W, 3) RGB of the video's size.
            seconds: When it is shown; by default ``1 / fps`` after another. A time that is not after the last
                picture's becomes one tick (at most 1/12000 s) after it.

        Raises:
            ValueError: If the picture has another size or type.
            VideoError: If it cannot be written.
        """
        if picture.shape != (*self.size, 3) or picture.dtype != np.uint8:
            raise ValueError(f"a picture is {picture.dtype} {picture.shape}, expected uint8 {(*self.size, 3)}")
        if self.size[0] % 2 or self.size[1] % 2:
            picture = np.pad(picture, (*((0, side % 2) for side in self.size), (0, 0)), mode="edge")
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED)
        tick = round((self.written / self.fps if seconds is None else Fraction(seconds)) / self._tick)
        frame.pts = self._last = max(self._last + 1, tick)
        frame.time_base = self._tick
        self._encode(frame)
        self.written += 1

    def close(self) -> None:
        """Finish the file and put it in its place."""
        if self._container is None:
            return
        self._encode(None)
        self._container.close()
        self._container = None
        os.replace(self._temporary, self.path)

    def discard(self) -> None:
        """Leave no file."""
        if self._container is not None:
            self._container.close()
            self._container = None
            self._temporary.unlink(missing_ok=True)

    def _encode(self, frame: Any) -> None:
        try:
            if self._container is None:
                self._start()
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
        except (self._av.FFmpegError, OSError) as error:
            self.discard()
            raise VideoError(self.path, f"it cannot be written: {_words(error)}") from None

    def _start(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        name = _encoder(self._av, self.path)
        self._container = self._av.open(str(self._temporary), "w", format="mp4", options={"movflags": "+faststart"})
        self._stream = self._container.add_stream(name, rate=self.fps)
        self._stream.height, self._stream.width = (side + side % 2 for side in self.size)
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED
        context.time_base = self._stream.time_base = self._tick
        if name == "libx264":
            self._stream.options = {"crf": QUALITY, "preset": "veryfast"}
        else:
            area = self.size[0] * self.size[1]
            self._stream.bit_rate = int(area * float(self.fps) * 0.2)


def _encoder(av: Any, path: Path) -> str:
    """Return the first of ``ENCODERS`` that this PyAV has, with a warning if it makes no H.264."""
    for name in ENCODERS:
        if name in av.codecs_available:
            if "264" not in name:
                line = f"{path}: PyAV has no H.264 encoder here; {name} is taken, which not every player plays"
                warnings.warn(line, stacklevel=2)
            return name
    raise VideoError(path, f"PyAV has none of the encoders {', '.join(ENCODERS)}: install its wheel, pip install av")
