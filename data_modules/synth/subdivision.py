"""Finer, rounder meshes: each triangle becomes four that follow the curve which the vertex normals describe.

A body of 30,000 flat triangles with smooth normals contradicts itself at every facet: its depth is faceted, its normals
are not. One subdivision halves the angle between them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from data_modules.synth.types import Mesh, Person

# An edge between normals that belong to a crease must not balloon.
_MAX_BULGE = 0.12


def subdivide_person(person: Person) -> Person:
    """Subdivide every mesh once."""
    return replace(person, meshes=tuple(subdivide(mesh) for mesh in person.meshes))


def subdivide(mesh: Mesh) -> Mesh:
    """Split each triangle into four; the new vertices lie on curved PN triangles (Vlachos et al. 2001), cubic curves
    that meet the vertex normals at a right angle.

    The position of a new vertex depends on the ends of its edge only, in no order: vertices that are doubled along a
    seam of the texture stay together.
    """
    edges = mesh.faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    ordered = np.sort(edges, axis=1).astype(np.int64)
    count = len(mesh.vertices)
    keys, inverse = np.unique(ordered[:, 0] * count + ordered[:, 1], return_inverse=True)
    first, second = keys // count, keys % count
    a, b = mesh.vertices[first], mesh.vertices[second]
    normal_a, normal_b = mesh.normals[first], mesh.normals[second]
    along = b - a
    bulge = np.einsum("nc,nc->n", along, normal_b)[:, None] * normal_b
    bulge = (bulge - np.einsum("nc,nc->n", along, normal_a)[:, None] * normal_a) / 8
    length = np.linalg.norm(bulge, axis=1, keepdims=True)
    limit = _MAX_BULGE * np.linalg.norm(along, axis=1, keepdims=True)
    bulge *= np.minimum(1, limit / np.maximum(length, 1e-12))
    # Where the curve between two equal normals is an S, its middle leans; the sum of the normals would not.
    lean = 2 * np.einsum("nc,nc->n", along, normal_a + normal_b) / np.maximum((along**2).sum(axis=1), 1e-12)
    normals = normal_a + normal_b - lean[:, None] * along
    size = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = np.where(size > 1e-3, normals / np.maximum(size, 1e-3), normal_a)
    middle = (count + inverse).reshape(-1, 3).astype(np.int32)
    (p, q, r), (pq, qr, rp) = mesh.faces.T, middle.T
    faces = np.stack([p, pq, rp, pq, q, qr, rp, qr, r, pq, qr, rp], axis=1).reshape(-1, 3)
    return replace(
        mesh,
        vertices=np.concatenate([mesh.vertices, (a + b) / 2 + bulge]).astype(np.float32),
        normals=np.concatenate([mesh.normals, normals]).astype(np.float32),
        uv=np.concatenate([mesh.uv, (mesh.uv[first] + mesh.uv[second]) / 2]).astype(np.float32),
        faces=np.ascontiguousarray(faces, np.int32),
        face_class=np.repeat(mesh.face_class, 4),
    )
