"""COCO-style annotations arrive whole: bytes, coordinates, flags, ids; wrong sides and schemas are refused."""

import hashlib
import json

import numpy as np
import pytest

from data_modules.importers import CocoImporter, ImportFailedError
from data_modules.packing import pack
from data_modules.shards import ShardDataset
from s2kit.schemas import load_keypoint_set

NAMES = ["coco-17", "coco-wholebody-133", "sapiens2-308"]


def bring(importer, out, **options):
    return pack(importer, out, workers=1, progress=False, **options)


@pytest.mark.parametrize("name", NAMES)
def test_a_set_arrives_whole(coco, tmp_path, name):
    path, images, content, sums = coco(name)
    packed = bring(CocoImporter(path, images, name), tmp_path / "out", samples_per_shard=10)
    assert (packed.samples, packed.people, packed.rejected) == (24, 36, ())
    samples = ShardDataset(tmp_path / "out")
    manifest = samples.manifest
    assert manifest["schemas"]["keypoints"] == name and manifest["source"] == "COCO 2017 Dataset"
    assert [shard["samples"] for shard in manifest["shards"]] == [10, 10, 4]
    for number in (0, 1, 23):
        image = content["images"][number]
        assert samples.key(number) == image["file_name"].removesuffix(".jpg")
        assert hashlib.sha256(samples.read_encoded(number)["jpg"]).hexdigest() == sums[image["file_name"]]
        sample = samples[number]
        assert sample["meta"]["image_id"] == image["id"] and sample["meta"]["file"] == image["file_name"]
        assert sample["meta"]["licence"].endswith("by-nc-nd/2.0/") and sample["meta"]["url"] == image["coco_url"]
        entries = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
        assert len(sample["people"]) == len(entries) == 1 + number % 2
        for person, entry in zip(sample["people"], entries):
            assert person["id"] == entry["id"] and person["area"] == 700.25
            np.testing.assert_array_equal(person["box"], np.float32([10.5, 8.25, 40.5, 58.75]))
            _compare_points(name, person, entry)


def _compare_points(name, person, entry):
    fields = {
        "coco-17": ["keypoints"],
        "sapiens2-308": ["goliath_wholebody_kpts"],
        "coco-wholebody-133": ["keypoints", "foot_kpts", "face_kpts", "lefthand_kpts", "righthand_kpts"],
    }[name]
    rows = np.concatenate([np.array(entry[field]).reshape(-1, 3) for field in fields])
    if name == "coco-wholebody-133":
        rows[91:112, 2] = 0  # lefthand_valid is false
    np.testing.assert_array_equal(person["visibility"], rows[:, 2])
    labelled = rows[:, 2] > 0
    assert labelled.sum() > 10 and (~labelled).any()
    # COCO counts pixels from the centre of the first one, the kit from its corner.
    np.testing.assert_allclose(person["keypoints"][labelled], rows[labelled, :2] + 0.5, atol=1e-4)
    assert np.isnan(person["keypoints"][~labelled]).all()


def test_continuous_coordinates_are_kept(coco, tmp_path):
    path, images, content, _ = coco("coco-17", 2)
    bring(CocoImporter(path, images, pixel_centre=0.5), tmp_path / "out")
    first = ShardDataset(tmp_path / "out")[0]["people"][0]["keypoints"]
    np.testing.assert_allclose(first[0], content["annotations"][0]["keypoints"][:2], atol=1e-4)


def test_who_is_left_out(coco, tmp_path):
    def edit(content):
        people = content["annotations"]
        people[0]["iscrowd"] = 1
        people[1]["keypoints"] = [0] * 51
        people[2]["bbox"] = [100, 3, 20, 20]
        people[3]["keypoints"] = [-1, -2, 2] * 17
        people[4]["category_id"] = 7
        people[5]["bbox"] = [-5, -5, 25, 90]

    path, images, content, _ = coco("coco-17", 6, edit)
    packed = bring(CocoImporter(path, images), tmp_path / "out")
    assert packed.notes == (
        "1 people left out: a crowd",
        "1 people left out: all keypoints at 0 or below",
        "1 people left out: no bbox within the image",
        "1 people left out: no labelled keypoint",
    )
    samples = ShardDataset(tmp_path / "out")
    left = {person["id"]: person["box"].tolist() for i in range(len(samples)) for person in samples[i]["people"]}
    ids = [entry["id"] for entry in content["annotations"]]
    assert sorted(left) == ids[5:] and left[ids[5]] == [0, 0, 20, 64]
    everyone = bring(CocoImporter(path, images, keep_crowds=True, keep_empty=True), tmp_path / "all")
    assert (everyone.samples, everyone.people) == (6, 9 - 4 + 0)
    crowd = ShardDataset(tmp_path / "all")[0]["people"][0]
    assert crowd["iscrowd"] is True


