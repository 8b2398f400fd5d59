"""The pointmap head: a 3D point for each pixel, and the image's scale (spec 2.4)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from s2kit.models.heads.base import COMMON_SIZES, HeadChannels, chain, conv_block
from s2kit.models.heads.pixel_shuffle import PixelShuffleHead
from s2kit.models.sapiens2 import SAPIENS2


class PointmapOutput(NamedTuple):
    """What `PointmapHead` returns; metric points are pointmap / scale.

    Attributes:
        pointmap: X, Y, Z in canonical space, (B, 3, 16 h, 16 w).
        scale: (B, 1), unbounded; about 768 / fx, with the focal length fx in pixels of the 1024 x 768 image.
    """

    pointmap: Tensor
    scale: Tensor


class PointmapHead(PixelShuffleHead):
    """The normals head's layers for X, Y, Z, and a branch that sees the whole image for the scale.

    The branch ends in linear layers over all positions, so a head fits one image size only.

    Args:
        in_channels, upsample_channels, conv_channels, out_channels: see `PixelShuffleHead`.
        scale_channels: channels of the scale branch's convolutions, each of which halves the resolution.
        scale_hidden: channels of the linear layers after them.
        image_size: (height, width) of the images.
        stride: pixels along the side of a token.

    Raises:
        ValueError: an image size that is no multiple of the stride, or too small for the scale branch.
    """

    output_name = "conv_pointmap"
    channels: ClassVar = {
        **dict.fromkeys(COMMON_SIZES, HeadChannels((1536, 768, 512, 256), (64, 32, 16))),
        "sapiens2_5b": HeadChannels((1536, 768, 768, 768), (128, 64, 32)),
        "sapiens2_nano": HeadChannels((96, 48, 24, 16), (16,)),
    }

    def __init__(
        self,
        in_channels: int,
        upsample_channels: Sequence[int],
        conv_channels: Sequence[int],
        out_channels: int | None = None,
        scale_channels: Sequence[int] = (1536, 512, 128),
        scale_hidden: Sequence[int] = (512, 128),
        image_size: tuple[int, int] = (1024, 768),
        stride: int = 16,
    ) -> None:
        super().__init__(in_channels, upsample_channels, conv_channels, out_channels)
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.grid = self._grid(self.image_size, stride)
        cells = self._cells(self.grid, len(scale_channels))
        if cells < 2:
            raise ValueError(
                f"image_size {self.image_size[0]} x {self.image_size[1]} is too small for the pointmap head: its scale "
                f"branch halves the {self.grid[0]} x {self.grid[1]} tokens {len(scale_channels)} times, which must "
                f"leave 2 cells or more; take at least {stride * 2 ** len(scale_channels) + stride} pixels on one side"
            )
        self.scale_conv_layers, width = chain(conv_block, in_channels, scale_channels, kernel_size=1, stride=2)
        widths = (width * cells, *scale_hidden)
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.SiLU()]
        self.scale_final_layer = nn.Sequential(*layers, nn.Linear(widths[-1], 1))
        self.scale_conv_layers.apply(self.init_weights)
        self.scale_final_layer.apply(self.init_weights)

    @classmethod
    def options_of(cls, arch: str) -> dict[str, Any]:
        options = super().options_of(arch)
        options |= {"image_size": SAPIENS2[arch].image_size, "stride": SAPIENS2[arch].stride}
        if arch == "sapiens2_nano":
            options |= {"scale_channels": (96, 48, 24), "scale_hidden": (32, 16)}
        return options

    @staticmethod
    def _grid(image_size: tuple[int, int], stride: int) -> tuple[int, int]:
        height, width = image_size
        if height < stride or width < stride or height % stride or width % stride:
            raise ValueError(
                f"image_size of the pointmap head must be multiples of the stride {stride}, got {height} x {width}"
            )
        return height // stride, width // stride

    @staticmethod
    def _cells(grid: tuple[int, int], halvings: int) -> int:
        """Positions that the scale branch has left; each of its convolutions rounds up."""
        return math.ceil(grid[0] / 2**halvings) * math.ceil(grid[1] / 2**halvings)

    def forward(self, features: Tensor) -> PointmapOutput:
        """Feature map (B, D, h, w) -> points and scale. Raises ValueError for another h x w than it was built for."""
        if tuple(features.shape[2:]) != self.grid:
            raise ValueError(
                f"this pointmap head was built for {self._describe_size()}; its scale branch cannot take a feature map "
                f"of {features.shape[2]} x {features.shape[3]}. Resize the images, or build and train the head for "
                "their size (image_size)"
            )
        return PointmapOutput(super().forward(features), self.scale_final_layer(self.scale_conv_layers(features)))

    def _describe_size(self) -> str:
        height, width = self.image_size
        return f"images of {height} x {width} ({self.grid[0]} x {self.grid[1]} tokens)"

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        stored = state_dict.get(f"{prefix}scale_final_layer.1.weight")
        own = self.scale_final_layer[1].in_features
        if stored is not None and stored.ndim == 2 and stored.shape[1] != own:
            published = " (the published heads, for 1024 x 768, have 6144)" if stored.shape[1] == 6144 else ""
            errors.append(
                f"{prefix}scale_final_layer: this pointmap head was built for {self._describe_size()}, {own} inputs of "
                f"the scale branch, but the file's has {stored.shape[1]}{published}: it was made for another image size"
            )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)
