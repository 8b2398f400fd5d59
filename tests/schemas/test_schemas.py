"""The packaged schemas have the published content (spec 4.2.5, 4.3.1), and broken files are refused."""

from __future__ import annotations

import json
from importlib import resources

import numpy as np
import pytest

from s2kit.schemas import load_class_list, load_keypoint_set, load_label_map
from s2kit.schemas.files import SchemaError, mirrored


@pytest.fixture(scope="module")
def points():
    return load_keypoint_set(308)


@pytest.fixture(scope="module")
def parts():
    return load_class_list(29)


def test_keypoint_order(points):
    assert len(points) == len(points.keypoints) == 308
    known = {0: "nose", 5: "left_shoulder", 20: "right_heel", 21: "right_thumb4", 41: "right_wrist"}
    known |= {62: "left_wrist", 69: "neck", 70: "center_of_glabella", 272: "l_center_of_iris", 299: "r_center_of_pupil"}
    assert {i: points.names[i] for i in known} == known
    assert points.ids["left_wrist"] == 62
    sources = [point.id_344 for point in points.keypoints]
    assert sources == [i for i in range(344) if not 220 <= i <= 255]


def test_keypoint_flip(points):
    flip = points.flip_map
    assert flip.dtype == np.int64
    assert np.array_equal(flip[flip], np.arange(308))
    middle = [0, 69, *range(70, 78), 178, 179, 190, 191, 206, 207]
    assert np.flatnonzero(flip == np.arange(308)).tolist() == middle
    assert flip[41] == 62 and flip[21] == 42
    assert points.odd_flip_pairs == ((229, 255), (245, 271))
    for left in (*range(220, 229), *range(230, 245)):
        assert points.names[flip[left]] == mirrored(points.names[left])


def test_keypoint_groups(points):
    sizes = {name: len(ids) for name, ids in points.groups.items()}
    assert sizes == {"body": 17, "foot": 6, "right_hand": 20, "left_hand": 20, "extra": 7, "face": 238}
    body = [points.names[i] for i in points.groups["body"]]
    assert body[:3] == ["nose", "left_eye", "right_eye"]
    assert body[7:11] == ["left_elbow", "right_elbow", "left_wrist", "right_wrist"]
    assert body[-1] == "right_ankle"
    assert points.half("lower") == tuple(range(9, 21))
    assert points.half("upper") == (*range(9), *range(21, 63))


def test_keypoint_sigmas_and_colours(points):
    """COCO's 17 sigmas and the published ones of the other groups; the flip keeps the sigma of hands and face."""
    body = points.sigmas[list(points.groups["body"])]
    coco = [26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]
    assert (body * 1000).round().astype(int).tolist() == coco
    assert set(points.sigmas[70:]) == {0.010}
    thirds = {"thumb": 0.022, "forefinger": 0.026, "middle_finger": 0.018, "ring_finger": 0.017, "pinky_finger": 0.020}
    for finger, sigma in thirds.items():
        assert points.sigmas[points.ids[f"left_{finger}_third_joint"]] == sigma
    assert points.sigmas[points.ids["neck"]] == 0.079
    assert sum(point.coco_wholebody is not None for point in points.keypoints) == 53
    assert points.colors.shape == (308, 3)
    assert points.colors[0].tolist() == [51, 153, 255]


def test_skeleton(points):
    assert len(points.links) == 65
    assert max(max(link.start, link.end) for link in points.links) < 70
    first = points.links[0]
    assert (points.names[first.start], points.names[first.end]) == ("left_ankle", "left_knee")
    assert first.color == (0, 255, 0)


def test_class_list(parts):
    assert len(parts) == 29
    assert parts.ignore_index == 255
    assert parts.names[:3] == ("Background", "Apparel", "Eyeglass")
    assert parts.ids["Upper_Clothing"] == 23
    assert parts.names[28] == "Tongue"
    assert parts.colors[28].tolist() == [82, 21, 114]
    assert parts.colors[4].tolist() == [255, 0, 109]


def test_class_flip(parts):
    labels = np.array([[0, 5, 14], [255, 12, 21]], dtype=np.uint8)
    assert parts.flip_table[labels].tolist() == [[0, 14, 5], [255, 21, 12]]
    swapped = [(i, int(j)) for i, j in enumerate(parts.flip_table[:29]) if i < j]
    assert swapped == [(i, i + 9) for i in range(5, 13)]


