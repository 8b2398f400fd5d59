"""Running sweeps, and going on after every kind of interruption."""

import json
import re
import shutil
import subprocess
import sys
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from s2kit.cli import main
from s2kit.errors import UserError
from s2kit.pretraining import Pretraining
from s2kit.sweeps.config import read_sweep
from s2kit.sweeps.processes import Processes, reason_of
from s2kit.sweeps.runner import InUse, held
from s2kit.sweeps.state import State
from s2kit.sweeps.study import Study
from s2kit.tools.sweep import chosen, count_apart, step_flops

# ---------------------------------------------------------------------------------------------------- running


def test_every_point_runs_once_and_is_recorded(config, run, fake):
    processes = fake()
    sweep, _ = run(config, processes)
    assert len(processes.of("fit")) == 2 and len(processes.of("probe")) == 4 and len(processes.of("data synth")) == 1
    # 1e6 FLOPs at 1e4 a step.
    assert all("--trainer.max_steps=100" in command for command in processes.of("fit"))
    again = fake()
    run(config, again)
    assert again.commands == []
    study = Study(sweep).study
    assert [str(trial.state) for trial in study.trials] == ["TrialState.COMPLETE"] * 4
    assert {tuple(trial.params.values()) for trial in study.trials} == {tuple(t.point.values()) for t in sweep.trials()}
    assert study.trials[0].values == [20.0, 50.0] and study.user_attrs["results"] == ["angle", "accuracy"]


def test_the_record_is_made_again_from_the_folders(config, run, fake):
    sweep, _ = run(config, fake())
    (sweep.folder / "study.db").unlink()
    run(config, fake())
    assert len(Study(sweep).study.trials) == 4


def test_a_grown_grid_keeps_what_is_finished(config, run, fake):
    run(config, fake())
    config.write_text(config.read_text().replace("seed: [0, 1]", "seed: [0, 1, 2]"))
    processes = fake()
    sweep, _ = run(config, processes)
    assert len(processes.of("probe")) == 2
    assert len(Study(sweep).study.trials) == 6


def test_limit(config, run, fake):
    processes = fake()
    run(config, processes, limit=1)
    assert len(processes.of("probe")) == 1
    run(config, processes, limit=2)
    assert len(processes.of("probe")) == 3


def test_an_interrupted_training_goes_on_from_its_checkpoint(config, run, fake):
    def stop(folder, words):
        (folder / "pretrain").mkdir(exist_ok=True)
        (folder / "pretrain" / "last.ckpt").touch()
        return 130

    first = fake(fit=stop)
    with pytest.raises(KeyboardInterrupt):
        run(config, first)
    assert len(first.of("fit")) == 1
    second = fake()
    sweep, lines = run(config, second)
    assert [command.endswith("--ckpt_path last") for command in second.of("fit")] == [True, False]
    assert "seed=0,objective=joint: pretrain goes on" in lines
    # The interrupted entry is closed, and not counted as a result.
    assert [str(trial.state) for trial in Study(sweep).study.trials].count("TrialState.COMPLETE") == 4
    assert [str(trial.state) for trial in Study(sweep).study.trials].count("TrialState.RUNNING") == 0


def test_what_is_left_of_a_step_without_a_checkpoint_is_removed(config, tmp_path, run, fake):
    def stop(folder, words):
        (folder / "pretrain").mkdir(exist_ok=True)
        (folder / "pretrain" / "config.yaml").touch()
        return 130

    def check(folder, words):
        assert not (folder / "pretrain").exists() and "--ckpt_path" not in words

    with pytest.raises(KeyboardInterrupt):
        run(config, fake(fit=stop))
    assert (tmp_path / "sweep" / "seed=0,objective=joint" / "pretrain" / "config.yaml").exists()
    run(config, fake(fit=check))


def test_a_finished_step_is_not_repeated(config, run, fake):
    with pytest.raises(KeyboardInterrupt):
        run(config, fake(probe=lambda folder, words: 130 if "joint" in folder.name else 0))
    second = fake()
    run(config, second)
    assert len(second.of("fit")) == 1 and len(second.of("probe")) == 3


def test_a_failed_trial_is_recorded_and_the_others_go_on(config, capsys, run, fake):
    def fail(folder, words):
        if "seed=0" not in folder.name:
            return 0
        with open(folder / "pretrain.log", "a") as file:
            print("warming up\ns2kit: error: the loss is not finite\nbye", file=file)
        return 1

    sweep, lines = run(config, fake(fit=fail))
    trial = sweep.trials()[1]
    assert State.read(trial).failed == "pretrain: the loss is not finite"
    assert "seed=0,objective=joint: failed: pretrain: the loss is not finite" in lines
    assert [State.read(trial).status for trial in sweep.trials()] == ["finished", "failed", "finished", "finished"]
    entry = next(entry for entry in Study(sweep).study.trials if str(entry.state) == "TrialState.FAIL")
    assert entry.user_attrs["reason"] == "pretrain: the loss is not finite"
    again = fake()
    run(config, again)
    assert again.commands == []
    assert main(["sweep", "--config", str(config), "--show"]) == 1
    assert "3 finished, 1 failed\n  seed=0,objective=joint: pretrain: the loss" in capsys.readouterr().out
    run(config, again, retry=True)
    assert len(again.of("fit")) == 1 and State.read(trial).status == "finished"


def test_a_result_that_is_not_there_is_a_failure(config, run, fake):
    sweep, _ = run(config, fake(numbers={"seed=0,objective=joint": {"normals": float("nan"), "knn": 1}}))
    assert re.match(
        r"result angle: .*probe.json has no finite number probes/normals", State.read(sweep.trials()[1]).failed
    )


