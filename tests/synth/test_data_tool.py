from pathlib import Path

import cv2
import numpy as np
import pytest

from data_modules.shards import ShardWriter
from s2kit.cli import main as s2kit_main
from s2kit.errors import UserError
from s2kit.tools.contact_sheet import draw_sample
from s2kit.tools.data import main


def sample(number: int, size: tuple[int, int] = (32, 24)) -> dict:
    """A made-up sample: a person-like block with every label."""
    height, width = size
    block = np.zeros(size, bool)
    block[8:24, 6:18] = True
    normals = np.zeros((*size, 3), np.float32)
    normals[block] = (1, 0, 0) if number % 2 else (0, 0, 1)
    keypoints, visibility = np.zeros((308, 2), np.float32), np.zeros(308, np.uint8)
    keypoints[0], visibility[0] = (12, 10), 2
    return {
        "key": f"s{number}",
        "image": np.full((*size, 3), 10 * number, np.uint8),
        "alpha": np.uint8(255) * block,
        "normals": normals,
        "depth": np.where(block, np.float32(2), np.float32(0)),
        "albedo": np.full((*size, 3), 99, np.uint8),
        "parts": np.where(block, np.uint8(23), np.uint8(0)),
        "intrinsics": np.array([[30, 0, width / 2], [0, 30, height / 2], [0, 0, 1]], np.float32),
        "box": np.array([6, 8, 18, 24], np.float32),
        "keypoints": keypoints,
        "visibility": visibility,
        "meta": {},
    }


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    with ShardWriter(tmp_path / "set", "x") as writer:
        for number in range(5):
            writer.write(sample(number))
    return tmp_path / "set"


def test_a_strip_shows_every_label_in_its_colours() -> None:
    strip = draw_sample(sample(1), height=32)
    assert strip.shape == (32, 7 * 24, 3)
    inside, outside = (16, 12), (2, 2)
    tiles = [strip[:, 24 * i : 24 * (i + 1)] for i in range(7)]
    assert (tiles[0] == 10).all()
    assert (tiles[1][inside] == 255).all() and (tiles[1][outside] == 0).all()
    np.testing.assert_allclose(tiles[2][inside], [255, 128, 128], atol=1)  # faces right: red
    assert (tiles[2][outside] == 0).all() and tiles[3][inside].sum() > 0 == tiles[3][outside].sum()
    assert (tiles[4] == 99).all()
    np.testing.assert_array_equal(tiles[5][inside], [0, 128, 72])  # Upper_Clothing
    np.testing.assert_array_equal(tiles[5][outside], [50, 50, 50])  # Background
    assert (tiles[6][8, 6] == 255).all()  # a corner of the box
    np.testing.assert_array_equal(tiles[6][10, 12], [51, 153, 255])  # the nose
    np.testing.assert_allclose(draw_sample(sample(2), 32)[16, 48 + 12], [128, 128, 255], atol=1)  # faces the camera


def test_labels_that_a_sample_lacks_are_left_out() -> None:
    few = {name: sample(0)[name] for name in ("key", "image", "alpha")}
    assert draw_sample(few, height=64).shape == (64, 2 * 48, 3)


def test_show_writes_a_sheet(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(shards), "--out", str(tmp_path / "new" / "sheet.jpg"), "--count", "4", "--seed", "1"]) == 0
    assert "4 of 5 samples" in capsys.readouterr().out
    assert cv2.imread(str(tmp_path / "new" / "sheet.jpg")).shape == (2 * 164, 2 * (7 * 120 + 8), 3)
    assert main(["show", str(shards), "--tile-height", "32"]) == 0
    assert cv2.imread(str(shards / "contact_sheet.png")).shape[0] == 3 * 36


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "NOWHERE"], "NOWHERE"),
        (["show", "SET", "--out", "sheet.doc"], r"sheet.doc: the name must end in one of .png"),
        (["synth", "--out", "OUT", "--count", "3", "--image-size", "1", "192"], "height must be .* got 1"),
        (["synth", "--out", "OUT", "--count", "3", "--backgrounds", "NOWHERE"], "NOWHERE is not a folder"),
        (["synth", "--out", "SET", "--count", "3"], "not the manifest of a set of synthetic humans"),
    ],
)
def test_mistakes_end_in_one_line(shards: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    places = {"SET": str(shards), "NOWHERE": str(tmp_path / "NOWHERE"), "OUT": str(tmp_path / "OUT")}
    with pytest.raises(UserError, match=words) as caught:
        main([places.get(argument, argument) for argument in arguments])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "OUT").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: COMMAND"),
        (["synth"], "required: --out, --count"),
        (["synth", "--count", "many", "--out", "x"], "--count: must be a whole number from 1, got 'many'"),
        (["synth", "--count", "0", "--out", "x"], "--count: must be a whole number from 1, got '0'"),
        (["show", "x", "--count", "0"], "--count: must be a whole number from 1 to 10000, got '0'"),
        (["show", "x", "--tile-height", "1"], "--tile-height: must be a whole number from 16 to 4096"),
        (["show", "x", "--seed", "-1"], "--seed: must be a whole number from 0, got '-1'"),
        (["paint"], "invalid choice: 'paint'"),
    ],
)
def test_wrong_usage_is_one_line_and_exits_with_two(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    said = capsys.readouterr().err
    assert caught.value.code == 2 and words in said and said.count("\n") == 1


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["synth", "--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    for option in ("--out", "--count", "--image-size", "--seed", "--workers", "--backgrounds", "--samples-per-pixel"):
        assert option in text


def test_synth_runs_from_the_command_line(stand_in_processes: Path, tmp_path: Path, capsys) -> None:
    arguments = ["data", "synth", "--out", str(tmp_path / "people"), "--count", "2", "--image-size", "48", "36"]
    assert (
        s2kit_main([*arguments, "--samples-per-pixel", "2", "--workers", "1", "--variant", "scalar_rgb", "--quiet"])
        == 0
    )
    assert "2 samples" in capsys.readouterr().out
    assert s2kit_main(["data", "show", str(tmp_path / "people"), "--count", "2"]) == 0
    assert (tmp_path / "people" / "contact_sheet.png").stat().st_size > 1000
