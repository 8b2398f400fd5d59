"""What a file's content is: its wrapping, its layout, and the same weights under the official names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from s2kit.models.checkpoints.errors import WeightsError
from s2kit.models.checkpoints.huggingface import from_huggingface, official_order, with_periods

#: Keys under which checkpoints keep a state dict, the one to take first.
WRAPPERS = ("state_dict", "model", "teacher", "module", "student", "model_state_dict")
#: Parts that wrappers of modules put into names: compilation, checkpointing, sharding.
_INSERTED = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
#: For each layout, an entry that every file of it has, and a second one that tells it from the others.
_ANCHORS = {
    "official": ("patch_embed.projection.weight", "blocks.0.attn.wq.weight"),
    "first_generation": ("patch_embed.projection.weight", "layers.0.attn.qkv.weight"),
    "huggingface": ("embeddings.patch_embeddings.weight", "model.layer.0.attention.q_proj.weight"),
}
#: Wrapped copies of a model, the one to take first.
_ROLES = ("teacher", "ema", "model", "student")


@dataclass
class Content:
    """A state dict as its file had it, under the official names.

    Attributes:
        state: official names: ``backbone.*`` and ``decode_head.*``, or a backbone's bare names.
        layout: ``official``, ``huggingface``, ``lightning`` (of this kit), ``first_generation`` or ``unknown``.
        wrapping: what was taken off, from the outside in, such as ``("state_dict", "module.")``.
        set_aside: entries outside of the model that was taken, such as a student's beside a teacher's.
        hyper_parameters: a Lightning checkpoint's.
        config: a Hugging Face model's ``config.json``.
        said: what a Lightning checkpoint of this kit says of itself, ``frame`` and ``weights_from``.
    """

    state: dict[str, Tensor]
    layout: str
    wrapping: tuple[str, ...] = ()
    set_aside: tuple[str, ...] = ()
    hyper_parameters: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    said: dict[str, Any] = field(default_factory=dict)

    @property
    def is_backbone(self) -> bool:
        """Whether there is no head."""
        return not any(name.startswith("decode_head.") for name in self.state)


def interpret(content: Any, source: str, config: Mapping[str, Any] | None = None) -> Content:
    """Find the state dict in what a file holds, and name its entries officially.

    Args:
        content: What `read_file` returned.
        source: The file, for errors.
        config: The ``config.json`` beside it, if it is of a Sapiens2 model.

    Raises:
        WeightsError: If there is no state dict.
    """
    state, wrapping = unwrap(content, source)
    cleaned = {_INSERTED.sub("", name): value for name, value in state.items()}
    layout, outer, inner = _anchor(cleaned)
    if outer or inner:
        wrapping += (outer or inner,)
    kept = {name[len(outer) :]: value for name, value in cleaned.items() if name.startswith(outer)}
    if inner:
        kept = {name.removeprefix(inner): value for name, value in kept.items() if name.startswith(inner)}
    set_aside = tuple(name for name in cleaned if not name.startswith(outer + inner))
    found = Content(kept, layout, wrapping, set_aside, config=dict(config or {}))
    try:
        if layout == "huggingface":
            found.state = from_huggingface(kept, config)
        elif layout == "official":
            without_periods = not any(name.endswith("rope_embed.periods") for name in kept)
            found.state = from_huggingface(kept, config) if config else with_periods(kept)
            found.state = official_order(found.state)
            found.layout = "huggingface" if config and without_periods else "official"
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from error
    if isinstance(content, dict) and "pytorch-lightning_version" in content:
        found.hyper_parameters = _plain(content.get("hyper_parameters"))
        found.said = _plain(content.get("s2kit"))
        if layout == "official" and "arch" in found.hyper_parameters:
            found.layout = "lightning"
    return found


def _plain(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def unwrap(content: Any, source: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the state dict inside a nest of dicts, and the keys that lead to it.

    Raises:
        WeightsError: If there is none.
    """
    path: tuple[str, ...] = ()
    while isinstance(content, Mapping):
        if content and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
            return dict(content), path
        key = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if key is None or len(path) > len(WRAPPERS):
            break
        content, path = content[key], (*path, key)
    if isinstance(content, Mapping):
        keys = ", ".join(repr(key) for key in list(content)[:5])
        what = f"its keys are {keys}{', ...' if len(content) > 5 else ''}" if content else "it is an empty dict"
        what += f" under {'.'.join(path)}" if path else ""
    else:
        what = f"it is a {type(content).__name__}"
    raise WeightsError(f"{source}: holds no state dict: {what}")


def _anchor(state: Mapping[str, Tensor]) -> tuple[str, str, str]:
    """Return the layout, the prefix outside of ``backbone.``, and the prefix of a bare backbone.

    Of several copies the teacher's is taken. At most one of the prefixes is not empty.
    """
    for layout, (first, second) in _ANCHORS.items():
        prefixes = [name[: -len(first)] for name in state if name.endswith(first)]
        prefixes = [prefix for prefix in prefixes if prefix + second in state and prefix[-1:] in ("", ".")]
        if not prefixes:
            continue
        prefix = min(prefixes, key=_rank)
        if layout == "huggingface":
            has_head = any(name.startswith(prefix.removesuffix("model.") + "decode_head.") for name in state)
            outer = prefix.removesuffix("model.") if has_head else prefix
            return layout, outer, ""
        if prefix.endswith("backbone."):
            return layout, prefix.removesuffix("backbone."), ""
        return layout, "", prefix
    return "unknown", "", ""


def _rank(prefix: str) -> tuple[int, int]:
    role = next((number for number, name in enumerate(_ROLES) if name in prefix), len(_ROLES) if prefix else -1)
    return role, len(prefix)
