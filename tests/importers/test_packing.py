"""Folders and lists become sets; the same bytes with any number of processes and after any interruption."""

import csv
import hashlib
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

from data_modules import packing
from data_modules.importers import FolderImporter, ImportFailedError, ListImporter, RejectedError
from data_modules.packing import pack
from data_modules.parallel import run_parallel
from data_modules.shards import ShardDataset


def picture(seed, size=(40, 30)):
    noise = np.random.default_rng(seed).integers(0, 255, (8, 6, 3)).astype(np.uint8)
    return cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def photos(tmp_path):
    """Twenty photographs in folders of folders, of several formats, with names that keys cannot have."""
    folder = tmp_path / "photos"
    for place in ("", "day 1/a.b", "day 2"):
        (folder / place).mkdir(parents=True, exist_ok=True)
        for number in range(5):
            cv2.imwrite(str(folder / place / f"img_{number}.JPG"), picture(number))
    cv2.imwrite(str(folder / "v1.final.png"), picture(9, (20, 50)))
    cv2.imwrite(str(folder / "img_0.webp"), picture(9))
    cv2.imwrite(str(folder / "scan.tif"), picture(10))
    (folder / "renamed.jpg").write_bytes((folder / "v1.final.png").read_bytes())
    (folder / ".hidden.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("no picture")
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def test_a_folder_of_photographs(photos, tmp_path):
    packed = pack(FolderImporter(photos), tmp_path / "out", samples_per_shard=8, workers=1, progress=False)
    samples = ShardDataset(tmp_path / "out")
    assert packed.samples == len(samples) == 19 and not packed.rejected
    keys = {samples.key(i): i for i in range(19)}
    assert {"day 1/a%2Eb/img_3", "v1%2Efinal", "img_0%2EJPG", "img_0%2Ewebp", "img_1", "renamed", "scan"} <= set(keys)
    for number in range(19):
        members, meta = samples.read_encoded(number), samples[number]["meta"]
        (extension,) = set(members) - {"json"}
        stored = photos / meta["file"]
        if stored.name == "scan.tif":
            np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(members["png"], np.uint8), 1), picture(10))
        else:
            assert hashlib.sha256(members[extension]).digest() == hashlib.sha256(stored.read_bytes()).digest()
    assert set(samples.read_encoded(keys["renamed"])) == {"png", "json"}  # by content, not by name
    sizes = {(entry["height"], entry["width"]): entry["samples"] for entry in samples.manifest["image_sizes"]}
    assert sizes == {(40, 30): 17, (20, 50): 2}
    assert not (tmp_path / "out" / packing.STAGING_NAME).exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse names that are not UTF-8")
