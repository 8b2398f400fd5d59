"""Affine warps: the half pixel, anti-aliasing, nearest labels, and what they do to normals and the camera."""

import numpy as np
import pytest

from data_modules.transforms import geometry as g


def test_enlarging_a_dot_by_two_is_symmetric():
    """A warp that forgets OpenCV's integer centres puts the dot half a pixel aside."""
    dot = np.zeros((9, 9), np.float32)
    dot[4, 4] = 16
    for matrix in (g.scale_matrix(2, 2), g.scale_matrix(2, 2) @ g.rotation_matrix(90, (4.5, 4.5))):
        big = g.warp_image(dot, matrix, (18, 18))
        np.testing.assert_allclose(big, big[::-1], atol=1e-4)
        np.testing.assert_allclose(big, big[:, ::-1], atol=1e-4)
        np.testing.assert_allclose(big[8, 6:12], np.array([0, 0.25, 0.75, 0.75, 0.25, 0]) * 12, atol=1e-3)


@pytest.mark.parametrize("degrees", [0.0, 17.0, -140.0])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scale", [0.4, 1.0, 2.3])
def test_a_ramp_is_warped_to_its_place(degrees, flip, scale, centres):
    """Resampling keeps a linear function, so that its values tell where a pixel came from.

    Bilinear does so exactly; the mean over parts of pixels that area resampling takes is off by up to 1/20 pixel.
    """
    size, target = (90, 110), (70, 60)
    ramp = (centres(size) @ [1.0, 3.0]).astype(np.float32)
    matrix = g.translation_matrix(30.3, 35.1) @ g.scale_matrix(scale, scale)
    matrix = matrix @ g.rotation_matrix(degrees, (0, 0)) @ g.translation_matrix(-55.2, -45.7)
    if flip:
        matrix = g.flip_matrix(60) @ matrix
    warped = g.warp_image(ramp, matrix, target)
    source = g.map_points(centres(target), np.linalg.inv(matrix))
    inner = ((source > 3 / scale) & (source < np.array(size[::-1]) - 3 / scale)).all(axis=-1)
    assert inner.sum() > 200
    np.testing.assert_allclose(warped[inner], (source @ [1.0, 3.0])[inner], atol=0.02 if scale >= 1 else 0.2)
    outside = ((source < -0.1) | (source > np.array(size[::-1]) + 0.1)).any(axis=-1)
    assert (warped[outside] == 0).all()


def test_the_fast_path_equals_the_general_one():
    image = np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8)
    matrix = g.flip_matrix(50) @ g.crop_matrix((3, 5, 28, 35), (60, 50))
    fast = g.warp_image(image, matrix, (60, 50)).astype(int)
    nudged = g.translation_matrix(0.01, 0) @ matrix  # off the whole pixel: takes the general path
    slow = g.warp_image(image, nudged, (60, 50)).astype(int)
    # The crop's rim differs: it repeats its edge in one case and sees the rest of the picture in the other.
    assert np.abs(fast - slow)[2:-2, 2:-2].max() <= 3
    np.testing.assert_array_equal(
        g.warp_labels(image, matrix, (60, 50))[1:-1, 1:-1], g.warp_labels(image, nudged, (60, 50))[1:-1, 1:-1]
    )


def test_shrinking_takes_the_mean_of_what_a_pixel_covers():
    image = np.random.default_rng(0).integers(0, 256, (120, 120), np.uint8)
    small = g.warp_image(image, g.scale_matrix(0.25, 0.25), (30, 30))
    blocks = image.reshape(30, 4, 30, 4).mean(axis=(1, 3))
    assert np.abs(small - blocks).max() <= 0.5


def test_shrinking_and_turning_averages():
    """A chequerboard of single pixels becomes grey; a bilinear warp alone would show a pattern."""
    board = (np.indices((128, 128)).sum(axis=0) % 2 * 200).astype(np.uint8)
    matrix = g.scale_matrix(0.25, 0.25) @ g.rotation_matrix(45, (64, 64))
    small = g.warp_image(board, matrix, (32, 32))[12:20, 12:20]
    assert np.abs(small.astype(int) - 100).max() <= 2


@pytest.mark.parametrize("matrix", [g.scale_matrix(1.7, 0.6), g.rotation_matrix(33, (20, 10)), g.flip_matrix(40)])
def test_labels_come_from_the_pixel_under_the_centre(matrix, centres):
    ids = np.arange(30 * 40, dtype=np.float32).reshape(30, 40)
    warped = g.warp_labels(ids, matrix, (50, 60), fill=-1)
    source = g.map_points(centres((50, 60)), np.linalg.inv(matrix))
    x, y = np.floor(source).astype(int).transpose(2, 0, 1)
    inside = (x >= 0) & (x < 40) & (y >= 0) & (y < 30)
    expected = np.where(inside, ids[y.clip(0, 29), x.clip(0, 39)], -1)
    fraction = source - np.floor(source)
    clear = (np.abs(fraction - 0.5) < 0.45).all(axis=-1)  # not within rounding of two pixels' border
    assert clear.sum() > 1000
    np.testing.assert_array_equal(warped[clear], expected[clear])


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.uint16, np.int16, np.float32])
def test_labels_keep_their_type_and_values(dtype):
    labels = np.random.default_rng(0).integers(0, 2, (20, 20, 3)).astype(dtype)
    for matrix in (g.rotation_matrix(10, (10, 10)), g.scale_matrix(1.5, 1.5)):
        warped = g.warp_labels(labels, matrix, (30, 30))
        assert warped.dtype == dtype and warped.shape == (30, 30, 3)
        assert set(np.unique(warped)) <= {0, 1}


