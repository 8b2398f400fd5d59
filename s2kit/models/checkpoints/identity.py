"""What a state dict is, from its names and shapes alone: the backbone's size, the head's task and channels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from s2kit.models.rope import RotaryEmbedding
from s2kit.models.sapiens2 import SAPIENS2, Sapiens2Config

#: The last layer of each published head, which tells the task of a file.
TASK_OF_LAYER = {
    "conv_pose": "pose",
    "conv_seg": "segmentation",
    "conv_normal": "normals",
    "conv_pointmap": "pointmap",
    "conv_albedo": "albedo",
    "conv_matting": "matting",
}
LAYER_OF_TASK = {task: layer for layer, task in TASK_OF_LAYER.items()}
#: Fields that make a size what it is; the others may differ within a size.
_DEFINING = ("embed_dim", "depth", "num_heads", "mlp_dim", "window_tokenizer_depth")


@dataclass(frozen=True)
class Identity:
    """A Sapiens2 backbone as its shapes tell it.

    Attributes:
        arch: name in the table of sizes: the size itself, or ``sapiens2_nano`` for a size of the user's own.
        overrides: fields that differ from that size's.
        known: whether the size is one of the table, so that only lesser fields differ.
    """

    arch: str
    overrides: dict[str, Any]
    known: bool

    def config(self, image_size: tuple[int, int] | None = None, **more: Any) -> Sapiens2Config:
        """Return the backbone's config; see `s2kit.models.backbone_config`."""
        from s2kit.models.sapiens2 import backbone_config

        return backbone_config(self.arch, image_size, **{**self.overrides, **more})

    def __str__(self) -> str:
        own = ", ".join(f"{name} {value}" for name, value in self.overrides.items())
        if self.known:
            return f"{self.arch} with {own}" if own else self.arch
        return f"a size of its own ({own})"


def task_of(state: Mapping[str, Any]) -> str | None:
    """Return the task whose head is in ``state``, by the name of its last layer; None for a backbone's file."""
    for name in state:
        for layer, task in TASK_OF_LAYER.items():
            if name.startswith(f"decode_head.{layer}."):
                return task
    return None


def identify(state: Mapping[str, Tensor]) -> Identity | None:
    """Return what backbone is in ``state`` (official names, bare or under ``backbone.``; values may be on meta).

    None if it is no complete Sapiens2 backbone.
    """
    prefix = "backbone." if "backbone.cls_token" in state else ""
    try:
        found, kv_heads = _measure(state, prefix)
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        return None

    def differing(config: Sapiens2Config) -> dict[str, Any]:
        differ = {name: value for name, value in found.items() if getattr(config, name) != value}
        same_depth = config.depth == found["depth"] and config.num_heads == found["num_heads"]
        if not same_depth or kv_heads != [config.kv_heads(i) for i in range(config.depth)]:
            differ.update(_grouping(kv_heads, found["num_heads"], config))
        return differ

    for arch, config in SAPIENS2.items():
        differ = differing(config)
        if not any(name in differ for name in _DEFINING):
            return Identity(arch, differ, known=True)
    return Identity("sapiens2_nano", differing(SAPIENS2["sapiens2_nano"]), known=False)