def test_human_art_by_the_general_option(coco, tmp_path):
    """Pictures in folders of folders, points in a field of their own, other names of fields."""

    def edit(content):
        for image in content["images"]:
            folder = images / "2D_virtual_human" / "cartoon"
            folder.mkdir(parents=True, exist_ok=True)
            (images / image["file_name"]).rename(folder / image["file_name"])
            image["file_name"] = f"2D_virtual_human/cartoon/{image['file_name']}"
        for entry in content["annotations"]:
            entry["keypoints_21"] = entry.pop("keypoints") + [1, 1, 2] * 4
            entry["points"], entry["box"] = entry["keypoints_21"][:51], entry.pop("bbox")

    images = tmp_path / "coco" / "val2017"
    path, *_ = coco("coco-17", 3, edit)
    importer = CocoImporter(path, images, "coco-17", fields=("points",), box_field="box")
    bring(importer, tmp_path / "out")
    samples = ShardDataset(tmp_path / "out")
    assert samples.key(0) == "2D_virtual_human/cartoon/000000000139" and len(samples[1]["people"]) == 2
    with pytest.raises(ImportFailedError, match=r"annotations\[0\] has 21 keypoints in keypoints_21, coco-17 has 17"):
        bring(CocoImporter(path, images, fields=("keypoints_21",), box_field="box"), tmp_path / "other")
    with pytest.raises(ImportFailedError, match=r"has no list 'keypoints'; its lists are box, keypoints_21, points"):
        bring(CocoImporter(path, images, box_field="box"), tmp_path / "third")


def test_names_that_cannot_be_compared_are_noted(coco, tmp_path):
    path, images, *_ = coco("coco-17", 2, lambda c: c["categories"][0].update(keypoints=["nose"] * 21))
    packed = bring(CocoImporter(path, images), tmp_path / "out")
    assert packed.notes == ("the category lists 21 names and keypoints_17 has 17 points: they were not compared",)


def test_exchanged_sides_are_refused(coco, tmp_path):
    flips = load_keypoint_set("coco-17").flip_map
    path, images, *_ = coco("coco-17", exchange=flips)
    with pytest.raises(ImportFailedError, match=r"left and right are exchanged: of 36 people .* 100 % have 'left_sho"):
        bring(CocoImporter(path, images), tmp_path / "out")


def test_one_exchanged_pair_is_refused(coco, tmp_path):
    order = np.arange(17)
    order[[11, 12]] = 12, 11
    path, images, *_ = coco("coco-17", exchange=order)
    with pytest.raises(ImportFailedError, match="'left_hip' and 'right_hip' look exchanged: in only 0 % of 36 people"):
        bring(CocoImporter(path, images), tmp_path / "out")


def own_schema(tmp_path, edit, file="mine.json"):
    """The 133 points as a user's own file whose names say nothing of sides, edited."""
    from importlib import resources

    data = json.loads((resources.files("s2kit.schemas") / "keypoints_133.json").read_text())
    names = {point["name"]: f"face-{point['id'] - 23}" for point in data["keypoints"] if 23 <= point["id"] < 91}
    for point in data["keypoints"]:
        point["name"] = names.get(point["name"], point["name"])
    data["name"] = "My_Points"
    edit(data)
    path = tmp_path / file
    path.write_text(json.dumps(data))
    return path


def swap(data, *rows):
    for a, b in rows:
        data["keypoints"][a]["flip"], data["keypoints"][b]["flip"] = b, a


def test_a_swap_table_that_the_names_refute(coco, tmp_path):
    path, images, *_ = coco("coco-wholebody-133", 2)
    wrong = own_schema(tmp_path, lambda data: swap(data, (5, 8), (6, 7)))
    with pytest.raises(
        ImportFailedError, match=r"mine\.json: 'left_shoulder' flips to 'right_elbow'; its mirrored name"
    ):
        bring(CocoImporter(path, images, str(wrong)), tmp_path / "out")


