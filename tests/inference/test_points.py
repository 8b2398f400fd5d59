"""What follows from a pointmap, and its files."""

from dataclasses import replace

import numpy as np
import pytest

from s2kit.inference.points import Pointmap, normals_of, write_ply

ROOT = 0.5**0.5


def surface(slope_x: float = 0.0, slope_y: float = 0.0) -> np.ndarray:
    """Points (9, 11, 3) of a plane 2 m away: x right, y down, z grows by the slopes."""
    x, y = np.meshgrid(np.arange(11) * 0.1, np.arange(9) * 0.1)
    return np.stack([x, y, 2 + slope_x * x + slope_y * y], axis=-1).astype(np.float32)


@pytest.mark.parametrize(
    ("slopes", "normal"),
    [
        ((0, 0), (0, 0, 1)),  # a wall facing the camera
        ((1, 0), (ROOT, 0, ROOT)),  # farther on the right, like the left wall of a room: it faces right
        ((-1, 0), (-ROOT, 0, ROOT)),
        ((0, -1), (0, ROOT, ROOT)),  # farther above, like a floor: it faces up
        ((0, 1), (0, -ROOT, ROOT)),
    ],
)
def test_normals_are_in_the_kits_frame(slopes, normal):
    normals = normals_of(surface(*slopes))[1:-1, 1:-1]
    np.testing.assert_allclose(normals, np.broadcast_to(normal, normals.shape), atol=1e-5)


def read_ply(path) -> tuple[list[str], np.ndarray]:
    header, _, body = path.read_bytes().partition(b"end_header\n")
    types = [(name, "<f4") for name in "xyz"] + [(name, "u1") for name in ("red", "green", "blue")]
    return header.decode("ascii").splitlines(), np.frombuffer(body, types)


def test_a_point_cloud_holds_points_and_colours(tmp_path):
    rng = np.random.default_rng(0)
    points, colors = rng.normal(size=(7, 3)).astype(np.float32), rng.integers(0, 256, (7, 3), np.uint8)
    write_ply(tmp_path / "new" / "cloud.ply", points, colors)
    header, table = read_ply(tmp_path / "new" / "cloud.ply")
    assert header == [
        "ply",
        "format binary_little_endian 1.0",
        "element vertex 7",
        *(f"property float {name}" for name in "xyz"),
        *(f"property uchar {name}" for name in ("red", "green", "blue")),
    ]
    np.testing.assert_array_equal(np.stack([table[n] for n in "xyz"], axis=1), points)
    np.testing.assert_array_equal(np.stack([table[n] for n in ("red", "green", "blue")], axis=1), colors)


def test_a_point_cloud_leaves_out_what_is_no_point(tmp_path):
    points = surface()
    points[0, 0] = np.nan
    points[0, 1, 2] = -1.0
    points[0, 2, 2] = 0.0
    points[0, 3, 2] = 251.0
    picture = np.arange(9 * 11 * 3, dtype=np.uint8).reshape(9, 11, 3)
    pointmap = Pointmap(points, 100.0)
    assert pointmap.write_ply(tmp_path / "all.ply", picture) == 99 - 4
    chosen = np.zeros((9, 11), bool)
    chosen[0] = chosen[5, 4] = True
    assert replace(pointmap, valid=chosen).write_ply(tmp_path / "some.ply", picture) == 11 - 4 + 1
    _, table = read_ply(tmp_path / "some.ply")
    assert (table["red"][-1], table["green"][-1], table["blue"][-1]) == tuple(picture[5, 4])
    assert table["x"][-1] == pytest.approx(0.4)
    with pytest.raises(ValueError, match=r"the picture is \(8, 11, 3\), its pointmap \(9, 11, 3\)"):
        pointmap.write_ply(tmp_path / "wrong.ply", picture[1:])


def test_an_archive_holds_what_follows_from_the_points(tmp_path):
    pointmap = Pointmap(surface(0.5), 123.5, np.ones((9, 11), bool))
    pointmap.write_npz(tmp_path / "a.b.points")
    stored = np.load(tmp_path / "a.b.points")
    np.testing.assert_array_equal(stored["points"], pointmap.points)
    np.testing.assert_array_equal(stored["depth"], pointmap.points[..., 2])
    np.testing.assert_allclose(stored["normals"], pointmap.normals, atol=1e-3)
    assert stored["focal_length"] == 123.5
    assert stored["valid"].all()
    replace(pointmap, valid=None).write_npz(tmp_path / "plain.npz")
    assert "valid" not in np.load(tmp_path / "plain.npz")
