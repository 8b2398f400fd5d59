"""Garments as shells: a piece of the body's surface, cut along a smooth line and pushed outwards.

The cut (`cut_piece`) works on scalar fields over the body mesh and knows nothing of the pose; the shell
(`build_shell`) is then made on the posed body.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_modules.synth.types import Material, Mesh


@dataclass(frozen=True)
class Piece:
    """A cut-out of a mesh: every vertex is a point on an edge of the source.

    Args:
        first, second: (N,) source texture vertices at the ends of the edge (the same where a vertex is kept).
        share: (N,) float32 of the second end.
        faces: (M, 3) int32 into the N vertices; source_face: (M,) the source triangle of each.
        rim: (E, 2) int32 edges along the cut, in the order of the triangle they bound.
    """

    first: np.ndarray
    second: np.ndarray
    share: np.ndarray
    faces: np.ndarray
    source_face: np.ndarray
    rim: np.ndarray

    def take(self, values: np.ndarray) -> np.ndarray:
        """Values (T, ...) at the source's texture vertices, interpolated at the piece's vertices."""
        share = self.share.reshape((-1,) + (1,) * (values.ndim - 1))
        return values[self.first] * (1 - share) + values[self.second] * share


def cut_piece(field: np.ndarray, faces: np.ndarray) -> Piece:
    """The part of a mesh where a field is positive, cut along its zero line inside the triangles.

    Args:
        field: (T,) float.
        faces: (F, 3) int.

    Raises:
        ValueError: if the field is positive nowhere.
    """
    inside = field[faces] > 0
    count = inside.sum(axis=1)
    if not (count > 0).any():
        raise ValueError("a garment's field is positive nowhere on the body")
    whole = np.flatnonzero(count == 3)
    one, two = np.flatnonzero(count == 1), np.flatnonzero(count == 2)
    # Rotate so that the odd vertex out comes first; the order around the triangle is kept.
    lone = _rotate(faces[one], inside[one].argmax(axis=1))
    pair = _rotate(faces[two], (~inside[two]).argmax(axis=1))
    edges = np.concatenate([lone[:, [0, 1]], lone[:, [0, 2]], pair[:, [1, 0]], pair[:, [2, 0]]])
    keys, cut = np.unique(np.sort(edges, axis=1), axis=0, return_inverse=True)
    used, kept = np.unique(np.concatenate([faces[whole].ravel(), lone[:, 0], pair[:, 1:].ravel()]), return_inverse=True)
    n_used, n_one, n_two = len(used), len(one), len(two)
    cut = cut.ravel() + n_used
    ab, ac, b, c = (
        cut[:n_one],
        cut[n_one : 2 * n_one],
        cut[2 * n_one : 2 * n_one + n_two],
        cut[2 * n_one + n_two :],
    )
    whole_faces = kept[: 3 * len(whole)].reshape(-1, 3)
    lone_at = kept[3 * len(whole) : 3 * len(whole) + n_one]
    pair_at = kept[3 * len(whole) + n_one :].reshape(-1, 2)
    new_faces = np.concatenate(
        [
            whole_faces,
            np.stack([lone_at, ab, ac], axis=1),
            np.stack([pair_at[:, 0], pair_at[:, 1], c], axis=1),
            np.stack([pair_at[:, 0], c, b], axis=1),
        ]
    )
    low, high = field[keys[:, 0]], field[keys[:, 1]]
    share = np.clip(low / np.where(low == high, 1, low - high), 0.03, 0.97)
    return Piece(
        first=np.concatenate([used, keys[:, 0]]),
        second=np.concatenate([used, keys[:, 1]]),
        share=np.concatenate([np.zeros(n_used), share]).astype(np.float32),
        faces=new_faces.astype(np.int32),
        source_face=np.concatenate([whole, one, two, two]),
        rim=np.concatenate([np.stack([ab, ac], axis=1), np.stack([c, b], axis=1)]).astype(np.int32),
    )


def split_along(field: np.ndarray, faces: np.ndarray) -> Piece:
    """The whole mesh, cut along a field's zero line: no triangle of the result lies on both sides. No rim."""
    parts = [cut_piece(field, faces), cut_piece(-field, faces)]
    shift = [0, len(parts[0].first)]
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("first", "second", "share", "source_face")
    }
    new_faces = np.concatenate([part.faces + offset for part, offset in zip(parts, shift)]).astype(np.int32)
    return Piece(faces=new_faces, rim=np.zeros((0, 2), np.int32), **joined)


def _rotate(faces: np.ndarray, first: np.ndarray) -> np.ndarray:
    return np.take_along_axis(faces, (first[:, None] + np.arange(3)) % 3, axis=1)


def build_shell(
    name: str,
    piece: Piece,
    outer: np.ndarray,
    outer_normals: np.ndarray,
    inner: np.ndarray,
    uv: np.ndarray,
    face_class: int | np.ndarray,
    material: Material,
) -> Mesh:
    """The mesh of a piece of cloth with a folded-in rim along its cuts.

    Args:
        outer: (T, 3) posed positions of the cloth; outer_normals (T, 3) unit.
        inner: (T, 3) where the rim is folded to, close to the body.
        uv: (T, 2) texture coordinates of the source; they are stretched to the piece's own [0, 1] box.
        face_class: one id, or (M,) for the piece's faces.
    """
    points, normals = piece.take(outer), piece.take(outer_normals)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    texture = piece.take(uv)
    low, high = texture.min(axis=0), texture.max(axis=0)
    texture = (texture - low) / np.maximum((high - low).max(), 1e-9)
    hem = piece.take(inner)
    first, second = piece.rim[:, 0], piece.rim[:, 1]
    corners = np.concatenate([points[first], points[second], hem[first], hem[second]])
    size, base = len(piece.rim), len(points)
    a, b, c, d = (base + k * size + np.arange(size) for k in range(4))
    # The cut edge runs along its triangle's order, so the rim must run against it.
    rim_faces = np.concatenate([np.stack([b, a, c], axis=1), np.stack([b, c, d], axis=1)])
    across = np.cross(points[first] - points[second], hem[first] - points[second])
    across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-12)
    flat = np.linalg.norm(across, axis=1) < 0.5
    across[flat] = normals[first][flat]
    ids = np.broadcast_to(np.asarray(face_class, np.uint8), len(piece.faces))
    rim_class = _rim_classes(piece, ids)
    return Mesh(
        name=name,
        vertices=np.concatenate([points, corners]).astype(np.float32),
        faces=np.concatenate([piece.faces, rim_faces]).astype(np.int32),
        normals=np.concatenate([normals, np.tile(across, (4, 1))]).astype(np.float32),
        uv=np.clip(np.concatenate([texture, texture[np.concatenate([first, second, first, second])]]), 0, 1).astype(
            np.float32
        ),
        face_class=np.concatenate([ids, rim_class, rim_class]).astype(np.uint8),
        material=material,
        two_sided=True,
    )


def _rim_classes(piece: Piece, ids: np.ndarray) -> np.ndarray:
    """The class at each rim edge: that of any face that uses the edge's first vertex."""
    of_vertex = np.zeros(len(piece.first), np.uint8)
    of_vertex[piece.faces.ravel()] = np.repeat(ids, 3)
    return of_vertex[piece.rim[:, 0]]
