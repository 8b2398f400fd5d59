"""A table of base poses, blended, perturbed within joint limits, and turned into bone rotations.

A pose names where the limbs point, because that can be read and drawn by hand. Directions are (out, up, forward)
with "out" away from the body's midline, so one row serves both sides; arms are given in the chest's frame, legs in
the upright frame of the ground. Angles are degrees.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from data_modules.synth.rig import Rig
from data_modules.synth.rotations import euler, frame, power, swing, turn, unit

SIDES = ("L", "R")


@dataclass(frozen=True)
class Arm:
    """Directions of the upper arm, the forearm and the palm, and the wrist's bend towards the palm."""

    upper: tuple[float, float, float]
    fore: tuple[float, float, float]
    palm: tuple[float, float, float] = (-1.0, 0.0, 0.0)
    wrist: float = 0.0


@dataclass(frozen=True)
class Leg:
    """Direction of the thigh, where the knee looks, the knee's bend, and the foot's: None keeps it flat."""

    thigh: tuple[float, float, float]
    knee: float
    ankle: float | None = None
    forward: tuple[float, float, float] = (0.15, 0.0, 1.0)


@dataclass(frozen=True)
class Pose:
    """A whole-body pose; `arms` and `legs` are (left, right); spine, neck and root are (bend, turn, lean)."""

    arms: tuple[Arm, Arm]
    legs: tuple[Leg, Leg]
    spine: tuple[float, float, float] = (0.0, 0.0, 0.0)
    neck: tuple[float, float, float] = (0.0, 0.0, 0.0)
    root: tuple[float, float, float] = (0.0, 0.0, 0.0)
    hands: tuple[str, ...] = ("relaxed", "open", "closed", "pointing", "spread")
    weight: float = 1.0
    tags: tuple[str, ...] = field(default_factory=tuple)


HANG = Arm((0.22, -1.0, -0.03), (0.12, -1.0, 0.22), (-1.0, 0.0, -0.2))
BENT = Arm((0.2, -1.0, -0.12), (0.05, -0.15, 1.0), (-1.0, -0.3, 0.0))
HIP = Arm((0.72, -0.72, -0.35), (-0.72, -0.62, 0.42), (-0.4, -0.6, -0.7), 10.0)
UP = Arm((0.45, 0.9, 0.12), (0.05, 1.0, 0.15), (-0.2, 0.0, 1.0))
SIDEWAYS = Arm((1.0, 0.05, 0.05), (1.0, 0.1, 0.15), (0.0, -1.0, 0.1))
FORWARD = Arm((0.15, -0.1, 1.0), (0.0, 0.05, 1.0), (-0.5, -0.9, 0.0))
WAVE = Arm((0.8, -0.15, 0.3), (0.35, 1.0, 0.25), (0.0, 0.0, 1.0))
FACE = Arm((0.3, -0.75, 0.65), (-0.3, 0.9, 0.15), (-0.5, 0.1, -0.8))
LAP = Arm((0.22, -0.9, 0.25), (-0.12, -0.42, 0.9), (-0.2, -1.0, 0.0))
FOLDED = Arm((0.42, -0.85, 0.35), (-0.92, 0.02, 0.5), (-0.2, -0.5, -0.8))
FOLDED_OVER = Arm((0.42, -0.8, 0.5), (-0.9, 0.14, 0.55), (-0.2, -0.3, -0.9))
BACK_SWING = Arm((0.2, -0.9, -0.45), (0.05, -0.6, 0.5), (-1.0, 0.0, 0.0))
FRONT_SWING = Arm((0.18, -0.85, 0.4), (-0.15, 0.25, 1.0), (-1.0, 0.0, 0.0))
OVERHEAD = Arm((0.75, 0.65, 0.1), (-0.75, 0.6, -0.1), (-0.3, -0.6, 0.6))
KNEES = Arm((0.2, -0.85, 0.5), (0.05, -0.75, 0.7), (-0.2, -0.9, -0.2))

