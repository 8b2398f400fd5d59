"""Several people on a picture."""

import numpy as np

from s2kit.inference.pose_drawing import draw_people, draw_pose, id_color
from s2kit.schemas import load_keypoint_set

SCHEMA = load_keypoint_set(17)


def person(x: float, y: float, size: float = 60) -> np.ndarray:
    places = np.random.default_rng(0).uniform((x, y), (x + size, y + size), (17, 2))
    return np.column_stack([places, np.ones(17)])


def test_boxes_and_numbers_have_the_colour_of_the_person():
    picture = np.full((200, 300, 3), 50, np.uint8)
    boxes = np.array([[20, 30, 90, 180], [150, 30, 220, 180]])
    nothing = np.zeros((2, 17, 3))
    drawn = draw_people(picture, nothing, SCHEMA, boxes, np.array([7, 8]))
    assert (picture == 50).all()
    for box, number in zip(boxes, (7, 8)):
        right, bottom = int(box[2]), int(box[3])
        edge = drawn[100, right - 2 : right + 2].astype(int)
        assert np.abs(edge - id_color(number)).max(axis=1).min() < 90
        assert (drawn[100, right + 3 : right + 10] == 50).all() and (drawn[bottom + 3 : bottom + 10, 60] == 50).all()
        label = drawn[int(box[1]) + 2 : int(box[1]) + 10, int(box[0]) + 1 : int(box[0]) + 8].reshape(-1, 3)
        assert (label == id_color(number)).all(axis=1).mean() > 0.3  # the ground
        assert (label.max(axis=1) < 80).mean() > 0.05  # the number
    plain = draw_people(picture, nothing, SCHEMA, boxes)
    assert (plain[32:40, 22:30] == 50).all() and plain.max() > 180  # boxes, but no numbers


def test_labels_stay_inside_of_the_picture():
    picture = np.zeros((100, 100, 3), np.uint8)
    for box in ([-50, -50, 30, 60], [95, 95, 300, 300], [-500, -500, 900, 900]):
        drawn = draw_people(picture, np.zeros((1, 17, 3)), SCHEMA, np.array([box]), np.array([123]))
        assert (drawn == id_color(123)).all(axis=-1).sum() > 60
    tiny = draw_people(picture[:6, :6], np.zeros((1, 17, 3)), SCHEMA, np.array([[0, 0, 6, 6]]), np.array([123]))
    assert tiny.shape == (6, 6, 3)


def test_everybody_is_drawn_and_nobody_leaves_the_picture_as_it_is():
    picture = np.full((200, 300, 3), 50, np.uint8)
    both = np.stack([person(20, 30), person(180, 100)])
    drawn = draw_people(picture, both, SCHEMA)
    alone = [draw_pose(picture, one, SCHEMA) for one in both]
    assert np.array_equal(drawn[:, :150], alone[0][:, :150]) and np.array_equal(drawn[:, 150:], alone[1][:, 150:])
    nobody = draw_people(picture, np.zeros((0, 17, 3)), SCHEMA, np.zeros((0, 4)), np.zeros(0, np.int64))
    assert np.array_equal(nobody, picture) and nobody is not picture


def test_one_point_far_away_makes_nobody_thick():
    picture = np.zeros((200, 300, 3), np.uint8)
    points = person(100, 50)
    usual = (draw_pose(picture, points, SCHEMA) > 0).any(axis=-1).sum()
    points[9, :2] = 50_000  # a wrist
    assert (draw_pose(picture, points, SCHEMA) > 0).any(axis=-1).sum() < 3 * usual


def test_neighbouring_numbers_differ_in_colour():
    colors = np.array([id_color(number) for number in range(1, 200)], int)
    assert colors.min() >= 0 and colors.max() <= 255
    assert np.abs(np.diff(colors, axis=0)).max(axis=1).min() > 80