def _packaged(name: str) -> dict:
    return json.loads((resources.files("s2kit.schemas") / name).read_text())


def _set(path: str, value):
    """An edit of a schema: the dotted path gets the value."""

    def edit(data):
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        for parent in parents:
            data = data[parent]
        data[last] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_set("keypoints.3.id", 4), r"'left_ear' has id 4 at position 3"),
        (_set("keypoints.77.name", "left_eye"), "'left_eye' occurs twice"),
        (_set("keypoints.3.flip", 2), r"'left_ear' \(3\) flips to 'right_eye' \(2\), which flips to 1"),
        (_set("keypoints.3.flip", 400), "flips to id 400, which is not there"),
        (
            _set("keypoints.80.name", "tip_of_r_eyebrow"),
            "'tip_of_r_eyebrow' flips to 'end_of_l_eyebrow'; its mirrored name is 'tip_of_l_eyebrow'",
        ),
        (_set("keypoints.3.color", [0, 0, 256]), r"colour \(0, 0, 256\)"),
        (_set("keypoints.3.sigma", 0), "'left_ear' has sigma 0"),
        (_set("keypoints.3.half_body", "middle"), "half_body 'middle'; use upper, lower or null"),
        (_set("keypoints.3.coco_wholebody", 4), r"coco_wholebody values \[4\] occur twice"),
        (_set("keypoints.3.extra", 1), "unexpected keyword argument 'extra'"),
        (_set("groups.foot", [15, 16, 17, 18, 19, 0]), r"missing or repeated: \[0, 20\]"),
        (_set("links.0.from", "tail"), "'tail' is missing, or a link names a keypoint"),
        (_set("odd_flip_pairs.pairs", [[1, 3]]), "lists 1 and 3, which do not flip to each other"),
    ],
)
def test_broken_keypoint_files_are_refused(tmp_path, edit, message):
    data = _packaged("keypoints_308.json")
    edit(data)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(data))
    with pytest.raises(SchemaError, match=message) as error:
        load_keypoint_set(path)
    assert "broken.json" in str(error.value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_set("classes.5.flip", 15), r"'Left_Foot' \(5\) flips to 'Right_Hand' \(15\), which flips to 6"),
        (_set("classes.14.flip", 14), r"'Left_Foot' \(5\) flips to 'Right_Foot' \(14\), which flips to 14"),
        (_set("ignore_index", 28), "ignore_index 28 must be from 29 to 255"),
        (_set("classes.0.colour", 1), "unexpected keyword argument 'colour'"),
    ],
)
def test_broken_class_files_are_refused(tmp_path, edit, message):
    data = _packaged("parts_29.json")
    edit(data)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(data))
    with pytest.raises(SchemaError, match=message):
        load_class_list(str(path))


def test_a_sided_point_must_not_flip_to_itself(tmp_path):
    data = _packaged("parts_29.json")
    data["classes"][5]["flip"], data["classes"][14]["flip"] = 5, 14
    path = tmp_path / "own.json"
    path.write_text(json.dumps(data))
    with pytest.raises(SchemaError, match="'Left_Foot' flips to 'Left_Foot'; its mirrored name is 'right_foot'"):
        load_class_list(path)


def test_missing_files(tmp_path):
    with pytest.raises(SchemaError, match=r"no schema 20: give sapiens2-29, .*cihp-20 or the path of a file"):
        load_class_list(20)
    with pytest.raises(SchemaError, match=r"no schema .*nothing\.json"):
        load_keypoint_set(tmp_path / "nothing.json")
    path = tmp_path / "text.json"
    path.write_text("{")
    with pytest.raises(SchemaError, match="not JSON"):
        load_class_list(path)