STRAIGHT = Leg((0.05, -1.0, 0.0), 2.0)
WIDE = Leg((0.28, -1.0, 0.02), 4.0)
WEIGHTLESS = Leg((0.12, -1.0, 0.16), 18.0)
STEP_FRONT = Leg((0.03, -1.0, 0.38), 8.0, None)
STEP_BACK = Leg((0.03, -1.0, -0.28), 22.0, 25.0)
RUN_FRONT = Leg((0.02, -0.7, 0.75), 75.0, 5.0)
RUN_BACK = Leg((0.03, -1.0, -0.3), 55.0, 30.0)
SEATED = Leg((0.14, -0.12, 1.0), 88.0)
SEATED_WIDE = Leg((0.38, -0.15, 1.0), 80.0, None, (0.45, 0.3, 1.0))
SEATED_OUT = Leg((0.1, -0.2, 1.0), 55.0, 12.0)
SQUAT = Leg((0.3, -0.15, 1.0), 125.0, -22.0, (0.35, 0.4, 1.0))
HALF_SQUAT = Leg((0.25, -0.75, 0.65), 78.0, None, (0.3, 0.3, 1.0))
KNEEL_DOWN = Leg((0.08, -1.0, 0.02), 88.0, 35.0)
KNEEL_UP = Leg((0.12, -0.1, 1.0), 88.0)
LUNGE_BACK = Leg((0.05, -0.9, -0.5), 40.0, 25.0)
LUNGE_FRONT = Leg((0.08, -0.55, 0.85), 72.0)
KICK = Leg((0.1, -0.6, 0.8), 15.0, 20.0)

POSES: dict[str, Pose] = {
    "standing": Pose((HANG, HANG), (STRAIGHT, STRAIGHT), weight=2.0),
    "standing_relaxed": Pose((HANG, BENT), (STRAIGHT, WEIGHTLESS), spine=(2, 0, 3), weight=1.5),
    "standing_wide": Pose((HANG, HANG), (WIDE, WIDE)),
    "hands_on_hips": Pose((HIP, HIP), (WIDE, STRAIGHT), hands=("relaxed",), weight=1.5),
    "one_hand_on_hip": Pose((HIP, HANG), (STRAIGHT, WEIGHTLESS), hands=("relaxed",), spine=(0, 0, -4)),
    "folded_arms": Pose(
        (FOLDED_OVER, FOLDED), (STRAIGHT, WIDE), hands=("relaxed", "closed"), weight=1.5, tags=("tight",)
    ),
    "walking": Pose((BACK_SWING, FRONT_SWING), (STEP_FRONT, STEP_BACK), spine=(4, 5, 0), weight=2.0),
    "running": Pose(
        (BACK_SWING, FRONT_SWING), (RUN_FRONT, RUN_BACK), spine=(6, 8, 0), root=(10, 0, 0), hands=("closed", "relaxed")
    ),
    "sitting": Pose((LAP, LAP), (SEATED, SEATED), spine=(6, 0, 0), weight=1.5, tags=("seated",)),
    "sitting_wide": Pose((KNEES, KNEES), (SEATED_WIDE, SEATED_WIDE), spine=(20, 0, 0), tags=("seated",)),
    "sitting_back": Pose((HANG, LAP), (SEATED_OUT, SEATED), root=(-12, 0, 0), spine=(10, 0, 0), tags=("seated",)),
    "squatting": Pose((KNEES, KNEES), (SQUAT, SQUAT), root=(22, 0, 0), spine=(18, 0, 0), neck=(-18, 0, 0)),
    "half_squat": Pose((FORWARD, FORWARD), (HALF_SQUAT, HALF_SQUAT), root=(22, 0, 0), spine=(8, 0, 0)),
    "kneeling": Pose((LAP, HANG), (KNEEL_UP, KNEEL_DOWN), spine=(5, 0, 0)),
    "lunge": Pose((BENT, BACK_SWING), (LUNGE_FRONT, LUNGE_BACK), spine=(4, 0, 0)),
    "arms_raised": Pose((UP, UP), (STRAIGHT, STRAIGHT), spine=(-4, 0, 0), weight=1.2),
    "arms_sideways": Pose((SIDEWAYS, SIDEWAYS), (STRAIGHT, WIDE)),
    "hands_behind_head": Pose((OVERHEAD, OVERHEAD), (STRAIGHT, WIDE), hands=("relaxed",)),
    "waving": Pose((WAVE, HANG), (STRAIGHT, WEIGHTLESS), hands=("open", "spread")),
    "reaching_forward": Pose((FORWARD, BENT), (STEP_FRONT, STRAIGHT), spine=(12, -6, 0)),
    "reaching_up": Pose((UP, HANG), (STRAIGHT, WEIGHTLESS), spine=(-3, 0, 6), neck=(-18, 10, 0)),
    "reaching_side": Pose((SIDEWAYS, HIP), (WIDE, STRAIGHT), spine=(0, 15, 4), neck=(0, 30, 0)),
    "pointing": Pose((FORWARD, HANG), (STRAIGHT, WEIGHTLESS), hands=("pointing",)),
    "thinking": Pose((FACE, FOLDED), (STRAIGHT, WEIGHTLESS), hands=("relaxed", "pointing"), neck=(8, 0, 0)),
    "talking": Pose((BENT, BENT), (STRAIGHT, WIDE), hands=("open", "relaxed", "spread")),
    "bending": Pose((KNEES, KNEES), (WIDE, STRAIGHT), root=(28, 0, 0), spine=(32, 0, 0), neck=(-10, 0, 0)),
    "kicking": Pose((SIDEWAYS, BENT), (KICK, STRAIGHT), root=(-8, 0, 0), spine=(6, 0, 0)),
}

