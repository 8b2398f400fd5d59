"""Sapiens2 in timm's registry after ``import s2kit``, without importing timm or torch before the user does.

Two ways were considered. Importing timm in ``s2kit/__init__.py`` is the plain one, and makes ``python -m s2kit --help``
wait seconds for torch. The one taken waits for timm's own import: a finder on ``sys.meta_path`` lets the usual finders
find timm, and registers the models when timm has run; if timm is there already, they are registered at once.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _RegisteringLoader(Loader):
    """Loads timm with its own loader, then registers Sapiens2."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        register()


class _TimmFinder(MetaPathFinder):
    """Finds timm as the other finders do."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if name != "timm":
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _RegisteringLoader(spec.loader)
                return spec
        return None


def register() -> None:
    """Put the sizes of Sapiens2 into timm's registry; a timm that does not take them is left as it is."""
    try:
        import_module("s2kit.models.timm_models")  # it registers them
    except Exception as error:  # timm itself must stay usable, whatever its next version changes
        warnings.warn(f"s2kit could not put Sapiens2 into timm's registry: {error}", stacklevel=2)


def install() -> None:
    """Register now if timm is imported, else when it will be."""
    if "timm" in sys.modules:
        register()
    elif not any(isinstance(finder, _TimmFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TimmFinder())
