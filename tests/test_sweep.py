"""Sweeps: what the YAML says, going on after every kind of interruption, and the tables."""

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from s2kit.cli import main
from s2kit.errors import UserError
from s2kit.models.config import backbone_config
from s2kit.planning import backbone_flops
from s2kit.sweeps.compute import Budget
from s2kit.sweeps.config import read_sweep
from s2kit.sweeps.curves import band, draw_curves, log_ticks, read_series, ticks
from s2kit.sweeps.processes import Processes, reason_of
from s2kit.sweeps.report import markdown, mean_ranks, ranks, summarise
from s2kit.sweeps.runner import InUse, Runner, held
from s2kit.sweeps.state import State
from s2kit.sweeps.study import Study
from s2kit.tools.sweep import count_apart, step_flops

SWEEP = """
name: tiny
folder: {folder}
setup:
  people: data synth --out {{folder}}/people
grid:
  seed: [0, 1]
  objective:
    scratch: {{weights: --random}}
    joint: {{objective: [--model.contrast=0.4, '--model.backbone={{patch_size: 8}}']}}
values:
  run: "{{trial}}/pretrain"
  weights: [--weights, "{{run}}/weights"]
steps:
  pretrain:
    without: {{objective: scratch}}
    command: fit {{objective}} --seed_everything={{seed}} --trainer.max_steps={{steps}}
    folder: "{{run}}"
    resume: {{file: "{{run}}/last.ckpt", add: --ckpt_path last}}
  probe: probe {{weights}} --out {{trial}}/probe.json
equal: {{step: pretrain, flops: 1.0e+6}}
results:
  angle: {{file: "{{trial}}/probe.json", key: [probes, normals], best: min}}
  accuracy: {{file: "{{trial}}/probe.json", key: [probes, knn], best: max}}
average: seed
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(SWEEP.format(folder=tmp_path / "sweep"))
    return path


class Fake(Processes):
    """Runs commands here: writes what they would, and does what a test wants of some of them."""

    def __init__(self, numbers=None, **behaviour):
        super().__init__()
        self.commands, self.behaviour, self.numbers = [], behaviour, numbers or {}

    def run(self, words, log, lock):
        self.commands.append(shlex.join(words))
        with open(log, "a") as file:
            print("$ python -m s2kit", *words, file=file)
        for text, does in self.behaviour.items():
            if text in words[0] and (code := does(log.parent, words)):
                return code
        if words[0] == "probe":
            numbers = self.numbers.get(log.parent.name, {"normals": 20.0, "knn": 50.0})
            Path(words[words.index("--out") + 1]).write_text(json.dumps({"probes": numbers}))
        return 0

    def of(self, name):
        return [command for command in self.commands if command.startswith(name)]


def run(config, processes, **options):
    sweep = read_sweep(config)
    lines = []
    limit = options.pop("limit", None)
    runner = Runner(sweep, Budget(sweep, lambda words: 1e4), processes, say=lines.append, **options)
    runner.run(limit)
    return sweep, lines


# ---------------------------------------------------------------------------------------------------- the YAML


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
def test_mistakes_name_file_key_and_value(tmp_path, before, after, said):
    assert before in SWEEP
    path = tmp_path / "bad.yaml"
    path.write_text(SWEEP.replace(before, after).format(folder="x"))
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


# ---------------------------------------------------------------------------------------------------- running


def test_every_point_runs_once_and_is_recorded(config):
    processes = Fake()
    sweep, _ = run(config, processes)
    assert len(processes.of("fit")) == 2 and len(processes.of("probe")) == 4 and len(processes.of("data synth")) == 1
    # 1e6 FLOPs at 1e4 a step.
    assert all("--trainer.max_steps=100" in command for command in processes.of("fit"))
    again = Fake()
    run(config, again)
    assert again.commands == []
    study = Study(sweep).study
    assert [str(trial.state) for trial in study.trials] == ["TrialState.COMPLETE"] * 4
    assert {tuple(trial.params.values()) for trial in study.trials} == {tuple(t.point.values()) for t in sweep.trials()}
    assert study.trials[0].values == [20.0, 50.0] and study.user_attrs["results"] == ["angle", "accuracy"]


def test_the_record_is_made_again_from_the_folders(config):
    sweep, _ = run(config, Fake())
    (sweep.folder / "study.db").unlink()
    run(config, Fake())
    assert len(Study(sweep).study.trials) == 4


def test_a_grown_grid_keeps_what_is_finished(config):
    run(config, Fake())
    config.write_text(config.read_text().replace("seed: [0, 1]", "seed: [0, 1, 2]"))
    processes = Fake()
    sweep, _ = run(config, processes)
    assert len(processes.of("probe")) == 2
    assert len(Study(sweep).study.trials) == 6


def test_limit(config):
    processes = Fake()
    run(config, processes, limit=1)
    assert len(processes.of("probe")) == 1
    run(config, processes, limit=2)
    assert len(processes.of("probe")) == 3


def test_an_interrupted_training_goes_on_from_its_checkpoint(config):
    def stop(folder, words):
        (folder / "pretrain").mkdir(exist_ok=True)
        (folder / "pretrain" / "last.ckpt").touch()
        return 130

    first = Fake(fit=stop)
    with pytest.raises(KeyboardInterrupt):
        run(config, first)
    assert len(first.of("fit")) == 1
    second = Fake()
    sweep, lines = run(config, second)
    assert [command.endswith("--ckpt_path last") for command in second.of("fit")] == [True, False]
    assert "seed=0,objective=joint: pretrain goes on" in lines
    # The interrupted entry is closed, and not counted as a result.
    assert [str(trial.state) for trial in Study(sweep).study.trials].count("TrialState.COMPLETE") == 4
    assert [str(trial.state) for trial in Study(sweep).study.trials].count("TrialState.RUNNING") == 0


def test_what_is_left_of_a_step_without_a_checkpoint_is_removed(config, tmp_path):
    def stop(folder, words):
        (folder / "pretrain").mkdir(exist_ok=True)
        (folder / "pretrain" / "config.yaml").touch()
        return 130

    def check(folder, words):
        assert not (folder / "pretrain").exists() and "--ckpt_path" not in words

    with pytest.raises(KeyboardInterrupt):
        run(config, Fake(fit=stop))
    assert (tmp_path / "sweep" / "seed=0,objective=joint" / "pretrain" / "config.yaml").exists()
    run(config, Fake(fit=check))


def test_a_finished_step_is_not_repeated(config):
    with pytest.raises(KeyboardInterrupt):
        run(config, Fake(probe=lambda folder, words: 130 if "joint" in folder.name else 0))
    second = Fake()
    run(config, second)
    assert len(second.of("fit")) == 1 and len(second.of("probe")) == 3


def test_a_failed_trial_is_recorded_and_the_others_go_on(config, capsys):
    def fail(folder, words):
        if "seed=0" not in folder.name:
            return 0
        with open(folder / "pretrain.log", "a") as file:
            print("warming up\ns2kit: error: the loss is not finite\nbye", file=file)
        return 1

    sweep, lines = run(config, Fake(fit=fail))
    trial = sweep.trials()[1]
    assert State.read(trial).failed == "pretrain: the loss is not finite"
    assert "seed=0,objective=joint: failed: pretrain: the loss is not finite" in lines
    assert [State.read(trial).status for trial in sweep.trials()] == ["finished", "failed", "finished", "finished"]
    entry = next(entry for entry in Study(sweep).study.trials if str(entry.state) == "TrialState.FAIL")
    assert entry.user_attrs["reason"] == "pretrain: the loss is not finite"
    again = Fake()
    run(config, again)
    assert again.commands == []
    assert main(["sweep", "--config", str(config), "--show"]) == 1
    assert "3 finished, 1 failed\n  seed=0,objective=joint: pretrain: the loss" in capsys.readouterr().out
    run(config, again, retry=True)
    assert len(again.of("fit")) == 1 and State.read(trial).status == "finished"


def test_a_result_that_is_not_there_is_a_failure(config):
    sweep, _ = run(config, Fake(numbers={"seed=0,objective=joint": {"normals": float("nan"), "knn": 1}}))
    assert re.match(
        r"result angle: .*probe.json has no finite number probes/normals", State.read(sweep.trials()[1]).failed
    )


def test_results_of_other_commands_are_not_mixed(config):
    run(config, Fake())
    config.write_text(config.read_text().replace("flops: 1.0e+6", "flops: 2.0e+6"))
    with pytest.raises(UserError, match=r"another command of pretrain: \"fit.*max_steps=100.*max_steps=200"):
        run(config, Fake())


def test_a_trial_that_another_process_has_is_left_to_it(config):
    sweep = read_sweep(config)
    folder = sweep.trials()[2].folder
    folder.mkdir(parents=True)
    processes = Fake()
    with held(folder):
        run(config, processes)
    assert len(processes.of("probe")) == 3
    run(config, processes)
    assert len(processes.of("probe")) == 4


def test_a_failed_set_up_says_why(config):
    def fail(folder, words):
        with open(folder / "people.log", "a") as file:
            print("s2kit: error: no room on the disk", file=file)
        return 1

    with pytest.raises(UserError, match="the set-up people failed: no room on the disk"):
        run(config, Fake(data=fail))


def test_without_optuna_one_line_says_what_to_install(config, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["sweep", "--config", str(config)]) == 1
    assert (
        'sweep needs the package optuna, which is not installed: pip install "s2kit[sweep]"' in capsys.readouterr().err
    )


# ---------------------------------------------------------------------------------------------------- processes


def test_a_command_runs_in_a_process_of_its_own(tmp_path):
    log = tmp_path / "log"
    assert Processes().run(["--version"], log, None) == 0
    assert log.read_text().startswith("$ python -m s2kit --version\ns2kit ")
    code = Processes().run(["convert", "nothing.safetensors"], log, None)
    assert code == 1 and "nothing.safetensors" in reason_of(log, code)
    assert reason_of(log, -9) == "killed by signal 9 (SIGKILL)"


NESTED = """
name: {name}
folder: {folder}
grid: {{seed: [0]}}
steps: {{only: {command}}}
results: {{n: {{file: none.json, key: [n], best: max}}}}
"""


def test_a_killed_sweeps_step_holds_its_trial_until_it_ends(tmp_path):
    """A step outlives a sweep that is killed hard; nobody else may work in its folder meanwhile."""
    inner, outer = tmp_path / "inner.yaml", tmp_path / "outer.yaml"
    inner.write_text(NESTED.format(name="inner", folder=tmp_path / "inner", command="--version"))
    outer.write_text(NESTED.format(name="outer", folder=tmp_path / "outer", command=f"sweep --config {inner}"))
    trial = tmp_path / "outer" / "seed=0"
    (tmp_path / "inner").mkdir()
    with held(tmp_path / "inner"):  # so the step waits
        sweep = subprocess.Popen([sys.executable, "-m", "s2kit", "sweep", "--config", str(outer)])
        try:
            wait_for(lambda: (trial / "only.log").is_file() and "waiting" in (trial / "only.log").read_text())
        finally:
            sweep.kill()
            sweep.wait()
        assert not can_hold(trial)
    wait_for(lambda: can_hold(trial))
    assert "1 failed" in (trial / "only.log").read_text()


def can_hold(folder):
    try:
        with held(folder):
            return True
    except InUse:
        return False


def wait_for(condition, seconds=120):
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds
        time.sleep(0.05)


def test_flops_of_a_pretrainings_step_have_all_views_and_the_teacher(experiments):
    """What self-distillation adds, against the planner's formulas: the teacher's globals, the locals and the heads."""
    words = ["fit", "--config", str(experiments / "pretrain.yaml"), "--data.batch_size=3"]
    joint, alone = step_flops(words), step_flops([*words, "--model.contrast=0", "--model.koleo=0"])
    fields = {"patch_size": 8, "embed_dim": 128, "num_heads": 2, "depth": 4, "mlp_dim": 384}
    backbone = backbone_config("sapiens2_nano", (128, 96), **fields)
    head = 2 * (128 * 256 + 256 * 256 + 256 * 64 + 64 * 1024)
    added = 2 * backbone_flops(backbone).forward + 4 * backbone_flops(backbone, (64, 48)).hardware + (2 + 3 * 6) * head
    assert joint - alone == pytest.approx(3 * added, rel=0.01)
    # The student sees a quarter of its globals' patches; a decoder sees them all.
    assert 2 * backbone_flops(backbone, (64, 48)).hardware < alone / 3 < 2 * backbone_flops(backbone).hardware
    with pytest.raises(UserError, match="only fit has training steps that can be counted, not probe"):
        step_flops(["probe"])


def test_flops_are_counted_in_a_process_of_its_own(monkeypatch):
    asked = []

    def answer(command, **options):
        asked.append(command)
        return subprocess.CompletedProcess(command, int("bad" in command), "Seed set\n1e9\n", "x\ns2kit: error: no\n")

    monkeypatch.setattr(subprocess, "run", answer)
    assert count_apart(["fit", "--config", "a.yaml"]) == 1e9
    assert asked[0][1:] == ["-m", "s2kit", "sweep", "--flops-of", "fit", "--config", "a.yaml"]
    with pytest.raises(UserError, match="counting the FLOPs of fit bad: no"):
        count_apart(["fit", "bad"])


# ---------------------------------------------------------------------------------------------------- tables


NUMBERS = {
    "seed=0,objective=scratch": {"normals": 30.0, "knn": 10.0},
    "seed=0,objective=joint": {"normals": 20.0, "knn": 30.0},
    "seed=1,objective=scratch": {"normals": 34.0, "knn": 20.0},
    "seed=1,objective=joint": {"normals": 24.0, "knn": 10.0},
}


def test_table_has_mean_spread_and_rank(config):
    sweep, _ = run(config, Fake(NUMBERS))
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


def test_a_result_may_stay_out_of_the_ranks(config):
    config.write_text(config.read_text().replace("best: max}", "best: max, rank: false}"))
    sweep, _ = run(config, Fake(NUMBERS))
    assert mean_ranks(sweep) == {"scratch": {"0": 2.0, "1": 2.0}, "joint": {"0": 1.0, "1": 1.0}}


def test_ranks_need_every_row_of_a_seed(config):
    sweep, _ = run(config, Fake(NUMBERS), limit=3)
    assert mean_ranks(sweep) == {"scratch": {"0": 2.0}, "joint": {"0": 1.0}}
    assert summarise(sweep)["scratch"]["angle"].count == 2


def test_equal_numbers_share_their_ranks():
    assert ranks({"a": 1.0, "b": 3.0, "c": 3.0, "d": 2.0}, True) == {"a": 4, "b": 1.5, "c": 1.5, "d": 3}
    assert ranks({"a": 1.0, "b": 3.0}, False) == {"a": 1, "b": 2}


def test_show_writes_tables_and_runs_nothing(config, capsys, monkeypatch):
    sweep, _ = run(config, Fake(NUMBERS))
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


def test_curves_are_drawn(config, tmp_path):
    config.write_text(
        config.read_text() + 'curves:\n  loss: {file: "{run}/metrics.csv", x: step, y: loss, log: true}\n'
    )
    sweep, _ = run(config, Fake())
    assert draw_curves(sweep) is None
    for number, trial in enumerate(sweep.trials()):
        path = trial.folder / "pretrain" / "metrics.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("step,loss\n" + "\n".join(f"{x},{1 / (x + 1 + number)}" for x in range(10)))
    picture = np.asarray(draw_curves(sweep))
    blue = (np.abs(picture.astype(int) - [0, 0x72, 0xB2]).sum(axis=2) < 60).sum()
    black = (picture.sum(axis=2) < 60).sum()
    assert blue > 300 and black > 300