# Bend of the three joints of fingers 2..5, and (towards the palm, bend, bend) of the thumb, degrees.
HANDS: dict[str, dict[str, tuple[float, float, float]]] = {
    "relaxed": {"thumb": (5, 12, 15), "fore": (14, 22, 14), "rest": (22, 32, 18)},
    "open": {"thumb": (-8, 0, 0), "fore": (-6, 2, 0), "rest": (-4, 4, 2)},
    "spread": {"thumb": (-18, -5, -8), "fore": (-8, 0, 0), "rest": (-6, 2, 0)},
    "closed": {"thumb": (22, 32, 38), "fore": (72, 88, 52), "rest": (76, 92, 55)},
    "pointing": {"thumb": (18, 28, 34), "fore": (0, 4, 2), "rest": (74, 90, 55)},
}

FACES: dict[str, dict[str, float]] = {
    "neutral": {},
    "smile": {"mouthSmileLeft": 0.7, "mouthSmileRight": 0.7, "cheekSquintLeft": 0.4, "cheekSquintRight": 0.4},
    "laugh": {"mouthSmileLeft": 0.8, "mouthSmileRight": 0.8, "jawOpen": 0.35, "eyeSquintLeft": 0.5},
    "talk": {"jawOpen": 0.25, "mouthFunnel": 0.2},
    "shout": {"jawOpen": 0.7, "browDownLeft": 0.5, "browDownRight": 0.5},
    "surprise": {"jawOpen": 0.4, "browInnerUp": 0.8, "browOuterUpLeft": 0.7, "browOuterUpRight": 0.7},
    "frown": {"browDownLeft": 0.8, "browDownRight": 0.8, "mouthFrownLeft": 0.6, "mouthFrownRight": 0.6},
    "eyes_closed": {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0},
    "pucker": {"mouthPucker": 0.7},
}


def _mix(first, second, amount: float):
    """Blend two numbers, tuples or limbs of the same kind."""
    if first is None or second is None:
        return first if amount < 0.5 else second
    if isinstance(first, tuple):
        return tuple(_mix(a, b, amount) for a, b in zip(first, second))
    if isinstance(first, (Arm, Leg)):
        names = first.__dataclass_fields__
        return type(first)(**{n: _mix(getattr(first, n), getattr(second, n), amount) for n in names})
    return (1 - amount) * first + amount * second


