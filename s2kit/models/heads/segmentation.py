"""The head of body-part segmentation (spec 2.2)."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from s2kit.models.heads.base import COMMON_SIZES, HeadChannels
from s2kit.models.heads.deconv import DeconvHead

_LARGE = HeadChannels((512, 256, 128, 64), (64, 64))


class SegmentationHead(DeconvHead):
    """Logits of 29 classes at the image's resolution, (B, 29, 16 h, 16 w)."""

    output_name = "conv_seg"
    default_out_channels = 29
    channels: ClassVar = {
        **dict.fromkeys((*COMMON_SIZES, "sapiens2_5b"), _LARGE),
        "sapiens2_nano": HeadChannels((96, 48, 32, 16), (16,)),
    }

    @staticmethod
    def init_weights(module: nn.Module) -> None:
        """As in the other heads, but transposed convolutions keep torch's own initial weights (spec 2.6)."""
        if isinstance(module, nn.ConvTranspose2d):
            module.reset_parameters()
        else:
            DeconvHead.init_weights(module)