def test_nothing_shown_is_all_fill_and_the_input_is_never_returned():
    image = np.full((10, 10), 7, np.uint8)
    assert (g.warp_image(image, g.translation_matrix(50, 0), (10, 10)) == 0).all()
    assert (g.warp_labels(image, g.translation_matrix(50, 0), (10, 10), fill=255) == 255).all()
    same = g.warp_image(image, np.eye(3), (10, 10))
    same[:] = 0
    assert (image == 7).all()


def test_pictures_larger_than_opencv_warps():
    """OpenCV's warp takes sides up to 32767; only what is shown is handed to it."""
    image = np.zeros((40, 40000), np.uint8)
    image[:, 39000:] = 200
    matrix = g.rotation_matrix(5, (39500, 20)) @ g.translation_matrix(0.3, 0)
    shown = g.translation_matrix(-39480, 0) @ matrix
    assert (g.warp_image(image, shown, (40, 40))[15:25, 15:25] == 200).all()


def test_rotation_is_counter_clockwise_as_seen():
    np.testing.assert_allclose(g.map_points(np.array([11.0, 5.0]), g.rotation_matrix(90, (5, 5))), [5, -1], atol=1e-12)


@pytest.mark.parametrize(
    ("matrix", "turned"),
    [
        (g.flip_matrix(100), (-0.48, 0.6, 0.64)),
        (g.rotation_matrix(90, (3, 8)), (-0.6, 0.48, 0.64)),
        (g.rotation_matrix(180, (3, 8)), (-0.48, -0.6, 0.64)),
        (g.scale_matrix(1, -1), (0.48, -0.6, 0.64)),
        (g.crop_matrix((3, 5, 40, 50), (20, 90)), (0.48, 0.6, 0.64)),
    ],
    ids=["flip", "quarter turn", "half turn", "upside down", "crop and stretch"],
)
def test_normals_turn_with_the_picture(matrix, turned):
    normals = np.array([[[0.48, 0.6, 0.64]]], np.float32)
    np.testing.assert_allclose(g.turn_normals(normals, matrix)[0, 0], turned, atol=1e-6)
    np.testing.assert_allclose(normals[0, 0], [0.48, 0.6, 0.64], atol=1e-6)  # not changed in place


def test_stretching_before_or_after_a_rotation_does_not_bend_it():
    for matrix in (
        g.scale_matrix(1.02, 0.98) @ g.rotation_matrix(30, (5, 5)),
        g.rotation_matrix(30, (5, 5)) @ g.scale_matrix(1.02, 0.98),
    ):
        np.testing.assert_allclose(g.orthogonal_part(matrix), g.rotation_matrix(30, (0, 0))[:2, :2], atol=1e-12)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("degrees", [0.0, 30.0, -75.0])
def test_intrinsics_project_turned_points_onto_the_warped_picture(flip, degrees):
    rng = np.random.default_rng(0)
    intrinsics = np.array([[310.0, 0, 61], [0, 310.0, 83], [0, 0, 1]])
    points = rng.uniform([-1, -1, 2], [1, 1, 5], (20, 3))
    matrix = g.crop_matrix((10, 20, 90, 110), (45, 40)) @ g.rotation_matrix(degrees, (70, 40))
    matrix = g.flip_matrix(40) @ matrix if flip else matrix
    projected = points @ intrinsics.T
    expected = g.map_points(projected[:, :2] / projected[:, 2:], matrix)

    # The same turn as the normals': these are (x, y up, z to the camera), points are (x, y down, z away from it).
    mirror = np.array([1.0, -1.0, -1.0])
    turned = g.turn_normals((points * mirror).astype(np.float32)[None], matrix)[0] * mirror
    warped = g.warp_intrinsics(intrinsics, matrix)
    projected = turned @ warped.T.astype(np.float64)
    np.testing.assert_allclose(projected[:, :2] / projected[:, 2:], expected, atol=1e-3)
    assert warped[0, 1] == warped[1, 0] == 0  # square pixels stay square: a camera roll
    assert warped[0, 0] == pytest.approx(155) and warped[2].tolist() == [0, 0, 1]


def test_a_flip_moves_the_principal_point_to_the_other_side():
    intrinsics = np.array([[300, 0, 61], [0, 280, 83], [0, 0, 1]], np.float32)
    np.testing.assert_allclose(
        g.warp_intrinsics(intrinsics, g.flip_matrix(128)), [[300, 0, 67], [0, 280, 83], [0, 0, 1]]
    )
