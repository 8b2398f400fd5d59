"""A sweep whose commands are not run."""

import json
import shlex
from pathlib import Path

import pytest

from s2kit.sweeps.compute import Budget
from s2kit.sweeps.config import read_sweep
from s2kit.sweeps.processes import Processes
from s2kit.sweeps.runner import Runner

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
def sweep_text() -> str:
    """The YAML, to be formatted with its folder."""
    return SWEEP


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


@pytest.fixture
def fake():
    """The class of processes that run nothing."""
    return Fake


@pytest.fixture
def run():
    """Runs a sweep with given processes; returns it and what was said."""
    return run_sweep


def run_sweep(config, processes, **options):
    sweep = read_sweep(config)
    lines = []
    limit = options.pop("limit", None)
    runner = Runner(sweep, Budget(sweep, lambda words: 1e4), processes, say=lines.append, **options)
    runner.run(limit)
    return sweep, lines
