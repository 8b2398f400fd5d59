"""Dense heads that upsample sixteen-fold with pixel shuffles: normals, albedo, matting (spec 2.3, 2.5, 12)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from s2kit.models.heads.base import COMMON_SIZES, HeadChannels, TaskHead, chain, conv_block
from s2kit.models.layers import NORM_EPS

_COMMON = {
    **dict.fromkeys(COMMON_SIZES, HeadChannels((768, 512, 256, 128), (64, 32, 16))),
    "sapiens2_nano": HeadChannels((96, 48, 24, 16), (16,)),
}
_NORMAL_5B = HeadChannels((1536, 768, 512, 256), (128, 64, 32))
_ALBEDO_5B = HeadChannels((1536, 768, 512, 256), (64, 32, 16))


class ChannelRMSNorm(nn.Module):
    """RMSNorm over the channels at each pixel of a (B, C, H, W) map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PixelShuffleHead(TaskHead):
    """A 3 x 3 convolution, blocks that double the resolution, 3 x 3 convolutions, and a 1 x 1 to the output.

    Convolutions are padded with zeros; each but the last is followed by a norm and SiLU. The output is raw.

    Args:
        in_channels: channels of the feature map.
        upsample_channels: channels after each doubling.
        conv_channels: channels of the convolutions at full resolution.
        out_channels: channels of the output; None is the task's own number.
    """

    default_out_channels: ClassVar[int] = 3
    norm: ClassVar[type[nn.Module]] = nn.InstanceNorm2d

    def __init__(
        self,
        in_channels: int,
        upsample_channels: Sequence[int],
        conv_channels: Sequence[int],
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.input_conv = nn.Sequential(*conv_block(in_channels, in_channels, 3, norm=self.norm))
        self.upsample_blocks = nn.ModuleList()
        channels = in_channels
        for width in upsample_channels:
            self.upsample_blocks.append(
                nn.Sequential(
                    nn.Conv2d(channels, 4 * width, 3, padding=1),
                    nn.PixelShuffle(2),
                    self.norm(width),
                    nn.SiLU(),
                )
            )
            channels = width
        self.conv_layers, channels = chain(conv_block, channels, conv_channels, kernel_size=3, norm=self.norm)
        self.add_output(channels, out_channels)

    def forward(self, features: Tensor) -> Tensor:
        """Feature map (B, D, h, w) -> (B, out_channels, 2^n h, 2^n w) with n doublings, 4 in the release."""
        x = self.input_conv(features)
        for block in self.upsample_blocks:
            x = block(x)
        return self.output(self.conv_layers(x))


class NormalHead(PixelShuffleHead):
    """Surface normals, not yet of unit length."""

    output_name = "conv_normal"
    channels: ClassVar = {**_COMMON, "sapiens2_5b": _NORMAL_5B}


class AlbedoHead(PixelShuffleHead):
    """Diffuse albedo, raw: clamp to [0, 1] for use."""

    output_name = "conv_albedo"
    norm = ChannelRMSNorm
    channels: ClassVar = {**_COMMON, "sapiens2_5b": _ALBEDO_5B}


class MattingHead(PixelShuffleHead):
    """Premultiplied foreground R, G, B and alpha, all in [0, 1].

    Only 1B is published; the other sizes have the normals head's channels.
    """

    output_name = "conv_matting"
    default_out_channels = 4
    channels: ClassVar = {**_COMMON, "sapiens2_5b": _NORMAL_5B}

    def forward(self, features: Tensor) -> Tensor:
        """Feature map (B, D, h, w) -> (B, 4, 16 h, 16 w)."""
        return super().forward(features).sigmoid()
