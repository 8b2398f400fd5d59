"""``bench``: the table, the CSV, and what each mistake says."""

from __future__ import annotations

import csv

import pytest

from s2kit.cli import main
from s2kit.tools.bench import _ratio
from s2kit.tools.bench_backbone import OURS, PORT

SMALL = ["bench", "backbone", "--arch", "sapiens2_nano", "--image-size", "64", "48", "--runs", "2", "--device", "cpu"]


def test_backbone_beside_the_port(tmp_path, capsys):
    pytest.importorskip("transformers", minversion="5", reason="the port to compare with is in transformers 5")
    out = tmp_path / "new" / "bench.csv"
    assert main([*SMALL, "--passes", "forward", "--threads", "1", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    (row,) = csv.DictReader(out.open())
    assert (row["arch"], row["height"], row["width"], row["pass"]) == ("sapiens2_nano", "64", "48", "forward")
    assert float(row["output_difference"]) < 1e-4
    assert 0.2 < float(row["time_ratio"]) < 5
    weights = 5.0e6 * 4 / 2**20
    assert weights < float(row["s2kit_peak_mib"]) < 10 * weights
    assert float(row["memory_ratio"]) == pytest.approx(
        float(row["s2kit_peak_mib"]) / float(row["transformers_peak_mib"]), abs=1e-3
    )
    for column in ("date", "hardware", "torch", "transformers", "python", "threads", "dtype", "rope_dtype"):
        assert row[column], column
    assert row["threads"] == "1"
    assert "sapiens2_nano" in printed
    assert str(out) in printed


def test_backbone_alone(capsys, monkeypatch):
    monkeypatch.setattr("s2kit.tools.bench._in_child", lambda function, *arguments: function(*arguments))
    assert main([*SMALL, "--no-peer", "--checkpointing", "selective", "--passes", "forward+backward"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["seconds", "peak", "MiB"]
    assert len(lines[1].split()) == 4


def test_ratio_is_of_neighbouring_runs():
    """While the machine is three times slower, both are; one run that met something else does not count."""
    assert _ratio({OURS: [1.0, 3.0, 9.0], PORT: [2.0, 6.0, 2.0]}) == 0.5


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--arch", "sapiens2_2b"], 1, ["--arch sapiens2_2b", "did you mean"]),
        (["--image-size", "500", "384"], 1, ["multiples of the patch size 16, got 500 x 384", "496 x 384"]),
        (["--runs", "0"], 1, ["--runs must be from 1 to 1000, got 0"]),
        (["--batch-size", "0"], 1, ["--batch-size"]),
        (["--threads", "-1"], 1, ["--threads"]),
        (["--arch", "sapiens2_1b_4k", "--image-size", "4096", "3072"], 1, ["window tokenizer", "--no-peer"]),
        (["--dtype", "float8"], 2, ["float8", "float32"]),
    ],
)
def test_mistakes(options, code, words, capsys):
    assert main(["bench", "backbone", *options]) == code
    message = capsys.readouterr().err
    assert all(word in message for word in words), message


def test_an_older_transformers_is_named(monkeypatch, capsys):
    monkeypatch.setattr("s2kit.tools.bench._version", lambda package: "4.57.1")
    assert main(["bench", "backbone"]) == 1
    assert "transformers 5 or later (installed: 4.57.1)" in capsys.readouterr().err


def test_cuda_where_there_is_none(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main([*SMALL[:-1], "cuda", "--no-peer"]) == 1
    assert "torch finds no CUDA device" in capsys.readouterr().err
