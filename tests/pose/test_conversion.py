"""Conversion between keypoint sets: what is there, means, what is missing."""

from __future__ import annotations

import numpy as np
import pytest

from s2kit.pose import convert_keypoints, load_conversion
from s2kit.schemas import SchemaError, load_keypoint_set


def numbered() -> tuple[np.ndarray, np.ndarray]:
    """Point i at (i, 2 i + 1), all scored 1."""
    return np.stack([np.arange(308.0), 2 * np.arange(308.0) + 1], axis=-1), np.ones(308)


def test_308_to_17_are_cocos():
    points, scores = convert_keypoints(*numbered(), "sapiens2-308", "coco-17")
    ids = [0, 1, 2, 3, 4, 5, 6, 7, 8, 62, 41, 9, 10, 11, 12, 13, 14]
    assert points[:, 0].tolist() == ids
    assert scores.tolist() == [1] * 17


def test_308_to_133():
    """The table of the spec where it has one; of the face all but the jaw."""
    source, target = load_keypoint_set(308), load_keypoint_set(133)
    points, scores = convert_keypoints(*numbered(), 308, 133)
    for point in source.keypoints:
        if point.coco_wholebody is not None:
            assert points[point.coco_wholebody, 0] == point.id
    missing = [target.names[i] for i in np.flatnonzero(scores == 0)]
    assert missing == [f"right_jaw_{i}" for i in range(1, 9)] + [f"left_jaw_{i}" for i in range(8, 0, -1)]
    assert points[scores == 0].tolist() == [[0, 0]] * 16
    assert points[target.ids["chin"], 0] == source.ids["tip_of_chin"]
    assert points[target.ids["left_hand_root"], 0] == source.ids["left_wrist"] == 62
    assert points[target.ids["right_thumb1"], 0] == source.ids["right_thumb_third_joint"]
    brow = [source.ids[f"{edge}_startpoint_of_l_eyebrow"] for edge in ("upper", "lower")]
    assert points[target.ids["left_eyebrow_5"], 0] == np.mean(brow)


@pytest.mark.parametrize(("first", "second"), [(308, 133), (308, 17), (308, "openpose-25"), (17, "openpose-25")])
def test_conversion_and_mirror_commute(first, second):
    """Left and right of every mean are each other's mirror."""
    conversion = load_conversion(first, second)
    swapped = conversion.weights[conversion.target.flip_map][:, conversion.source.flip_map]
    np.testing.assert_array_equal(swapped, conversion.weights)


def test_openpose_has_its_own_neck_and_hip_centre():
    points, scores = numbered()
    scores[9] = 0.25  # left hip
    ids = load_keypoint_set("openpose-25").ids
    converted, values = convert_keypoints(points[None], scores[None], 308, "openpose-25")
    assert converted.shape == (1, 25, 2)
    assert converted[0, ids["neck"]].tolist() == [5.5, 12.0]
    assert converted[0, ids["mid_hip"]].tolist() == [9.5, 20.0]
    assert values[0, ids["mid_hip"]] == 0.25
    assert converted[0, ids["left_heel"], 0] == 17
    scores[9] = 0
    converted, values = convert_keypoints(points, scores, 308, "openpose-25")
    assert (values[ids["mid_hip"]], *converted[ids["mid_hip"]]) == (0, 0, 0)
    # COCO's 17 points have no feet.
    coco = convert_keypoints(*convert_keypoints(points, np.ones(308), 308, 17), 17, "openpose-25")
    assert coco[1][19:].tolist() == [0] * 6 and coco[0][ids["neck"]].tolist() == [5.5, 12.0]


def test_visibilities_keep_their_type():
    _, visibility = convert_keypoints(np.zeros((308, 2), np.float32), np.full(308, 2, np.uint8), 308, 133)
    assert visibility.dtype == np.uint8 and visibility.max() == 2


def test_errors():
    with pytest.raises(ValueError, match=r"expected keypoints \(..., 308, 2\) .* keypoints_308, got \(17, 2\)"):
        convert_keypoints(np.zeros((17, 2)), np.zeros(17), 308, 17)
    with pytest.raises(SchemaError, match="no schema coco-18: give sapiens2-308, coco-wholebody-133, coco-17"):
        load_conversion("coco-18", 17)
