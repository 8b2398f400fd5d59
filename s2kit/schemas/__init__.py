"""Keypoint sets, class lists and label maps: one data file each, validated when loaded."""

from s2kit.schemas.class_list import ClassList, PartClass, load_class_list
from s2kit.schemas.files import SchemaError
from s2kit.schemas.keypoint_set import Keypoint, KeypointSet, Link, load_keypoint_set
from s2kit.schemas.label_map import LabelMap, load_label_map

__all__ = [
    "ClassList",
    "Keypoint",
    "KeypointSet",
    "LabelMap",
    "Link",
    "PartClass",
    "SchemaError",
    "load_class_list",
    "load_keypoint_set",
    "load_label_map",
]
