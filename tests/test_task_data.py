"""Every task's data module over the session's synthetic humans: batches, labels that agree, and what is refused."""

import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning import LightningDataModule

import data_modules
from data_modules.shards import ShardDataset, ShardError, ShardWriter
from data_modules.transforms import SampleRejected, warp_sample
from data_modules.transforms.pointmap import pointmap_target
from s2kit.errors import UserError
from s2kit.schemas import load_class_list, load_keypoint_set

SIZE = (64, 48)
UINT8, INT64, FLOAT, BOOL = torch.uint8, torch.int64, torch.float32, torch.bool
COMMON = {"image": (UINT8, (2, 3, 64, 48)), "crop": (FLOAT, (2, 3, 3)), "source_size": (INT64, (2, 2))}
PLANES, MASK = (FLOAT, (2, 3, 64, 48)), (BOOL, (2, 1, 64, 48))
#: What a training batch of two holds beside ``key``; the synthetic pictures have 64 x 48 pixels, too.
BATCHES = {
    "PoseDataModule": {"keypoints": (FLOAT, (2, 308, 2)), "visibility": (UINT8, (2, 308)), "box": (FLOAT, (2, 4))},
    "SegmentationDataModule": {"labels": (INT64, (2, 64, 48))},
    "PointmapDataModule": {"pointmap": PLANES, "valid": MASK, "intrinsics": (FLOAT, (2, 3, 3))},
    "AlbedoDataModule": {"albedo": PLANES, "valid": MASK},
    "MattingDataModule": {"alpha": (FLOAT, (2, 1, 64, 48)), "foreground": PLANES, "valid": MASK},
    "NormalsDataModule": {"normals": PLANES, "valid": MASK, "intrinsics": (FLOAT, (2, 3, 3))},
    "PretrainingDataModule": {"size": (INT64, (2, 2))},
}
#: A synthetic person may fill less or more of so small a picture than real sets allow.
LENIENT = {"SegmentationDataModule": {"min_foreground": 0.0}, "PointmapDataModule": {"max_valid": 1.0}}


