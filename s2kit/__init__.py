"""s2kit: pretrain, fine-tune, evaluate and run Sapiens2 human-centred vision transformers.

``create_backbone("sapiens2_1b", image_size=(1024, 768))`` builds a backbone;
``load_task("normals", "weights.safetensors")`` loads a trained task. Both names are resolved on first use, so that
``import s2kit`` (and ``python -m s2kit --help``) stays quick. timm, imported before or after, lists ``sapiens2_*``.
"""

from importlib import import_module
from typing import Any

from s2kit import timm_hook
from s2kit.version import __version__

__all__ = ["__version__", "create_backbone", "load_task"]

_HOMES = {"create_backbone": "s2kit.models", "load_task": "s2kit.tasks"}

timm_hook.install()


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 's2kit' has no attribute {name!r}; it has {', '.join(__all__)}")
