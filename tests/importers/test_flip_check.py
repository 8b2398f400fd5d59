"""Left and right by the data alone: right tables pass whatever people do, wrong ones do not."""

from dataclasses import replace

import numpy as np
import pytest

from data_modules.importers.flip_check import MIN_PEOPLE, check_flips
from s2kit.schemas import load_keypoint_set

BODY, WHOLE = load_keypoint_set("coco-17"), load_keypoint_set("coco-wholebody-133")


def turned(points, rng, yaw):
    """Points (K, 3), x to the person's left, y down, z forward, as seen after a turn about y and small ones else."""
    a, b, c = np.radians([rng.normal(0, yaw), rng.normal(0, 12), rng.normal(0, 12)])
    about_y = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return (points @ (about_z @ about_x @ about_y).T)[:, :2]


def head():
    """68 points on a head, symmetric in 3D."""
    points, flip = np.zeros((68, 3)), WHOLE.flip_map[23:91] - 23
    angles = np.pi * (np.arange(17) - 8) / 16
    points[:17] = np.column_stack([0.75 * np.sin(angles), 0.15 + 0.85 * np.cos(angles), 0.7 * np.cos(angles) - 0.1])
    steps = np.arange(5)
    points[17:22] = np.column_stack([-0.62 + 0.12 * steps, -0.45 - 0.05 * np.sin(steps), 0.45 + 0.08 * steps])
    points[27:31] = [(0, -0.3 + 0.13 * k, 0.75 + 0.08 * k) for k in range(4)]
    points[31:36] = [(-0.15 + 0.075 * k, 0.2, 0.8) for k in range(5)]
    eye = [(-0.5, -0.27), (-0.41, -0.33), (-0.3, -0.33), (-0.2, -0.27), (-0.3, -0.23), (-0.41, -0.23)]
    points[36:42] = [(x, y, 0.6 + 0.1 * x) for x, y in eye]
    for first, count, width, height in ((48, 12, 0.27, 0.13), (60, 8, 0.2, 0.05)):
        angle = np.pi - 2 * np.pi * np.arange(count) / count
        depth = 0.72 - 0.25 * np.abs(np.cos(angle))
        points[first : first + count] = np.column_stack([width * np.cos(angle), 0.5 - height * np.sin(angle), depth])
    for i in (*range(17, 22), *range(36, 42)):
        points[flip[i]] = points[i] * (-1, 1, 1)
    return points


def faces(yaw, count=200):
    rng, points = np.random.default_rng(0), np.full((count, 133, 2), np.nan)
    for row in points:
        row[23:91] = 30 * turned(head(), rng, yaw) + rng.normal(0, 1, (68, 2))
    return points


def with_flips(pairs):
    points = list(WHOLE.keypoints)
    for a, b in pairs:
        points[a], points[b] = replace(points[a], flip=b), replace(points[b], flip=a)
    return replace(WHOLE, keypoints=tuple(points))


@pytest.mark.parametrize("yaw", [10, 30, 60, 90])
def test_heads_turned_any_way(yaw):
    points = faces(yaw)
    assert check_flips(WHOLE, points) is None
    corners = with_flips([(23 + 36, 23 + 42), (23 + 45, 23 + 39)])
    assert "'right_eye_outer_corner' flips to 'left_eye_inner_corner', but in 200 faces" in check_flips(corners, points)
    assert "(4 such points)" in check_flips(corners, points)
    nothing = with_flips([(i, i) for i in range(23, 91)])
    assert "flips to 'right_jaw_1', but" in check_flips(nothing, points)


def people(exchanged=(), count=200):
    """People turned all ways, with arms and legs anywhere."""
    rng, heights = np.random.default_rng(1), np.linspace(-1, 1, 17)
    sides = np.array([1 if n.startswith("left") else -1 if n.startswith("right") else 0 for n in BODY.names])
    widths = {"eye": 0.03, "ear": 0.07, "shoulder": 0.2, "hip": 0.13}
    points = np.zeros((count, 17, 2))
    for row in points:
        loose = rng.normal(0.2, 0.25, 17)
        width = np.array(
            [next((w for word, w in widths.items() if n.endswith(word)), v) for n, v in zip(BODY.names, loose)]
        )
        front = [0.12 if n == "nose" else 0.08 if n.endswith("eye") else 0 for n in BODY.names]
        row[:] = turned(np.column_stack([sides * width, heights, front]), rng, 90)
    for left in exchanged:
        points[:, [left, left + 1]] = points[:, [left + 1, left]]
    return 100 * points


def test_people_turned_any_way():
    assert check_flips(BODY, people()) is None
    assert check_flips(BODY, np.full((50, 17, 2), np.nan)) is None
    assert "left and right are exchanged" in check_flips(BODY, people(range(1, 17, 2)))
    for left in (3, 11):
        assert f"'{BODY.names[left]}' and '{BODY.names[left + 1]}' look exchanged" in check_flips(BODY, people([left]))


def test_few_people_say_nothing():
    assert check_flips(BODY, people(range(1, 17, 2), MIN_PEOPLE - 1)) is None
    assert check_flips(with_flips([(59, 65), (68, 62)]), faces(10, MIN_PEOPLE - 1)) is None
