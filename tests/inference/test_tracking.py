"""Numbers that stay with people through a video."""

import numpy as np

from s2kit.inference.people import Tracker, make_people
from s2kit.inference.people.boxes import overlaps


def box(x: float, y: float = 200, width: float = 80, height: float = 200) -> list[float]:
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def run(tracker: Tracker, frames: list[list[list[float]]]) -> list[list[int]]:
    return [tracker.update(make_people(boxes)).ids.tolist() for boxes in frames]


def test_numbers_stay_in_whatever_order_boxes_come():
    ids = run(Tracker(), [[box(100 + 5 * t), box(600 - 3 * t)][:: 1 if t % 2 else -1] for t in range(20)])
    assert ids[0] == [1, 2]  # in the order of the first picture
    assert all(given == ([1, 2] if t % 2 == 0 else [2, 1]) for t, given in enumerate(ids))


def test_two_who_cross_keep_their_numbers():
    # Full overlap in the middle, where the one behind is not found in 7 pictures.
    frames, expected = [], []
    for t in range(60):
        left, right = box(100 + 8 * t), box(580 - 8 * t)
        hidden = 27 <= t < 34
        frames.append([left] if hidden else [left, right])
        expected.append([1] if hidden else [1, 2])
    assert run(Tracker(), frames) == expected


def test_a_short_absence_keeps_the_number_and_a_long_one_does_not():
    for absent, number in ((5, 1), (10, 1), (11, 2)):
        frames = [[box(300 + 2 * t)] if t < 10 or t >= 10 + absent else [] for t in range(30)]
        ids = run(Tracker(max_age=10), frames)
        assert ids[9] == [1] and ids[10] == [] and ids[-1] == [number], absent


def test_one_who_stops_behind_another_is_found_where_they_were():
    frames = [[box(100 + 12 * t)] for t in range(10)] + [[]] * 8 + [[box(215)]]
    assert run(Tracker(), frames)[-1] == [1]


def test_one_who_enters_gets_a_new_number_and_numbers_are_not_given_twice():
    tracker = Tracker(max_age=2)
    assert run(tracker, [[box(100)], [box(100), box(500)], [box(500)], [box(500)], [box(500)], [box(500)]])[-1] == [2]
    assert tracker.update(make_people([box(100), box(500)])).ids.tolist() == [3, 2]


def test_nobody_and_scores_pass_through():
    tracker = Tracker()
    people = tracker.update(make_people([]))
    assert people.ids.shape == (0,) and people.ids.dtype == np.int64 and people.boxes.shape == (0, 4)
    people = tracker.update(make_people([box(50), box(300)], [0.4, 0.9]))
    np.testing.assert_allclose(people.scores, [0.4, 0.9])
    assert people.ids.tolist() == [1, 2]


def walks(rng: np.random.Generator, people: int, frames: int):
    """People who walk to and fro: who is covered by more than half, or missed by chance, is not given.

    Yields who is given, and noisy boxes of all.
    """
    x, y = rng.uniform(100, 1180, people), rng.uniform(200, 520, people)
    speed, height, phase = rng.uniform(-6, 6, people), rng.uniform(150, 300, people), rng.uniform(0, 6, people)
    front_first = np.argsort(-(y + height / 2))
    for t in range(frames):
        x = x + speed + np.sin(t / 7 + phase)
        speed = np.where((x < 60) | (x > 1220), -speed, speed)
        half = 0.2 * height * (1 + 0.1 * np.sin(t / 3 + phase))
        boxes = np.stack([x - half, y - height / 2, x + half, y + height / 2], axis=1)
        iou, given = overlaps(boxes, boxes), rng.random(people) > 0.05
        for rank, who in enumerate(front_first):
            given[who] &= not (iou[who, front_first[:rank]] > 0.5).any()
        yield np.flatnonzero(given), boxes + rng.normal(0, 2, boxes.shape)


def test_numbers_are_rarely_exchanged_in_a_simulated_crowd():
    exchanged, count = 0, 0
    for seed in range(20):
        rng, tracker, last = np.random.default_rng(seed), Tracker(), {}
        for given, boxes in walks(rng, 4, 150):
            shuffled = rng.permutation(given)
            for who, number in zip(shuffled, tracker.update(make_people(boxes[shuffled])).ids):
                exchanged += last.get(who, number) != number
                last[who] = number
                count += 1
    # Without the expected movement it is 6; with the best pairing of all together (Hungarian) it is 3 as well.
    assert count > 10_000
    assert exchanged <= 3
