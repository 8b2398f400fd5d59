"""Keypoint sets and class lists: one data file each, validated when loaded."""

from s2kit.schemas.class_list import ClassList, PartClass, load_class_list
from s2kit.schemas.keypoint_set import Keypoint, KeypointSet, Link, load_keypoint_set

__all__ = ["ClassList", "Keypoint", "KeypointSet", "Link", "PartClass", "load_class_list", "load_keypoint_set"]
