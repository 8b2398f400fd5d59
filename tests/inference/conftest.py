"""Oracles (``oracles.py``, beside this file) and files of tiny models."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

_SPEC = importlib.util.spec_from_file_location("s2kit_test_oracles", Path(__file__).with_name("oracles.py"))
_ORACLES = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = _ORACLES
_SPEC.loader.exec_module(_ORACLES)


@pytest.fixture(scope="session")
def oracles() -> ModuleType:
    """The module of tasks that know the answer."""
    return _ORACLES


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, oracles: ModuleType) -> dict[str, str]:
    """By task name, the exported folder of a tiny model with random weights."""
    from s2kit.export import export_task
    from s2kit.tasks import TASKS

    folder = tmp_path_factory.mktemp("models")
    for name, kind in TASKS.items():
        export_task(oracles.make(kind), folder / name)
    return {name: str(folder / name) for name in TASKS}
