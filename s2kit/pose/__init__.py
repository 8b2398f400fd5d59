"""Keypoints and heatmaps: the codec, conversion between keypoint sets, suppression of double detections."""

from s2kit.pose.conversion import convert_keypoints, load_conversion
from s2kit.pose.udp import decode_heatmaps, default_sigma, encode_heatmaps

__all__ = ["convert_keypoints", "decode_heatmaps", "default_sigma", "encode_heatmaps", "load_conversion"]
