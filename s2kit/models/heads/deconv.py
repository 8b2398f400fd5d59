"""Heads that upsample with transposed convolutions: what pose and segmentation share (spec 2.1, 2.2)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from s2kit.models.heads.base import TaskHead, chain, conv_block, deconv_block


class DeconvHead(TaskHead):
    """Transposed convolutions that double the resolution, convolutions, and a 1 x 1 to the output.

    Each but the last is followed by InstanceNorm and SiLU. The output is raw.

    Args:
        in_channels: channels of the feature map.
        upsample_channels: channels after each doubling.
        conv_channels: channels of the convolutions after them.
        out_channels: channels of the output; None is the task's own number.
        upsample_kernel_size: 2, 3 or 4.
        conv_kernel_size: an odd number.
        output_std: standard deviation of the last layer's initial weights; None is the release's rule, whose outputs
            of the order of 1 a short training spends its first steps on where the targets are mostly 0, as heatmaps.
    """

    def __init__(
        self,
        in_channels: int,
        upsample_channels: Sequence[int],
        conv_channels: Sequence[int],
        out_channels: int | None = None,
        upsample_kernel_size: int = 4,
        conv_kernel_size: int = 1,
        output_std: float | None = None,
    ) -> None:
        super().__init__()
        if output_std is not None and not output_std > 0:
            raise ValueError(f"output_std must be positive, got {output_std}")
        self.output_std = output_std
        if conv_kernel_size < 1 or conv_kernel_size % 2 == 0:
            raise ValueError(f"conv_kernel_size must be odd, got {conv_kernel_size}")
        self.deconv_layers, width = chain(
            deconv_block, in_channels, upsample_channels, kernel_size=upsample_kernel_size
        )
        self.conv_layers, width = chain(conv_block, width, conv_channels, kernel_size=conv_kernel_size)
        self.add_output(width, out_channels)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.output_std is not None:
            nn.init.normal_(self.output.weight, std=self.output_std)

    def forward(self, features: Tensor) -> Tensor:
        """Feature map (B, D, h, w) -> (B, out_channels, 2^n h, 2^n w) with n doublings."""
        return self.output(self.conv_layers(self.deconv_layers(features)))
