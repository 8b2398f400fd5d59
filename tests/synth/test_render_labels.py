import numpy as np
import pytest

from data_modules.synth.camera import Camera, sample_camera, view_rotation
from data_modules.synth.labels import OCCLUDED, UNLABELLED, VISIBLE, make_labels, sample_texture, tight_box
from data_modules.synth.subdivision import subdivide_person
from data_modules.synth.types import Material, Mesh, Person

PLAIN = Material(np.full((1, 1, 3), 0.5, np.float32), 1.0, 0.0)


def look(azimuth: float, distance: float = 3.0, size=(128, 96), focal: float = 150, height: float = 0.9) -> Camera:
    """A camera at the figure's height, on the given side of it."""
    rotation = view_rotation(azimuth, 0, 0)
    intrinsics = np.array([[focal, 0, size[1] / 2], [0, focal, size[0] / 2], [0, 0, 1.0]])
    return Camera(intrinsics, rotation, np.array([0, height, 0]) - distance * rotation[2], size, {})


def person_of(*meshes: Mesh, keypoints=None) -> Person:
    points = np.full((308, 3), np.nan, np.float32)
    for index, point in (keypoints or {}).items():
        points[index] = point
    return Person(meshes, points, np.full(308, 0.02, np.float32), {})


def normals_from_depth(depth: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Cross product of central differences of the camera points, in the kit's frame."""
    height, width = depth.shape
    v, u = np.mgrid[:height, :width] + 0.5
    points = np.stack(
        [(u - intrinsics[0, 2]) / intrinsics[0, 0], (v - intrinsics[1, 2]) / intrinsics[1, 1], np.ones_like(u)], -1
    )
    points = points * depth[..., None].astype(np.float64)
    down, right = np.gradient(points, axis=(0, 1))
    normal = np.cross(right, down) * [-1, 1, 1]
    return normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-12)


def interior(fields: dict) -> np.ndarray:
    """Pixels whose neighbourhood is one part without a jump in depth."""
    depth, parts = fields["depth"], fields["parts"]
    inside = np.zeros(depth.shape, bool)
    core = np.s_[1:-1, 1:-1]
    inside[core] = parts[core] > 0
    for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        moved = np.s_[1 + dy : parts.shape[0] - 1 + dy, 1 + dx : parts.shape[1] - 1 + dx]
        inside[core] &= (parts[moved] == parts[core]) & (abs(depth[moved] - depth[core]) < 0.03)
    return inside


@pytest.fixture(scope="module")
def people():
    """Real people of the body model."""
    from data_modules.synth.body import sample_person

    return [subdivide_person(sample_person(np.random.default_rng([5, i]))) for i in range(4)]