def test_coco_sets():
    """17 and 133 points in COCO's order; what 308 shares with 133 has the same name and sigma."""
    small, large, full = (load_keypoint_set(name) for name in ("coco-17", "coco-wholebody-133", "sapiens2-308"))
    assert load_keypoint_set(17) is not small and load_keypoint_set(17).names == small.names == large.names[:17]
    assert {name: len(ids) for name, ids in large.groups.items()} == {
        "body": 17,
        "foot": 6,
        "face": 68,
        "left_hand": 21,
        "right_hand": 21,
    }
    shared = [point for point in full.keypoints if point.coco_wholebody is not None]
    assert [large.names[point.coco_wholebody] for point in shared] == [point.name for point in shared]
    assert [large.sigmas[point.coco_wholebody] for point in shared] == [point.sigma for point in shared]
    assert small.flip_map.tolist() == [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]
    # The jaw runs from ear to ear, the eyes' corners and the lips mirror to each other, hands swap whole.
    face = large.flip_map[23:91] - 23
    assert face[:17].tolist() == list(range(16, -1, -1)) and face[36:42].tolist() == [45, 44, 43, 42, 47, 46]
    assert face[48:60].tolist() == [54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55]
    assert face[60:].tolist() == [64, 63, 62, 61, 60, 67, 66, 65] and face[27:31].tolist() == [27, 28, 29, 30]
    assert large.flip_map[91:112].tolist() == list(range(112, 133))
    assert small.half("lower") == tuple(range(11, 17)) and len(large.half("upper")) == 11 + 42
    assert len(small.links) == 19 and len(large.links) == 19 + 6 + 40


def test_other_class_lists():
    names = load_class_list("sapiens2-29").names
    assert load_class_list("sapiens1-28").names == tuple(name for name in names if name != "Eyeglass")
    swaps = [(i, int(j)) for i, j in enumerate(load_class_list("sapiens1-28").flip_table[:28]) if i < j]
    assert swaps == [(i, i + 9) for i in range(4, 12)]
    for name in ("lip-20", "cihp-20"):
        classes = load_class_list(name)
        assert [(i, int(j)) for i, j in enumerate(classes.flip_table[:20]) if i < j] == [(14, 15), (16, 17), (18, 19)]
    assert load_class_list("lip-20").names[10] == "Jumpsuits" and load_class_list("cihp-20").names[10] == "Torso_Skin"


@pytest.mark.parametrize(
    ("name", "source", "target"),
    [
        ("dome-34", [0, 2, 3, 4, 5, 7, 8, 28, 33], [0, 0, 2, 2, 3, 255, 5, 255, 28]),
        ("wide-52", [0, 5, 9, 22, 24, 27, 34, 45, 46, 51, 52], [0, 3, 255, 13, 28, 255, 1, 15, 6, 0, 255]),
        ("internal-32", [0, 10, 11, 17, 21, 25, 29, 31, 32], [0, 3, 24, 255, 22, 13, 2, 255, 0]),
        ("lip-20", [0, 13, 19, 20, 255], [0, 13, 19, 255, 255]),
        ("cihp-20-to-29", [0, 4, 10, 13, 18, 19, 14], [0, 2, 255, 3, 9, 18, 255]),
        ("sapiens2-29-to-28", [0, 1, 2, 3, 5, 14, 28, 29, 255], [0, 1, 255, 2, 4, 13, 27, 255, 255]),
    ],
)
def test_label_maps(name, source, target):
    """Rows of spec 4.3.2, and what LIP and CIHP share with the 29 classes."""
    assert load_label_map(name).apply(np.array([source], np.uint8)).tolist() == [target]


def test_a_users_label_map_of_colours(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("target: sapiens2-29\nmap:\n  '255, 0, 0': Hair\n  0,0,0: 0\n")
    mask = np.array([[[255, 0, 0], [0, 0, 0], [1, 2, 3]]], np.uint8)
    assert load_label_map(path).apply(mask).tolist() == [[4, 0, 255]]
    with pytest.raises(SchemaError, match="lists colours, and the mask holds one value a pixel"):
        load_label_map(path).apply(mask[..., 0])
    with pytest.raises(SchemaError, match="lists ids, and the mask has three channels"):
        load_label_map("lip-20").apply(mask)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("map: {0: 0}", "a label map has target"),
        ("target: sapiens2-29\nmap: {0: Hare}", "0 becomes 'Hare', which is no class of parts_29"),
        ("target: sapiens2-29\nmap: {0: 29}", "0 becomes 29, .* an id below 29, or 255 to ignore it"),
        ("target: sapiens2-29\nmap: {300: 0}", "300 must be an id from 0 to 255"),
        ("target: sapiens2-29\nmap: {0: 0, '1,1,1': 1}", "both ids and colours"),
        ("target: nowhere\nmap: {0: 0}", "no schema nowhere"),
        ("target: [", "not YAML"),
    ],
)
def test_broken_label_maps_are_refused(tmp_path, text, message):
    path = tmp_path / "broken.yml"
    path.write_text(text)
    with pytest.raises(SchemaError, match=message):
        load_label_map(path)
