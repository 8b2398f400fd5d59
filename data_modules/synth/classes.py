"""Ids of the segmentation classes that synthetic people use, from the 29-class schema; left is the person's left."""

from __future__ import annotations

from s2kit.schemas.class_list import load_class_list

_IDS = load_class_list(29).ids
APPAREL = _IDS["Apparel"]
EYEGLASS = _IDS["Eyeglass"]
FACE_NECK = _IDS["Face_Neck"]
HAIR = _IDS["Hair"]
LOWER_CLOTHING = _IDS["Lower_Clothing"]
TORSO = _IDS["Torso"]
UPPER_CLOTHING = _IDS["Upper_Clothing"]
LOWER_LIP = _IDS["Lower_Lip"]
UPPER_LIP = _IDS["Upper_Lip"]
LOWER_TEETH = _IDS["Lower_Teeth"]
UPPER_TEETH = _IDS["Upper_Teeth"]
TONGUE = _IDS["Tongue"]


def _sided(name: str) -> dict[str, int]:
    """By side, "L" and "R" as in Anny's bone names."""
    return {"L": _IDS[f"Left_{name}"], "R": _IDS[f"Right_{name}"]}


FOOT, HAND, SHOE, SOCK = _sided("Foot"), _sided("Hand"), _sided("Shoe"), _sided("Sock")
LOWER_ARM, UPPER_ARM = _sided("Lower_Arm"), _sided("Upper_Arm")
LOWER_LEG, UPPER_LEG = _sided("Lower_Leg"), _sided("Upper_Leg")
