"""A large picture in overlapping tiles, and results put together from theirs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from s2kit.inference.geometry import rect_of

#: Share of a tile that it has in common with the next one.
OVERLAP = 0.25
#: ``auto`` takes tiles where the network would see a picture shrunk by more than this.
SHRINK = 1.5


class Window(NamedTuple):
    """A rectangle of whole pixels of a picture."""

    top: int
    left: int
    height: int
    width: int


class WholePass(NamedTuple):
    """What the network says of the whole picture, for tiles that need to know.

    Attributes:
        output: (C, h, w) in the network's pixels.
        crop: (3, 3) source pixel -> network pixel.
        size: (H, W) of the picture.
    """

    output: Tensor
    crop: Tensor
    size: tuple[int, int]

    def region(self, window: Window) -> Tensor:
        """Return (C, window's height, width): that part of the output at the picture's own size."""
        top, left, height, width = rect_of(self.crop, self.size, tuple(self.output.shape[-2:]))
        inner = self.output[None, :, top : top + height, left : left + width]
        # Pixel centres in shares of the picture, from -1 to 1: what resizing all of it bilinearly would read there.
        y, x = (
            (torch.arange(start, start + length, device=inner.device, dtype=inner.dtype) + 0.5) * 2 / side - 1
            for start, length, side in zip(window[:2], window[2:], self.size)
        )
        places = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
        return grid_sample(inner, places[None], mode="bilinear", padding_mode="border", align_corners=False)[0]


def tile_size(
    size: tuple[int, int], image_size: tuple[int, int], tile: tuple[int, int] | Literal["auto"] | None
) -> tuple[int, int] | None:
    """Return the size of a picture's tiles, None if it is to stay whole.

    Args:
        size: (H, W) of the picture.
        image_size: (h, w) of the network's input.
        tile: (height, width) in the picture's pixels; ``auto`` takes the network's input, so that the network sees
            every pixel, for pictures that it would else see shrunk by more than 1.5; None takes no tiles.
    """
    if tile is None:
        return None
    if tile == "auto":
        tile = image_size if max(side / own for side, own in zip(size, image_size)) > SHRINK else size
    return None if all(side <= own for side, own in zip(size, tile)) else (min(size[0], tile[0]), min(size[1], tile[1]))


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    """Return where tiles begin, evenly spaced from one edge to the other."""
    if tile >= length:
        return [0]
    step = max(1.0, tile * (1 - overlap))
    count = math.ceil((length - tile) / step) + 1
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def plan_tiles(size: tuple[int, int], tile: tuple[int, int], overlap: float = OVERLAP) -> list[Window]:
    """Return the tiles of a picture, row by row; neighbours share at least ``overlap`` of a tile.

    Args:
        size: (H, W) of the picture.
        tile: (height, width), in the picture's pixels, at most ``size``.
        overlap: Share of a tile, from 0 to less than 1.
    """
    rows, columns = (_starts(side, own, overlap) for side, own in zip(size, tile))
    return [Window(top, left, *tile) for top in rows for left in columns]


class Blend:
    """Overlapping tiles blended into one picture, of which only the rows that tiles still reach are held.

    A tile counts fully in its middle and fades, as half a cosine, towards those of its edges that are not the
    picture's.

    Args:
        windows: Of ``plan_tiles``.
        size: (H, W) of the picture.
        close: ``close(values (C, rows, W)) -> (..., rows, W)``: what finishes blended rows.
    """

    def __init__(
        self, windows: Sequence[Window], size: tuple[int, int], close: Callable[[Tensor], Tensor], overlap: float
    ) -> None:
        self.windows, self.size, self.close, self.overlap = windows, size, close, overlap
        self.values: Tensor | None = None
        self.weights: Tensor | None = None
        self.top, self.count = 0, 0
        self.rows: list[Tensor] = []

    def add(self, values: Tensor) -> None:
        """Add the values (C, h, w) of the next window."""
        window = self.windows[self.count]
        self.count += 1
        if self.values is None or self.weights is None:
            self.values = values.new_zeros(values.shape[0], window.height, self.size[1])
            self.weights = values.new_zeros(1, window.height, self.size[1])
        self._advance(window.top)
        share = self._fade(window, 0, values)[:, None] * self._fade(window, 1, values)
        columns = slice(window.left, window.left + window.width)
        self.values[..., columns].addcmul_(values, share)
        self.weights[..., columns] += share

    def result(self) -> Tensor:
        """Return the finished picture (..., H, W)."""
        self._advance(self.size[0])
        return torch.cat(self.rows, dim=-2)

    def _advance(self, top: int) -> None:
        """Finish the rows above ``top``, which no tile reaches any more."""
        done = top - self.top
        if done <= 0:
            return
        values, weights = self.values, self.weights
        self.rows.append(self.close(values[:, :done] / weights[:, :done]))
        for part in (values, weights):
            rest = part[:, done:].clone()
            part.zero_()
            part[:, : rest.shape[1]] = rest
        self.top = top

    def _fade(self, window: Window, axis: int, like: Tensor) -> Tensor:
        """Return the tile's weights along an axis."""
        length, start, side = window[2 + axis], window[axis], self.size[axis]
        ramp = max(1.0, length * self.overlap)
        place = torch.arange(length, device=like.device, dtype=like.dtype) + 0.5
        ends = torch.full_like(place, ramp)
        if start > 0:
            ends = torch.minimum(ends, place)
        if start + length < side:
            ends = torch.minimum(ends, length - place)
        return torch.sin(math.pi / 2 * ends / ramp).square()
