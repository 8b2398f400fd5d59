"""Files of poses: COCO's keypoint results, which pycocotools reads and scores, and our own."""

import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from s2kit.errors import UserError
from s2kit.inference.people import BoxFile
from s2kit.pose.coco_results import (
    FORM,
    PoseResult,
    coco_entries,
    image_number,
    read_pose,
    write_coco_results,
    write_pose,
)
from s2kit.pose.conversion import convert_keypoints
from s2kit.schemas import SchemaError, load_keypoint_set


def result_of(name: str = "000000000139.jpg", people: int = 2, points: int = 17, seed: int = 0, **more) -> PoseResult:
    rng = np.random.default_rng(seed)
    keypoints = rng.uniform(0, 400, (people, points, 3)).astype(np.float32)
    keypoints[..., 2] = rng.uniform(0.3, 1, (people, points))
    boxes = np.concatenate([keypoints[..., :2].min(axis=1), keypoints[..., :2].max(axis=1)], axis=1)
    return PoseResult(name, (480, 640), keypoints, boxes, np.linspace(1, 0.5, people, dtype=np.float32), **more)


def test_numbers_of_images():
    assert image_number("val/000000000139.jpg") == 139
    numbers = {image_number(name) for name in ("a.jpg", "b.jpg", "x/a.jpg", "clip.mp4/000012", "other.mp4/000012")}
    assert len(numbers) == 5 and 12 not in numbers and max(numbers) < 2**53
    assert image_number("a.jpg") == image_number("a.jpg") == 4473358765187370
    assert image_number("1234567890123456789.jpg") < 2**53


