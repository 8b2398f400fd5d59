"""Boxes of people from files, and what is done to boxes of any source."""

import json

import numpy as np
import pytest

from s2kit.errors import UserError
from s2kit.inference.people import BoxFile, WholePicture, in_picture, make_people, open_boxes, select
from s2kit.inference.people.boxes import overlaps

PICTURE = np.zeros((100, 200, 3), np.uint8)


def boxes_of(source, name: str, picture: np.ndarray = PICTURE) -> list:
    return source([name], [picture])[0].boxes.tolist()


def write(path, content) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def test_overlaps_are_intersection_over_union():
    first = np.array([[0, 0, 10, 10], [5, 5, 5, 9]])
    second = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [5, 5, 5, 9]])
    np.testing.assert_allclose(overlaps(first, second), [[1, 1 / 3, 0, 0], [0, 0, 0, 0]], atol=1e-12)
    assert overlaps(np.zeros((0, 4)), second).shape == (0, 4)


def test_selection_keeps_the_better_of_two_that_overlap():
    boxes = [[0, 0, 10, 10], [1, 0, 11, 10], [50, 0, 60, 10], [52, 0, 62, 10], [90, 0, 99, 9]]
    people = make_people(boxes, [0.5, 0.9, 0.8, 0.3, 0.2])
    assert select(people, 0.3, 0.3).boxes[:, 0].tolist() == [1, 50]
    assert select(people, 0.3, None).boxes[:, 0].tolist() == [1, 50, 0, 52]
    assert select(people, 0.0, 0.7).boxes[:, 0].tolist() == [1, 50, 52, 90]
    # A box that goes takes none with it: 0 overlaps 1, and 1 overlaps 2, but 0 and 2 do not.
    chain = make_people([[0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10]], [0.9, 0.8, 0.7])
    assert select(chain, 0.3, 0.3).boxes[:, 0].tolist() == [0, 10]
    assert select(make_people([]), 0.3, 0.3).boxes.shape == (0, 4)


def test_boxes_that_show_nothing_of_the_picture_go():
    good = [[-50, -50, 10, 10], [199, 99, 500, 500], [0, 0, 200, 100], [-1000, -1000, 5000, 5000]]
    bad = [[10, 10, 10, 50], [10, 10, 50, 10], [200, 0, 300, 50], [-50, 0, 0, 50], [0, 100, 50, 150]]
    people = in_picture(make_people(good + bad), (100, 200))
    assert people.boxes.tolist() == good


def test_the_whole_picture_is_one_person():
    (people,) = WholePicture()(["a"], [PICTURE])
    assert people.boxes.tolist() == [[0, 0, 200, 100]]
    assert people.scores.tolist() == [1] and people.ids is None and people.number == 1
    assert isinstance(open_boxes("whole"), WholePicture)


def test_own_json_by_name(tmp_path):
    file = {"a.jpg": [[1, 2, 3, 4]], "sub/b.png": [[0, 0, 50, 60], [1, 0, 50, 60]], "c": [[5, 5, 9, 9]], "d.jpg": []}
    source = open_boxes(write(tmp_path / "boxes.json", file))
    assert isinstance(source, BoxFile)
    assert boxes_of(source, "/data/x/a.jpg") == boxes_of(source, "a.jpg") == [[1, 2, 3, 4]]
    # Without scores nothing is suppressed, however much it overlaps.
    assert boxes_of(source, "C:\\data\\sub\\b.png") == [[0, 0, 50, 60], [1, 0, 50, 60]]
    assert boxes_of(source, "b.png") == boxes_of(source, "sub/b.png")
    assert boxes_of(source, "c.tiff") == [[5, 5, 9, 9]]
    assert boxes_of(source, "d.jpg") == []
    assert source.report() == ""
    assert boxes_of(source, "other/b.png") == [] and boxes_of(source, "A.jpg") == []
    assert source.report().endswith(
        "boxes.json: it does not name 2 of 9 pictures (b.png, A.jpg): taken as without people"
    )


def test_a_name_that_may_be_several_pictures_is_refused(tmp_path):
    source = BoxFile(write(tmp_path / "b.json", {"x/a.jpg": [[0, 0, 1, 1]], "y/a.jpg": [[0, 0, 2, 2]]}))
    assert boxes_of(source, "/data/y/a.jpg") == [[0, 0, 2, 2]]
    with pytest.raises(UserError, match=r"b.json: a.jpg may be any of 2 pictures of this name: give longer paths"):
        boxes_of(source, "a.jpg")


def test_scores_make_boxes_a_detectors(tmp_path):
    rows = [[0, 0, 50, 60, 0.9], [1, 0, 50, 60, 0.8], [100, 0, 150, 60, 0.2], [100, 0, 150, 60, 0.4]]
    path = write(tmp_path / "b.json", {"a.jpg": rows})
    source = BoxFile(path)
    (people,) = source(["a.jpg"], [PICTURE])
    assert source.report() == f"{path}: 1 boxes score below --min-score 0.3 and were left out"
    assert people.boxes[:, 0].tolist() == [0, 100]
    np.testing.assert_allclose(people.scores, [0.9, 0.4])
    (people,) = open_boxes(path, min_score=0.1, nms=None)(["a.jpg"], [PICTURE])
    np.testing.assert_allclose(people.scores, [0.9, 0.8, 0.4, 0.2])


