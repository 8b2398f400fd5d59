"""Curves of a sweep's runs as one picture.

Drawn with Pillow, which is a dependency anyway and brings a font; Matplotlib would be one more for this picture alone.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from s2kit.sweeps.config import Curve, Sweep
from s2kit.sweeps.report import group_name

#: Okabe and Ito's colours, told apart by colour-blind eyes as well.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A00")
#: Size of a chart in pixels, room for its numbers, and how much larger everything is drawn before it is shrunk.
CHART, ROOM, SCALE = (460, 300), (64, 12, 34, 40), 3
POINTS = 200

Series = tuple[np.ndarray, np.ndarray]


def read_series(path: Path, x: str, y: str) -> Series:
    """Return two columns of the CSV that a run writes, where both have numbers, by rising x.

    A run that was gone on with has its earlier parts in ``metrics_until_N.csv`` beside it; where they overlap, the
    later part counts.
    """
    parts = sorted(path.parent.glob(f"{path.stem}_until_*{path.suffix}"), key=lambda part: (len(part.name), part.name))
    points: dict[float, float] = {}
    for part in [*parts, *([path] if path.is_file() else [])]:
        with open(part, newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get(x) and row.get(y)]
        if rows:
            start = float(rows[0][x])
            points = {key: value for key, value in points.items() if key < start}
        points |= {float(row[x]): float(row[y]) for row in rows}
    pairs = sorted((key, value) for key, value in points.items() if math.isfinite(value))
    return np.array([key for key, _ in pairs]), np.array([value for _, value in pairs])


def gather(sweep: Sweep, curve: Curve, scale: dict[str, float] | None = None) -> dict[str, list[Series]]:
    """Return the series of a curve: row -> one for each trial that has any.

    Args:
        sweep: Whose trials.
        curve: What of them.
        scale: Factors on x by the name of a trial.
    """
    found: dict[str, list[Series]] = {}
    for trial in sweep.trials():
        x, y = read_series(trial.path(curve.file), curve.x, curve.y)
        series = found.setdefault(group_name(sweep, trial.point), [])
        if len(x) > 1:
            series.append((x * (scale or {}).get(trial.name, 1.0), y))
    return found


def band(series: Sequence[Series]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return x and the mean, least and largest y of several series over the range that all of them cover."""
    start, stop = max(x[0] for x, _ in series), min(x[-1] for x, _ in series)
    grid = np.linspace(start, stop, POINTS)
    values = np.stack([np.interp(grid, x, y) for x, y in series])
    return grid, values.mean(axis=0), values.min(axis=0), values.max(axis=0)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about ``count`` round numbers from ``low`` to ``high``."""
    if not high > low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / count))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= count + 1)
    return [step * number for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten between two numbers above 0."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [tick for power in powers for tick in (10.0**power * f for f in (1, 2, 5)) if low <= tick <= high]


def draw_curves(sweep: Sweep, scale: dict[str, float] | None = None, x_title: str | None = None) -> Image.Image | None:
    """Draw the curves of a sweep, one chart each, lines for the rows and bands from the least to the largest.

    Args:
        sweep: Whose trials.
        scale: Factors on x by the name of a trial, such as the FLOPs of a step.
        x_title: What x is; by default the column's name.

    Returns:
        The picture; None if no trial has anything to draw.
    """
    charts = [(curve, gather(sweep, curve, scale)) for curve in sweep.curves]
    charts = [(curve, rows) for curve, rows in charts if any(rows.values())]
    if not charts:
        return None
    names = list(charts[0][1])
    columns = min(len(charts), 2)
    height = ROOM[1] + ROOM[3] + CHART[1] + 20
    width = ROOM[0] + ROOM[2] + CHART[0]
    legend = 14 + 22 * math.ceil(len(names) / 4)
    canvas = Image.new(
        "RGB", (columns * width * SCALE, (-(-len(charts) // columns) * height + legend) * SCALE), "white"
    )
    pen = ImageDraw.Draw(canvas, "RGBA")
    for number, (curve, rows) in enumerate(charts):
        corner = (number % columns * width, number // columns * height)
        _chart(
            pen,
            corner,
            curve,
            {name: (COLOURS[names.index(name) % len(COLOURS)], rows[name]) for name in rows},
            x_title,
        )
    for number, name in enumerate(names):
        x = 20 + number % 4 * (columns * width - 40) // 4
        y = canvas.height // SCALE - legend + 6 + number // 4 * 22
        _line(pen, [(x, y + 8), (x + 26, y + 8)], COLOURS[number % len(COLOURS)])
        _text(pen, (x + 32, y), name)
    return canvas.resize((canvas.width // SCALE, canvas.height // SCALE), Image.Resampling.LANCZOS)


def _chart(
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    curve: Curve,
    rows: dict[str, tuple[str, list[Series]]],
    x_title: str | None,
) -> None:
    bands = {name: (colour, band(series)) for name, (colour, series) in rows.items() if series}
    change = np.log10 if curve.log else np.asarray
    every_x = np.concatenate([part[0] for _, part in bands.values()])
    every_y = np.concatenate([values for _, part in bands.values() for values in part[2:]])
    if curve.log:
        every_y = every_y[every_y > 0]
    low_x, high_x = float(every_x.min()), float(every_x.max())
    low, high = (float(change(value)) for value in (every_y.min(), every_y.max()))
    pad = 0.05 * (high - low) or 0.05
    low, high = low - pad, high + pad
    left, top = corner[0] + ROOM[0], corner[1] + ROOM[1] + 20

    def place(x: np.ndarray, y: np.ndarray) -> list[tuple[float, float]]:
        across = left + (np.asarray(x) - low_x) / max(high_x - low_x, 1e-12) * CHART[0]
        down = top + (high - change(np.maximum(y, 1e-12) if curve.log else y)) / (high - low) * CHART[1]
        return list(zip(np.broadcast_to(across, np.shape(down)).tolist(), np.ravel(down).tolist()))

    for tick in ticks(low_x, high_x):
        x = left + (tick - low_x) / max(high_x - low_x, 1e-12) * CHART[0]
        _line(pen, [(x, top), (x, top + CHART[1])], "#E6E6E6", 1)
        _text(pen, (x, top + CHART[1] + 5), f"{tick:g}", "ma")
    for tick in log_ticks(10**low, 10**high) if curve.log else ticks(low, high):
        (_, y) = place(np.array([low_x]), np.array([tick]))[0]
        _line(pen, [(left, y), (left + CHART[0], y)], "#E6E6E6", 1)
        _text(pen, (left - 6, y), f"{tick:g}", "rm")
    for colour, (x, mean, least, most) in bands.values():
        outline = place(x, least) + place(x, most)[::-1]
        pen.polygon([(a * SCALE, b * SCALE) for a, b in outline], fill=f"{colour}28")
        _line(pen, place(x, mean), colour)
    frame = [
        (left, top),
        (left + CHART[0], top),
        (left + CHART[0], top + CHART[1]),
        (left, top + CHART[1]),
        (left, top),
    ]
    _line(pen, frame, "#808080", 1)
    _text(pen, (left + CHART[0] / 2, top - 6), curve.title, "md", 15)
    _text(pen, (left + CHART[0] / 2, top + CHART[1] + 22), x_title or curve.x, "ma")


def _line(pen: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], colour: str, width: float = 1.8) -> None:
    pen.line([(x * SCALE, y * SCALE) for x, y in points], colour, round(width * SCALE), joint="curve")


def _text(pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, anchor: str = "la", size: int = 13) -> None:
    font = ImageFont.load_default(size * SCALE)
    pen.text((place[0] * SCALE, place[1] * SCALE), text, "#202020", font, anchor)