def test_entries_are_as_coco_has_them():
    result = result_of(people=1, ids=np.array([7]))
    result.keypoints[0, :3] = [(10, 20.004, 0.98768), (np.nan, 5, np.nan), (3, 4, 0)]
    (entry,) = coco_entries(result, "coco-17")
    x0, y0, x1, y1 = result.boxes[0]
    names = ["image_id", "file_name", "category_id", "track_id", "bbox", "keypoints", "score", "box_score"]
    assert list(entry) == names
    assert entry["image_id"] == 139 and entry["category_id"] == 1 and entry["track_id"] == 7
    assert entry["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=0.006)
    # The first pixel's centre is 0 in COCO; what is no number, or has no score, is at 0, 0.
    assert entry["keypoints"][:9] == [9.5, 19.5, 0.9877, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert entry["keypoints"][9] == pytest.approx(result.keypoints[0, 3, 0] - 0.5, abs=0.006)
    assert entry["box_score"] == 1
    scores = np.nan_to_num(result.keypoints[0, :, 2])
    assert entry["score"] == pytest.approx(scores[scores > 0.2].mean(), abs=1e-4)
    assert coco_entries(result, 17, number={"000000000139.jpg": 5}.get)[0]["image_id"] == 5
    assert coco_entries(result, 17, number=lambda name: None)[0]["image_id"] == 139


def test_pycocotools_reads_and_scores_the_file(tmp_path):
    results = [result_of(f"{number:012d}.jpg", seed=number) for number in (1, 2, 30)]
    path = tmp_path / "new" / "predictions.json"
    assert write_coco_results(path, iter(results), "coco-17") == 6
    assert len(path.read_text().splitlines()) == 8  # a person a line
    truth = COCO()
    truth.dataset = {"images": [], "categories": [{"id": 1, "name": "person"}], "annotations": []}
    for result in results:
        truth.dataset["images"].append({"id": image_number(result.name)})
        for points, box in zip(result.keypoints.astype(np.float64), result.boxes):
            x, y, width, height = *box[:2], *(box[2:] - box[:2])
            flat = np.column_stack([points[:, :2] - 0.5, np.full(17, 2)]).ravel()
            truth.dataset["annotations"].append(
                {
                    "id": len(truth.dataset["annotations"]) + 1,
                    "image_id": image_number(result.name),
                    "category_id": 1,
                    "bbox": [float(v) for v in (x, y, width, height)],
                    "area": float(width * height / 2),
                    "iscrowd": 0,
                    "num_keypoints": 17,
                    "keypoints": flat.tolist(),
                }
            )
    truth.createIndex()
    scores = COCOeval(truth, truth.loadRes(str(path)), "keypoints")
    scores.evaluate()
    scores.accumulate()
    scores.summarize()
    assert scores.stats[0] == pytest.approx(1.0)


def test_other_keypoint_sets_are_converted(tmp_path):
    result = result_of(points=308)
    path = tmp_path / "predictions.json"
    write_coco_results(path, [result], "sapiens2-308", "coco-17")
    entries = json.loads(path.read_text())
    points, scores = convert_keypoints(result.keypoints[..., :2], result.keypoints[..., 2], 308, 17)
    found = np.array([entry["keypoints"] for entry in entries]).reshape(2, 17, 3)
    np.testing.assert_allclose(found[..., :2], points - 0.5, atol=0.006)
    np.testing.assert_allclose(found[..., 2], scores, atol=6e-5)
    # How certain a person is, all their points say.
    assert entries[0]["score"] == pytest.approx(float(result.scores[0]), abs=1e-4)
    with pytest.raises(SchemaError, match="no schema"):
        write_coco_results(path, [result], "sapiens2-308", "coco-18")
    assert json.loads(path.read_text()) == entries and len(list(tmp_path.iterdir())) == 1


def test_the_file_gives_back_its_people_as_boxes(tmp_path):
    result = result_of()
    result.keypoints[..., 2] *= 0.2  # an unsure model: the poses score below every threshold
    path = tmp_path / "predictions.json"
    write_coco_results(path, [result], "coco-17")
    assert all(entry["score"] < 0.3 for entry in json.loads(path.read_text()))
    source = BoxFile(path, nms=None)
    (people,) = source([result.name], [np.zeros((480, 640, 3), np.uint8)])
    np.testing.assert_allclose(people.boxes, result.boxes, atol=0.02)
    assert people.scores.tolist() == [1, 0.5] and source.report() == ""


def test_nobody_is_an_empty_list(tmp_path):
    path = tmp_path / "predictions.json"
    assert write_coco_results(path, [result_of(people=0), result_of(people=0)], 17) == 0
    assert json.loads(path.read_text()) == []


def test_an_interruption_leaves_the_former_file(tmp_path):
    path = tmp_path / "predictions.json"
    path.write_text("before")

    def results():
        yield result_of()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_coco_results(path, results(), 17)
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("ids, seconds", [(None, None), (np.array([4, 2]), 1.25)])
def test_our_own_file_keeps_everything(tmp_path, ids, seconds):
    result = result_of("clip.mp4/000012", ids=ids, seconds=seconds)
    result.keypoints[0, 5] = np.nan
    write_pose(tmp_path / "a.json", result, 17)
    said = json.loads((tmp_path / "a.json").read_text())
    assert said["form"] == FORM and said["schema"] == "coco-17" and said["height"] == 480
    assert said["keypoint_names"] == list(load_keypoint_set(17).names)
    assert said["people"][0]["keypoints"][5] == [0, 0, 0]
    back, schema = read_pose(tmp_path / "a.json")
    assert schema == "coco-17" and back.name == "clip.mp4/000012" and back.size == (480, 640)
    assert back.seconds == seconds and (ids is None) == (back.ids is None)
    result.keypoints[0, 5] = 0
    np.testing.assert_allclose(back.keypoints, result.keypoints, atol=0.006)
    np.testing.assert_allclose(back.boxes, result.boxes, atol=0.006)
    np.testing.assert_allclose(back.box_scores, result.box_scores, atol=6e-5)
    assert ids is None or back.ids.tolist() == ids.tolist()
    write_pose(tmp_path / "a.json", result_of(people=0), 17)
    back, _ = read_pose(tmp_path / "a.json")
    assert back.keypoints.shape == (0, 17, 3) and back.boxes.shape == (0, 4)


def test_other_files_are_refused(tmp_path):
    for name, content, said in (
        ("a.json", "[1]", "no file of poses"),
        ("b.json", '{"form": "other-9"}', "its form is 'other-9', expected 's2kit-pose-1'"),
        ("c.json", '{"form": "s2kit-pose-1", "people": []}', "no file of poses .*keypoint_names"),
        ("d.json", "{", "no file of poses"),
        ("none.json", None, "cannot be read: no such file"),
    ):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=said) as error:
            read_pose(tmp_path / name)
        assert "\n" not in str(error.value)
