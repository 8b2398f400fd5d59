"""Two-process runs: stopped, killed, and gone on with another number of processes, against a run that never stopped."""

import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from data_modules.loader import ResumableLoader
from data_modules.samples import TrainingSamples
from data_modules.shards import ShardDataset

sys.path.append(str(Path(__file__).parent))
run = importlib.import_module("resume_run")

SIZES, WEIGHTS = (22, 9), (5, 2)
KILLS = 20


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("sets")
    return [
        {"path": run.write_set(folder / name, size, name), "weight": weight}
        for name, size, weight in zip("ab", SIZES, WEIGHTS)
    ]


def options_of(sources: list[dict], devices: int, steps: int, strategy: str = "ddp", pause: float = 0.0, **data: Any):
    """Return the options of a run: Trainer's, and in ``data`` the data module's."""
    return {
        "max_steps": steps,
        "devices": devices,
        "strategy": strategy if devices > 1 else "auto",
        "limit_val_batches": 0,
        "use_distributed_sampler": True,  # Lightning's default, which must leave the loader's own alone
        "pause": pause,
        "data": {"train": sources, "batch_size": 2, "num_workers": 0, **data},
    }


def start(*runs: tuple[Path, dict[str, Any]]) -> subprocess.Popen:
    """Start runs, one after the other, as a group of processes of their own."""
    for folder, _ in runs:
        folder.mkdir(exist_ok=True)
    with (runs[0][0] / "output.txt").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, str(Path(run.__file__)), json.dumps([(str(folder), options) for folder, options in runs])],
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        )


def finish(process: subprocess.Popen, folder: Path) -> None:
    assert process.wait(240) == 0, (folder / "output.txt").read_text()[-3000:]


def fresh(folder: Path) -> Path:
    """Return the folder without what is in it."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def ends(process: subprocess.Popen, folder: Path) -> bool:
    """Whether a run ends by itself; one that stands still is killed.

    CPython 3.11 now and then locks up in os.fork, in the child, if another thread comes or goes at that moment: a
    loader's process then never answers. No run of this kit can prevent that, and being killed is what is tested here.
    """
    try:
        finish(process, folder)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False
    return True


def lines_of(folder: Path) -> list[dict]:
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def by_step(folder: Path) -> dict[tuple[int, int], dict]:
    """Return the lines by (step, rank); a step that was taken again must have been the same."""
    found: dict[tuple[int, int], dict] = {}
    for line in lines_of(folder):
        assert found.setdefault((line["step"], line["rank"]), line) == line
    return found


def order_of(folder: Path) -> list:
    """Return the samples of a run in the order of their numbers: step by step, in it rank by rank."""
    steps = defaultdict(list)
    for (step, _), line in sorted(by_step(folder).items()):
        steps[step] += line["taken"]
    return [sample for step in sorted(steps) for sample in steps[step]]


def test_two_processes_go_on_as_two_and_as_one(sources, tmp_path):
    """12 steps of 2 x 2 samples; then, after 48 samples, 4 more steps of 2 x 2, or 5 steps of 1 x 3."""
    pair, two, one = tmp_path / "pair", tmp_path / "two", tmp_path / "one"
    first = options_of(sources, 2, 12, "ddp_fork", num_workers=1)
    as_two, as_one = options_of(sources, 2, 16, "ddp_fork"), options_of(sources, 1, 17, batch_size=3)
    later = {"start_from": str(pair / "last.ckpt")}
    finish(start((pair, first), (two, {**as_two, **later}), (one, {**as_one, **later})), pair)

    sets = [ShardDataset(source["path"]) for source in sources]
    samples = TrainingSamples(sets, run.augment, WEIGHTS)
    order = [[item["key"], float(item["draw"][0])] for item in map(samples.__getitem__, range(64))]
    assert order_of(pair) == order[:48]
    assert {(line["step"], line["seen"]) for line in lines_of(pair)} == {(step, 4 * step + 4) for step in range(12)}
    assert order_of(two) == order[48:64]
    assert order_of(one) == order[48:63]
    assert {line["seen"] for line in lines_of(one)} == {51, 54, 57, 60, 63}


@pytest.mark.parametrize(("before", "after"), [((2, 3), (3, 2)), ((4, 1), (1, 5)), ((3, 2), (5, 1))])
def test_simulated_ranks_share_what_remains(before, after):
    """Two passes and a half with one number of ranks and one batch size, then another: each number comes once."""

    def loaders(ranks: int, batch_size: int) -> list[ResumableLoader]:
        return [ResumableLoader(Numbers(), batch_size, IDENTITY, rank, ranks) for rank in range(ranks)]

    first = loaders(*before)
    taken = [taken_by(loader, 2 * len(loader) + len(loader) // 2) for loader in first]
    states = [loader.state_dict() for loader in first]
    assert all(state == states[0] for state in states)
    second = loaders(*after)
    for loader in second:
        loader.load_state_dict(states[0])
    more = [taken_by(loader, len(loader) + 3) for loader in second]
    assert {len(part) for part in more} == {(len(second[0]) + 3) * after[1]}
    numbers = sorted(number for part in taken + more for number in part)
    assert numbers == list(range(len(numbers)))
    assert {loader.samples_seen for loader in second} == {len(numbers)}


class Numbers:
    """A data set whose samples are their numbers."""

    def __len__(self) -> int:
        return 31

    def __getitem__(self, number: int) -> int:
        return number


IDENTITY = {"version": 1, "seed": 0, "block": 8, "samples": [31], "shares": [10_000], "digests": ["a"]}


def taken_by(loader: ResumableLoader, batches: int) -> list[int]:
    """Take batches, in as many passes as it needs."""
    numbers: list[int] = []
    while batches:
        for batch in loader:
            numbers += batch.tolist()
            batches -= 1
            if not batches:
                break
    return numbers


@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times_ends_as_one_that_was_not(sources, tmp_path):
    """Both processes die by SIGKILL at random moments, of training or, every fifth time, of the start."""
    rng = random.Random(0)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    steps = 700
    assert any(ends(start((fresh(whole), options_of(sources, 2, steps, num_workers=1))), whole) for _ in range(3))
    for kill in range(KILLS):
        before = len(lines_of(killed))
        process = start((killed, options_of(sources, 2, steps, pause=0.02, num_workers=1)))
        if kill % 5 < 4:
            limit = time.monotonic() + 120
            while len(lines_of(killed)) == before and time.monotonic() < limit:
                assert process.poll() is None, (killed / "output.txt").read_text()[-3000:]
                time.sleep(0.02)
            time.sleep(rng.uniform(0, 0.8))
        else:
            time.sleep(rng.uniform(0, 5))
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert any(ends(start((killed, options_of(sources, 2, steps, num_workers=1))), killed) for _ in range(3))
    assert len(lines_of(killed)) > len(lines_of(whole)) == 2 * steps  # steps after the last checkpoint came again
    assert by_step(killed) == by_step(whole)
    assert json.loads((killed / "weights.json").read_text()) == json.loads((whole / "weights.json").read_text())
