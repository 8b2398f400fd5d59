"""What a person wears: garments as fields over the body's regions, and the choice of an outfit.

Every outfit covers trunk and pelvis: a top and a bottom, or a dress over shorts. Classes: tops are Upper_Clothing;
trousers, shorts and skirts Lower_Clothing; a dress is Upper_Clothing from neckline to hem, as a garment whose top
half decides its name; hats and belts are Apparel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_modules.synth import classes
from data_modules.synth.regions import Regions

SLEEVES = {"sleeveless": 0.035, "short": 0.17, "elbow": 0.27, "three_quarter": 0.37, "long": 0.468}
NECKLINES = ("crew", "v", "boat", "turtle")
TOP_HEMS = {"cropped": 0.245, "waist": 0.2, "hip": 0.12, "long": 0.03}
LEGS = {"shorts": -0.1, "bermuda": -0.25, "capri": -0.52, "long": -0.735}


@dataclass(frozen=True)
class Garment:
    """One piece of cloth.

    Args:
        name: of its mesh; kind: such as "top", "trousers", "shoe".
        field: (V,) metres inside the garment's edge on the template, positive where it covers.
        face_class: 29-class id.
        thickness: (V,) metres from the skin.
        looseness: smoothing steps of the body below it: 0 is tight, 20 hangs free of every detail.
        wrinkles: metres of low-frequency folds.
        layer: larger is further out; the skin and inner layers beneath are hidden.
    """

    name: str
    kind: str
    field: np.ndarray
    face_class: int
    thickness: np.ndarray
    looseness: int
    wrinkles: float
    layer: int


def _constant(regions: Regions, value: float) -> np.ndarray:
    return np.full(len(regions.points), value, np.float32)


def top_field(regions: Regions, sleeve: float, hem: float, neckline: str, depth: float = 0.0) -> np.ndarray:
    """Trunk down to height `hem`, arms out to `sleeve` metres from the shoulder, neck by the neckline's kind."""
    x, y, z = regions.points.T
    arms = regions.is_group("upper_arm", "lower_arm", "hand")
    collar = regions.collar - {"crew": 0.0, "v": 0.0, "boat": 0.02, "turtle": -0.075}[neckline]
    if neckline == "v":
        front = np.clip((z + 0.02) / 0.06, 0, 1)
        collar = collar - front * np.maximum(0.0, depth - np.abs(x) * depth / 0.09)
    below_neck = np.where(arms, 1.0, collar)
    return np.minimum.reduce([np.where(arms, 1.0, y - hem), sleeve - regions.arm, below_neck]).astype(np.float32)


def bottom_field(regions: Regions, waist: float, hem: float) -> np.ndarray:
    """Hips and legs between two heights of the template."""
    y = regions.points[:, 1]
    field = np.minimum(waist - y, y - hem)
    return np.where(regions.is_group("upper_arm", "lower_arm", "hand"), -1.0, field).astype(np.float32)


def foot_field(regions: Regions, side: str, top: float) -> np.ndarray:
    """One foot up to a height of the template."""
    sign = 1 if side == "L" else -1
    return np.where(regions.side == sign, top - regions.points[:, 1], -1.0).astype(np.float32)


# Height of the hairline by the angle from straight ahead, degrees -> metres on the template.
HAIRLINE = np.array(
    [
        [0, 0.972],
        [30, 0.97],
        [50, 0.955],
        [70, 0.93],
        [84, 0.928],
        [102, 0.918],
        [118, 0.872],
        [140, 0.855],
        [180, 0.845],
    ]
)


def hair_field(regions: Regions, lift: float = 0.0) -> np.ndarray:
    """The scalp above a hairline raised by `lift` metres."""
    x, y, z = regions.points.T
    angle = np.rad2deg(np.abs(np.arctan2(x, z - 0.035)))
    line = np.interp(angle, HAIRLINE[:, 0], HAIRLINE[:, 1]) + lift
    return np.where(regions.is_group("head", "neck") & ~regions.eye, y - line, -1.0).astype(np.float32)


def sample_outfit(regions: Regions, rng: np.random.Generator, gender: float) -> tuple[list[Garment], dict[str, object]]:
    """Draw garments (innermost first) and describe them."""
    garments: list[Garment] = []
    info: dict[str, object] = {}
    leg = str(rng.choice(list(LEGS), p=[0.15, 0.12, 0.08, 0.65]))
    loose = float(rng.uniform(0, 1))
    waist = float(rng.uniform(0.2, 0.27))
    garments.append(
        Garment(
            "bottom",
            "trousers",
            bottom_field(regions, waist, LEGS[leg] + rng.uniform(-0.01, 0.02)),
            classes.LOWER_CLOTHING,
            _constant(regions, 0.006 + 0.02 * loose),
            4 + int(12 * loose),
            0.004 * loose,
            1,
        )
    )
    info["bottom"] = leg
    sleeve = str(rng.choice(list(SLEEVES)))
    hem = str(rng.choice(["waist", "hip", "long"]))
    neckline = str(rng.choice(NECKLINES))
    loose = float(rng.uniform(0, 1))
    field = top_field(regions, SLEEVES[sleeve], min(TOP_HEMS[hem], waist - 0.05), neckline, rng.uniform(0.04, 0.12))
    thickness = 0.009 + 0.022 * loose
    garments.append(
        Garment(
            "top",
            "top",
            field,
            classes.UPPER_CLOTHING,
            _constant(regions, thickness),
            5 + int(12 * loose),
            0.004 * loose,
            3,
        )
    )
    info["top"] = {"sleeve": sleeve, "hem": hem, "neckline": neckline}
    if rng.random() < 0.85:
        top = float(rng.uniform(-0.745, -0.72))
        for side, name in (("L", "left_shoe"), ("R", "right_shoe")):
            garments.append(
                Garment(
                    name,
                    "shoe",
                    foot_field(regions, side, top),
                    classes.SHOE[side],
                    _constant(regions, 0.012),
                    25,
                    0.0,
                    2,
                )
            )
        info["shoes"] = "low"
    if rng.random() < 0.92:
        lift = float(rng.uniform(-0.005, 0.015))
        field = hair_field(regions, lift)
        ramp = np.clip(field / 0.04, 0, 1)
        thickness = (0.003 + rng.uniform(0.006, 0.03) * ramp * ramp * (3 - 2 * ramp)).astype(np.float32)
        garments.append(Garment("hair", "hair", field, classes.HAIR, thickness, 12, 0.004, 2))
        info["hair"] = "short"
    else:
        info["hair"] = "bald"
    return garments, info
