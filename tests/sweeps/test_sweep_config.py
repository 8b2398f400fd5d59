"""What a sweep's YAML says."""

import re

import pytest

from s2kit.cli import main
from s2kit.errors import UserError
from s2kit.sweeps.config import read_sweep


def test_commands_of_a_trial(config, tmp_path):
    sweep = read_sweep(config)
    trials = {trial.name: trial for trial in sweep.trials()}
    assert list(trials) == [
        "seed=0,objective=scratch",
        "seed=0,objective=joint",
        "seed=1,objective=scratch",
        "seed=1,objective=joint",
    ]
    joint, scratch = trials["seed=1,objective=joint"], trials["seed=0,objective=scratch"]
    assert joint.words(joint.steps()[0].command, steps="7") == [
        "fit",
        "--model.contrast=0.4",
        "--model.backbone={patch_size: 8}",
        "--seed_everything=1",
        "--trainer.max_steps=7",
    ]
    assert joint.words(joint.steps()[1].command) == [
        "probe",
        "--weights",
        f"{tmp_path}/sweep/seed=1,objective=joint/pretrain/weights",
        "--out",
        f"{tmp_path}/sweep/seed=1,objective=joint/probe.json",
    ]
    assert [step.name for step in scratch.steps()] == ["probe"]
    assert scratch.words(scratch.steps()[0].command)[:2] == ["probe", "--random"]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("seed: [0, 1]", "seed: 3", r"grid, seed: must be a list of values.*got 3"),
        ("average: seed", "average: seeds", r"average: 'seeds' is no axis of the grid: seed, objective"),
        ("best: min", "best: low", r"results, angle, best: must be min or max, got 'low'"),
        ("{{weights}} --out", "{{weight}} --out", r"no placeholder \{weight\}; there are: .*weights"),
        ("objective: scratch}}", "objective: scratsch}}", r"without, objective: scratsch is not in the grid"),
        ("flops: 1.0e+6", "flops: much", r"equal, flops: must be a number above 0, got 'much'"),
        ("step: pretrain", "step: train", r"'train' is no step: pretrain, probe"),
        ('folder: "{{run}}"', 'folders: "{{run}}"', r"steps, pretrain has 'folders'; known: command"),
        ("scratch: {{weights", "a/b: {{weights", r"'a/b' names a folder"),
        ('run: "{{trial}}/pretrain"', 'run: "{{run}}/pretrain"', r"without end"),
        ("fit {{objective}}", "fit x{{objective}}", r"\{objective\} stands for several words"),
    ],
)
def test_mistakes_name_file_key_and_value(tmp_path, before, after, said, sweep_text):
    assert before in sweep_text
    path = tmp_path / "bad.yaml"
    path.write_text(sweep_text.replace(before, after).format(folder="x"))
    with pytest.raises(UserError, match=said) as error:
        read_sweep(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_folder_and_compute_can_be_given_for_a_trial(config, tmp_path):
    sweep = read_sweep(config, str(tmp_path / "other"), 5e3)
    assert sweep.folder == tmp_path / "other" and sweep.equal == ("pretrain", 5e3)
    config.write_text(re.sub("(?m)^equal:.*$", "", config.read_text()).replace("={steps}", "=3"))
    with pytest.raises(UserError, match="equal: there is none"):
        read_sweep(config, flops=5e3)


def test_a_missing_or_broken_file(tmp_path, capsys):
    assert main(["sweep", "--config", str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml: no such file" in capsys.readouterr().err
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"broken\.yaml: not YAML"):
        read_sweep(tmp_path / "broken.yaml")
