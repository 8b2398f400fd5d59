"""A random dressed adult: `sample_person`.

Shape, pose and face come from the Anny body model, clothes are grown from its surface, materials are procedural.
"""

from __future__ import annotations

import numpy as np

from data_modules.synth.anny_data import check_installed
from data_modules.synth.dressing import Dresser, body_mesh, moved
from data_modules.synth.garments import Outfit, sample_outfit
from data_modules.synth.keypoints import keypoint_radius, person_keypoints
from data_modules.synth.materials import plain, sample_cloth, skin_tone
from data_modules.synth.posed import PosedBody
from data_modules.synth.poses import sample_pose
from data_modules.synth.regions import load_regions, load_zone
from data_modules.synth.rig import load_rig
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
    rig, regions = load_rig(), load_regions()
    phenotype, race, age = sample_phenotype(rng)
    pose = sample_pose(rig, rng)
    shape = rig.shape(phenotype, race, age, pose.face)
    body = PosedBody(shape, pose.rotations)
    outfit = sample_outfit(regions, rng, phenotype["gender"])
    tone = float(rng.uniform(0, 9))
    meshes, materials = _dress(rng, body, outfit, tone)
    root = body.joints[0]
    shift = np.array([root[0], min(mesh.vertices[:, 1].min() for mesh in meshes), root[2]], np.float32)
    meshes = tuple(moved(mesh, shift) for mesh in meshes)
    info = {
        "sex": "female" if phenotype["gender"] >= 0.5 else "male",
        "age": round(age, 1),
        "height": round(shape.height, 4),
        "phenotype": {name: round(value, 4) for name, value in phenotype.items()},
        "race": {name: round(value, 4) for name, value in race.items()},
        "pose": pose.info,
        "garments": outfit.info,
        "materials": materials,
        "skin_tone": {"scale": "monk", "position": round(1 + tone, 2)},
    }
    return Person(meshes, person_keypoints(body) - shift, keypoint_radius().copy(), info)


def _dress(
    rng: np.random.Generator, body: PosedBody, outfit: Outfit, tone: float
) -> tuple[list[Mesh], dict[str, object]]:
    """All meshes of a posed body and its garments, and what they are made of."""
    dresser = Dresser(body, rng)
    cloth: dict[str, Material] = {}
    described: dict[str, object] = {}

    def material(kind: str) -> Material:
        if kind not in cloth:
            cloth[kind], described[kind] = sample_cloth(rng)
        return cloth[kind]

    meshes = [dresser.add(garment, material(garment.kind)) for garment in outfit.garments]
    for skirt in outfit.skirts:
        meshes.append(
            build_skirt(
                skirt.name,
                body,
                rng,
                skirt.waist,
                skirt.hem,
                skirt.flare,
                skirt.face_class,
                material(skirt.kind),
            )
        )
    meshes.append(body_mesh("skin", body, dresser.skin_faces(), plain(skin_tone(tone), 0.45, 0.35)))
    return meshes, described
