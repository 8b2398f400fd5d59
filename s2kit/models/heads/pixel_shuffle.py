"""Dense heads that upsample sixteen-fold with pixel shuffles: normals, albedo, matting (spec 2.3, 2.5, 12)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from s2kit.models.layers import NORM_EPS
from s2kit.models.sapiens2 import SAPIENS2


class HeadChannels(NamedTuple):
    """Output channels of the upsampling blocks and of the 3 x 3 convolutions after them."""

    upsample: tuple[int, ...]
    conv: tuple[int, ...]


_LARGE = HeadChannels((768, 512, 256, 128), (64, 32, 16))
# 0.1b and 1b_4k have no published head: they get the same one as the published sizes around them.
_COMMON = {f"sapiens2_{size}": _LARGE for size in ("0.1b", "0.4b", "0.8b", "1b", "1b_4k")}
_COMMON["sapiens2_nano"] = HeadChannels((96, 48, 24, 16), (16,))
_NORMAL_5B = HeadChannels((1536, 768, 512, 256), (128, 64, 32))
_ALBEDO_5B = HeadChannels((1536, 768, 512, 256), (64, 32, 16))


class ChannelRMSNorm(nn.Module):
    """RMSNorm over the channels at each pixel of a (B, C, H, W) map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PixelShuffleHead(nn.Module):
    """A 3 x 3 convolution, blocks that double the resolution, 3 x 3 convolutions, and a 1 x 1 to the output.

    Convolutions are padded with zeros; each but the last is followed by a norm and SiLU. The output is raw.

    Args:
        in_channels: channels of the feature map.
        upsample_channels: channels after each doubling.
        conv_channels: channels of the convolutions at full resolution.
        out_channels: channels of the output; None is the task's own number.
    """

    output_name: ClassVar[str]
    default_out_channels: ClassVar[int] = 3
    norm: ClassVar[type[nn.Module]] = nn.InstanceNorm2d
    channels: ClassVar[dict[str, HeadChannels]]

    def __init__(
        self,
        in_channels: int,
        upsample_channels: Sequence[int],
        conv_channels: Sequence[int],
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.input_conv = nn.Sequential(*self._conv(in_channels, in_channels))
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
        layers: list[nn.Module] = []
        for width in conv_channels:
            layers += self._conv(channels, width)
            channels = width
        self.conv_layers = nn.Sequential(*layers)
        output = nn.Conv2d(channels, out_channels or self.default_out_channels, 1)
        setattr(self, self.output_name, output)
        self.reset_parameters()

    @classmethod
    def for_arch(cls, arch: str, in_channels: int | None = None, **overrides) -> PixelShuffleHead:
        """The head that the release has for a backbone size; arguments given replace the table's."""
        if arch not in cls.channels:
            raise ValueError(f"no {cls.__name__} for {arch!r}; known: {', '.join(cls.channels)}")
        table = cls.channels[arch]
        options = {"upsample_channels": table.upsample, "conv_channels": table.conv, **overrides}
        return cls(in_channels or SAPIENS2[arch].embed_dim, **options)

    @classmethod
    def _conv(cls, in_channels: int, out_channels: int) -> list[nn.Module]:
        return [
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            cls.norm(out_channels),
            nn.SiLU(),
        ]

    def reset_parameters(self) -> None:
        """Kaiming-normal over the fan-out with ReLU's gain, biases 0 (spec 2.6)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.RMSNorm):
                nn.init.ones_(module.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Feature map (B, D, h, w) -> (B, out_channels, 16 h, 16 w)."""
        x = self.input_conv(features)
        for block in self.upsample_blocks:
            x = block(x)
        return getattr(self, self.output_name)(self.conv_layers(x))


class NormalHead(PixelShuffleHead):
    """Surface normals, not yet of unit length. InstanceNorm takes its statistics from each image, also at test."""

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