def test_boxes_of_a_videos_pictures(tmp_path):
    source = BoxFile(write(tmp_path / "b.json", {"clip.mp4/000002": [[0, 0, 5, 5]], "2": [[0, 0, 9, 9]]}))
    assert boxes_of(source, "/data/clip.mp4/000002") == [[0, 0, 5, 5]]
    assert boxes_of(source, "/data/clip.mp4/000003") == []


def test_coco_annotations(tmp_path):
    file = {
        "images": [{"id": 139, "file_name": "000000000139.jpg"}, {"id": 5, "file_name": "val/five.jpg"}],
        "categories": [{"id": 7, "name": "person"}, {"id": 1, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 139, "category_id": 7, "bbox": [10, 20, 30, 40]},
            {"id": 2, "image_id": 139, "category_id": 1, "bbox": [0, 0, 5, 5]},
            {"id": 3, "image_id": 139, "category_id": 7, "bbox": [0, 0, 90, 90], "iscrowd": 1},
            {"id": 4, "image_id": 139, "category_id": 7, "bbox": [0, 0, 0, 90]},
        ],
    }
    source = BoxFile(write(tmp_path / "b.json", file))
    assert boxes_of(source, "x/000000000139.jpg") == [[10, 20, 40, 60]]
    assert boxes_of(source, "five.jpg") == []
    assert source.image_number("x/val/five.jpg") == 5 and source.image_number("nothing.jpg") is None
    assert source.report().endswith("1 boxes have no area or lie outside of their picture and were left out")


def test_coco_results_by_number(tmp_path):
    file = [
        {"image_id": 139, "category_id": 1, "bbox": [10, 20, 30, 40], "score": 0.9},
        {"image_id": 139, "category_id": 3, "bbox": [0, 0, 5, 5], "score": 0.99},
        {"image_id": "shot.jpg", "category_id": 1, "bbox": [0, 0, 8, 8], "score": 0.7},
    ]
    source = BoxFile(write(tmp_path / "b.json", file))
    assert boxes_of(source, "x/000000000139.jpg") == [[10, 20, 40, 60]]
    assert source.image_number("139.png") == 139
    assert boxes_of(source, "shot.jpg") == [[0, 0, 8, 8]]


def test_csv_with_and_without_header_and_scores(tmp_path):
    text = 'name,x0,y0,x1,y1,score\na.jpg, 1, 2, 3.5, 4, 0.9\n# a remark\n\n"b, c.jpg",0,0,9,9,\n'
    source = BoxFile(write(tmp_path / "b.csv", "\ufeff" + text))
    assert boxes_of(source, "a.jpg") == [[1, 2, 3.5, 4]] and boxes_of(source, "b, c.jpg") == [[0, 0, 9, 9]]
    assert boxes_of(BoxFile(write(tmp_path / "c.csv", "a.jpg,1,2,3,4\n")), "a.jpg") == [[1, 2, 3, 4]]


@pytest.mark.parametrize(
    "content, said",
    [
        ("", "the file is empty"),
        ("{", "not valid JSON"),
        ("[]", "it holds no boxes"),
        ({"a.jpg": [[10, 10, 5, 20]]}, r"'?a.jpg'? has the box \[10, 10, 5, 20\], which ends before it begins"),
        ({"a.jpg": [[1, 2, 3]]}, r"a.jpg has the box \[1, 2, 3\]; it must be \[x0, y0, x1, y1\]"),
        ({"a.jpg": [[1, 2, 3, "4"]]}, "it must be"),
        ({"a.jpg": {"box": 1}}, "'a.jpg' has no list of boxes"),
        ('{"a.jpg": [[1, 2, NaN, 4]]}', "it must be"),
        ([{"bbox": [1, 2, 3, 4]}], "entry 0 has no image_id"),
        ([{"image_id": 1, "keypoints": [1]}], "entry 0 has bbox None; it must be"),
        ([{"image_id": 1, "bbox": [1, 2, -3, 4]}], "of negative size"),
        ({"images": [{"id": 1}], "annotations": []}, "an image has no id or no file_name"),
        (
            {"images": [], "annotations": [{"image_id": 8, "bbox": [1, 2, 3, 4]}]},
            r"annotations\[0\] is of image 8, which",
        ),
        ("a.jpg,1,2,3\n", "line 1 is 'a.jpg,1,2,3'; boxes come as COCO"),
        ("name,x0,y0,x1,y1\na.jpg,1,2,three,4\n", "line 2 is"),
        ("a.jpg,9,9,3,4\n", "line 1 has the box"),
    ],
)
def test_files_that_make_no_sense(tmp_path, content, said):
    path = write(tmp_path / "boxes.json", content)
    with pytest.raises(UserError, match=said) as error:
        BoxFile(path)
    assert str(error.value).startswith(path) and "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x80")
    for name, said in (("binary", "no text"), ("none.json", "no such file"), (".", "is a directory")):
        with pytest.raises(UserError, match=said):
            open_boxes(tmp_path / name)