def test_normals_of_a_sphere_are_right_up_and_to_the_camera(stand_in) -> None:
    ball = stand_in.ellipsoid((0, 0.9, 0), (0.3, 0.3, 0.3), "ball", 3, PLAIN, steps=64)
    camera = look(azimuth=130)
    fields = make_labels(person_of(ball), camera).fields
    height, width = camera.image_size
    seen = fields["parts"] > 0
    v, u = (grid[seen] for grid in np.mgrid[:height, :width] + 0.5)
    depth = fields["depth"][seen]
    x = (u - width / 2) / 150 * depth / 0.3
    y = -(v - height / 2) / 150 * depth / 0.3
    z = (3.0 - depth) / 0.3
    np.testing.assert_allclose(fields["normals"][seen], np.stack([x, y, z], -1), atol=0.02)
    assert fields["normals"][height // 2, width // 2, 2] > 0.999
    assert (fields["normals"][~seen] == 0).all() and (fields["depth"][~seen] == 0).all()


def test_the_inside_of_an_open_shell_turns_its_normal_to_the_viewer() -> None:
    corners = np.array([[-0.5, 0.4, 0], [0.5, 0.4, 0], [0.5, 1.4, 0], [-0.5, 1.4, 0]], np.float32)
    normals = np.tile(np.float32([0, 0, 1]), (4, 1))
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    sheet = Mesh("sheet", corners, faces, normals, uv, np.full(2, 23, np.uint8), PLAIN, two_sided=True)
    for azimuth in (0, 180):
        fields = make_labels(person_of(sheet), look(azimuth)).fields
        np.testing.assert_allclose(fields["normals"][64, 48], [0, 0, 1], atol=1e-6)
        np.testing.assert_allclose(fields["depth"][64, 48], 3.0, rtol=1e-6)


def test_left_and_right_of_a_figure_seen_from_the_front(figure) -> None:
    camera = look(azimuth=0, distance=3.5)
    fields = make_labels(figure, camera).fields
    columns = np.broadcast_to(np.arange(96), fields["parts"].shape)
    assert columns[fields["parts"] == 11].mean() > 54 > 42 > columns[fields["parts"] == 20].mean()
    # Seen from the person's left side, the left arm hides the right one.
    side = make_labels(figure, look(azimuth=90, distance=3.5)).fields["parts"]
    assert (side == 7).sum() > 20 and (side == 16).sum() == 0


def test_keypoints_are_projected_and_tested_for_occlusion(figure) -> None:
    camera = look(azimuth=0, distance=3.5)
    fields = make_labels(figure, camera).fields
    points, seen = fields["keypoints"], fields["visibility"]
    assert points.dtype == np.float32 and seen.dtype == np.uint8
    # The left wrist: x = 0.4 of 3.45 m away, right of the middle; y is 0.05 above the camera.
    np.testing.assert_allclose(points[62], [48 + 150 * 0.4 / 3.45, 64 - 150 * 0.05 / 3.45], rtol=1e-5)
    assert (seen[[0, 5, 6, 62, 41]] == VISIBLE).all()
    assert (seen[70:] == UNLABELLED).all() and (points[70:] == 0).all()
    behind = make_labels(figure, look(azimuth=180, distance=3.5)).fields
    assert behind["visibility"][0] == OCCLUDED and behind["visibility"][5] == VISIBLE
    side = make_labels(figure, look(azimuth=90, distance=3.5)).fields["visibility"]
    assert side[62] == VISIBLE and side[41] == OCCLUDED


def test_keypoints_outside_the_image_are_unlabelled(figure) -> None:
    fields = make_labels(figure, look(azimuth=0, distance=3.5, height=2.0)).fields
    assert fields["visibility"][0] == VISIBLE
    assert fields["visibility"][13] == UNLABELLED and (fields["keypoints"][13] == 0).all()


def test_albedo_is_looked_up_the_right_way_up(stand_in) -> None:
    texture = np.zeros((4, 4, 3), np.float32)
    texture[:2] = 1  # the upper half, v > 0.5
    ball = stand_in.ellipsoid((0, 0.9, 0), (0.3, 0.3, 0.3), "ball", 3, Material(texture, 1.0, 0.0), steps=32)
    albedo = make_labels(person_of(ball), look(azimuth=0)).fields["albedo"]
    assert (albedo[54, 48] == 255).all() and (albedo[74, 48] == 0).all()


def test_texture_look_up_is_bilinear_and_repeats() -> None:
    texture = np.arange(6, dtype=np.float32).reshape(2, 3, 1) * np.ones(3, np.float32)
    uv = np.array([[0.5 / 3, 0.75], [1 / 3, 0.75], [0.5 / 3, 0.5], [0.0, 0.75]])
    np.testing.assert_allclose(sample_texture(texture, uv)[:, 0], [0, 0.5, 1.5, 1.0], atol=1e-6)


def test_box_is_tight_in_continuous_pixels() -> None:
    mask = np.zeros((10, 12), bool)
    mask[3:7, 2:5] = True
    np.testing.assert_array_equal(tight_box(mask), [2, 3, 5, 7])
    np.testing.assert_array_equal(tight_box(np.zeros((4, 4), bool)), [0, 0, 0, 0])


def test_real_people_have_labels_that_agree_with_one_another(people) -> None:
    for i, person in enumerate(people):
        camera = sample_camera(np.random.default_rng([9, i]), person, (384, 288))
        labels = make_labels(person, camera)
        fields = labels.fields
        chosen = interior(fields)
        assert chosen.sum() > 2000
        estimate = normals_from_depth(fields["depth"], fields["intrinsics"])
        cosine = (estimate * fields["normals"]).sum(-1)[chosen]
        error = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
        assert np.median(error) < 3, f"person {i}: {np.median(error):.2f} degrees"
        # Where alpha and parts disagree, the pixel lies on the rim.
        solid, covered = fields["parts"] > 0, fields["alpha"] > 127
        rim = (fields["alpha"] > 0) & (fields["alpha"] < 255)
        assert not ((solid != covered) & ~rim).any()
        assert (solid != covered).sum() < 0.1 * rim.sum()
        length = np.linalg.norm(fields["normals"], axis=-1)
        np.testing.assert_allclose(length[solid], 1, atol=1e-5)
        assert ((fields["depth"] > 0) == solid).all()
        visible = fields["visibility"] == VISIBLE
        pixels = fields["keypoints"][visible].astype(int)
        # A fingertip may lie in a pixel whose centre just misses the finger.
        near = np.lib.stride_tricks.sliding_window_view(np.pad(solid, 1), (3, 3)).any(axis=(2, 3))
        assert near[pixels[:, 1], pixels[:, 0]].all()
