"""The dense face points of the synthetic body: complete, mirrored, on the skin, in their order, and they follow."""

import numpy as np
import pytest

pytest.importorskip("anny", reason="needs the synth extra")

from data_modules.synth.face_points import CHOSEN, face_keypoints
from data_modules.synth.keypoints import keypoint_radius
from data_modules.synth.labels import OCCLUDED, VISIBLE, project_keypoints
from data_modules.synth.posed import PosedBody
from data_modules.synth.regions import load_regions
from data_modules.synth.rig import load_rig
from data_modules.synth.skin import IRIS_RADIUS, eyeball
from data_modules.synth.types import Person
from s2kit.schemas import load_keypoint_set

IDS = load_keypoint_set(308).ids
RACE = {"african": 1, "asian": 1, "caucasian": 1}


@pytest.fixture(scope="module")
def template() -> dict[str, np.ndarray]:
    """Name -> (3,) on the template, metres."""
    return named(load_regions().points.astype(np.float64))


def named(points: np.ndarray, pupil: float = 0.2) -> dict[str, np.ndarray]:
    names = load_keypoint_set(308).names
    return {names[index]: place for index, place in zip(*face_keypoints(points, pupil))}


def with_face(**actions: float) -> np.ndarray:
    """The body's points with facial actions, in the reference pose."""
    rig = load_rig()
    shape = rig.shape({}, RACE, 30.0, actions)
    return PosedBody(shape, np.tile(np.eye(3), (len(rig.bone_names), 1, 1))).points


def line(template: dict, pattern: str, *numbers: object) -> np.ndarray:
    return np.stack([template[pattern.format(number)] for number in numbers])


def test_every_face_point_is_there_once():
    ids, places = face_keypoints(load_regions().points, 0.2)
    assert sorted(ids) == list(range(70, 308))
    assert places.dtype == np.float32 and np.isfinite(places).all()


def test_left_and_right_mirror_each_other_by_the_flip_map(template):
    schema = load_keypoint_set(308)
    for name, place in template.items():
        other = template[schema.names[schema.flip_map[schema.ids[name]]]]
        np.testing.assert_allclose(place * [-1, 1, 1], other, atol=2e-4, err_msg=name)
    assert template["l_tip_of_ear_lobe"][0] > 0.07 and template["l_center_of_iris"][0] > 0.025


def test_chosen_places_lie_on_the_skin(template):
    for name, place in CHOSEN.items():
        assert np.linalg.norm(template[name] - place) < 3e-4, name


def test_eyelids_run_from_the_inner_to_the_outer_corner(template):
    """The upper above the lower, lash line outside the lid's edge, the fold above both; midpoints in their order."""
    middle = ("midpoint_3", "midpoint_1", "midpoint_4", "centerpoint", "midpoint_5", "midpoint_2", "midpoint_6")
    lines = {
        (half, kind): line(template, "l_{}_of_" + f"{half}_{kind}_line", *middle)
        for half, kind in (
            ("upper", "lash"), ("upper", "eyelid"), ("upper", "crease"), ("lower", "lash"), ("lower", "eyelid"),
        )
    }  # fmt: skip
    for places in lines.values():
        steps = np.diff(places[:, 0])
        assert (steps > 0.5e-3).all()
        lengths = np.linalg.norm(np.diff(places, axis=0), axis=1)
        assert lengths.max() / lengths.min() < 1.6
    assert (lines["upper", "lash"][1:-1, 1] - lines["lower", "lash"][1:-1, 1] > 4e-3).all()
    assert (lines["upper", "crease"][1:-1, 1] - lines["upper", "lash"][1:-1, 1] > 3e-3).all()
    for half in ("upper", "lower"):
        assert (lines[half, "lash"][1:-1, 2] > lines[half, "eyelid"][1:-1, 2]).all()
        ends = line(template, "l_{}_of_" + f"{half}_lash_line", "inner_end", "outer_end")
        assert ends[0, 0] < lines[half, "lash"][0, 0] and lines[half, "lash"][-1, 0] < ends[1, 0]
    # On the right the same numbers run from the outer to the inner corner.
    right = line(template, "r_{}_of_upper_lash_line", *middle)
    assert (np.diff(right[:, 0]) > 0.5e-3).all()


def test_iris_and_pupil_are_circles_where_the_texture_has_them(template):
    for side, sign in (("l", 1), ("r", -1)):
        centre, radius = eyeball(sign)
        for name, share in (("iris", IRIS_RADIUS), ("pupil", 0.2)):
            hours = {"3": 0, "midpoint_1": 45, "12": 90, "midpoint_4": 135, "9": 180, "midpoint_3": 225, "6": 270}
            for hour, degrees in {**hours, "midpoint_2": 315}.items():
                offset = template[f"{side}_border_of_{name}_{hour}"][:2] - centre[:2]
                expected = share * radius * np.array([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))])
                np.testing.assert_allclose(offset, expected, atol=1e-5, err_msg=f"{side} {name} {hour}")
            np.testing.assert_allclose(template[f"{side}_center_of_{name}"][:2], centre[:2], atol=1e-5)
            assert template[f"{side}_center_of_{name}"][2] > centre[2] + 0.9 * radius
    wide = named(load_regions().points.astype(np.float64), pupil=0.24)
    assert wide["l_border_of_pupil_3"][0] - template["l_border_of_pupil_3"][0] == pytest.approx(
        0.04 * eyeball(1)[1], abs=1e-5
    )


