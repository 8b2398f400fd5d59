"""Ids of the 29 segmentation classes that synthetic people use (spec 4.3.1); left is the person's left."""

from __future__ import annotations

APPAREL = 1
EYEGLASS = 2
FACE_NECK = 3
HAIR = 4
LOWER_CLOTHING = 13
TORSO = 22
UPPER_CLOTHING = 23
LOWER_LIP = 24
UPPER_LIP = 25
LOWER_TEETH = 26
UPPER_TEETH = 27
TONGUE = 28
# By side: "L" and "R" as in Anny's bone names.
FOOT = {"L": 5, "R": 14}
HAND = {"L": 6, "R": 15}
LOWER_ARM = {"L": 7, "R": 16}
LOWER_LEG = {"L": 8, "R": 17}
SHOE = {"L": 9, "R": 18}
SOCK = {"L": 10, "R": 19}
UPPER_ARM = {"L": 11, "R": 20}
UPPER_LEG = {"L": 12, "R": 21}
