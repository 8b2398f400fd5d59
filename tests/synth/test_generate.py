import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_modules.shards import ShardDataset
from data_modules.synth import generate, generator
from data_modules.synth.staging import read_staged, staged_path, write_staged
from data_modules.synth.variants import child_environment

SMALL = {"image_size": (48, 36), "samples_per_pixel": 2, "variant": "scalar_rgb", "progress": False}


def digests(folder: Path) -> dict[str, str]:
    """Name -> hash of every file below a folder."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_set_is_the_same_for_any_number_of_workers(stand_in_processes: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(generator, "SAMPLES_PER_SHARD", 2)
    first = generate(tmp_path / "one", 5, workers=1, seed=3, **SMALL)
    generate(tmp_path / "two", 5, workers=2, seed=3, **SMALL)
    assert first == tmp_path / "one" / "manifest.json"
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert not (tmp_path / "one" / ".staging").exists()
    samples = ShardDataset(tmp_path / "one")
    assert [samples[i]["key"] for i in range(5)] == [f"synth_{i:08d}" for i in range(5)]
    assert samples[0]["image"].shape == (48, 36, 3) and samples[0]["keypoints"].shape == (308, 2)
    assert len({samples[i]["image"].tobytes() for i in range(5)}) == 5
    # Sample i does not depend on how many there are.
    generate(tmp_path / "fewer", 3, workers=1, seed=3, **SMALL)
    fewer = ShardDataset(tmp_path / "fewer")
    np.testing.assert_array_equal(fewer[2]["image"], samples[2]["image"])
    # A finished set is returned at once: no process could be started any more.
    monkeypatch.setattr(generator, "Pool", None)
    assert generate(tmp_path / "one", 5, seed=3, **{**SMALL, "variant": "auto"}) == first
    for name, change in (("count", {"count": 6}), ("seed", {"seed": 4}), ("image_size", {"image_size": (48, 48)})):
        with pytest.raises(ValueError, match=f"holds a set with {name} = .*, and {name} = .* is asked for"):
            generate(tmp_path / "one", **{"count": 5, "seed": 3, **SMALL, **change})


def test_an_interrupted_set_is_continued_with_the_same_bytes(stand_in_processes: Path, tmp_path: Path) -> None:
    # What is started in the background of a shell ignores SIGINT, and its children with it.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from data_modules.synth import generate; generate(sys.argv[1], 24, "
        "image_size=(48, 36), samples_per_pixel=2, variant='scalar_rgb', workers=2, progress=False)"
    )
    out = tmp_path / "cut"
    process = subprocess.Popen([sys.executable, "-c", code, str(out)], env=child_environment(), start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(out.glob(".staging/*.sample"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(30) != 0
    staged = sorted(out.glob(".staging/*.sample"))
    assert 2 <= len(staged) < 24 and not (out / "manifest.json").exists()
    written = staged[0].stat().st_mtime_ns
    staged[1].write_bytes(staged[1].read_bytes()[:-5])  # as after a power cut
    with pytest.raises(ValueError, match="seed = 0, and seed = 1"):
        generate(out, 24, seed=1, **SMALL)
    assert staged[0].stat().st_mtime_ns == written
    generate(out, 24, workers=1, **SMALL)
    generate(tmp_path / "whole", 24, workers=2, **SMALL)
    assert digests(out) == digests(tmp_path / "whole")


def test_a_failing_sample_and_a_dying_process_are_reported(tmp_path: Path, monkeypatch) -> None:
    broken = tmp_path / "site"
    broken.mkdir()
    body = "def prepare(): pass\ndef sample_person(rng):\n    "
    hook = (
        "import importlib.abc, importlib.util, sys\n"
        "class Hook(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'data_modules.synth.body':\n"
        f"            return importlib.util.spec_from_file_location(name, {str(broken / 'body.py')!r})\n"
        "sys.meta_path.insert(0, Hook())\n"
    )
    (broken / "sitecustomize.py").write_text(hook)
    monkeypatch.syspath_prepend(str(broken))
    (broken / "body.py").write_text(body + "raise ValueError('no such knee')")
    with pytest.raises(RuntimeError, match="failed at sample 0: no such knee"):
        generate(tmp_path / "a", 2, workers=1, **SMALL)
    (broken / "body.py").write_text(body + "import os; os.write(2, b'out of knees'); os.abort()")
    with pytest.raises(RuntimeError, match=r"died at sample 0 \(signal 6\).*out of knees"):
        generate(tmp_path / "b", 2, workers=1, **SMALL)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"count": 0}, "count must be a whole number from 1"),
        ({"count": 2.5}, "count must be a whole number from 1 .* got 2.5"),
        ({"image_size": (256,)}, r"image_size must be \(height, width\)"),
        ({"image_size": (8, 192)}, "image_size: height must be .* from 32 .* got 8"),
        ({"image_size": (256, 100000)}, "image_size: width .* got 100000"),
        ({"seed": -1}, "seed must be .* got -1"),
        ({"workers": -2}, "workers must be .* got -2"),
        ({"workers": 0}, "workers must be .* got 0"),
        ({"samples_per_pixel": 0}, "samples_per_pixel must be .* got 0"),
        ({"backgrounds": "/nowhere/pictures"}, "backgrounds: /nowhere/pictures is not a folder"),
        ({"variant": "vulkan"}, "variant must be auto.* got 'vulkan'"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_made(tmp_path: Path, change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        generate(**{"out": tmp_path / "out", "count": 4, **SMALL, **change})
    assert not (tmp_path / "out").exists()


def test_folders_that_hold_something_else_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not lose me")
    with pytest.raises(ValueError, match=r"is not empty \(it holds thesis.txt\)"):
        generate(tmp_path, 2, **SMALL)
    (tmp_path / "thesis.txt").unlink()
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(ValueError, match="not the manifest of a set of synthetic humans"):
        generate(tmp_path, 2, **SMALL)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write into .*file"):
        generate(tmp_path / "file", 2, **SMALL)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image"):
        generate(tmp_path / "out", 2, backgrounds=tmp_path / "empty", **SMALL)


def test_own_backgrounds_show_behind_the_person(stand_in_processes: Path, tmp_path: Path) -> None:
    import cv2

    pictures = tmp_path / "pictures" / "nested"
    pictures.mkdir(parents=True)
    cv2.imwrite(str(pictures / "green.PNG"), np.full((60, 80, 3), (0, 255, 0), np.uint8))
    generate(tmp_path / "out", 2, workers=1, backgrounds=tmp_path / "pictures", **SMALL)
    sample = ShardDataset(tmp_path / "out")[0]
    assert sample["meta"]["scene"]["background"] == "image"
    free = sample["alpha"] == 0
    colour = sample["image"][free].mean(axis=0)
    assert colour[1] > 200 and colour[0] < 40 and colour[2] < 40
    (pictures / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="backgrounds"):
        generate(tmp_path / "out", 2, workers=1, backgrounds=tmp_path / "pictures", **SMALL)


def test_staged_samples_are_whole_or_absent(tmp_path: Path) -> None:
    members = {"jpg": b"12", "json": b"{}", "normals.q14.zst": bytes(range(256))}
    write_staged(tmp_path, 7, members)
    assert read_staged(tmp_path, 7) == members and read_staged(tmp_path, 8) is None
    path = staged_path(tmp_path, 7)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert read_staged(tmp_path, 7) is None