def blend_poses(first: Pose, second: Pose, amount: float) -> Pose:
    """Part of the way from one pose to another, 0 to 1; hands are the first's."""
    names = ("arms", "legs", "spine", "neck", "root")
    return replace(first, **{n: _mix(getattr(first, n), getattr(second, n), amount) for n in names})


def mirror_pose(pose: Pose) -> Pose:
    """Left for right."""
    flip = {n: (getattr(pose, n)[0], -getattr(pose, n)[1], -getattr(pose, n)[2]) for n in ("spine", "neck", "root")}
    return replace(pose, arms=pose.arms[::-1], legs=pose.legs[::-1], **flip)


@dataclass(frozen=True)
class PoseSample:
    """Bone rotations for `Rig.pose` (B, 3, 3), the face actions of `Rig.shape`, and what was chosen."""

    rotations: np.ndarray
    face: dict[str, float]
    info: dict[str, object]


def sample_pose(rig: Rig, rng: np.random.Generator) -> PoseSample:
    """Draw a pose: two base poses blended (mostly near the first), mirrored at random, and perturbed."""
    names = list(POSES)
    weights = np.array([POSES[name].weight for name in names])
    first = str(rng.choice(names, p=weights / weights.sum()))
    alike = [n for n in names if POSES[n].tags == POSES[first].tags and n != first] or [first]
    second = str(rng.choice(alike))
    amount = float(rng.beta(1.0, 4.0)) * 0.8 if "tight" not in POSES[first].tags else 0.0
    pose = blend_poses(POSES[first], POSES[second], amount)
    mirrored = bool(rng.random() < 0.5)
    if mirrored:
        pose = mirror_pose(pose)
    pose = perturb_pose(pose, rng)
    hands = tuple(str(rng.choice(pose.hands)) for _ in SIDES)
    expression = str(rng.choice(list(FACES), p=[0.3, 0.2, 0.1, 0.12, 0.04, 0.06, 0.08, 0.04, 0.06]))
    info = {
        "base": first,
        "second": second,
        "second_share": round(amount, 3),
        "mirrored": mirrored,
        "hands": {"left": hands[0], "right": hands[1]},
        "expression": expression,
    }
    return PoseSample(pose_rotations(rig, pose, hands, rng), sample_face(expression, rng), info)


def sample_face(expression: str, rng: np.random.Generator) -> dict[str, float]:
    """An expression with random strength, gaze, lids, and a little noise."""
    strength = rng.uniform(0.4, 1.15)
    face = {name: value * strength for name, value in FACES[expression].items()}
    across, upwards = rng.normal(0, 0.3), rng.normal(0, 0.2)
    face["eyeLookOutLeft"] = face["eyeLookInRight"] = max(across, 0)
    face["eyeLookInLeft"] = face["eyeLookOutRight"] = max(-across, 0)
    face["eyeLookUpLeft"] = face["eyeLookUpRight"] = max(upwards, 0)
    face["eyeLookDownLeft"] = face["eyeLookDownRight"] = max(-upwards, 0)
    for name in ("browInnerUp", "jawForward", "mouthPressLeft", "mouthPressRight", "noseSneerLeft"):
        face[name] = face.get(name, 0) + abs(rng.normal(0, 0.08))
    return {name: float(np.clip(value, 0, 1)) for name, value in face.items()}


