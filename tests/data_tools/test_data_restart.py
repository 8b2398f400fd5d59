"""Interrupted verify and stats go on: nothing is read twice, nothing found before is lost, no change is missed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_modules import summary, verification
from data_modules.journal import Journal, open_journal
from data_modules.shards import make_manifest
from data_modules.summary import summarise
from data_modules.verification import verify
from s2kit.cli import main

PARTS = np.full((48, 40), 21, np.uint8)
# Kills its process, as the machine would, when so many lines are noted.
KILLED = """
import os, signal, sys
from data_modules import journal
from s2kit.cli import main
real, noted = journal.Journal.note, []
def note(self, *line):
    real(self, *line)
    noted.append(line)
    if len(noted) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
journal.Journal.note = note
if __name__ == "__main__":
    main(sys.argv[2:])
"""


@pytest.fixture
def folder(sample, make_set):
    """Six shards of two samples; sample 1 (of shard 0) has a class that is not in its schema."""
    return make_set([sample(i, **({"parts": PARTS} if i == 1 else {})) for i in range(12)], per_shard=2)


@pytest.fixture
def read(monkeypatch):
    """Names of the shards that verify has read."""
    names, real = [], verification._check_shard

    def spy(job):
        names.append(job.stated["name"])
        return real(job)

    monkeypatch.setattr(verification, "_check_shard", spy)
    return names


def interrupt(monkeypatch, after, call, *args, **options):
    """Let a call be interrupted by Ctrl-C when so many lines are noted."""
    real, noted = Journal.note, []

    def note(self, *line):
        real(self, *line)
        noted.append(line)
        if len(noted) == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "note", note)
        with pytest.raises(KeyboardInterrupt):
            call(*args, workers=1, progress=False, **options)


def check(folder, **options):
    told = []
    report = verify(folder, workers=1, progress=False, tell=told.append, **options)
    return report, told


def shards(*numbers):
    return [f"x-{number:06d}.tar" for number in numbers]


def taken(count, of=6):
    return [f"{count} of {of} shards are taken over from an interrupted call; --fresh reads them, too"]


def test_verify_goes_on_and_reports_what_was_found_before(folder, read, monkeypatch):
    whole, told = check(folder)
    assert told == [] and read == shards(*range(6)) and [problem.sample for problem in whole.problems] == ["s1"]
    for after in (3, 2):  # interrupted twice
        interrupt(monkeypatch, after, verify, folder)
    assert read == shards(*range(6), 0, 1, 2, 3, 4)
    read.clear()
    assert check(folder) == (whole, taken(5)) and read == shards(5)
    read.clear()
    assert not list(folder.glob(".*"))
    assert check(folder) == (whole, []) and read == shards(*range(6))


def test_what_needs_all_samples_is_found_across_the_interruption(sample, person, make_set, monkeypatch):
    turned = {"normals": -sample(0)["normals"]}
    folder = make_set([sample(i, people=[person(1, exchanged=True)], **turned) for i in range(24)], per_shard=2)
    whole = verify(folder, workers=1, progress=False)
    texts = " ".join(problem.text for problem in whole.problems)
    assert "left and right are exchanged: of 24 people" in texts and "face away from the camera" in texts
    interrupt(monkeypatch, 8, verify, folder)
    assert check(folder) == (whole, taken(8, 12))


def test_keys_twice_on_both_sides_of_the_interruption(sample, make_set, monkeypatch):
    folder = make_set([sample(i) for i in range(3)], per_shard=1)
    for suffix in ("", ".index"):
        (folder / f"x-000002.tar{suffix}").write_bytes((folder / f"x-000000.tar{suffix}").read_bytes())
    make_manifest(folder, {"schemas": {"keypoints": "coco-17", "parts": "lip-20"}})
    interrupt(monkeypatch, 2, verify, folder)
    report, told = check(folder)
    assert told == taken(2, 3)
    found = [(problem.shard, problem.sample, problem.text) for problem in report.problems]
    assert found == [("x-000002.tar", "s0", "x-000000.tar has a sample of this key, too")]


@pytest.mark.parametrize("keep_times", [False, True])
def test_a_shard_that_changed_is_read_again(folder, read, monkeypatch, keep_times):
    interrupt(monkeypatch, 4, verify, folder)
    tar = folder / "x-000002.tar"
    before, data = tar.stat(), bytearray(tar.read_bytes())
    data[0] ^= 1
    tar.write_bytes(data)
    if keep_times:
        os.utime(tar, ns=(before.st_atime_ns, before.st_mtime_ns))
    read.clear()
    report, told = check(folder)
    assert told == taken(3) and read == shards(2, 4, 5)
    assert [(p.shard, p.sample) for p in report.problems] == [("x-000000.tar", "s1"), ("x-000002.tar", None)]


def test_an_entry_or_a_schema_that_changed_counts_as_a_change(sample, make_set, read, monkeypatch):
    folder = make_set([sample(i) for i in range(3)], per_shard=1)
    interrupt(monkeypatch, 2, verify, folder)
    (folder / "lip-20.json").write_text("{}")
    read.clear()
    assert check(folder)[1] == [] and read == shards(0, 1, 2)


def test_torn_and_damaged_lines_are_ignored(folder, read, monkeypatch):
    whole, _ = check(folder)
    interrupt(monkeypatch, 4, verify, folder)
    journal = folder / ".verify.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    lines[1] = lines[1].replace(b'"samples":2', b'"samples":3')
    journal.write_bytes(b"".join(lines)[:-10])
    read.clear()
    interrupt(monkeypatch, 1, verify, folder)  # this line does not join the torn one
    assert read == shards(1)
    assert check(folder) == (whole, taken(3)) and read == shards(1, 3, 4, 5)


def test_fresh_and_other_options_take_nothing_over(folder, read, monkeypatch):
    interrupt(monkeypatch, 3, verify, folder)
    read.clear()
    assert check(folder, decode=False)[1] == [] and read == shards(*range(6))
    assert check(folder)[1] == taken(3)  # the other command has left it alone
    interrupt(monkeypatch, 3, verify, folder)
    read.clear()
    interrupt(monkeypatch, 1, verify, folder, fresh=True)
    assert read == shards(0)
    assert check(folder)[1] == taken(1)


def test_a_shard_out_of_reach_is_tried_again(folder, read, monkeypatch):
    (folder / "x-000000.tar").unlink()
    interrupt(monkeypatch, 2, verify, folder)
    assert read == shards(0, 1, 2)
    read.clear()
    report, told = check(folder)
    assert told == taken(2) and read == shards(0, 3, 4, 5)
    assert "cannot be read: No such file" in report.problems[0].text


def test_where_the_folder_cannot_be_written(folder, read, monkeypatch, tmp_path):
    """Then the journal is in the cache folder; a link that came with the set is not followed."""
    monkeypatch.setenv("S2KIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mine").write_text("precious")
    (folder / ".verify.journal").symlink_to(tmp_path / "mine")
    interrupt(monkeypatch, 2, verify, folder)
    assert len(list((tmp_path / "cache" / "journals").iterdir())) == 1
    read.clear()
    assert check(folder)[1] == taken(2) and read == shards(2, 3, 4, 5)
    assert list((tmp_path / "cache" / "journals").iterdir()) == []
    assert (tmp_path / "mine").read_text() == "precious" and (folder / ".verify.journal").is_symlink()


def test_two_at_once_leave_each_others_journal_alone(folder, monkeypatch):
    pytest.importorskip("fcntl")
    interrupt(monkeypatch, 3, verify, folder)
    with open_journal(folder, "verify"):
        assert check(folder)[1] == []
        assert (folder / ".verify.journal").stat().st_size > 0
    assert not (folder / ".verify.journal").exists()


def test_nothing_is_left_of_a_call_that_noted_nothing(folder):
    (folder / "x-000000.tar.index").unlink()
    with pytest.raises(Exception, match=r"x-000000\.tar"):
        summarise(folder, workers=1, progress=False)
    assert not list(folder.glob(".*"))


def without_times(found):
    for entry in found["fields"].values():
        entry.pop("decode_ms", None)
    return found


def test_stats_go_on(sample, person, make_set, monkeypatch):
    folder = make_set([sample(i, people=[person(i)] * (i % 3)) for i in range(48)], per_shard=4)
    whole = without_times(summarise(folder, workers=1, progress=False))
    counted, decoded = [], []
    for name, seen in (("_count_shard", counted), ("_decode_some", decoded)):
        real = getattr(summary, name)
        monkeypatch.setattr(summary, name, lambda job, real=real, seen=seen: (seen.append(job), real(job))[1])
    interrupt(monkeypatch, 7, summarise, folder)
    interrupt(monkeypatch, 7, summarise, folder)
    told = []
    found = summarise(folder, workers=1, progress=False, tell=told.append)
    assert without_times(found) == whole and found["samples"] == 48 and found["image"] and found["keypoints"]
    assert told == [
        "12 of 12 shards and 32 of 48 decoded samples are taken over from an interrupted call; --fresh reads them, too"
    ]
    assert [path.name for path in counted] == shards(*range(12))
    assert [number for _, numbers in decoded for number in numbers] == list(range(48))
    assert not list(folder.glob(".*"))
    # A shard that changes is counted again, and so are the samples that were decoded from it.
    interrupt(monkeypatch, 14, summarise, folder)
    os.utime(folder / "x-000000.tar")
    summarise(folder, workers=1, progress=False, tell=told.append)
    assert told[1].startswith("11 of 12 shards and 16 of 48 decoded samples")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_on_the_command_line(folder, capsys, tmp_path, workers):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root}
    for command, options, after in (("verify", ["--json"], 3), ("stats", ["--json", "--sample", "12"], 4)):
        words = ["data", command, str(folder), *options, "--workers", str(workers)]
        code = main(words)
        whole = capsys.readouterr()
        killed = subprocess.run([sys.executable, str(script), str(after), *words], env=environment, cwd=root)
        assert killed.returncode == -signal.SIGKILL
        assert main(words) == code
        said = capsys.readouterr()
        assert f"{after} of 6 shards" in said.err and "taken over" in said.err and said.err.count("\n") == 1
        assert "taken over" not in whole.err
        found, before = (json.loads(text) for text in (said.out, whole.out))
        assert (found == before) if command == "verify" else (without_times(found) == without_times(before))
        assert main([*words, "--fresh"]) == code and "taken over" not in capsys.readouterr().err
        assert not list(folder.glob(".*"))
