"""The shipped pretraining for 500 steps: the meters stay within the limits that docs/pretraining.md states."""

import csv

import pytest

from s2kit.cli import main

#: In every logged step from this one on: least entropy of the mean assignment, effective rank, deviation of features.
FROM_STEP, LIMITS = 100, {"mean_entropy": 0.5, "effective_rank": 8.0, "feature_deviation": 0.3}


@pytest.mark.long
def test_the_shipped_config_does_not_collapse_in_500_steps(experiments, tmp_path):
    words = [
        "fit",
        "--config",
        str(experiments / "pretrain.yaml"),
        "--trainer.max_steps=500",
        f"--run.folder={tmp_path}",
    ]
    assert main([*words, "--trainer.accelerator=cpu", "--trainer.limit_val_batches=0", "--run.test=false"]) == 0
    with (tmp_path / "pretrain" / "version_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/collapse/mean_entropy"]]
    late = [row for row in rows if int(row["step"]) >= FROM_STEP]
    assert len(late) == 40
    for name, least in LIMITS.items():
        assert min(float(row[f"train/collapse/{name}"]) for row in late) >= least, name
    assert float(late[-1]["train/reconstruction"]) < 0.7