def test_results_of_other_commands_are_not_mixed(config, run, fake):
    run(config, fake())
    config.write_text(config.read_text().replace("flops: 1.0e+6", "flops: 2.0e+6"))
    with pytest.raises(UserError, match=r"another command of pretrain: \"fit.*max_steps=100.*max_steps=200"):
        run(config, fake())


def test_results_of_a_config_that_was_edited_since_are_not_mixed(config, tmp_path, run, fake):
    named = tmp_path / "named.yaml"
    named.write_text("lr: 1.0\n")
    for option in (f"--config {named}", f"--config={named}"):
        config.write_text(config.read_text().replace("fit {objective}", f"fit {option} {{objective}}"))
        processes = fake()
        run(config, processes)
        named.write_text("# a comment says nothing else\nlr: 1\n".replace("1\n", "1.0\n"))
        run(config, processes)
        named.write_text("lr: 2.0\n")
        with pytest.raises(UserError, match="a config that pretrain names says something else"):
            run(config, processes)
        shutil.rmtree(tmp_path / "sweep")
        config.write_text(config.read_text().replace(f"{option} ", ""))
        named.write_text("lr: 1.0\n")


def test_only_some_values_of_the_grid(config, run, fake):
    processes = fake()
    sweep, _ = run(config, processes, only={"objective": ["joint"], "seed": ["1"]})
    assert [trial.name for trial in sweep.trials() if State.read(trial).values] == ["seed=1,objective=joint"]
    run(config, processes)
    assert len(processes.of("probe")) == 4
    assert chosen(sweep, ["objective=joint,scratch", "seed=0"]) == {"objective": ["joint", "scratch"], "seed": ["0"]}
    for wrong in ("objective=none", "objective", "lr=1"):
        with pytest.raises(UserError, match=rf"--only {wrong}: the grid has seed=0,1; objective=scratch,joint"):
            chosen(sweep, [wrong])


def test_a_trial_that_another_process_has_is_left_to_it(config, run, fake):
    sweep = read_sweep(config)
    folder = sweep.trials()[2].folder
    folder.mkdir(parents=True)
    processes = fake()
    with held(folder):
        run(config, processes)
    assert len(processes.of("probe")) == 3
    run(config, processes)
    assert len(processes.of("probe")) == 4


def test_a_failed_set_up_says_why(config, run, fake):
    def fail(folder, words):
        with open(folder / "people.log", "a") as file:
            print("s2kit: error: no room on the disk", file=file)
        return 1

    with pytest.raises(UserError, match="the set-up people failed: no room on the disk"):
        run(config, fake(data=fail))


def test_without_optuna_one_line_says_what_to_install(config, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["sweep", "--config", str(config)]) == 1
    assert (
        'sweep needs the package optuna, which is not installed: pip install "s2kit[sweep]"' in capsys.readouterr().err
    )


# ---------------------------------------------------------------------------------------------------- processes


def test_a_command_runs_in_a_process_of_its_own(tmp_path, run):
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


def test_a_sweep_that_is_stopped_stops_its_steps_first(tmp_path):
    inner, outer = tmp_path / "inner.yaml", tmp_path / "outer.yaml"
    inner.write_text(NESTED.format(name="inner", folder=tmp_path / "inner", command="--version"))
    outer.write_text(NESTED.format(name="outer", folder=tmp_path / "outer", command=f"sweep --config {inner}"))
    (trial,) = read_sweep(outer).trials()
    (tmp_path / "inner").mkdir()
    with held(tmp_path / "inner"):  # so the step waits
        sweep = subprocess.Popen([sys.executable, "-m", "s2kit", "sweep", "--config", str(outer)])
        try:
            log = trial.folder / "only.log"
            wait_for(lambda: log.is_file() and "waiting" in log.read_text())
            sweep.terminate()
            assert sweep.wait(60) == 130
        finally:
            sweep.kill()
        assert can_hold(trial.folder) and log.read_text().endswith("s2kit: interrupted\n")
    state = State.read(trial)
    assert state.status == "begun" and state.seconds["only"] > 0


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


def test_flops_of_a_step_are_those_of_a_real_one(experiments):
    """A pretraining's step with all views and the teacher, and a task's, under torch's own counter."""
    words = ["fit", "--config", str(experiments / "pretrain.yaml"), "--data.batch_size=2"]
    small = {"patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 2, "mlp_dim": 64}
    options = {"image_size": (64, 48), "contrast": 0.4, "local_views": 3}
    words += [f"--model.{name}={json.dumps(value)}" for name, value in {**options, "backbone": small}.items()]
    words += ['--model.decoder={"dim": 32, "depth": 1, "num_heads": 2, "mlp_dim": 64}']
    words += ['--model.head={"hidden_dim": 64, "bottleneck_dim": 16, "prototypes": 256}']
    task = Pretraining(
        arch="sapiens2_nano",
        backbone=small,
        decoder={"dim": 32, "depth": 1, "num_heads": 2, "mlp_dim": 64},
        head={"hidden_dim": 64, "bottleneck_dim": 16, "prototypes": 256},
        **options,
    )
    batch = {
        "key": ["a", "b"],
        "image": torch.zeros(2, 3, 64, 48, dtype=torch.uint8),
        "size": torch.tensor([[64, 48]] * 2),
        "seed": [0, 1],
    }
    with FlopCounterMode(display=False) as counter:
        task.train().training_losses(task.draw_views(batch, training=True))["loss"].backward()
    assert step_flops(words) == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert step_flops([*words, "--trainer.accumulate_grad_batches=3"]) == 3 * step_flops(words)
    normals = ["fit", "--config", str(experiments / "normals.yaml")]
    assert step_flops([*normals, "--data.batch_size=6"]) == 3 * step_flops([*normals, "--data.batch_size=2"])
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