def test_the_midline_goes_down_the_profile(template):
    names = [
        "center_of_glabella", "center_of_nose_root", "midpoint_2_of_nose_bridge", "midpoint_1_of_nose_bridge",
        "midpoint_3_of_nose_bridge", "tip_of_nose_bridge", "tip_of_nose", "bottom_center_of_nose",
        "center_of_cupid_bow", "center_of_upper_inner_lip", "center_of_lower_inner_lip", "center_of_lower_outer_lip",
        "center_of_labiomental_groove", "tip_of_chin",
    ]  # fmt: skip
    places = np.stack([template[name] for name in names])
    assert np.abs(places[:, 0]).max() < 3e-4
    heights = np.delete(places[:, 1], 10)  # the lips touch
    assert (np.diff(heights) < -1e-3).all()
    assert places[:, 2].argmax() == names.index("tip_of_nose")
    assert abs(template["center_of_upper_inner_lip"][1] - template["center_of_lower_inner_lip"][1]) < 1e-3


def test_lips_and_brows_are_in_order(template):
    for half in ("upper", "lower"):
        for edge in ("outer", "inner"):
            middle = {"outer": "center_of_cupid_bow", "inner": "center_of_upper_inner_lip"}[edge]
            middle = middle if half == "upper" else f"center_of_lower_{edge}_lip"
            x = [template[f"r_{edge}_corner_of_mouth"][0]]
            x += [template[f"midpoint_{number}_of_{half}_{edge}_lip"][0] for number in (3, 1, 4)]
            x += [template[middle][0]]
            x += [template[f"midpoint_{number}_of_{half}_{edge}_lip"][0] for number in (5, 2, 6)]
            x += [template[f"l_{edge}_corner_of_mouth"][0]]
            assert (np.diff(x) > 1.5e-3).all(), (half, edge, x)
    for number in (1, 2, 3):
        upper, lower = (template[f"{edge}_midpoint_{number}_of_l_eyebrow"] for edge in ("upper", "lower"))
        assert 0.004 < upper[1] - lower[1] < 0.012
    x = [template[f"upper_{name}_of_l_eyebrow"][0] for name in ("startpoint", "midpoint_2", "midpoint_1", "midpoint_3")]
    assert (np.diff([*x, template["end_of_l_eyebrow"][0]]) > 0.008).all()


def test_points_follow_the_face():
    """The jaw takes the lower lip and the chin along, lids close over the eye, the gaze moves iris and pupil."""
    rest, jaw, blink = (named(with_face(**actions)) for actions in ({}, {"jawOpen": 1.0}, {"eyeBlinkLeft": 1.0}))
    look = named(with_face(eyeLookOutLeft=1.0, eyeLookInRight=1.0))

    def moved(after: dict, name: str) -> np.ndarray:
        return after[name] - rest[name]

    assert moved(jaw, "center_of_lower_outer_lip")[1] < -0.01
    assert moved(jaw, "tip_of_chin")[1] < -0.01
    assert np.linalg.norm(moved(jaw, "center_of_cupid_bow")) < 0.004
    assert np.linalg.norm(moved(jaw, "l_center_of_iris")) < 1e-4

    def opening(points: dict, side: str) -> float:
        lids = (points[f"{side}_centerpoint_of_{half}_lash_line"] for half in ("upper", "lower"))
        return float(np.linalg.norm(np.subtract(*lids)))

    assert opening(rest, "l") > 0.006
    assert opening(blink, "l") < 0.35 * opening(rest, "l")
    assert opening(blink, "r") == pytest.approx(opening(rest, "r"), rel=0.02)
    for name in ("l_center_of_pupil", "r_center_of_pupil", "l_border_of_iris_6"):
        assert moved(look, name)[0] > 0.003, name


def test_closed_lids_hide_the_pupil_and_the_nose_the_other_eye():
    class Front:
        """Looks at the head from an angle to its left, 2 m away."""

        image_size = (800, 800)
        intrinsics = np.array([[6000.0, 0, 400], [0, 6000, 400], [0, 0, 1]])

        def __init__(self, degrees: float) -> None:
            cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
            forward = -np.array([sine, 0, cosine])
            self.rotation = np.stack([[cosine, 0, -sine], [0, -1, 0], forward])
            self.position = np.array([0, 0.87, 0.1]) - 2 * forward

        def to_camera(self, points):
            return (np.asarray(points, np.float64) - self.position) @ self.rotation.T

        def project(self, points):
            camera = self.to_camera(points)
            return camera[:, :2] / camera[:, 2:] * 6000 + 400, camera[:, 2]

    def seen(points: np.ndarray, degrees: float) -> dict[str, int]:
        keypoints = np.full((308, 3), np.nan, np.float32)
        ids, places = face_keypoints(points, 0.2)
        keypoints[ids] = places
        camera = Front(degrees)
        triangles = camera.to_camera(points)[load_rig().data.faces]
        visibility = project_keypoints(Person((), keypoints, keypoint_radius(), {}), camera, triangles)[1]
        return {name: int(visibility[index]) for name, index in IDS.items()}

    opened, closed = with_face(), with_face(eyeBlinkLeft=1.0)
    front = seen(opened, 0)
    for name in ("l_center_of_pupil", "tip_of_nose", "l_outer_corner_of_mouth", "center_of_glabella", "tip_of_chin"):
        assert front[name] == VISIBLE, name
    assert front["l_border_of_iris_12"] == OCCLUDED  # under the upper lid
    assert seen(closed, 0)["l_center_of_pupil"] == OCCLUDED
    assert seen(closed, 0)["r_center_of_pupil"] == VISIBLE
    side = seen(opened, 75)
    assert side["l_center_of_pupil"] == VISIBLE and side["r_center_of_pupil"] == OCCLUDED
    ear = [name for name in IDS if IDS["l_top_end_of_inferior_crus"] <= IDS[name] <= IDS["l_point_8_of_inner_helix"]]
    assert sum(side[name] == VISIBLE for name in ear) >= 22
    assert sum(side["r" + name[1:]] == VISIBLE for name in ear) == 0
