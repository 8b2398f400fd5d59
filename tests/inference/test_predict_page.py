"""The examples of docs/predict.md: commands that the parser takes, Python that runs."""

import re
import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from s2kit import cli
from s2kit.tools import predict

PAGE = (Path(__file__).parents[2] / "docs" / "predict.md").read_text()
COMMANDS = [
    shlex.split(line, comments=True)[3:]
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S)
    for line in block.replace("\\\n", " ").splitlines()
]
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_the_page_has_examples():
    assert len(COMMANDS) >= 6 and len(PROGRAMS) == 2


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words)[:60])
def test_commands_are_understood(words):
    assert words[0] == "predict"
    if cli.is_lightning(words[1:]):
        assert Path(__file__).parents[2].joinpath(words[words.index("--config") + 1]).is_file()
        return
    options = predict._parser().parse_args(words[1:])
    assert options.inputs and options.weights and str(options.out) == "results"


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_run(program, models, tmp_path, monkeypatch, capsys):
    shutil.copytree(models["normals"], tmp_path / "runs" / "normals" / "version_0")
    (tmp_path / "FOLDER").mkdir()
    for name in ("a.jpg", "b.png", "FOLDER/c.jpg"):
        cv2.imwrite(str(tmp_path / name), np.zeros((50, 40, 3), np.uint8))
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(compile(program, "docs/predict.md", "exec"), found)
    if "better" in found:
        assert found["first"].shape == found["better"].shape == (50, 40, 3)
    else:
        assert capsys.readouterr().out == "c (50, 40, 3)\n"
