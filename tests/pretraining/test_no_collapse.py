"""The shipped pretraining for 500 steps: the meters stay within the limits that docs/pretraining.md states."""

import csv

import pytest
import torch

from s2kit.cli import main
from s2kit.losses.contrast import SinkhornKnopp, SoftmaxCentring
from s2kit.pretraining.meters import collapse_meters

#: In every logged step from this one on: least of what an assignment tells, effective rank, deviation of features.
FROM_STEP, LIMITS = 100, {"information": 0.1, "effective_rank": 8.0, "feature_deviation": 0.3}


@pytest.mark.parametrize("centring", [SoftmaxCentring(1024), SinkhornKnopp()])
def test_the_limits_tell_a_collapse_under_either_centring(centring):
    torch.manual_seed(0)
    told, features = torch.randn(64, 1024), torch.randn(64, 128)
    same = told[:1].expand(64, -1)
    for logits in (same, torch.zeros(64, 1024)):
        meters = collapse_meters(centring(logits, 0.04), features)
        assert abs(meters["information"]) < 1e-4
        assert meters["effective_rank"] > LIMITS["effective_rank"], "not what the features would tell"
    assert collapse_meters(centring(0.2 * told, 0.04), features)["information"] > LIMITS["information"]
    assert collapse_meters(centring(told, 0.04), features[:1].expand(64, -1))["effective_rank"] < 1.1


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
        rows = [row for row in csv.DictReader(file) if row["train/collapse/information"]]
    late = [row for row in rows if int(row["step"]) >= FROM_STEP]
    assert len(late) == 40
    for name, least in LIMITS.items():
        assert min(float(row[f"train/collapse/{name}"]) for row in late) >= least, name
    assert float(late[-1]["train/reconstruction"]) < 0.7
