"""The tools around sets: stats, index, show, and their command line."""

import json
import re

import cv2
import numpy as np
import pytest

from data_modules.indexing import index_folder
from data_modules.packing import STAGING_NAME
from data_modules.shards import ShardDataset, ShardError
from data_modules.shards.index import index_path
from data_modules.summary import summarise
from data_modules.verification import verify
from s2kit.cli import main
from s2kit.schemas import load_class_list, load_keypoint_set
from s2kit.tools.contact_sheet import SheetSchemas, draw_sample
from s2kit.tools.data_import import IMPORTERS

SIZE = (48, 40)
SCHEMAS = {"keypoints": "coco-17", "parts": "lip-20"}


BODY = load_keypoint_set("coco-17")


def check(folder):
    return verify(folder, workers=1, progress=False)


def test_statistics(sample, person, make_set):
    folder = make_set([sample(i, people=[person(i)] * (i % 2)) for i in range(12)])
    for workers in (1, 2):
        summary = summarise(folder, workers=workers, progress=False)
        assert (summary["samples"], summary["people"], summary["shards"], summary["decoded"]) == (12, 6, 2, 12)
        assert summary["people_per_image"] == {"0": 6, "1": 6} and summary["licence"] == "CC0-1.0"
        assert summary["image"]["median"] == [48, 40] and summary["image"]["aspects"] == {"0.75 to 0.95": 1.0}
        share = 32 * 24 / (48 * 40)
        assert summary["classes"] == {"Background": round(1 - share, 6), "Face": round(share, 6), "ignored": 0.0}
        assert summary["alpha_covered"] == round(share, 4)
        assert summary["depth_metres"] == {"nearest": 2.0, "farthest": 3.375}
        assert summary["keypoints"] == {
            "body": {"visible": round(15 / 17, 4), "occluded": round(1 / 17, 4), "unlabelled": round(1 / 17, 4)}
        }
    fields, dataset = summary["fields"], ShardDataset(folder)
    sizes = [len(dataset.read_encoded(i)["jpg"]) for i in range(12)]
    assert fields["image"]["bytes_per_sample"] == round(sum(sizes) / 12) and fields["image"]["decode_ms"] > 0
    assert fields["people"] == {"samples": 12, "share": 1.0}
    few = summarise(folder, sampled=3, workers=1, progress=False)
    assert few["decoded"] == 3 and few["samples"] == 12


def test_tars_become_a_set(tars):
    info = {"licence": "mine", "schemas": SCHEMAS}
    manifest, samples, made = index_folder(tars, info, workers=2, progress=False)
    assert (samples, made) == (12, 3) and check(tars).problems == []
    content = manifest.read_bytes()
    assert ShardDataset(tars).manifest["people"] == 24
    before = {path: path.stat().st_mtime_ns for path in tars.glob("*.index")}
    assert index_folder(tars, workers=1, progress=False)[2] == 0
    assert {path: path.stat().st_mtime_ns for path in tars.glob("*.index")} == before
    assert manifest.read_bytes() == content  # what the manifest said is kept
    index_path(tars / "1.tar").write_bytes(b"S2KINDEX" + bytes(80))
    assert index_folder(tars, workers=1, progress=False)[2] == 1
    assert index_folder(tars, anew=True, workers=1, progress=False)[2] == 3
    assert manifest.read_bytes() == content and check(tars).problems == []


def test_tars_that_cannot_be_indexed(tars, tmp_path):
    (tars / "1.tar").write_bytes((tars / "1.tar").read_bytes()[:6000])
    with pytest.raises(ShardError, match=r"1\.tar: "):
        index_folder(tars, workers=1, progress=False)
    assert index_path(tars / "0.tar").exists() and not index_path(tars / "1.tar").exists()
    assert not (tars / "manifest.json").exists()
    with pytest.raises(ShardError, match="no such folder"):
        index_folder(tmp_path / "gone", progress=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ShardError, match=r"no \*\.tar in it"):
        index_folder(tmp_path / "empty", progress=False)


def test_the_sheet_shows_people_and_the_sets_own_classes(sample):
    both = SheetSchemas(BODY, load_class_list("lip-20"))
    first = sample(0, image=np.zeros((*SIZE, 3), np.uint8))
    strip = draw_sample(first, SIZE[0], both)
    assert strip.shape == (48, 7 * 40, 3)
    tiles = [strip[:, 40 * i : 40 * (i + 1)] for i in range(7)]
    assert (tiles[4] == 77).all()  # the foreground
    np.testing.assert_array_equal(tiles[5][20, 20], [0, 0, 255])  # LIP's face
    x, y = first["people"][0]["keypoints"][5].astype(int)
    np.testing.assert_array_equal(tiles[6][y, x], [0, 255, 0])  # the left shoulder
    assert draw_sample(first, SIZE[0], SheetSchemas(None, None)).shape == (48, 6 * 40, 3)


def test_a_sheet_of_a_set_elsewhere(sample, make_set, tmp_path):
    import fsspec

    folder, memory = make_set([sample(0)]), fsspec.filesystem("memory")
    memory.put(str(folder), "/elsewhere/set", recursive=True)
    assert run("show", "memory://elsewhere/set", "--out", tmp_path / "sheet.png") == 0
    assert (tmp_path / "sheet.png").stat().st_size > 500


def run(*words):
    return main(["data", *map(str, words)])