@pytest.fixture(scope="module")
def root(synth_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The session's synthetic sets under the names that ``data.root`` looks for."""
    folder = tmp_path_factory.mktemp("root")
    for split in ("train", "val", "test"):
        (folder / split).symlink_to(next((synth_cache / "synth").glob(f"{split}-*")))
    return folder


def make(name: str, root: Path, **options):
    if name in LENIENT:
        options["augment"] = LENIENT[name] | options.get("augment", {})
    settings = {"image_size": SIZE, "root": str(root), "batch_size": 2, "num_workers": 0}
    return getattr(data_modules, name)(**settings | options)


def layout(batch: dict) -> dict:
    return {name: (value.dtype, tuple(value.shape)) for name, value in batch.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("name", BATCHES)
def test_training_and_evaluation_batches(root, name):
    module = make(name, root)
    loader = module.train_dataloader()
    batch = next(batch for batch in loader if len(batch["key"]) == 2)
    assert layout(batch) == COMMON | BATCHES[name]
    assert set(batch["key"]) <= {ShardDataset(root / "train").key(index) for index in range(6)}
    again = next(batch for batch in make(name, root).train_dataloader() if len(batch["key"]) == 2)
    assert batch["key"] == again["key"] and torch.equal(batch["image"], again["image"])

    keys, expected = [], COMMON | BATCHES[name]
    if name == "PoseDataModule":
        expected = expected | {"area": (FLOAT, (2, 1))}
    if name == "AlbedoDataModule":  # to show it in other light
        expected = expected | {"normals": PLANES}
    batches = list(module.val_dataloader())
    for batch in batches:
        keys += batch["key"]
    assert keys == [ShardDataset(root / "val").key(index) for index in range(2)]
    assert layout(batches[0]) == expected
    for transform in (module.train_transform(), module.eval_transform()):  # they travel to workers
        pickle.loads(pickle.dumps(transform))


def unlike(folder: Path, *members: set[str]) -> Path:
    """A set of two pictures that have only some of the labels each."""
    rng = np.random.default_rng(0)
    full = {
        "image": rng.integers(0, 256, (*SIZE, 3), np.uint8),
        "albedo": rng.integers(0, 256, (*SIZE, 3), np.uint8),
        "normals": np.full((*SIZE, 3), [0, 0, 1], np.float32),
        "depth": np.full(SIZE, 2, np.float32),
        "intrinsics": np.array([[60, 0, 24], [0, 60, 32], [0, 0, 1]], np.float32),
    }
    with ShardWriter(folder / "val") as writer:
        for number, names in enumerate(members):
            writer.write({"key": f"s{number}", **{name: full[name] for name in {"image", *names}}})
    return folder


def test_labels_that_only_some_samples_have(tmp_path):
    """What the task needs is missing: an error that names the sample. What it can do without: the batch is without."""
    root = unlike(tmp_path / "a", {"albedo", "normals"}, {"albedo"})
    (batch,) = make("AlbedoDataModule", root).val_dataloader()
    assert "normals" not in batch and batch["albedo"].shape == (2, 3, *SIZE)
    for name, members, reason in (
        ("NormalsDataModule", [{"normals", "intrinsics"}, {"intrinsics"}], r"'s1' rejected: it has no 'normals'"),
        ("PointmapDataModule", [{"depth", "intrinsics"}, {"depth"}], r"'s1' rejected: it has no 'intrinsics'"),
        ("AlbedoDataModule", [{"albedo"}, {"normals"}], r"'s1' rejected: it has no 'albedo'; it has image, normals"),
    ):
        module = make(name, unlike(tmp_path / name, *members))
        with pytest.raises(SampleRejected, match=reason):
            list(module.val_dataloader())
        train = module.train_transform()
        (tmp_path / name / "val").rename(tmp_path / name / "train")
        with pytest.raises(SampleRejected, match=reason):
            train(ShardDataset(tmp_path / name / "train")[1], np.random.default_rng(0))


def test_workers_give_the_same_people(root):
    here, there = (make("PoseDataModule", root, num_workers=workers).train_dataloader() for workers in (0, 1))
    for first, second in zip(here, there):
        assert first["key"] == second["key"] and first["person_id"] == second["person_id"]
        assert torch.equal(first["image"], second["image"]) and torch.equal(first["keypoints"], second["keypoints"])


def all_items(module, rounds: int = 6):
    """Yield (sample, item) of augmented training samples, whole pictures with labels of every kind."""
    samples, transform = ShardDataset(Path(module.root) / "train"), module.train_transform()
    for number in range(rounds * len(samples)):
        sample = samples[number % len(samples)]
        yield sample, transform(sample, np.random.default_rng([1, number]))


def decided(crop: np.ndarray) -> np.ndarray:
    """Return (h, w) bool, which pixels' centres are clear of the source's pixel borders: the nearest is not a tie."""
    inverse = np.linalg.inv(crop.astype(np.float64))
    centres = np.stack(np.meshgrid(np.arange(SIZE[1]) + 0.5, np.arange(SIZE[0]) + 0.5), axis=-1)
    points = centres @ inverse[:2, :2].T + inverse[:2, 2]
    return (np.abs(points - np.rint(points)) > 5e-3).all(axis=-1)


def warped_pairs(module):
    """Yield items, the sample warped by their crop with everything in it, and the pixels to compare."""
    for sample, item in all_items(module):
        clear = decided(item["crop"])
        yield item, warp_sample(sample, item["crop"].astype(np.float64), SIZE), clear


def test_labels_of_all_tasks_are_those_of_one_warped_sample(root):
    """Each task's item, under its own crop, against everything that is labelled in the sample warped by that crop."""
    full = {"rotate": 0.5, "rotate_degrees": 40.0, "flip": 0.5, "crop": 0.4}
    for item, warped, _ in warped_pairs(make("PoseDataModule", root)):
        same = item["visibility"] == warped["visibility"]
        assert same.mean() > 0.99  # one on the very edge may differ: the item's crop is rounded to float32
        np.testing.assert_allclose(item["keypoints"][same], warped["keypoints"][same], atol=1e-3)
    for item, warped, clear in warped_pairs(make("SegmentationDataModule", root)):
        inside = clear & (warped["parts"] != 255)
        np.testing.assert_array_equal(item["labels"][inside], warped["parts"][inside])
    for item, warped, clear in warped_pairs(make("PointmapDataModule", root, augment=full)):
        np.testing.assert_allclose(item["intrinsics"], warped["intrinsics"], atol=1e-3)
        points, valid = pointmap_target(warped["depth"], warped["intrinsics"], None)
        shown = clear & item["valid"][0]
        assert shown.sum() > 20 and valid[0][shown].all()
        np.testing.assert_allclose(item["pointmap"][:, shown], points[:, shown], atol=1e-3)
    for item, warped, clear in warped_pairs(make("NormalsDataModule", root, augment=full | {"max_valid": 1.0})):
        shown = clear & item["valid"][0]
        normals = warped["normals"].transpose(2, 0, 1)
        np.testing.assert_allclose(item["normals"][:, shown], normals[:, shown], atol=1e-4)
    for item, warped, _ in warped_pairs(make("AlbedoDataModule", root, augment=full)):
        solid = item["valid"][0] & (cv2.erode(warped["alpha"], np.ones((5, 5))) == 255)
        error = np.abs(item["albedo"] * 255 - warped["albedo"].transpose(2, 0, 1))[:, solid]
        assert (error < 3).mean() > 0.98  # between a body's own pixels a black one may lie that sees past it
    for item, warped, _ in warped_pairs(make("MattingDataModule", root, augment={"resize": 0.0})):
        assert np.abs(item["alpha"][0] * 255 - warped["alpha"]).max() < 3


def test_the_left_hand_stays_the_left_hand(root):
    """Keypoints and part classes name sides on their own; in mirrored pictures, too, they must not contradict."""
    points, classes = load_keypoint_set(308), load_class_list(29)
    sides = [
        {"left": "Left", "right": "Right", "l": "Left", "r": "Right"}.get(name.split("_")[0]) for name in points.names
    ]
    agree = contradict = mirrored = 0
    for sample, item in all_items(make("PoseDataModule", root), rounds=10):
        parts = warp_sample(sample, item["crop"].astype(np.float64), SIZE)["parts"]
        mirrored += np.linalg.det(item["crop"][:2, :2]) < 0
        for index in np.flatnonzero(item["visibility"] == 2):
            if index >= 70 or sides[index] is None:
                continue
            x, y = item["keypoints"][index].astype(int)
            name = classes.names[parts[y, x]] if parts[y, x] != 255 else ""
            agree += name.startswith(sides[index])
            contradict += name.startswith(("Left", "Right")) and not name.startswith(sides[index])
    assert 15 < mirrored < 45 and agree > 100
    assert contradict < 0.05 * agree


def test_every_person_of_a_picture_is_an_item(tmp_path, root):
    picture = ShardDataset(root / "train")[0]["image"]
    keypoints, visibility = np.full((17, 2), 20, np.float32), np.full(17, 2, np.uint8)
    keypoints[:, 0] += np.arange(17)
    people = [
        {"id": 4, "box": [2, 3, 40, 60], "keypoints": keypoints, "visibility": visibility, "area": 500.0},
        {"id": "b", "box": [20, 30, 44, 50], "keypoints": keypoints + 5, "visibility": visibility},
    ]
    with ShardWriter(tmp_path / "set", info={"schemas": {"keypoints": "coco-17"}}) as writer:
        writer.write({"key": "two", "image": picture, "people": people})
        writer.write({"key": "nobody", "image": picture, "people": []})
    module = make("PoseDataModule", root, schema="coco-17", train=str(tmp_path / "set"), val=str(tmp_path / "set"))
    (batch,) = module.val_dataloader()
    assert batch["key"] == ["two", "two"] and batch["person_id"] == [4, "b"]
    assert batch["box"].tolist() == [[2, 3, 40, 60], [20, 30, 44, 50]]
    np.testing.assert_allclose(batch["area"].ravel(), [500, 0.53 * 24 * 20], rtol=1e-6)
    np.testing.assert_array_equal(batch["keypoints"][1], keypoints + 5)
    batch = next(iter(module.train_dataloader()))
    assert sorted(map(str, batch["person_id"])) == ["4", "b"] and batch["keypoints"].shape == (2, 17, 2)
    with pytest.raises(UserError, match=r"'coco-17', and data.schema is 'coco-wholebody-133'.*become nothing else"):
        make("PoseDataModule", root, schema="coco-wholebody-133", val=str(tmp_path / "set")).val_dataloader()


PLAIN_POSE = dict.fromkeys(
    ("flip", "half_body", "shift", "scale", "rotate", "photometric", "blur", "median", "hole"), 0.0
)


@pytest.mark.parametrize("schema", ["coco-17", "coco-wholebody-133", "openpose-25"])
def test_keypoints_are_converted_on_loading(schema, root):
    """The synthetic people have 308 points; the smaller sets take theirs from them by name, or as means of several."""
    raw, target = ShardDataset(root / "val", per_person=True), load_keypoint_set(schema)
    given, ids = raw[0], load_keypoint_set("sapiens2-308").ids
    module = make("PoseDataModule", root, schema=schema)
    batch = next(iter(module.val_dataloader()))
    assert batch["keypoints"].shape == (2, len(target), 2) and batch["visibility"].dtype == UINT8
    # OpenPose's neck is the middle of the shoulders, whatever else has that name.
    shared = [name for name in target.names if name in ids and name != "neck"]
    assert {"left_wrist", "right_wrist", "left_ankle", "right_ankle"} <= set(shared)
    for name in shared:
        seen = int(given["visibility"][ids[name]])
        assert int(batch["visibility"][0, target.ids[name]]) == seen
        expected = given["keypoints"][ids[name]] if seen else np.zeros(2)
        np.testing.assert_array_equal(batch["keypoints"][0, target.ids[name]], expected)
    if schema == "openpose-25":
        hips = [ids["left_hip"], ids["right_hip"]]
        middle = given["keypoints"][hips].mean(axis=0) * bool(given["visibility"][hips].all())
        np.testing.assert_allclose(batch["keypoints"][0, 8], middle, rtol=1e-6)
    # In training a mirrored picture swaps the converted points, by the target's own pairs.
    as_is, mirrored = (
        next(iter(make("PoseDataModule", root, schema=schema, augment={**PLAIN_POSE, "flip": flip}).train_dataloader()))
        for flip in (0.0, 1.0)
    )
    assert as_is["key"] == mirrored["key"] and as_is["visibility"].any()
    seen = as_is["visibility"] > 0
    np.testing.assert_array_equal(mirrored["visibility"][:, target.flip_map] > 0, seen)
    swapped = mirrored["keypoints"][:, target.flip_map]
    np.testing.assert_allclose(SIZE[1] - swapped[..., 0][seen], as_is["keypoints"][..., 0][seen], atol=1e-3)
    np.testing.assert_allclose(swapped[..., 1][seen], as_is["keypoints"][..., 1][seen], atol=1e-3)


def test_parts_are_converted_on_loading(root):
    """The first Sapiens' classes: all but Eyeglass (2), which is ignored; those behind it are numbered one less."""
    raw = ShardDataset(root / "val")
    batch = next(iter(make("SegmentationDataModule", root, schema="sapiens1-28").val_dataloader()))
    for index, labels in enumerate(batch["labels"]):
        parts = raw[index]["parts"].astype(np.int64)
        expected = np.select([parts == 255, parts < 2, parts == 2], [255, parts, 255], parts - 1)
        np.testing.assert_array_equal(labels, expected)
        assert expected.max() > 2
    module = make("SegmentationDataModule", root, schema="sapiens1-28", num_workers=1)
    trained = next(iter(module.train_dataloader()))["labels"]
    assert trained.shape == (2, *SIZE) and set(trained.unique().tolist()) <= {*range(28), 255}


def test_samples_that_are_not_of_their_sets_schema_are_named(tmp_path, root):
    picture = ShardDataset(root / "train")[0]["image"]
    with ShardWriter(tmp_path / "set", info={"schemas": {"keypoints": "sapiens2-308"}}) as writer:
        keypoints, visibility = np.full((17, 2), 20, np.float32), np.full(17, 2, np.uint8)
        person = {"id": 1, "box": [2, 3, 40, 60], "keypoints": keypoints, "visibility": visibility}
        writer.write({"key": "few", "image": picture, "people": [person]})
    module = make("PoseDataModule", root, schema="coco-17", val=str(tmp_path / "set"))
    with pytest.raises(SampleRejected, match=r"few.*it has 17 keypoints, keypoints_308 has 308"):
        next(iter(module.val_dataloader()))


def test_other_labels_are_refused_in_one_line(tmp_path, root):
    with pytest.raises(UserError, match=r"train.*'sapiens2-29', and data.schema is 'lip-20': .* become sapiens1-28;"):
        make("SegmentationDataModule", root, schema="lip-20").train_dataloader()
    with ShardWriter(tmp_path / "set") as writer:
        writer.write({"key": "bare", "image": np.zeros((64, 48, 3), np.uint8)})
    for name in ("PoseDataModule", "SegmentationDataModule", "PointmapDataModule", "AlbedoDataModule"):
        with pytest.raises((ShardError, UserError), match=r"no sample has|has no people"):
            make(name, root, train=str(tmp_path / "set")).train_dataloader()
    (batch,) = make("PretrainingDataModule", root, val=str(tmp_path / "set")).val_dataloader()
    assert batch["key"] == ["bare"]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        make("MattingDataModule", root, backgrounds="nowhere").train_dataloader()


def test_evaluation_can_be_cut_to_the_person(root):
    sample = ShardDataset(root / "val", per_person=True)[0]
    for name in ("SegmentationDataModule", "PointmapDataModule", "AlbedoDataModule", "MattingDataModule"):
        item = make(name, root, person_margin=1.0).eval_transform()(ShardDataset(root / "val")[0])
        height, width = item["source_size"]
        label = next(item[key] for key in ("labels", "pointmap", "albedo", "alpha") if key in item)
        assert label.shape[-2:] == (height, width) and (height, width) != (64, 48)
        if name == "AlbedoDataModule":
            assert item["normals"].shape == label.shape and item["normals"][:, item["valid"][0]].std() > 0.1
        assert width >= sample["box"][2] - sample["box"][0] - 1 and height >= sample["box"][3] - sample["box"][1] - 1


@pytest.mark.parametrize("name", BATCHES)
def test_a_users_pictures_are_fitted_as_the_task_is_evaluated(root, picture_folder, name):
    (batch,) = make(name, root, predict_path=str(picture_folder / "wide.jpg")).predict_dataloader()
    assert batch["image"].shape == (1, 3, *SIZE) and batch["source_size"].tolist() == [[50, 70]]
    scale = {
        "SegmentationDataModule": [48 / 70, 64 / 50],  # stretched
        "MattingDataModule": [48 / 70, 64 / 50],
        "PoseDataModule": [47 / (70 * 1.25), 63 / (70 * 1.25 * 4 / 3)],  # the whole picture is the person's box
    }.get(name, [48 / 70, 34 / 50])  # 34 whole pixels of 34.3
    np.testing.assert_allclose(np.diag(batch["crop"][0])[:2], scale, rtol=1e-5)


def test_canvas_of_pretraining(root):
    module = make("PretrainingDataModule", root, canvas=(40, 80))
    batch = next(iter(module.train_dataloader()))
    assert batch["image"].shape == (2, 3, 40, 80) and batch["size"].tolist() == [[40, 30]] * 2


def test_pretraining_decodes_near_the_size_that_it_needs(tmp_path, root):
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 256, (16, 12, 3), np.uint8), (480, 640), interpolation=cv2.INTER_CUBIC)
    with ShardWriter(tmp_path / "set") as writer:
        writer.write({"key": "large", "image": picture})
    (batch,) = make("PretrainingDataModule", root, val=str(tmp_path / "set"), canvas=(100, 80)).val_dataloader()
    assert batch["source_size"].tolist() == [[160, 120]] and batch["size"].tolist() == [[100, 75]]
    expected = cv2.resize(picture, (75, 100), interpolation=cv2.INTER_AREA).transpose(2, 0, 1).astype(int)
    assert np.abs(batch["image"][0, :, :, :75].numpy() - expected).mean() < 4


