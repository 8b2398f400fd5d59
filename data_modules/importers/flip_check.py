"""Does a schema's left and right fit the data? A wrong swap table trains without complaint and ruins the model.

Two things can be seen in annotated people, whatever they do. In a person who faces the camera, left is on the right of
the picture, and most pairs (shoulders, hips, knees) lie the same way round as the shoulders. And a face is symmetric:
mirrored, each point lands near its flip partner.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from s2kit.schemas import KeypointSet

#: People that have what is compared, below which nothing is said.
MIN_PEOPLE = 20
#: Share of people in which a pair lies the same way round as the shoulders; crossed legs and arms leave 0.6 and more.
_MIN_AGREEMENT = 0.35
#: Share of facing people whose left is on the right of the picture; mirrored names leave next to none.
_MIN_FACING = 0.3
#: A mirrored point must not lie so many times closer to another point than to its partner.
_CLOSER = 3.0
_MIN_FACE_POINTS = 12
_MAX_FACES = 300


def check_flips(schema: KeypointSet, points: np.ndarray, names: Sequence[str] | None = None) -> str | None:
    """Return what is wrong with a schema's sides by annotated people, or None.

    Args:
        schema: The keypoint set that the points follow.
        points: float (N, K, 2), pixels; NaN where not annotated.
        names: What to call the points; the schema's names by default.
    """
    names = names or schema.names
    return (
        _check_sides(schema, points, names) or _check_pairs(schema, points, names) or _check_face(schema, points, names)
    )


def _check_sides(schema: KeypointSet, points: np.ndarray, names: Sequence[str]) -> str | None:
    """Names on the wrong sides: with nose and both eyes seen, the left eye and shoulder are on the picture's right."""
    needed = ("nose", "left_eye", "right_eye", "left_shoulder", "right_shoulder")
    if not all(name in schema.ids for name in needed):
        return None
    nose, left_eye, right_eye, left, right = (points[:, schema.ids[name]] for name in needed)
    # The eyes must be apart and the nose between them: the person faces the camera.
    low, high = np.minimum(left_eye[:, 0], right_eye[:, 0]), np.maximum(left_eye[:, 0], right_eye[:, 0])
    with np.errstate(invalid="ignore"):
        facing = (low < nose[:, 0]) & (nose[:, 0] < high) & (np.abs(left[:, 0] - right[:, 0]) > (high - low))
    if facing.sum() < MIN_PEOPLE:
        return None
    eyes = float((left_eye[facing, 0] > right_eye[facing, 0]).mean())
    shoulders = float((left[facing, 0] > right[facing, 0]).mean())
    if max(eyes, shoulders) < _MIN_FACING:
        return (
            f"left and right are exchanged: of {int(facing.sum())} people who face the camera, "
            f"{100 * (1 - shoulders):.0f} % have {names[schema.ids['left_shoulder']]!r} on the picture's left; sides "
            "must be the person's own"
        )
    return None


def _check_pairs(schema: KeypointSet, points: np.ndarray, names: Sequence[str]) -> str | None:
    """Single pairs the wrong way round: they must mostly lie as the shoulders lie."""
    if not {"left_shoulder", "right_shoulder"} <= set(schema.ids):
        return None
    reference = points[:, schema.ids["left_shoulder"], 0] - points[:, schema.ids["right_shoulder"], 0]
    body = [i for i in schema.groups.get("body", ()) if schema.names[i].startswith("left_")]
    for left in body:
        right = int(schema.flip_map[left])
        across = points[:, left, 0] - points[:, right, 0]
        with np.errstate(invalid="ignore"):
            clear = (np.abs(across) > 0.3 * np.abs(reference)) & (reference != 0)
        if clear.sum() < MIN_PEOPLE:
            continue
        agreement = float((np.sign(across[clear]) == np.sign(reference[clear])).mean())
        if agreement < _MIN_AGREEMENT:
            return (
                f"{names[left]!r} and {names[right]!r} look exchanged: in only {100 * agreement:.0f} % of "
                f"{int(clear.sum())} people they lie the same way round as the shoulders"
            )
    return None


def _check_face(schema: KeypointSet, points: np.ndarray, names: Sequence[str]) -> str | None:
    """Face points whose partner is not where their mirror image falls."""
    face = np.array(schema.groups.get("face", ()), dtype=np.int64)
    if len(face) < _MIN_FACE_POINTS:
        return None
    rows = points[:, face]
    rows = rows[np.isfinite(rows).all(axis=(1, 2))]
    if len(rows) < MIN_PEOPLE:
        return None
    position = {int(point): i for i, point in enumerate(face)}
    partner = np.array([position[int(schema.flip_map[point])] for point in face])
    # Faces from the side are not symmetric in the picture: the broadest third tells.
    spread = [np.linalg.svd(row - row.mean(axis=0), compute_uv=False) for row in rows[:_MAX_FACES]]
    frontal = np.argsort([-narrow / (wide + 1e-9) for wide, narrow in spread])[: max(len(spread) // 3, 1)]
    distances = np.median([_mirror_distances(rows[i], partner) for i in frontal], axis=0)
    ours = distances[np.arange(len(face)), partner]
    nearest = distances.argmin(axis=1)
    best = distances[np.arange(len(face)), nearest]
    # Neighbouring points of a lash or lip may lie as close as the partner: only what is far off counts.
    wrong = np.flatnonzero((ours > _CLOSER * best) & (ours > 0.25))
    odd = {point for pair in schema.odd_flip_pairs for point in pair}
    wrong = [i for i in wrong if int(face[i]) not in odd]
    if not wrong:
        return None
    i = wrong[0]
    return (
        f"{names[face[i]]!r} flips to {names[face[partner[i]]]!r}, but in {len(spread)} faces its mirror image lies at "
        f"{names[face[nearest[i]]]!r} ({len(wrong)} such points)"
    )


def _mirror_distances(row: np.ndarray, partner: np.ndarray) -> np.ndarray:
    """Distance of each mirrored point to each point, in units of the face's radius: (F, 2) -> (F, F).

    The mirror is the reflection, scaling and shift that maps the points to their partners best; of a table with a few
    wrong pairs it is found by the many right ones.
    """
    centred = row - row.mean(axis=0)
    radius = np.sqrt((centred**2).sum(axis=1).mean()) + 1e-9
    centred = centred / radius
    target = centred[partner]
    u, _, vt = np.linalg.svd(centred.T @ target)
    turn = u @ np.diag([1.0, -np.sign(np.linalg.det(u @ vt))]) @ vt
    mirrored = centred @ turn
    shift = np.median(target - mirrored, axis=0)
    return np.linalg.norm(mirrored[:, None] + shift - centred[None], axis=2)
