"""What all task heads share: their blocks, the table of sizes, initial weights (spec 2)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from torch import nn

from s2kit.models.sapiens2 import SAPIENS2

#: Sizes with 1024 channels or so: the published ones below 5B, and 0.1b and 1b_4k, which have no published head and
#: get the one of the sizes around them.
COMMON_SIZES = tuple(f"sapiens2_{size}" for size in ("0.1b", "0.4b", "0.8b", "1b", "1b_4k"))


class HeadChannels(NamedTuple):
    """Output channels of the blocks that double the resolution, and of the convolutions after them."""

    upsample: tuple[int, ...]
    conv: tuple[int, ...]


def conv_block(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, norm: type[nn.Module] = nn.InstanceNorm2d
) -> list[nn.Module]:
    """A convolution padded with zeros to keep the size (at stride 1), a norm, SiLU."""
    padding = (kernel_size - 1) // 2
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding)
    return [conv, norm(out_channels), nn.SiLU()]


def deconv_block(in_channels: int, out_channels: int, kernel_size: int) -> list[nn.Module]:
    """A transposed convolution that doubles the size, InstanceNorm, SiLU. The kernel is 2, 3 or 4."""
    if kernel_size not in (2, 3, 4):
        raise ValueError(f"upsample_kernel_size must be 2, 3 or 4, got {kernel_size}")
    padding, output_padding = {2: (0, 0), 3: (1, 1), 4: (1, 0)}[kernel_size]
    deconv = nn.ConvTranspose2d(in_channels, out_channels, kernel_size, 2, padding, output_padding, bias=False)
    return [deconv, nn.InstanceNorm2d(out_channels), nn.SiLU()]


def chain(make_block, in_channels: int, widths: Sequence[int], **options: Any) -> tuple[nn.Sequential, int]:
    """Blocks one after another, flat in one `Sequential` as the official keys have them, and the last width."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += make_block(in_channels, width, **options)
        in_channels = width
    return nn.Sequential(*layers), in_channels


class TaskHead(nn.Module):
    """A head whose channels follow from the backbone's size.

    InstanceNorm takes its statistics from each image, at test as in training: an image's borders and its resolution
    change the output everywhere.
    """

    #: State-dict name of the last layer.
    output_name: ClassVar[str]
    default_out_channels: ClassVar[int]
    #: The release's channels, by the backbone's name.
    channels: ClassVar[dict[str, HeadChannels]]

    @classmethod
    def for_arch(cls, arch: str, in_channels: int | None = None, **overrides: Any) -> TaskHead:
        """The head that the release has for a backbone size; arguments given replace the table's.

        Raises:
            ValueError: a size without a head, or an argument that the head does not have.
        """
        if arch not in cls.channels:
            raise ValueError(f"no {cls.__name__} for {arch!r}; known: {', '.join(cls.channels)}")
        options = {**cls.options_of(arch), **overrides}
        known = [name for name in inspect.signature(cls).parameters if name != "in_channels"]
        if unknown := sorted(set(options) - set(known)):
            raise ValueError(f"{cls.__name__} has no field {', '.join(unknown)}; fields: {', '.join(known)}")
        return cls(in_channels or SAPIENS2[arch].embed_dim, **options)

    @classmethod
    def options_of(cls, arch: str) -> dict[str, Any]:
        """Arguments of the head for a backbone size."""
        return {"upsample_channels": cls.channels[arch].upsample, "conv_channels": cls.channels[arch].conv}

    def add_output(self, in_channels: int, out_channels: int | None) -> None:
        """Adds the last layer, a 1 x 1 convolution under the official name, and initialises the whole head."""
        channels = self.default_out_channels if out_channels is None else out_channels
        if channels < 1:
            raise ValueError(f"out_channels must be at least 1, got {channels}")
        setattr(self, self.output_name, nn.Conv2d(in_channels, channels, 1))
        self.reset_parameters()

    @property
    def output(self) -> nn.Conv2d:
        """The last layer."""
        return getattr(self, self.output_name)

    def reset_parameters(self) -> None:
        """Draws the initial weights anew (spec 2.6)."""
        self.apply(self.init_weights)

    @staticmethod
    def init_weights(module: nn.Module) -> None:
        """Initial weights of one module: Kaiming-normal, over the fan-out with ReLU's gain for convolutions and over
        the fan-in with gain 1 for linear layers; biases 0, norms 1.

        The fan-out of a transposed convolution is taken of its first axis, as torch does: in_channels x kernel area.
        """
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="linear")
        elif isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