@pytest.mark.parametrize("name", BATCHES)
def test_the_command_line_builds_it(root, name):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    arguments = [
        f"--data=data_modules.{name}",
        f"--data.root={root}",
        "--data.batch_size=3",
        "--data.image_size=[64, 48]",
    ]
    if name == "PoseDataModule":
        arguments += ["--data.schema=coco-17", "--data.augment={flip: 0.25}", "--data.padding=1.5"]
    elif name == "PretrainingDataModule":
        arguments += ["--data.canvas=[100, 80]"]
    else:
        arguments += ["--data.augment={flip: 0.25, person_crop: true}", "--data.person_margin=1.5"]
    data = parser.instantiate_classes(parser.parse_args(arguments)).data
    assert type(data) is getattr(data_modules, name) and data.batch_size == 3 and data.image_size == (64, 48)
    transform = data.train_transform()
    if name == "PretrainingDataModule":
        assert transform.canvas == (100, 80)
    else:
        assert transform.probability["flip"] == 0.25
    if name == "PoseDataModule":
        assert transform.points.name == load_keypoint_set("coco-17").name and data.eval_transform().padding == 1.5


def test_names_are_resolved_on_first_use():
    code = "import sys, data_modules; sys.exit('lightning' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert data_modules.PoseDataModule.__module__ == "data_modules.pose"
    with pytest.raises(AttributeError, match="it has AlbedoDataModule, MattingDataModule"):
        _ = data_modules.DepthDataModule
    assert set(BATCHES) == set(data_modules.__all__)
