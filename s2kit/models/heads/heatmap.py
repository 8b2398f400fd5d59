"""The pose head: one heatmap a keypoint (spec 2.1)."""

from __future__ import annotations

from typing import ClassVar

from s2kit.models.heads.base import COMMON_SIZES, HeadChannels
from s2kit.models.heads.deconv import DeconvHead

_LARGE = HeadChannels((1024, 768), (512, 512, 256))
# The release gives 1B the largest head, not 5B.
_LARGE_1B = HeadChannels((1536, 1024), (768, 512, 256))


class HeatmapHead(DeconvHead):
    """Heatmaps of 308 keypoints at a quarter of the image's resolution, (B, 308, 4 h, 4 w); raw."""

    output_name = "conv_pose"
    default_out_channels = 308
    channels: ClassVar = {
        **dict.fromkeys(COMMON_SIZES, _LARGE),
        "sapiens2_1b": _LARGE_1B,
        "sapiens2_1b_4k": _LARGE_1B,
        "sapiens2_5b": _LARGE,
        "sapiens2_nano": HeadChannels((96, 64), (64,)),
    }