def perturb_pose(pose: Pose, rng: np.random.Generator, scale: float = 1.0) -> Pose:
    """Random changes of every limb, kept within what joints can do."""
    tight = 0.35 if "tight" in pose.tags else 1.0

    def direction(vector, amount):
        return tuple(unit(unit(np.array(vector)) + rng.normal(0, amount * scale * tight, 3)))

    arms = tuple(
        replace(
            arm,
            upper=direction(arm.upper, 0.12),
            fore=direction(arm.fore, 0.13),
            palm=direction(arm.palm, 0.3),
            wrist=float(np.clip(arm.wrist + rng.normal(0, 10) * tight, -45, 55)),
        )
        for arm in pose.arms
    )
    legs = tuple(
        replace(
            leg,
            thigh=direction(leg.thigh, 0.05),
            knee=float(np.clip(leg.knee + rng.normal(0, 6), 0, 140)),
            ankle=None if leg.ankle is None else float(np.clip(leg.ankle + rng.normal(0, 5), -25, 45)),
            forward=direction(leg.forward, 0.1),
        )
        for leg in pose.legs
    )

    def angles(values, deviations, limits):
        return tuple(
            float(np.clip(v + rng.normal(0, d * scale), -limit, limit))
            for v, d, limit in zip(values, deviations, limits)
        )

    return replace(
        pose,
        arms=arms,
        legs=legs,
        spine=angles(pose.spine, (5, 8, 4), (50, 35, 25)),
        neck=angles(pose.neck, (10, 22, 7), (40, 65, 25)),
        root=angles(pose.root, (3, 0, 2), (50, 10, 10)),
    )


def pose_rotations(rig: Rig, pose: Pose, hands: tuple[str, str], rng: np.random.Generator) -> np.ndarray:
    """(B, 3, 3) rotations for `Rig.pose`."""
    reference = rig.template[1]
    rotations = np.tile(np.eye(3), (len(rig.bone_names), 1, 1))
    rotations[rig.bone["root"]] = euler(*pose.root)
    for share, names in ((0.2, ("spine05", "spine04", "spine03", "spine02", "spine01")), (0.25, _NECK)):
        angles = pose.spine if share == 0.2 else pose.neck
        for name in names:
            rotations[rig.bone[name]] = euler(*(share * np.array(angles)))
    for side, arm, leg, hand in zip(SIDES, pose.arms, pose.legs, hands):
        _arm(rig, reference, rotations, side, arm)
        _leg(rig, reference, rotations, side, leg)
        _fingers(rig, reference, rotations, side, hand, rng)
    return rotations


_NECK = ("neck01", "neck02", "neck03", "head")


def _sided(vector, side: str) -> np.ndarray:
    return np.array(vector, np.float64) * ([1, 1, 1] if side == "L" else [-1, 1, 1])


def _palm(reference, side: str) -> np.ndarray:
    """The way the palm looks in the reference pose."""
    wrist = reference[f"wrist.{side}"]
    out = np.cross(reference[f"finger2-1.{side}"] - wrist, reference[f"finger5-1.{side}"] - wrist)
    return unit(-out if side == "L" else out)


def _arm(rig: Rig, reference, rotations, side: str, arm: Arm) -> None:
    shoulder, elbow, wrist = (reference[f"{n}.{side}"] for n in ("upperarm01", "lowerarm01", "wrist"))
    upper, fore = unit(_sided(arm.upper, side)), unit(_sided(arm.fore, side))
    bend = np.rad2deg(np.arccos(np.clip(upper @ fore, -1, 1)))
    if bend > 140:
        fore = turn(np.cross(upper, fore), 140) @ upper
    # A straight elbow leaves the twist open: the hinge then looks the way it does in a hanging arm.
    hinge = np.cross(upper, fore) + 0.08 * np.cross(upper, _sided((-0.3, 0.3, 1.0), side))
    reference_hinge = np.cross(elbow - shoulder, wrist - elbow)
    whole = frame(upper, hinge) @ frame(elbow - shoulder, reference_hinge).T
    lower = frame(fore, hinge) @ frame(wrist - elbow, reference_hinge).T
    clavicle = _clavicle(upper, side)
    swung = swing(elbow - shoulder, upper)
    half = swung @ power(swung.T @ whole, 0.5)
    palm_now = lower @ _palm(reference, side)
    palm = _sided(arm.palm, side)
    palm_now, palm = (unit(p - fore * (fore @ p)) for p in (palm_now, palm))
    pronation = np.rad2deg(np.arctan2(np.cross(palm_now, palm) @ fore, palm_now @ palm))
    pronation = float(np.clip(pronation, -75, 75))
    twisted_half = turn(fore, pronation / 2) @ lower
    twisted = turn(fore, pronation) @ lower
    hand_axis = np.cross(fore, twisted @ _palm(reference, side))
    hand = turn(hand_axis, arm.wrist) @ twisted
    chain = [clavicle, half, whole, lower, twisted_half, hand]
    names = ("clavicle", "upperarm01", "upperarm02", "lowerarm01", "lowerarm02", "wrist")
    before = np.eye(3)
    for name, now in zip(names, chain):
        rotations[rig.bone[f"{name}.{side}"]] = before.T @ now
        before = now


