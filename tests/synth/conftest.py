"""Fixtures for synthetic humans: a stand-in figure, and processes that render it instead of Anny's body."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

STAND_IN = Path(__file__).with_name("stand_in_person.py")
# Python runs a module of this name in every process whose path holds it, so also in rendering processes.
SITE = """
import importlib.abc, importlib.util, sys

class StandIn(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "data_modules.synth.body":
            return importlib.util.spec_from_file_location(name, {path!r})

sys.meta_path.insert(0, StandIn())
"""


@pytest.fixture(scope="session")
def stand_in() -> ModuleType:
    """The module with `sample_person` and `ellipsoid` of the stand-in figure."""
    spec = importlib.util.spec_from_file_location("stand_in_person", STAND_IN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def figure(stand_in: ModuleType):
    """One stand-in figure."""
    return stand_in.sample_person(np.random.default_rng(0))


@pytest.fixture
def stand_in_processes(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rendering processes that are started in this test draw the stand-in figure; returns the folder of the switch."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(SITE.format(path=str(STAND_IN)))
    monkeypatch.syspath_prepend(str(folder))
    return folder
