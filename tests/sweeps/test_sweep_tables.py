"""Tables and curves of a sweep."""

import numpy as np
import pytest

from s2kit.cli import main
from s2kit.sweeps.curves import band, draw_curves, log_ticks, read_series, ticks
from s2kit.sweeps.report import markdown, mean_ranks, ranks, summarise

NUMBERS = {
    "seed=0,objective=scratch": {"normals": 30.0, "knn": 10.0},
    "seed=0,objective=joint": {"normals": 20.0, "knn": 30.0},
    "seed=1,objective=scratch": {"normals": 34.0, "knn": 20.0},
    "seed=1,objective=joint": {"normals": 24.0, "knn": 10.0},
}


def test_table_has_mean_spread_and_rank(config, run, fake):
    sweep, _ = run(config, fake(NUMBERS))
    rows = summarise(sweep)
    assert rows["scratch"]["angle"].mean == 32 and rows["joint"]["accuracy"].mean == 20
    np.testing.assert_allclose(rows["scratch"]["angle"].deviation, np.std([30, 34], ddof=1))
    # Seed 0: joint is first twice; seed 1: each is first once.
    assert mean_ranks(sweep) == {"scratch": {"0": 2.0, "1": 1.5}, "joint": {"0": 1.0, "1": 1.5}}
    assert markdown(sweep) == (
        "| objective | angle ↓ | accuracy ↑ | mean rank ↓ | n |\n"
        "|---|---|---|---|---|\n"
        "| scratch | 32.00 ± 2.83 | 15.00 ± 7.07 | 1.75 ± 0.3536 | 2 |\n"
        "| joint | **22.00 ± 2.83** | **20.00 ± 14.14** | **1.25 ± 0.3536** | 2 |\n"
    )


def test_a_result_may_stay_out_of_the_ranks(config, run, fake):
    config.write_text(config.read_text().replace("best: max}", "best: max, rank: false}"))
    sweep, _ = run(config, fake(NUMBERS))
    assert mean_ranks(sweep) == {"scratch": {"0": 2.0, "1": 2.0}, "joint": {"0": 1.0, "1": 1.0}}


def test_ranks_need_every_row_of_a_seed(config, run, fake):
    sweep, _ = run(config, fake(NUMBERS), limit=3)
    assert mean_ranks(sweep) == {"scratch": {"0": 2.0}, "joint": {"0": 1.0}}
    assert summarise(sweep)["scratch"]["angle"].count == 2


def test_equal_numbers_share_their_ranks():
    assert ranks({"a": 1.0, "b": 3.0, "c": 3.0, "d": 2.0}, True) == {"a": 4, "b": 1.5, "c": 1.5, "d": 3}
    assert ranks({"a": 1.0, "b": 3.0}, False) == {"a": 1, "b": 2}


def test_show_writes_tables_and_runs_nothing(config, capsys, monkeypatch, run, fake):
    sweep, _ = run(config, fake(NUMBERS))
    assert main(["sweep", "--config", str(config), "--show"]) == 0
    assert "4 finished" in capsys.readouterr().out
    assert (sweep.folder / "table.md").read_text() == markdown(sweep)
    lines = (sweep.folder / "trials.csv").read_text().splitlines()
    assert lines[0] == 'seed,objective,status,reason,"pretrain, s","probe, s",angle,accuracy'
    assert lines[2].startswith("0,joint,finished,,") and lines[2].endswith(",20.0,30.0")
    head, scratch = (line.split(",") for line in (sweep.folder / "table.csv").read_text().splitlines()[:2])
    assert scratch[head.index("angle mean")] == "32.0" and scratch[head.index("mean rank n")] == "2"


def test_curves_join_the_parts_of_a_run(tmp_path):
    (tmp_path / "metrics_until_1.csv").write_text("step,loss\n0,5\n10,4\n20,9\n")
    (tmp_path / "metrics.csv").write_text("step,loss\n15,3\n,8\n25,\n30,2\n")
    x, y = read_series(tmp_path / "metrics.csv", "step", "loss")
    assert x.tolist() == [0, 10, 15, 30] and y.tolist() == [5, 4, 3, 2]


def test_bands_cover_what_all_series_cover():
    grid, mean, low, high = band(
        [(np.array([0.0, 10.0]), np.array([0.0, 10.0])), (np.array([2.0, 8.0]), np.array([4.0, 4.0]))]
    )
    assert grid[0] == 2 and grid[-1] == 8
    assert mean[0] == 3 and low[0] == 2 and high[0] == 4 and mean[-1] == 6


def test_ticks_are_round():
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(3, 3) == [3]
    assert log_ticks(0.5, 30) == pytest.approx([0.5, 1, 2, 5, 10, 20])


def test_curves_are_drawn(config, tmp_path, run, fake):
    config.write_text(
        config.read_text() + 'curves:\n  loss: {file: "{run}/metrics.csv", x: step, y: loss, log: true}\n'
    )
    sweep, _ = run(config, fake())
    assert draw_curves(sweep) is None
    for number, trial in enumerate(sweep.trials()):
        path = trial.folder / "pretrain" / "metrics.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("step,loss\n" + "\n".join(f"{x},{1 / (x + 1 + number)}" for x in range(10)))
    picture = np.asarray(draw_curves(sweep))
    blue = (np.abs(picture.astype(int) - [0, 0x72, 0xB2]).sum(axis=2) < 60).sum()
    black = (picture.sum(axis=2) < 60).sum()
    assert blue > 300 and black > 300