def _measure(state: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Any], list[int]]:
    """Return the fields that shapes tell, and the key-value heads of each block."""
    shape = {name[len(prefix) :]: value.shape for name, value in state.items() if name.startswith(prefix)}
    dim, channels, patch, _ = shape["patch_embed.projection.weight"]
    head_dim = shape["blocks.0.attn.q_norm.weight"][0]
    depth = _count(shape, "blocks")
    windows = _count(shape, "tokenizer.blocks")
    found = {
        "embed_dim": dim,
        "depth": depth,
        "num_heads": dim // head_dim,
        "mlp_dim": shape["blocks.0.ffn.w12.weight"][0] // 2,
        "window_tokenizer_depth": windows or None,
        "patch_size": patch,
        "in_channels": channels,
        "num_registers": shape["storage_tokens"][1],
    }
    if windows:
        found["window_size"] = round((shape["tokenizer.local_pos_embed"][1] - 1) ** 0.5)
    periods = state.get(prefix + "rope_embed.periods")
    if periods is not None:
        found["rope_dtype"] = _rope_dtype(periods, head_dim)
    return found, [shape[f"blocks.{i}.attn.wk.weight"][0] // head_dim for i in range(depth)]


def _count(names: Mapping[str, Any], prefix: str) -> int:
    numbers = (re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in names)
    return max((int(match[1]) for match in numbers if match), default=-1) + 1


def _grouping(kv_heads: list[int], num_heads: int, config: Sapiens2Config) -> dict[str, Any]:
    """Return the fields of the rule that gives these key-value heads, as far as they differ from ``config``'s."""
    depth = len(kv_heads)
    full = next((i for i, heads in enumerate(kv_heads) if heads != num_heads), depth)
    if full == depth:
        return {} if 2 * config.full_attention_ends >= depth else {"full_attention_ends": depth}
    fields = {"full_attention_ends": full, "num_kv_heads": None if 2 * kv_heads[full] == num_heads else kv_heads[full]}
    return {name: value for name, value in fields.items() if getattr(config, name) != value}


def _rope_dtype(periods: Tensor, head_dim: int) -> str:
    """Return the rule that a file's periods follow; a cast of the file does not hide the release's rounding."""
    if periods.dtype == torch.bfloat16:
        return "bfloat16"
    if periods.is_meta:
        return "float32"
    rounded = RotaryEmbedding(head_dim, "bfloat16").periods.cpu().double()
    return "bfloat16" if torch.equal(periods.double(), rounded) else "float32"


def periods_of(state: Mapping[str, Tensor], rope_dtype: str = "bfloat16", base: float = 100.0) -> Tensor:
    """Return the rotary periods by the rule for a file that leaves them out, (head_dim / 4,)."""
    prefix = "backbone." if "backbone.cls_token" in state else ""
    head_dim = state[prefix + "blocks.0.attn.q_norm.weight"].shape[0]
    return RotaryEmbedding(head_dim, rope_dtype, base).periods


# ---------------------------------------------------------------------------------------------------- heads


def head_shapes(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return the channels of the head in ``state``, or None if there is none.

    Keys: ``task``; ``upsample_channels`` and ``conv_channels``; ``kernels``, the sizes of the upsampling kernels and of
    the convolutions; ``out_channels``; for pointmaps ``scale_channels``, ``scale_inputs``, ``scale_hidden``.
    """
    task = task_of(state)
    if task is None:
        return None
    shape = {name.removeprefix("decode_head."): tuple(value.shape) for name, value in state.items()}

    def layers(pattern: str) -> list[tuple[int, ...]]:
        matches = ((re.fullmatch(pattern + r"\.weight", name), name) for name in shape)
        weights = [(int(match[1]), name) for match, name in matches if match and len(shape[name]) > 1]
        return [shape[name] for _, name in sorted(weights)]

    deconvolutions, shuffles = layers(r"deconv_layers\.(\d+)"), layers(r"upsample_blocks\.(\d+)\.0")
    convolutions = layers(r"conv_layers\.(\d+)")
    ups = deconvolutions or shuffles
    found = {
        "task": task,
        "upsample_channels": [w[1] for w in deconvolutions] or [w[0] // 4 for w in shuffles],
        "conv_channels": [w[0] for w in convolutions],
        "kernels": ([w[-1] for w in ups], [w[-1] for w in convolutions]),
        "out_channels": shape[LAYER_OF_TASK[task] + ".weight"][0],
    }
    if task == "pointmap":
        linear = layers(r"scale_final_layer\.(\d+)")
        found["scale_channels"] = [w[0] for w in layers(r"scale_conv_layers\.(\d+)")]
        found["scale_inputs"] = linear[0][1] if linear else None
        found["scale_hidden"] = [w[0] for w in linear[:-1]]
    return found
