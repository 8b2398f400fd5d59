"""``bench data``: every reader reads the same pictures, the table, the CSV, and what each mistake says."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from data_modules.shards import ShardDataset
from s2kit.cli import main
from s2kit.tools.bench_data import _readers, make_set, measure


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench") / "set"
    make_set(folder, 4, (96, 64))
    return folder


def test_every_reader_reads_each_picture_once(folder, tmp_path):
    truth = sorted(ShardDataset(folder)[number]["image"].tobytes() for number in range(4))
    named = {reader.name: reader for reader in _readers(folder, tmp_path, 4)}
    for name in named:
        read = list(named[name].read())
        assert len(read) == 4, name
        if name.startswith("s2kit"):
            read = [sample["image"] for sample in read if "image" in sample] or None
        elif name.startswith("webdataset"):
            read = [np.asarray(sample[0]) for sample in read]
        if read is not None:
            images = sorted(image.tobytes() for image in read)
            np.testing.assert_allclose(
                np.frombuffer(b"".join(images), np.uint8),
                np.frombuffer(b"".join(truth), np.uint8),
                atol=1,
                err_msg=name,
            )
    everything, image = named["s2kit: everything"].size, named["s2kit: image"].size
    assert (
        everything > named["s2kit: normals"].size + image > image > named["Pillow: image, from a folder of files"].size
    )


def test_table_and_csv(folder, tmp_path, capsys):
    out = tmp_path / "new" / "data.csv"
    assert main(["bench", "data", str(folder), "--count", "2", "--runs", "2", "--out", str(out)]) == 0
    rows = {row["reader"]: row for row in csv.DictReader(out.open())}
    assert {"OpenCV, bytes in memory", "s2kit: image", "s2kit: everything", "s2kit: depth"} <= set(rows)
    row = rows["s2kit: image"]
    assert float(row["samples_per_s"]) == pytest.approx(1000 / float(row["cpu_ms"]), rel=0.01)
    assert float(row["mb_per_s"]) == pytest.approx(float(row["kb"]) * float(row["samples_per_s"]) / 1000, rel=0.05)
    assert max(float(row["ratio"]) for name, row in rows.items() if "bytes in memory" in name) == pytest.approx(
        1, abs=0.01
    )
    for column in ("date", "hardware", "numpy", "python", "s2kit"):
        assert row[column], column
    assert "s2kit: everything" in capsys.readouterr().out


def test_turns_alternate():
    order = []

    class Recorder:
        def __init__(self, name):
            self.name = name

        def read(self):
            order.append(self.name)
            yield None

    seconds = measure([Recorder("a"), Recorder("b")], 2)
    assert order == ["a", "b"] * 3 and [len(values) for values in seconds] == [2, 2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--runs", "0"], "--runs must be from 1 to 100000, got 0"),
        (["--count", "0"], "--count must be from 1"),
        (["--image-size", "4", "64"], "--image-size must be 16 to 8192 a side, got 4 x 64"),
        (["nowhere"], "manifest.json: no such file"),
    ],
)
def test_mistakes(options, words, capsys):
    assert main(["bench", "data", *options]) == 1
    assert words in capsys.readouterr().err
