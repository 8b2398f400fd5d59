"""What a person wears: garments as fields over the body's regions, and the choice of an outfit.

Every outfit covers trunk and pelvis: a top and a bottom, or a dress over shorts. Classes: tops are Upper_Clothing;
trousers, shorts and skirts Lower_Clothing; a dress is Upper_Clothing from neckline to hem, since it is one piece
that hangs from the shoulders; hats and belts are Apparel.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from data_modules.synth import classes
from data_modules.synth.regions import Regions

SLEEVES = {"sleeveless": 0.035, "short": 0.17, "elbow": 0.27, "three_quarter": 0.37, "long": 0.468}
NECKLINES = {"crew": 0.4, "v": 0.3, "boat": 0.15, "turtle": 0.15}
TOP_HEMS = {"waist": 0.2, "hip": 0.15, "long": 0.11}
LEG_HEMS = {"shorts": -0.1, "bermuda": -0.25, "capri": -0.52, "long": -0.735}
SKIRT_HEMS = {"mini": -0.12, "knee": -0.3, "midi": -0.48, "maxi": -0.66}
SHOES = {"low": -0.735, "ankle": -0.67, "boot": -0.48}
SIDES = (("L", "left"), ("R", "right"))


@dataclass(frozen=True)
class Garment:
    """One piece of cloth grown from the skin.

    Args:
        name: of its mesh; kind: such as "top", "bottom", "shoe"; garments of one kind share a material.
        field: (V,) metres inside the garment's edge on the template, positive where it covers.
        face_class: 29-class id.
        thickness: (V,) metres from the skin.
        looseness: smoothing steps of the body below it: 0 is tight, 20 hangs free of every detail.
        wrinkles: metres of low-frequency folds.
        zone: of `load_zone`.
        clearance: share of the thickness that smoothing must leave.
    """

    name: str
    kind: str
    field: np.ndarray
    face_class: int
    thickness: np.ndarray
    looseness: int
    wrinkles: float = 0.0
    zone: str = "trunk"
    clearance: float = 0.7


@dataclass(frozen=True)
class Skirt:
    """A skirt for `build_skirt`: heights on the template, flare in metres."""

    name: str
    waist: float
    hem: float
    flare: float
    face_class: int
    kind: str = "bottom"


@dataclass(frozen=True)
class Shoe:
    """A shoe for `build_shoe`, with its arguments."""

    side: str
    top: float
    depth: float
    sole: float
    point: float


@dataclass(frozen=True)
class Outfit:
    """Garments from the inside out, skirts, shoes, and what was chosen."""

    garments: list[Garment]
    skirts: list[Skirt] = field(default_factory=list)
    shoes: list[Shoe] = field(default_factory=list)
    info: dict[str, object] = field(default_factory=dict)


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
    return np.minimum.reduce([np.where(arms, 1.0, y - hem), sleeve - regions.arm, collar]).astype(np.float32)


def bottom_field(regions: Regions, waist: float, hem: float) -> np.ndarray:
    """Hips and legs between two heights of the template."""
    y = regions.points[:, 1]
    field = np.minimum(waist - y, y - hem)
    return np.where(regions.is_group("upper_arm", "lower_arm", "hand"), -1.0, field).astype(np.float32)


def foot_field(regions: Regions, side: str, top: float) -> np.ndarray:
    """One foot up to a height of the template."""
    sign = 1 if side == "L" else -1
    return np.where(regions.side == sign, top - regions.points[:, 1], -1.0).astype(np.float32)


def sample_outfit(regions: Regions, rng: np.random.Generator, gender: float) -> Outfit:
    """Draw an outfit that covers trunk and pelvis; the sex sways how often skirts and dresses come."""
    feminine = float(np.clip(gender, 0, 1))
    kind = str(rng.choice(["trousers", "skirt", "dress"], p=_shares(feminine)))
    outfit = Outfit([], info={"kind": kind})
    _add_socks(regions, rng, outfit)
    waist, bottom_depth = _add_bottom(regions, rng, outfit, kind)
    _add_shoes(regions, rng, outfit, long_trousers=outfit.info.get("bottom") == "long")
    _add_top(regions, rng, outfit, kind, waist, bottom_depth)
    return outfit


def _shares(feminine: float) -> list[float]:
    skirt, dress = 0.02 + 0.18 * feminine, 0.01 + 0.19 * feminine
    return [1 - skirt - dress, skirt, dress]


def _add_socks(regions: Regions, rng, outfit: Outfit) -> None:
    if rng.random() < 0.55:
        top = float(rng.choice([-0.70, -0.62, -0.5, -0.38], p=[0.35, 0.35, 0.2, 0.1]) + rng.uniform(-0.02, 0.02))
        outfit.info["socks"] = round(top, 3)
        for side, word in SIDES:
            field = foot_field(regions, side, top)
            outfit.garments.append(
                Garment(f"{word}_sock", "sock", field, classes.SOCK[side], _constant(regions, 0.003), 6, zone="feet")
            )


def _add_bottom(regions: Regions, rng, outfit: Outfit, kind: str) -> tuple[float, float]:
    """Trousers or shorts; below a skirt or a dress tight shorts. Returns their waist and how far they stand out."""
    waist = float(rng.uniform(0.2, 0.27))
    if kind == "trousers":
        leg = str(rng.choice(list(LEG_HEMS), p=[0.15, 0.12, 0.08, 0.65]))
        loose = float(rng.uniform(0, 1))
        hem = LEG_HEMS[leg] + float(rng.uniform(-0.01, 0.03))
        depth = 0.005 + 0.02 * loose
        thickness = _constant(regions, depth)
        if leg != "long":
            # Shorts stand away from the thigh towards their hem.
            thickness += np.clip((0.12 - regions.points[:, 1]) * 0.06, 0, 0.02).astype(np.float32) * loose
        outfit.info["bottom"] = leg
        looseness, folds = 4 + 4 * int(3 * loose), 0.005 * loose + 0.001
    else:
        hem, depth, looseness, folds = -0.02, 0.004, 4, 0.0
        thickness = _constant(regions, depth)
        length = str(rng.choice(list(SKIRT_HEMS), p=[0.3, 0.35, 0.25, 0.1]))
        skirt_class = classes.LOWER_CLOTHING if kind == "skirt" else classes.UPPER_CLOTHING
        outfit.info["bottom"] = f"{length}_{kind}"
        flare = float(rng.uniform(0.02, 0.14))
        outfit.skirts.append(
            Skirt(
                "skirt",
                waist if kind == "skirt" else 0.22,
                SKIRT_HEMS[length] + float(rng.uniform(-0.03, 0.03)),
                flare,
                skirt_class,
                "bottom" if kind == "skirt" else "top",
            )
        )
    garment = Garment(
        "bottom" if kind == "trousers" else "under_shorts",
        "bottom" if kind == "trousers" else "under_shorts",
        bottom_field(regions, waist, hem),
        classes.LOWER_CLOTHING,
        thickness,
        looseness,
        folds,
    )
    outfit.garments.append(garment)
    return waist, depth


def _add_shoes(regions: Regions, rng, outfit: Outfit, long_trousers: bool) -> None:
    """Shoes, with a shaft grown from the ankle for the higher ones."""
    if rng.random() > 0.88:
        return
    kinds = ["low", "ankle"] if long_trousers else list(SHOES)
    kind = str(rng.choice(kinds))
    top = SHOES[kind] + float(rng.uniform(-0.01, 0.01))
    depth = float(rng.uniform(0.006, 0.01))
    outfit.info["shoes"] = kind
    for side, word in SIDES:
        field = foot_field(regions, side, top)
        if kind != "low":
            shaft = np.minimum(field, regions.points[:, 1] + 0.775)
            outfit.garments.append(
                Garment(f"{word}_shaft", "shoe", shaft, classes.SHOE[side], _constant(regions, depth), 12, zone="feet")
            )
    sole, point = float(rng.uniform(0.006, 0.028)), float(rng.uniform(0.0, 0.02))
    outfit.shoes.extend(Shoe(side, -0.742, depth, sole, point) for side, _ in SIDES)


def _add_top(regions: Regions, rng, outfit: Outfit, kind: str, waist: float, bottom_depth: float) -> None:
    sleeve = str(rng.choice(list(SLEEVES), p=[0.14, 0.36, 0.1, 0.1, 0.3]))
    neckline = str(rng.choice(list(NECKLINES), p=list(NECKLINES.values())))
    hem = "waist" if kind != "trousers" else str(rng.choice(list(TOP_HEMS)))
    loose = float(rng.uniform(0, 1)) if kind == "trousers" else float(rng.uniform(0, 0.5))
    # The top overlaps the bottom by at least 5 cm, so that no pose bares the waist.
    height = min(TOP_HEMS[hem] - float(rng.uniform(0, 0.03)), waist - 0.05)
    field = top_field(regions, SLEEVES[sleeve], height, neckline, float(rng.uniform(0.04, 0.08)))
    thickness = _constant(regions, 0.006 + 0.018 * loose)
    # Loose sleeves and hems open towards their end.
    thickness += 0.015 * loose * np.clip(regions.arm / 0.3, 0, 1).astype(np.float32)
    thickness += 0.02 * loose * np.clip((0.3 - regions.points[:, 1]) / 0.25, 0, 1).astype(np.float32)
    outfit.info["top"] = {"sleeve": sleeve, "hem": hem, "neckline": neckline, "loose": round(loose, 2)}
    outfit.garments.append(
        Garment(
            "top",
            "top",
            field,
            classes.UPPER_CLOTHING,
            np.maximum(thickness, bottom_depth * 0.8),
            4 + 4 * int(3 * loose),
            0.006 * loose + 0.001,
        )
    )
