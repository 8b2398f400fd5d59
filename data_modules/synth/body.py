"""A random dressed adult: `sample_person`.

Shape, pose and face come from the Anny body model, clothes are grown from its surface, materials are procedural.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_modules.synth.accessories import hat_brim, hat_garment, sample_glasses, sample_hat, teeth
from data_modules.synth.anny_data import check_installed
from data_modules.synth.contact import keep_arms_out
from data_modules.synth.dressing import Dresser, moved
from data_modules.synth.garments import sample_outfit
from data_modules.synth.hair import hanging_hair, sample_hair
from data_modules.synth.keypoints import keypoint_radius, person_keypoints
from data_modules.synth.materials import (
    HAIR_COLORS,
    hair_color_shares,
    hair_material,
    iris_shares,
    sample_cloth_unlike,
    skin_tone,
)
from data_modules.synth.posed import PosedBody
from data_modules.synth.poses import sample_pose
from data_modules.synth.regions import load_regions, load_zone
from data_modules.synth.rig import load_rig
from data_modules.synth.shoes import build_shoe
from data_modules.synth.skin import IRIS_COLORS, paint_body, paint_eye, paint_head, skin_meshes
from data_modules.synth.skirts import build_skirt
from data_modules.synth.types import Material, Mesh, Person


def prepare() -> None:
    """Load everything that `sample_person` needs, once per process; the first call on a machine takes about 20 s.

    Call it before starting workers: it writes the cache that they read.

    Raises:
        MissingExtraError: without the `synth` extra.
    """
    check_installed("anny")
    load_regions()
    for zone in ("trunk", "head", "feet"):
        load_zone(zone)
    sample_person(np.random.default_rng(0))  # fills the remaining caches of masks and profiles


def sample_phenotype(rng: np.random.Generator) -> tuple[dict[str, float], dict[str, float], float]:
    """Phenotype values, race weights and age in years of a random adult."""
    female = rng.random() < 0.5
    phenotype = {
        "gender": float(np.clip(rng.normal(0.9 if female else 0.1, 0.08), 0, 1)),
        "muscle": float(rng.beta(3, 3)),
        "weight": float(rng.beta(2.5, 3)),
        "proportions": float(rng.beta(3, 2)),
        "cupsize": float(rng.beta(3, 3)),
    }
    race = dict(zip(("african", "asian", "caucasian"), map(float, rng.dirichlet([0.7, 0.7, 0.7]))))
    age = float(rng.uniform(25.0, 78.0))
    mean, deviation = (1.64, 0.07) if female else (1.77, 0.075)
    height = float(np.clip(rng.normal(mean, deviation), 1.45, 2.02))
    phenotype["height"] = load_rig().height_phenotype(height, phenotype, race, age)
    return phenotype, race, age


def sample_person(rng: np.random.Generator) -> Person:
    """Draw a dressed, posed adult; the same generator state gives the same bytes on the same machine.

    Returns:
        A `Person` in metres, y up, lowest point at y = 0, pelvis at x = z = 0, facing +z.

    Raises:
        MissingExtraError: without the `synth` extra.
    """
    rig = load_rig()
    phenotype, race, age = sample_phenotype(rng)
    pose = sample_pose(rig, rng)
    shape = rig.shape(phenotype, race, age, pose.face)
    rotations, sunk = keep_arms_out(rig, shape, pose.rotations)
    body = PosedBody(shape, rotations)
    meshes, described = _dress(rng, body, phenotype["gender"])
    root = body.joints[0]
    shift = np.array([root[0], min(mesh.vertices[:, 1].min() for mesh in meshes), root[2]], np.float32)
    meshes = tuple(moved(mesh, shift) for mesh in meshes)
    info = {
        "sex": "female" if phenotype["gender"] >= 0.5 else "male",
        "age": round(age, 1),
        "height": round(shape.height, 4),
        "phenotype": {name: round(value, 4) for name, value in phenotype.items()},
        "race": {name: round(value, 4) for name, value in race.items()},
        "pose": pose.info | {"arm_in_body": round(sunk, 4)},
    } | described
    return Person(meshes, person_keypoints(body, info["pupil"]) - shift, keypoint_radius().copy(), info)


def _dress(rng: np.random.Generator, body: PosedBody, gender: float) -> tuple[list[Mesh], dict[str, object]]:
    """All meshes of a posed body and what it wears, and the description of both."""
    regions = load_regions()
    outfit = sample_outfit(regions, rng, gender)
    hat = sample_hat(rng)
    hair = sample_hair(regions, rng, gender, hat)
    look, described = _look(rng, gender, hair.name)
    skin = skin_tone(described["skin_tone"]["position"] - 1)
    dresser = Dresser(body, rng)
    cloth: dict[str, Material] = {"hair": look.hair}
    patterns: dict[str, object] = {}

    def material(kind: str) -> Material:
        if kind not in cloth:
            cloth[kind], patterns[kind] = sample_cloth_unlike(rng, skin)
        return cloth[kind]

    meshes = []
    for shoe in outfit.shoes:
        dresser.hide_foot(shoe.side, shoe.top)
        meshes.append(build_shoe(body, shoe.side, shoe.top, shoe.depth, shoe.sole, shoe.point, material("shoe")))
    meshes += [dresser.add(garment, material(garment.kind)) for garment in outfit.garments]
    meshes += [
        build_skirt(s.name, body, rng, s.waist, s.hem, s.flare, s.face_class, material(s.kind)) for s in outfit.skirts
    ]
    if hair.cap is not None:
        meshes.append(dresser.add(hair.cap, look.hair))
        meshes += hanging_hair(hair, body, rng, look.hair)
    if hat is not None:
        meshes.append(dresser.add(hat_garment(regions, rng, hat), material("hat")))
        meshes += hat_brim(hat, body, rng, material("hat"))
    glasses = None
    if rng.random() < 0.22:
        frames, glasses = sample_glasses(body, rng)
        meshes += frames
    meshes += teeth(body, rng)
    meshes += skin_meshes(body, dresser.skin_faces(), look.head, look.body, look.eye)
    garments = outfit.info | {"hat": hat, "glasses": glasses, "hair": hair.name}
    return meshes, {"garments": garments, "materials": patterns} | described


@dataclass(frozen=True)
class _Look:
    head: np.ndarray
    body: np.ndarray
    eye: np.ndarray
    hair: Material


def _look(rng: np.random.Generator, gender: float, hair: str) -> tuple[_Look, dict[str, object]]:
    """Colours of skin, hair and eyes with their textures, and their description."""
    tone = float(rng.uniform(0, 9))
    color = str(rng.choice(list(HAIR_COLORS), p=hair_color_shares(tone)))
    shade = np.array(HAIR_COLORS[color]) * rng.uniform(0.75, 1.3)
    beard = float(rng.choice([0.0, rng.uniform(0.1, 0.4), rng.uniform(0.5, 0.95)], p=[0.5, 0.25, 0.25]))
    beard = beard if gender < 0.4 else 0.0
    lipstick = float(rng.uniform(0.3, 0.9)) if gender > 0.6 and rng.random() < 0.35 else 0.0
    scalp = {"bald": 0.0, "stubble": float(rng.uniform(0.2, 0.6))}.get(hair, 0.8)
    iris = str(rng.choice(list(IRIS_COLORS), p=iris_shares(tone)))
    head, body = paint_head(rng, tone, shade, beard, scalp, lipstick), paint_body(rng, tone)
    pupil = float(rng.uniform(0.12, 0.24))
    look = _Look(head=head, body=body, eye=paint_eye(IRIS_COLORS[iris], pupil), hair=hair_material(rng, shade))
    return look, {
        "skin_tone": {"scale": "monk", "position": round(1 + tone, 2)},
        "hair_color": color,
        "eyes": iris,
        "pupil": pupil,
        "beard": round(beard, 2),
        "lipstick": round(lipstick, 2),
    }