def _clavicle(upper: np.ndarray, side: str) -> np.ndarray:
    """The shoulder girdle rises with the arm and follows it forward."""
    sign = 1 if side == "L" else -1
    lift = 28 * max(0.0, upper[1] + 0.35) / 1.35
    return turn([0, 1, 0], -sign * 12 * upper[2] * (1 - abs(upper[1]))) @ turn([0, 0, 1], sign * lift)


def _leg(rig: Rig, reference, rotations, side: str, leg: Leg) -> None:
    hip, knee, ankle = (reference[f"{n}.{side}"] for n in ("upperleg01", "lowerleg01", "foot"))
    thigh, forward = _sided(leg.thigh, side), _sided(leg.forward, side)
    # A thigh that points forward has its knee cap looking up.
    pole = unit(forward) + np.array([0, 1.0, 0]) * max(0.0, unit(thigh)[2]) ** 2
    upper = frame(thigh, pole) @ frame(knee - hip, [0, 0, 1.0]).T
    rest = _bend(knee - hip) - _bend(ankle - knee)
    lower = upper @ turn([1, 0, 0], leg.knee + rest)
    root = rotations[rig.bone["root"]]
    rotations[rig.bone[f"upperleg01.{side}"]] = root.T @ upper
    rotations[rig.bone[f"lowerleg01.{side}"]] = upper.T @ lower
    if leg.ankle is None:
        heading = np.rad2deg(np.arctan2(*forward[[0, 2]]))
        level = lower.T @ turn([0, 1, 0], heading * 0.7)
        angle = np.rad2deg(np.arccos(np.clip((np.trace(level) - 1) / 2, -1, 1)))
        rotations[rig.bone[f"foot.{side}"]] = power(level, min(1.0, 40 / max(angle, 1e-6)))
    else:
        rotations[rig.bone[f"foot.{side}"]] = turn([1, 0, 0], leg.ankle)


def _bend(direction: np.ndarray) -> float:
    """Degrees by which a downward limb leans back."""
    return float(np.rad2deg(np.arctan2(-direction[2], -direction[1])))


def _fingers(rig: Rig, reference, rotations, side: str, hand: str, rng: np.random.Generator) -> None:
    shape, palm = HANDS[hand], _palm(reference, side)
    spread = {"spread": 9.0, "open": 3.0}.get(hand, 0.0) + rng.normal(0, 1.0)
    amount = rng.uniform(0.75, 1.1)
    for finger in range(2, 6):
        joints = [reference[f"finger{finger}-{k}.{side}"] for k in (1, 2, 3)]
        axis = np.cross(joints[1] - joints[0], palm)
        bends = np.array(shape["fore" if finger == 2 else "rest"]) * amount + rng.normal(0, 4, 3)
        bends = np.clip(bends, -12, 95)
        apart = turn(palm, (3.4 - finger) * spread * (1 if side == "L" else -1))
        for k in range(3):
            rotations[rig.bone[f"finger{finger}-{k + 1}.{side}"]] = turn(axis, bends[k])
        rotations[rig.bone[f"finger{finger}-1.{side}"]] = apart @ turn(axis, bends[0])
    thumb = [reference[f"finger1-{k}.{side}"] for k in (1, 2, 3)]
    across = reference[f"finger4-1.{side}"] + 0.02 * palm - thumb[1]
    axis = np.cross(thumb[2] - thumb[1], across)
    for k, bend in enumerate(np.array(shape["thumb"]) * amount + rng.normal(0, 3, 3)):
        rotations[rig.bone[f"finger1-{k + 1}.{side}"]] = turn(axis, bend)