def test_names_that_are_not_utf8_and_links_that_go_round(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    data = cv2.imencode(".jpg", picture(1))[1].tobytes()
    for name in (b"caf\xe9.jpg", b"caf\xc3\xa9.jpg", b"cut\xe9.jpg"):
        with open(os.fsencode(folder) + b"/" + name, "wb") as file:
            file.write(data[:200] if name.startswith(b"cut") else data)
    (folder / "round").symlink_to(folder)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jpg").write_bytes(data)
    (folder / "there").symlink_to(tmp_path / "elsewhere")
    packed = pack(FolderImporter(folder), tmp_path / "out", workers=1, progress=False, max_rejected=0.3)
    samples = ShardDataset(tmp_path / "out")
    assert {samples.key(i): samples[i]["meta"]["file"] for i in range(3)} == {
        "caf%E9": "caf\\udce9.jpg",
        "café": "café.jpg",
        "there/a": "there/a.jpg",
    }
    assert packed.rejected[0][0] == "cut%E9" and "cut off" in packed.rejected[0][1]


def test_the_number_of_processes_changes_nothing(photos, tmp_path):
    info = {"licence": "mine", "source": None}
    for name, workers in (("one", 1), ("two", 2)):
        pack(FolderImporter(photos), tmp_path / name, info=info, samples_per_shard=4, workers=workers, progress=False)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    manifest = ShardDataset(tmp_path / "one").manifest
    assert manifest["licence"] == "mine" and manifest["source"] is None and manifest["importer"] == "folder"


def test_headers_alone_give_the_same_set(photos, tmp_path):
    pack(FolderImporter(photos), tmp_path / "decoded", workers=1, progress=False)
    pack(FolderImporter(photos, decode=False), tmp_path / "headers", workers=1, progress=False)
    decoded, headers = contents(tmp_path / "decoded"), contents(tmp_path / "headers")
    assert decoded["samples-000000.tar"] == headers["samples-000000.tar"]


def test_broken_small_and_foreign_files_are_rejected(photos, tmp_path):
    (photos / "cut.jpg").write_bytes((photos / "img_1.JPG").read_bytes()[:500])
    (photos / "text.png").write_text("<html>")
    importer = FolderImporter(photos, min_side=25)
    packed = pack(importer, tmp_path / "out", workers=1, progress=False, max_rejected=0.3)
    reasons = dict(packed.rejected)
    assert set(reasons) == {"cut", "text", "v1%2Efinal", "renamed"} and packed.samples == 17
    assert "cut off" in reasons["cut"] and "20 x 50 pixels; the shorter side must have 25" in reasons["renamed"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert {line["key"]: line["reason"] for line in lines} == reasons
    with pytest.raises(ImportFailedError, match=r"4 of 21 samples cannot be used, more than the share of 0\.1"):
        pack(importer, tmp_path / "strict", workers=1, progress=False)


def test_an_interrupted_import_goes_on(photos, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = {"samples_per_shard": 4, "workers": 1, "progress": False, "max_rejected": 0.2}
    (photos / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    pack(FolderImporter(photos), whole, **options)
    original, made = FolderImporter.sample, []

    def stop(importer, record):
        made.append(record.key)
        if len(made) == 11:
            raise KeyboardInterrupt
        return original(importer, record)

    monkeypatch.setattr(FolderImporter, "sample", stop)
    with pytest.raises(KeyboardInterrupt):
        pack(FolderImporter(photos), broken, **options)
    assert packing.leftover(broken) and not (broken / "manifest.json").exists()
    assert sorted(path.name for path in broken.glob("*.tar")) == ["samples-000000.tar", "samples-000001.tar"]
    first = made[:8]
    for changes, words in (
        ({"samples_per_shard": 5}, "unfinished import with samples_per_shard = 4, and samples_per_shard = 5 is asked"),
        ({"prefix": "x"}, "prefix = samples, and prefix = x"),
    ):
        with pytest.raises(ImportFailedError, match=words):
            pack(FolderImporter(photos), broken, **(options | changes))
    with pytest.raises(ImportFailedError, match="min_side = 1, and min_side = 2"):
        pack(FolderImporter(photos, min_side=2), broken, **options)
    made.clear()
    made.extend([""] * 11)
    packed = pack(FolderImporter(photos), broken, **options)
    assert packed.samples == 19 and not set(first) & set(made)
    assert contents(whole) == contents(broken)
    assert pack(FolderImporter(photos), broken, **options).already
    with pytest.raises(ImportFailedError, match="finished set of another source or other options"):
        pack(FolderImporter(photos, min_side=2), broken, **options)


def test_a_source_that_changed_meanwhile_is_noticed(photos, tmp_path, monkeypatch):
    options = {"samples_per_shard": 4, "workers": 1, "progress": False}
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(packing, "_finish", lambda *_: (_ for _ in ()).throw(RuntimeError))
        pack(FolderImporter(photos), tmp_path / "out", **options)
    cv2.imwrite(str(photos / "a_new_one.png"), picture(3))
    with pytest.raises(ImportFailedError, match=r"samples-000000.tar: the source has changed since it was written"):
        pack(FolderImporter(photos), tmp_path / "out", **options)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in Linux's /proc")
def test_a_killed_import_goes_on(photos, tmp_path):
    """SIGKILL of the parent: its processes end, too, and the next call finishes with the same bytes."""
    for number in range(300):
        cv2.imwrite(str(photos / f"many_{number}.png"), picture(number, (300, 200)))
    command = [sys.executable, "-m", "s2kit", "data", "pack", str(photos), "--out", str(tmp_path / "out"), "--quiet"]
    command += ["--workers", "2", "--samples-per-shard", "10"]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "out").glob("*.tar"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "out" / "manifest.json").exists()
    while _alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(process.pid)
    options = {"samples_per_shard": 10, "workers": 1, "progress": False}
    info = {"licence": None, "source": None}
    pack(FolderImporter(photos), tmp_path / "out", info=info, **options)
    pack(FolderImporter(photos), tmp_path / "whole", info=info, **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def _alive(session: int) -> bool:
    """Whether a process of that session runs; Python's own helper processes end with it, too."""
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split() if entry.name.isdigit() else None
        except OSError:
            continue
        if fields and int(fields[3]) == session and fields[0] != "Z":
            return True
    return False


def test_two_imports_at_once_are_refused(photos, tmp_path):
    out = tmp_path / "out"
    (out / packing.STAGING_NAME).mkdir(parents=True)
    with (
        packing.hold_alone(out / packing.STAGING_NAME / "lock", out),
        pytest.raises(RuntimeError, match="another process"),
    ):
        pack(FolderImporter(photos), out, workers=1, progress=False)


def test_a_folder_that_holds_something_else(photos, tmp_path):
    with pytest.raises(ImportFailedError, match=r"photos: is not empty \(it holds \.hidden\.jpg\)"):
        pack(FolderImporter(photos), photos, workers=1, progress=False)
    with pytest.raises(ImportFailedError, match="no pictures in it"):
        (tmp_path / "empty").mkdir()
        pack(FolderImporter(tmp_path / "empty"), tmp_path / "out", progress=False)


class _Stubborn(FolderImporter):
    def sample(self, record):
        raise RejectedError("never")


def test_nothing_but_rejected_samples_is_an_error(photos, tmp_path):
    with pytest.raises(ImportFailedError, match=r"19 of 19 samples cannot be used.*the last: never"):
        pack(_Stubborn(photos), tmp_path / "out", workers=1, max_rejected=1, progress=False)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "parquet bytes"])
def test_lists(photos, tmp_path, kind):
    files = ["day 2/img_3.JPG", "v1.final.png", "day 1/a.b/img_0.JPG"]
    rows = [{"caption": f"nr {i}", "image": file, "id": f"p.{i}"} for i, file in enumerate(files)]
    path = tmp_path / f"list.{kind.split()[0]}"
    if kind in ("csv", "tsv"):
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    else:
        parquet = pytest.importorskip("pyarrow.parquet", reason="part of the extra 'parquet'")
        from pyarrow import Table

        if kind == "parquet bytes":
            rows = [
                row | {"image": {"bytes": (photos / row["image"]).read_bytes(), "path": row["image"]}} for row in rows
            ]
        parquet.write_table(Table.from_pylist(rows), path)
    root = None if kind == "parquet bytes" else photos
    pack(ListImporter(path, root), tmp_path / "out", workers=1, progress=False)
    samples = ShardDataset(tmp_path / "out")
    assert [samples.key(i) for i in range(3)] == ["000000000", "000000001", "000000002"]
    for number, file in enumerate(files):
        meta = samples[number]["meta"]
        assert meta == {"file": file, "caption": f"nr {number}", "id": f"p.{number}"}
        image = next(data for name, data in samples.read_encoded(number).items() if name != "json")
        assert image == (photos / file).read_bytes()
    pack(ListImporter(path, root, key_column="id"), tmp_path / "keys", workers=1, progress=False)
    assert ShardDataset(tmp_path / "keys").key(2) == "p%2E2"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "picture\nx.jpg\n", "row 0 has no column image; its columns are picture; name the image's with"),
        ("a.csv", "image,b\nx.jpg\n", "line 2: not as many columns as the header"),
        ("a.csv", "image\n", "the list has no rows"),
        ("a.jsonl", '{"image": 3}', "row 0, image: 3 is no path of an image"),
        ("a.jsonl", "[1]", "line 1: a list, each line must be an object"),
        ("a.jsonl", "{", "line 1: not JSON"),
        ("a.parquet", "PAR1", "not readable as Parquet"),
        ("a.txt", "x.jpg", r"a list's name ends in \.csv, \.tsv, \.jsonl"),
    ],
)
def test_broken_lists_end_in_one_line(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(ImportFailedError, match=words) as caught:
        pack(ListImporter(tmp_path / name), tmp_path / "out", workers=1, progress=False)
    assert "\n" not in str(caught.value)


def test_parquet_without_its_package(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportFailedError, match=r"Parquet needs the package pyarrow: pip install 's2kit\[parquet\]'"):
        pack(ListImporter(tmp_path / "a.parquet"), tmp_path / "out", workers=1, progress=False)


def test_a_killed_process_is_an_error_and_no_wait():
    with pytest.raises(RuntimeError, match="a working process was killed, perhaps because memory ran out"):
        list(run_parallel(_die, range(4), 2))


def _die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
