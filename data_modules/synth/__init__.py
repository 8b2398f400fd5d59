"""Synthetic humans: dressed adult bodies, scenes, and renders with exact labels. See docs/synth.md."""

from typing import Any

__all__ = ["generate"]


def __getattr__(name: str) -> Any:
    # On first use, so that a rendering process does not load what only the packing side needs.
    if name == "generate":
        from data_modules.synth.generator import generate

        return generate
    raise AttributeError(f"module 'data_modules.synth' has no attribute {name!r}; it has {', '.join(__all__)}")