def test_a_swap_table_that_only_the_data_refute(coco, tmp_path):
    fields = ("keypoints", "foot_kpts", "face_kpts", "lefthand_kpts", "righthand_kpts")
    path, images, *_ = coco("coco-wholebody-133")
    right = own_schema(tmp_path, lambda data: None)
    packed = bring(CocoImporter(path, images, str(right), fields), tmp_path / "good")
    assert packed.samples == 24
    assert ShardDataset(tmp_path / "good").manifest["schemas"]["keypoints"] == "my-points"
    assert (tmp_path / "good" / "my-points.json").read_bytes() == right.read_bytes()
    # The brow's points 17..26 mirror to 26..17; here two of them are paired with each other's partners.
    wrong = own_schema(tmp_path, lambda data: swap(data, (23 + 17, 23 + 22), (23 + 26, 23 + 21)), "bad.json")
    with pytest.raises(
        ImportFailedError, match=r"'face-17' flips to 'face-22', but in 36 faces its mirror .* 'face-26'"
    ):
        bring(CocoImporter(path, images, str(wrong), fields), tmp_path / "bad")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda c: c.pop("images"), "must hold the lists images and annotations"),
        (lambda c: c["categories"][0].update(name="human"), "no category 'person'; it has human"),
        (
            lambda c: c["categories"][0].update(keypoints=["nose", "right_eye", "left_eye", *"abcdefghijklmn"]),
            "keypoint 1 is 'right_eye', that of keypoints_17 is 'left_eye'",
        ),
        (lambda c: c["images"][1].pop("width"), r"images\[1\] lacks file_name, height or width"),
        (lambda c: c["images"][1].update(file_name="../a.jpg"), "leads out of the folder"),
        (lambda c: c["images"][1].update(file_name=c["images"][0]["file_name"]), "two images would have the key"),
        (lambda c: c["annotations"][0].update(image_id=5), "is of image 5, not listed"),
        (lambda c: c["annotations"][0].update(keypoints=[1, 2]), "keypoints has 2 numbers, not x, y, v"),
        (lambda c: c.update(annotations=[]), "no image has people with labelled keypoints"),
    ],
)
def test_broken_files_end_in_one_line(coco, tmp_path, edit, words):
    path, images, *_ = coco("coco-17", 3, edit)
    with pytest.raises(ImportFailedError, match=words) as caught:
        bring(CocoImporter(path, images), tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_pictures_that_do_not_fit_are_rejected(coco, tmp_path):
    path, images, content, _ = coco("coco-17", 20)
    names = [image["file_name"] for image in content["images"]]
    (images / names[0]).unlink()
    (images / names[1]).write_bytes((images / names[1]).read_bytes()[:400])
    (images / names[2]).write_bytes(b"<html>gone</html>")
    packed = bring(CocoImporter(path, images), tmp_path / "out", max_rejected=0.2)
    assert packed.samples == 17
    reasons = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [entry["key"] for entry in reasons] == [name.removesuffix(".jpg") for name in names[:3]]
    for entry, words in zip(reasons, ("No such file", "cut off", "it holds text")):
        assert words in entry["reason"]
    with pytest.raises(ImportFailedError, match=r"3 of 20 samples cannot be used, more than the share of 0\.1"):
        bring(CocoImporter(path, images), tmp_path / "strict")


@pytest.mark.parametrize(
    ("orientation", "size", "words"),
    [(6, (48, 64), None), (6, (64, 48), "says 64 x 48"), (3, (64, 48), "nothing says")],
)
def test_exif_turns_are_not_guessed(coco, tmp_path, orientation, size, words):
    """Labels of the upright size are taken; those of the stored size, or of a half turn, are not."""
    from PIL import Image

    def edit(content):
        content["images"][0].update(height=size[0], width=size[1])

    path, images, content, _ = coco("coco-17", 12, edit)
    file = images / content["images"][0]["file_name"]
    with Image.open(file) as image:
        exif = image.getexif()
        exif[0x0112] = orientation
        image.save(file, exif=exif)
    stored = file.read_bytes()
    packed = bring(CocoImporter(path, images), tmp_path / "out")
    assert len(packed.rejected) == (words is not None)
    if words:
        assert words in packed.rejected[0][1]
    else:
        samples = ShardDataset(tmp_path / "out")
        assert samples[0]["image"].shape == (48, 64, 3) and samples.read_encoded(0)["jpg"] == stored


def test_an_imported_set_feeds_the_data_module(coco, tmp_path):
    from data_modules import PoseDataModule

    path, images, *_ = coco("coco-17", 6)
    bring(CocoImporter(path, images), tmp_path / "train")
    data = PoseDataModule(
        schema="coco-17", image_size=(64, 48), train=str(tmp_path / "train"), batch_size=9, num_workers=0
    )
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["keypoints"].shape == (9, 17, 2) and np.isfinite(batch["keypoints"].numpy()).all()
    assert len(set(batch["person_id"])) == 9 and (batch["visibility"] > 0).any()
