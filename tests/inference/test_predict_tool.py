"""``python -m s2kit predict`` with models of all six tasks: files, going on, mistakes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import s2kit
from s2kit import cli
from s2kit.cli import main
from s2kit.inference.dense_drawing import draw_relit
from s2kit.inference.items import TaskRunner
from s2kit.inference.video import VideoReader, VideoWriter
from s2kit.pose.coco_results import read_pose


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, size in (("wide.png", (50, 70)), ("tall.png", (80, 40))):
        cv2.imwrite(str(folder / name), rng.integers(0, 255, (*size, 3), np.uint8))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def everything(models, pictures, tmp_path_factory) -> Path:
    """The folder of a run of all six tasks on two pictures and a broken one."""
    out = tmp_path_factory.mktemp("everything") / "out"
    (pictures / "broken.jpg").write_bytes(b"<html>")
    args = ["predict", str(pictures), "--weights", *models.values(), "--out", str(out), "--draw", "overlay", "panel"]
    assert main([*args, "--batch-size", "2"]) == 1
    (pictures / "broken.jpg").unlink()
    return out


class TestFiles:
    """What a run of all six tasks leaves."""

    def test_each_task_has_its_files(self, everything):
        drawn = ["tall.png", "tall_panel.png", "wide.png", "wide_panel.png"]
        raw = {
            "pose": ["predictions.json", "tall.json", "wide.json"],
            "segmentation": ["tall_labels.png", "wide_labels.png"],
            "normals": ["tall.npy", "wide.npy"],
            "pointmap": ["tall.npz", "tall.ply", "wide.npz", "wide.ply"],
            "albedo": ["tall.npy", "wide.npy"],
            "matting": ["tall.npy", "tall_cutout.png", "wide.npy", "wide_cutout.png"],
        }
        for task, files in raw.items():
            assert sorted(path.name for path in (everything / task).iterdir()) == sorted(files + drawn), task
        assert sorted(path.name for path in everything.iterdir()) == sorted(
            [*raw, "sheets", "done.jsonl", "options.json"]
        )
        assert sorted(path.name for path in (everything / "sheets").iterdir()) == ["tall.png", "wide.png"]

    def test_they_hold_what_python_gives(self, everything, models, pictures):
        def predicted(task):
            return s2kit.load_task(task, models[task]).predict(str(pictures / "wide.png"))[0]

        for task in ("normals", "albedo", "matting"):
            stored = np.load(everything / task / "wide.npy")
            assert stored.dtype == np.float32 and stored.shape[:2] == (50, 70)
            np.testing.assert_allclose(stored, predicted(task), atol=1e-5)
        with Image.open(everything / "segmentation" / "wide_labels.png") as image:
            assert image.mode == "P"
            np.testing.assert_array_equal(np.asarray(image), predicted("segmentation"))
            colors = np.array(image.getpalette()).reshape(-1, 3)
        classes = s2kit.load_task("segmentation", models["segmentation"]).classes
        np.testing.assert_array_equal(colors[: len(classes)], classes.colors)
        stored = np.load(everything / "pointmap" / "wide.npz")
        np.testing.assert_allclose(stored["points"], predicted("pointmap").points, atol=1e-4)
        assert (everything / "pointmap" / "wide.ply").read_bytes().startswith(b"ply\nformat binary_little_endian")
        cutout = cv2.imread(str(everything / "matting" / "wide_cutout.png"), cv2.IMREAD_UNCHANGED)
        assert cutout.shape == (50, 70, 4)
        people, schema = read_pose(everything / "pose" / "wide.json")
        assert schema in ("coco-17", "keypoints_17")
        np.testing.assert_allclose(people.keypoints, predicted("pose"), atol=6e-3)
        entries = json.loads((everything / "pose" / "predictions.json").read_text())
        assert [Path(entry["file_name"]).name for entry in entries] == ["tall.png", "wide.png"]
        assert all(len(entry["keypoints"]) == 51 for entry in entries)

    def test_drawings_have_the_right_size(self, everything):
        assert cv2.imread(str(everything / "normals" / "wide.png")).shape == (50, 70, 3)
        # Two strips of titles beside each other above the pictures, and a dark line below.
        assert cv2.imread(str(everything / "normals" / "wide_panel.png")).shape == (50 + 22 + 4, 140, 3)
        height, width, _ = cv2.imread(str(everything / "sheets" / "wide.png")).shape
        assert (height / 76, width / 70) in {(2, 4), (3, 3)}

    def test_albedo_and_normals_are_drawn_in_other_light(self, everything):
        albedo, normals = (np.load(everything / task / "wide.npy") for task in ("albedo", "normals"))
        drawn = cv2.imread(str(everything / "albedo" / "wide_panel.png"))[22:72, :, ::-1]
        relit = draw_relit(albedo, normals, np.ones((50, 70), bool)).values()
        assert drawn.shape == (50, 4 * 70, 3)
        for start, picture in zip((140, 210), relit):
            np.testing.assert_array_equal(drawn[:, start : start + 70], picture)

    def test_the_same_command_does_nothing_again(self, everything, models, pictures, capsys):
        before = contents(everything)
        args = ["predict", str(pictures), "--weights", *models.values(), "--out", str(everything)]
        assert main([*args, "--draw", "overlay", "panel"]) == 0
        assert "0 of 0 written" in capsys.readouterr().out
        assert contents(everything) == before

    def test_other_options_in_the_same_folder_are_refused(self, everything, models, pictures, capsys):
        args = ["predict", str(pictures), "--weights", *models.values(), "--out", str(everything), "--flip"]
        assert main(args) == 1
        error = capsys.readouterr().err
        assert "now it is true: give another folder, or --restart" in error
        assert error.count("\n") == 1


def test_a_broken_file_is_named_and_the_others_are_done(models, pictures, tmp_path, capsys):
    listed = tmp_path / "list.txt"
    listed.write_text(f"{pictures}/wide.png\n{tmp_path}/gone.png\n{pictures}/tall.png\n")
    assert main(["predict", str(listed), "--weights", models["albedo"], "--out", str(tmp_path / "out")]) == 1
    output = capsys.readouterr()
    assert "2 of 3 written" in output.out
    assert f"{tmp_path}/gone.png: there is no such file" in output.err
    assert output.err.endswith("1 could not be read or predicted\n")
    cv2.imwrite(str(tmp_path / "gone.png"), np.zeros((9, 9, 3), np.uint8))
    assert main(["predict", str(listed), "--weights", models["albedo"], "--out", str(tmp_path / "out")]) == 0
    assert "1 of 1 written" in capsys.readouterr().out


def test_masks_from_a_folder_and_from_a_model(models, pictures, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    mask = np.zeros((50, 70), np.uint8)
    mask[10:30, 20:50] = 255
    cv2.imwrite(str(masks / "wide.png"), mask)
    np.save(masks / "tall_seg.npy", np.ones((40, 20), np.uint8))  # of half the size: resized
    weights = ["--weights", models["normals"], models["pointmap"], "--no-sheet", "--draw", "overlay"]
    assert main(["predict", str(pictures), *weights, "--out", str(tmp_path / "a"), "--masks", str(masks)]) == 0
    normals = np.load(tmp_path / "a" / "normals" / "wide.npy")
    np.testing.assert_array_equal(normals.any(axis=-1), mask > 0)
    stored = np.load(tmp_path / "a" / "pointmap" / "wide.npz")
    np.testing.assert_array_equal(stored["valid"], mask > 0)
    ply = (tmp_path / "a" / "pointmap" / "wide.ply").read_bytes()
    usable = (mask > 0) & (stored["points"][..., 2] > 0) & (stored["points"][..., 2] <= 250)
    assert f"element vertex {usable.sum()}\n".encode() in ply
    overlay, picture = (cv2.imread(str(path)) for path in (tmp_path / "a/normals/wide.png", pictures / "wide.png"))
    np.testing.assert_array_equal(overlay[mask == 0], picture[mask == 0])
    assert (overlay[mask > 0] != picture[mask > 0]).any()
    made = ["--mask-weights", models["segmentation"]]
    assert main(["predict", str(pictures), *weights, "--out", str(tmp_path / "b"), *made]) == 0
    labels = s2kit.load_task(None, models["segmentation"]).predict(str(pictures / "wide.png"))[0]
    np.testing.assert_array_equal(np.load(tmp_path / "b/normals/wide.npy").any(axis=-1), labels > 0)
    assert not (tmp_path / "b" / "segmentation").exists()


def test_a_picture_without_its_mask_is_reported(models, pictures, tmp_path, capsys):
    (tmp_path / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "masks" / "wide.png"), np.full((50, 71), 255, np.uint8))
    cv2.imwrite(str(tmp_path / "masks" / "tall.png"), np.full((50, 70), 255, np.uint8))
    args = ["predict", str(pictures), "--weights", models["albedo"], "--out", str(tmp_path / "out"), "--masks"]
    assert main([*args, str(tmp_path / "masks")]) == 1
    error = capsys.readouterr().err
    assert "tall.png is 70 x 50 pixels, of another shape than the picture's 40 x 80" in error
    (tmp_path / "masks" / "tall.png").unlink()
    assert main([*args, str(tmp_path / "masks")]) == 1
    assert f"it has no mask in {tmp_path / 'masks'}, such as tall.png" in capsys.readouterr().err


def test_a_video_becomes_videos_and_a_file_of_poses_a_frame(models, pictures, tmp_path, capsys):
    with VideoWriter(tmp_path / "clip.mp4", 10, (48, 64)) as writer:
        for number in range(5):
            writer.write(np.full((48, 64, 3), 40 * number, np.uint8))
    out = tmp_path / "out"
    weights = ["--weights", models["pose"], models["normals"]]
    args = ["predict", str(tmp_path / "clip.mp4"), str(pictures / "wide.png"), *weights, "--out", str(out)]
    assert main([*args, "--batch-size", "2"]) == 0
    files = [f"{number:06d}.json" for number in range(5)]
    assert sorted(path.name for path in (out / "pose" / "clip").iterdir()) == files
    assert sorted(path.name for path in (out / "normals").iterdir()) == ["clip.mp4", "wide.npy", "wide.png"]
    with VideoReader(out / "normals" / "clip.mp4") as reader:
        assert reader.size == (48, 64)
        assert [round(seconds, 3) for _, seconds, _ in reader] == [0, 0.1, 0.2, 0.3, 0.4]
    with VideoReader(out / "sheets" / "clip.mp4") as reader:
        assert len(list(reader)) == 5
    entries = json.loads((out / "pose" / "predictions.json").read_text())
    assert len({entry["image_id"] for entry in entries}) == 6
    capsys.readouterr()
    for gone in ("none.mp4", "normals/clip.mp4", "sheets/clip.mp4"):
        (out / gone).unlink(missing_ok=True)
        assert main([*args, "--batch-size", "2"]) == 0
        assert ("0 of 0" if gone == "none.mp4" else "1 of 1") in capsys.readouterr().out


def test_a_video_without_masks_is_named_once(models, tmp_path, capsys):
    with VideoWriter(tmp_path / "clip.mp4", 10, (48, 64)) as writer:
        for number in range(5):
            writer.write(np.full((48, 64, 3), 40 * number, np.uint8))
    (tmp_path / "masks" / "clip").mkdir(parents=True)
    for number in (1, 3):
        cv2.imwrite(str(tmp_path / "masks" / "clip" / f"{number:06d}.png"), np.full((48, 64), 255, np.uint8))
    args = ["predict", str(tmp_path / "clip.mp4"), "--weights", models["albedo"], "--out", str(tmp_path / "out")]
    assert main([*args, "--masks", str(tmp_path / "masks")]) == 1
    lines = capsys.readouterr().err.splitlines()
    expected = f"clip.mp4: 3 errors in its frames, the first: it has no mask in {tmp_path / 'masks'}, such as clip/0000"
    assert [line for line in lines if "mask" in line] == [f"s2kit: {tmp_path}/{expected}00.png"]
    assert lines[-1] == "s2kit: error: 1 could not be read or predicted"


def test_files_are_the_same_by_another_path(models, pictures, tmp_path, capsys, monkeypatch):
    args = ["predict", str(pictures), "--out", str(tmp_path / "out"), "--weights"]
    assert main([*args, models["pose"], "--tile"]) == 0
    assert "--tile: poses need no tiles" in capsys.readouterr().err
    monkeypatch.chdir(Path(models["pose"]).parent)
    assert main([*args, "pose", "--tile"]) == 0
    assert "0 of 0 written" in capsys.readouterr().out


def test_parts_make_the_same_folder(models, pictures, tmp_path):
    args = ["predict", str(pictures), "--weights", models["pose"]]
    assert main([*args, "--out", str(tmp_path / "whole")]) == 0
    for part in ("2/2", "1/2"):
        assert main([*args, "--out", str(tmp_path / "parts"), "--part", part]) == 0
    whole, parts = contents(tmp_path / "whole"), contents(tmp_path / "parts")
    assert [name for name in parts if name.startswith("done")] == ["done_1of2.jsonl", "done_2of2.jsonl"]
    without = [{name: content for name, content in one.items() if "done" not in name} for one in (whole, parts)]
    assert without[0] == without[1]


def many_pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        cv2.imwrite(str(folder / f"{number:03d}.png"), np.full((20 + number % 5, 30, 3), number % 256, np.uint8))
    return folder


def same_but_for_the_order(first: Path, second: Path) -> None:
    one, other = contents(first), contents(second)
    assert one.keys() == other.keys()
    for name in one:
        if name == "done.jsonl":
            assert sorted(set(one[name].splitlines())) == sorted(set(other[name].splitlines()))
        else:
            assert one[name] == other[name], name


def test_an_interrupted_run_goes_on(models, tmp_path, monkeypatch, capsys):
    folder = many_pictures(tmp_path / "in", 30)
    args = ["predict", str(folder), "--weights", models["normals"], "--batch-size", "2"]
    run, left = TaskRunner.run, 8

    def interrupted(self):
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        run(self)

    with monkeypatch.context() as patch:
        patch.setattr(TaskRunner, "run", interrupted)
        assert main([*args, "--out", str(tmp_path / "out")]) == 130
    said = f"to go on: the same command; what is done lies in {tmp_path / 'out'}\ns2kit: interrupted\n"
    assert capsys.readouterr().err.endswith(said)
    done = len((tmp_path / "out" / "done.jsonl").read_bytes().splitlines())
    assert done < 16
    capsys.readouterr()
    assert main([*args, "--out", str(tmp_path / "out")]) == 0
    assert f"{30 - done} of {30 - done} written" in capsys.readouterr().out
    assert main([*args, "--out", str(tmp_path / "whole")]) == 0
    same_but_for_the_order(tmp_path / "out", tmp_path / "whole")


def test_a_killed_run_goes_on(models, tmp_path):
    folder = many_pictures(tmp_path / "in", 150)
    args = ["predict", str(folder), "--weights", models["albedo"], "--batch-size", "2"]
    command = [sys.executable, "-m", "s2kit", *args, "--out", str(tmp_path / "out")]
    journal = tmp_path / "out" / "done.jsonl"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 5):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    done = journal.read_bytes().count(b"\n")
    assert 5 < done < 150
    assert main([*args, "--out", str(tmp_path / "out")]) == 0
    assert main([*args, "--out", str(tmp_path / "whole")]) == 0
    same_but_for_the_order(tmp_path / "out", tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--weights", "{normals}"], 2, "no INPUT given: name pictures before --weights"),
        (["{pictures}"], 2, "the following arguments are required: --weights"),
        (["{pictures}", "--weights", "{normals}", "--tile", "5x5"], 2, "--tile: must be auto or HEIGHTxWIDTH"),
        (["{pictures}", "--weights", "{normals}", "--part", "3/2"], 2, "--part: must be I/N with I from 1 to N"),
        (["{pictures}", "--weights", "{normals}", "--masks", "a", "--mask-weights", "b"], 2, "exclude each other"),
        (["{pictures}", "--weights", "{pose}", "--boxes", "whole", "--detector-weights", "x"], 2, "--boxes detect"),
        (["{tmp}", "--weights", "{normals}"], 1, "holds no pictures or videos"),
        (["{pictures}", "--weights", "{tmp}/gone.safetensors"], 1, "gone.safetensors: no such file of weights"),
        (["{pictures}", "--weights", "{normals}", "{normals}/weights.safetensors"], 1, "two models for normals"),
        (["{pictures}", "--weights", "{normals}", "--boxes", "whole"], 1, "none of the models is one for pose"),
        (["{pictures}", "--weights", "{pose}", "--masks", "{tmp}"], 1, "none of the models is one of these"),
        (["{pictures}", "--weights", "{normals}", "--masks", "{tmp}/gone"], 1, "--masks {tmp}/gone: there is no such"),
        (["{pictures}", "--weights", "{normals}", "--mask-weights", "{albedo}"], 1, "a model for albedo, not segment"),
        (["{pictures}", "--weights", "{normals}", "--precision", "fp16", "--device", "cpu"], 1, "take bf16 or fp32"),
        (["{pictures}", "--weights", "{normals}", "--device", "gpu"], 1, "--device gpu: "),
    ],
)
def test_mistakes_end_in_one_line(models, pictures, tmp_path, capsys, options, code, words):
    names = {**models, "pictures": pictures, "tmp": tmp_path}
    args = [option.format(**names) for option in options]
    assert main(["predict", *args, "--out", str(tmp_path / "out")]) == code
    error = capsys.readouterr().err
    assert words.format(**names) in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out" / "done.jsonl").exists()


@pytest.mark.parametrize(
    ("args", "is_lightning"),
    [
        (["--config", "a.yaml"], True),
        (["-c", "a.yaml", "--trainer.devices=2"], True),
        (["--config=a.yaml", "--help"], True),
        (["--print_config"], True),
        (["--model.weights", "w"], True),
        (["a.png", "--weights", "w", "--out", "d"], False),
        (["--help"], False),
        ([], False),
    ],
)
def test_which_of_the_two_commands_is_meant(args, is_lightning):
    assert cli.is_lightning(args) is is_lightning


def test_the_help_says_both(capsys):
    assert main(["predict", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--weights" in text and "With --config this command is LightningCLI's" in text


def test_other_inputs_of_the_same_names_leave_the_first_ones_alone(models, tmp_path, capsys, monkeypatch):
    for number, folder in enumerate("AB"):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "a.png"), np.full((40, 30 + number, 3), 90, np.uint8))
    out = tmp_path / "out"
    weights = ["--weights", models["pose"], models["normals"], "--out", str(out)]
    widths = {"a": 30, "a_2": 31}
    for folder, done in (("A", "1 of 1"), ("B", "1 of 1"), ("A", "0 of 0"), ("B", "0 of 0")):
        assert main(["predict", str(tmp_path / folder), *weights]) == 0
        assert f"{done} written" in capsys.readouterr().out
    found = {path.stem: np.load(path).shape[1] for path in (out / "normals").glob("*.npy")}
    assert found == widths
    # All that is done here is in one file of poses.
    entries = json.loads((out / "pose" / "predictions.json").read_text())
    assert sorted(entry["file_name"] for entry in entries) == [f"{tmp_path}/{folder}/a.png" for folder in "AB"]
    # One source however it is given, and under the name it had, whatever is beside it.
    monkeypatch.chdir(tmp_path / "B")
    assert main(["predict", "a.png", *weights]) == 0
    assert "0 of 0 written" in capsys.readouterr().out
    cv2.imwrite(str(tmp_path / "A" / "a.jpg"), np.zeros((40, 32, 3), np.uint8))
    assert main(["predict", str(tmp_path / "A"), *weights]) == 0
    assert "1 of 1 written" in capsys.readouterr().out
    assert {path.stem: np.load(path).shape[1] for path in (out / "normals").glob("*.npy")} == {**widths, "a_jpg": 32}


def test_sure_keypoints_are_drawn_and_counted(models, pictures, tmp_path):
    task = s2kit.load_task("pose", models["pose"])
    picture = np.zeros((40, 60, 3), np.uint8)
    points = np.stack([np.full((17, 2), 20.0), np.full((17, 2), 30.0)])
    points = np.concatenate([points, np.zeros((2, 17, 1))], axis=2)
    points[0, :5, 2], points[1, 3, 2], points[1, 4] = 0.5, 0.2, np.nan
    assert list(task.views(points, picture)) == ["pose, 2 people, 5 of 34 points above 0.3"]
    assert list(task.views(points[:0], picture)) == ["pose, 0 people"]
    task.drawn_score = 0.15
    ((title, drawn),) = task.views(points[1:], picture).items()
    assert title == "pose, 1 of 17 points above 0.15" and drawn[28:32, 28:32].any()
    args = ["predict", str(pictures / "wide.png"), "--weights", models["pose"], "--out"]
    for score in ("0", "1"):
        assert main([*args, str(tmp_path / score), "--keypoint-score", score]) == 0
    seen = [cv2.imread(str(tmp_path / score / "pose" / "wide.png")) for score in "01"]
    assert (seen[0] != seen[1]).any()


def test_what_is_missing_is_done_again(models, pictures, tmp_path, capsys):
    args = ["predict", str(pictures), "--weights", models["albedo"], "--out", str(tmp_path / "out")]
    assert main(args) == 0
    (tmp_path / "out" / "albedo" / "tall.npy").unlink()
    capsys.readouterr()
    assert main(args) == 0
    assert "1 of 1 written" in capsys.readouterr().out
    assert (tmp_path / "out" / "albedo" / "tall.npy").is_file()
