"""The folder of a prediction: options, what is done, torn lines, files that appear whole."""

import json

import pytest

from s2kit.errors import UserError
from s2kit.inference.output_folder import OutputFolder


def test_what_is_done_is_known_again_until_it_changes(tmp_path):
    folder = OutputFolder(tmp_path, {"flip": None, "scales": (1.0,)})
    assert not folder.is_done("a.png", "a", [3, 4])
    folder.note("a.png", "a", [3, 4])
    folder.close()
    again = OutputFolder(tmp_path, {"flip": None, "scales": (1.0,)})
    assert again.is_done("a.png", "a", [3, 4])
    assert not again.is_done("a.png", "a_2", [3, 4])
    assert not again.is_done("a.png", "a", [3, 5])
    again.close()


def test_other_options_are_refused_unless_all_is_done_anew(tmp_path):
    folder = OutputFolder(tmp_path, {"flip": None, "draw": ["overlay"]})
    folder.note("a.png", "a", None)
    folder.close()
    with pytest.raises(UserError, match=r"was made with flip=null, now it is true: give another folder, or --restart"):
        OutputFolder(tmp_path, {"flip": True, "draw": ["overlay"]})
    again = OutputFolder(tmp_path, {"flip": True, "draw": ["overlay"]}, restart=True)
    assert not again.is_done("a.png", "a", None)
    again.close()
    assert json.loads((tmp_path / "options.json").read_text())["flip"] is True
    (tmp_path / "options.json").write_text("{")
    with pytest.raises(UserError, match=r"options\.json is damaged: give --restart"):
        OutputFolder(tmp_path, {"flip": True})


def test_a_torn_line_is_done_again_and_spoils_no_other(tmp_path):
    folder = OutputFolder(tmp_path, {})
    folder.note("a.png", "a", 1)
    folder.note("b.png", "b", 1)
    folder.close()
    content = (tmp_path / "done.jsonl").read_bytes()
    (tmp_path / "done.jsonl").write_bytes(content[:-9])
    again = OutputFolder(tmp_path, {})
    assert again.is_done("a.png", "a", 1)
    assert not again.is_done("b.png", "b", 1)
    again.note("b.png", "b", 1)
    again.close()
    last = OutputFolder(tmp_path, {})
    assert last.is_done("a.png", "a", 1) and last.is_done("b.png", "b", 1)
    last.close()


def test_files_appear_whole_or_not_at_all(tmp_path):
    folder = OutputFolder(tmp_path, {})
    with pytest.raises(KeyError), folder.stage() as stage:
        (stage / "half.txt").write_text("ha")
        raise KeyError
    with folder.stage() as stage:
        (stage / "task" / "clip").mkdir(parents=True)
        (stage / "task" / "clip" / "0.txt").write_text("all")
        assert not (tmp_path / "task").exists()
    assert (tmp_path / "task" / "clip" / "0.txt").read_text() == "all"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["done.jsonl", "options.json", "task"]
    folder.close()
    (tmp_path / ".partial-left").mkdir()
    (tmp_path / ".partial_2of2-left").mkdir()
    OutputFolder(tmp_path, {}).close()
    assert not (tmp_path / ".partial-left").exists()
    assert (tmp_path / ".partial_2of2-left").exists()  # of another part, which may be running


def test_parts_share_a_folder_and_no_part_runs_twice(tmp_path):
    first, second = (OutputFolder(tmp_path, {}, (number, 2)) for number in (1, 2))
    with pytest.raises(UserError, match="another process is writing this part of it"):
        OutputFolder(tmp_path, {}, (2, 2))
    first.note("a.png", "a", 1)
    second.note("b.png", "b", 1)
    first.close()
    second.close()
    whole = OutputFolder(tmp_path, {})
    assert whole.is_done("a.png", "a", 1) and whole.is_done("b.png", "b", 1)
    whole.close()
    restarted = OutputFolder(tmp_path, {}, (2, 2), restart=True)
    assert restarted.is_done("a.png", "a", 1) and not restarted.is_done("b.png", "b", 1)
    restarted.close()


def test_what_is_done_has_its_files(tmp_path):
    folder = OutputFolder(tmp_path, {})
    (tmp_path / "a.npy").write_bytes(b"1")
    folder.note("x/a.png", "a", 1, ["a.npy"])
    folder.note("https://h/a.png", "a_2", None)
    folder.close()
    again = OutputFolder(tmp_path, {})
    assert again.names() == ["a", "a_2"] and again.names_of("y/a.png") == []
    assert again.names_of("./x/a.png") == ["a"] and again.names_of("https://h/a.png") == ["a_2"]
    assert again.is_done(str(tmp_path.cwd() / "x/a.png"), "a", 1) and again.is_done("https://h/a.png", "a_2", None)
    (tmp_path / "a.npy").unlink()
    assert not again.is_done("x/a.png", "a", 1)
    again.close()