def test_from_a_folder_of_photographs_to_a_sheet(tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(6):
        cv2.imwrite(str(photos / f"{number}.jpg"), np.full((60, 50, 3), 40 * number, np.uint8))
    out = tmp_path / "set" / "train"
    words = ("pack", photos, "--out", out, "--licence", "mine", "--workers", 1, "--quiet")
    assert run(*words) == 0
    said = capsys.readouterr().out.splitlines()
    assert re.match(r"6 samples, 0\.\d MB: .*manifest\.json", said[0]) and said[1].startswith("look at it:")
    assert run(*words) == 0 and "6 samples, already finished" in capsys.readouterr().out
    assert run("verify", out, "--quiet") == 0
    assert capsys.readouterr().out == f"{out}: sound: 1 shard, 6 samples, 0.0 MB\n"
    assert run("stats", out, "--quiet") == 0
    said = capsys.readouterr().out
    assert "6 in 1 shard" in said and "60 x 50 (median)" in said and "mine" in said
    assert run("show", out) == 0 and (out / "contact_sheet.png").stat().st_size > 500


def test_verify_says_what_is_wrong_as_text_and_json(sample, make_set, capsys):
    folder = make_set([sample(0), sample(1, parts=np.full(SIZE, 21, np.uint8))])
    assert run("verify", folder, "--quiet", "--workers", 1) == 1
    said = capsys.readouterr()
    assert said.out == "x-000000.tar, sample 's1': parts: 1920 pixels of class 21; parts_lip_20 has 20\n"
    assert said.err == f"s2kit: error: {folder}: 1 problem in 1 shard, 2 samples, 4 people, 0.0 MB\n"
    assert run("verify", folder, "--json", "--workers", 1) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["sound"] is False and found["samples"] == 2
    assert found["problems"] == [
        {"shard": "x-000000.tar", "sample": "s1", "text": "parts: 1920 pixels of class 21; parts_lip_20 has 20"}
    ]


def test_stats_as_json_and_index(tars, capsys):
    words = ("index", tars, "--quiet", "--workers", 1, "--keypoints", "coco-17", "--parts", "lip-20")
    assert run(*words) == 0
    assert capsys.readouterr().out == f"12 samples, 3 tars indexed: {tars}/manifest.json\n"
    assert run("stats", tars, "--json", "--workers", 1, "--sample", 2) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["people"] == 24 and summary["schemas"]["keypoints"] == "coco-17" and summary["decoded"] == 2
    assert run("stats", tars, "--quiet", "--workers", 1) == 0
    assert "keypoints: coco-17" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["verify", "stats", "show"])
@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("nowhere", "nowhere: there is no such folder"),
        (".", "not a set of samples, it has no manifest.json; 'python -m s2kit data' says how to make one"),
        ("split", "holds the sets train, val; give one of them, such as"),
        ("begun", "an unfinished set; give the command that began it once more"),
        ("tars", "tars without manifest.json; make it a set: python -m s2kit data index tars"),
        ("photos", "pictures, not a set; pack them: python -m s2kit data pack photos --out SET"),
        ("a.txt", "a.txt: not a set; give the folder that holds manifest.json"),
    ],
)
def test_what_is_no_set_is_told_in_one_line(tmp_path, monkeypatch, capsys, command, place, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    for name in ("begun/" + STAGING_NAME, "tars", "photos", "split/train", "split/val"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "tars" / "x.tar").write_bytes(b"")
    (tmp_path / "photos" / "x.JPG").write_bytes(b"")
    for name in ("train", "val"):
        (tmp_path / "split" / name / "manifest.json").write_text("{}")
    assert run(command, place) == 1
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and "ShardWriter" not in said and "Error" not in said


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("pack",), 2, "required: SOURCE, --out"),
        (
            ("pack", "x", "--out", "y", "--workers", "abc"),
            2,
            "--workers: must be a whole number from 1 to 4096, got 'abc'",
        ),
        (
            ("pack", "x", "--out", "y", "--max-rejected", "2"),
            2,
            "--max-rejected: must be a number from 0 to 1, got '2'",
        ),
        (("pack", "x", "--out", "y"), 1, "x: no such folder or list of pictures"),
        (("pack", ".", "--out", "y", "--root", "z"), 1, "--root is for lists, and . is a folder"),
        (("pack", ".", "--out", "y", "--prefix", "a/b"), 1, "prefix 'a/b' must be a plain name"),
        (("import",), 2, "required: NAME"),
        (("import", "imagenet"), 2, "invalid choice: 'imagenet'"),
        (("import", "coco", "--out", "y"), 2, "required: --annotations, --images"),
        (("import", "coco", "--annotations", "a", "--images", ".", "--out", "y"), 1, "a: No such file or directory"),
        (("import", "normals", ".", "--out", "y"), 2, "required: --frame"),
        (("import", "renders", ".", "--labels", "normals", "--out", "y"), 1, "--frame is not given"),
        (("import", "lip", ".", "--split", "test", "--out", "y"), 2, "invalid choice: 'test'"),
        (
            ("import", "coco-style", "--annotations", "a", "--images", ".", "--schema", "mpii", "--out", "y"),
            1,
            "no schema mpii: give",
        ),
        (("stats", ".", "--sample", "0"), 2, "--sample: must be a whole number from 1"),
        (("verify",), 2, "required: DIR"),
        (("verify", "s3://a/b"), 2, "s3://a/b is a URL; give a folder on this machine"),
        (("show", "memory://a/b"), 1, "--out is not given: where to write the picture of memory://a/b"),
        (("show", "memory://a/b", "--out", "y.png"), 1, "memory://a/b"),
        (("index", "gone"), 1, "gone: no such folder"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, words, code, text):
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("a.png", np.zeros((9, 9, 3), np.uint8))
    assert run(*words) == code
    said = capsys.readouterr().err
    assert text in said and said.startswith("s2kit: error: ") and said.count("\n") == 1
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize("name", list(IMPORTERS))
def test_every_importer_has_help(name, capsys):
    assert run("import", name, "--help") == 0
    said = capsys.readouterr().out
    assert "--out" in said and "--licence" in said and "--max-rejected" in said
