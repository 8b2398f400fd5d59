"""The layout of the Hugging Face `transformers` port, both ways.

The port has two sets of names. Its files (what ``save_pretrained`` writes, and what the hub holds) have the official
names without the rotary periods, beside a ``config.json``. Its modules in memory have names of their own, which also
appear in files that were saved with ``save_original_format=False`` or from ``model.state_dict()``. Both are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from s2kit.models.checkpoints.errors import WeightsError
from s2kit.models.checkpoints.identity import LAYER_OF_TASK, head_shapes, periods_of, task_of
from s2kit.models.sapiens2 import Sapiens2Config

#: The port's class for each task that it has; None is the backbone alone.
CLASSES = {
    None: "Sapiens2Model",
    "pose": "Sapiens2ForPoseEstimation",
    "segmentation": "Sapiens2ForSemanticSegmentation",
    "normals": "Sapiens2ForNormalEstimation",
    "pointmap": "Sapiens2ForPointmapEstimation",
    "matting": "Sapiens2ForImageMatting",
}
_TASKS = {name: task for task, name in CLASSES.items()}
#: Key of config.json for what the port has no field for.
OWN = "s2kit"

_BACKBONE = {
    "cls_token": "embeddings.cls_token",
    "storage_tokens": "embeddings.register_tokens",
    "patch_embed.projection": "embeddings.patch_embeddings",
    "ln1": "norm",
}
_BLOCK = {
    "ln1": "norm1",
    "attn.wq": "attention.q_proj",
    "attn.wk": "attention.k_proj",
    "attn.wv": "attention.v_proj",
    "attn.proj": "attention.o_proj",
    "attn.q_norm": "attention.q_norm",
    "attn.k_norm": "attention.k_norm",
    "ln2": "norm2",
    "ffn.w3": "mlp.down_proj",
}
_GAMMA, _LAMBDA = "attn.gamma.weight", "layer_scale1.lambda1"
_LINEAR = {1: "block1.layers.0", 3: "block2.layers.0", 5: "proj"}


def to_huggingface(
    state: Mapping[str, Tensor], config: Sapiens2Config, module_names: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the entries and the ``config.json`` of the port for a state dict with official names.

    Args:
        state: A task (``backbone.*``, ``decode_head.*``) or a backbone (bare names); values may be on meta.
        config: The backbone's config.
        module_names: Whether to use the port's names in memory, for ``model.load_state_dict``, rather than those of
            its files; the halves of ``ffn.w12`` are views then.

    Raises:
        WeightsError: If the port has no such model: albedo, the window tokenizer, other rotary rules.
    """
    task = task_of(state)
    if task not in CLASSES:
        raise WeightsError(f"the Hugging Face port has no {task} model; it has: {', '.join(filter(None, CLASSES))}")
    if config.window_tokenizer_depth is not None:
        raise WeightsError(f"the Hugging Face port has no window tokenizer, which {config.arch} needs")
    if config.rope_base is None or config.rope_normalize != "separate":
        raise WeightsError(
            "the Hugging Face port has only rotary embeddings with a base and each axis by its own length, not "
            f"rope_base={config.rope_base}, rope_normalize={config.rope_normalize!r}"
        )
    entries = {name: value for name, value in state.items() if not name.endswith("rope_embed.periods")}
    if module_names:
        entries = dict(pair for name, value in entries.items() for pair in _module_entries(name, value))
    return entries, _config_json(state, config, task)


def from_huggingface(state: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """Return the entries of a port's model under their official names, with the rotary periods by the rule.

    Args:
        state: The port's entries, with the names of its files or of its modules.
        config: Its ``config.json``; without it the task is told from the head's shapes.

    Raises:
        WeightsError: If half of a gated layer is missing, or the config's class is unknown.
    """
    config = config or {}
    if any(name.endswith("embeddings.patch_embeddings.weight") for name in state):
        state = _official_entries(state, config)
    return with_periods(dict(state), config.get(OWN, {}).get("rope_dtype", "bfloat16"), config.get("rope_theta", 100.0))


def with_periods(state: dict[str, Tensor], rope_dtype: str = "bfloat16", base: float = 100.0) -> dict[str, Tensor]:
    """Return ``state`` with the rotary periods where the official files have them, if it has none."""
    prefix = "backbone." if "backbone.cls_token" in state else ""
    name, before = prefix + "rope_embed.periods", prefix + "patch_embed.projection.bias"
    if name in state or prefix + "blocks.0.attn.q_norm.weight" not in state:
        return state
    periods = periods_of(state, rope_dtype, base)
    if before not in state:
        return {**state, name: periods}
    filled = {}
    for key, value in state.items():
        filled[key] = value
        if key == before:
            filled[name] = periods
    return filled


# ---------------------------------------------------------------------------------------------------- names


def _module_entries(name: str, value: Tensor) -> list[tuple[str, Tensor]]:
    """Return the entries of the port's module for one official entry."""
    if name.startswith("decode_head."):
        return [(_head_to_module(name), value)]
    prefix = "model." if name.startswith("backbone.") else ""
    name = name.removeprefix("backbone.")
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if block is None:
        stem, _, leaf = name.rpartition(".")
        plain = _BACKBONE.get(name) or (f"{_BACKBONE[stem]}.{leaf}" if stem in _BACKBONE else name)
        return [(prefix + plain, value)]
    layer, rest = f"{prefix}model.layer.{block[1]}.", block[2]
    if rest == _GAMMA:
        return [(layer + _LAMBDA, value)]
    stem, _, leaf = rest.rpartition(".")
    if stem == "ffn.w12":
        gate, up = value.chunk(2)
        return [(f"{layer}mlp.gate_proj.{leaf}", gate), (f"{layer}mlp.up_proj.{leaf}", up)]
    return [(layer + (f"{_BLOCK[stem]}.{leaf}" if stem in _BLOCK else rest), value)]


def _head_to_module(name: str) -> str:
    rules = (
        (r"decode_head\.(?:deconv_layers|upsample_blocks)\.(\d+)(?:\.0)?\.(\w+)", _upsampling_to_module),
        (r"decode_head\.input_conv\.0\.(\w+)", lambda m: f"decode_head.input_conv.convolution.{m[1]}"),
        (r"decode_head\.conv_layers\.(\d+)\.(\w+)", lambda m: _conv_to_module("decode_head", m)),
        (r"decode_head\.scale_conv_layers\.(\d+)\.(\w+)", lambda m: _conv_to_module("scale_head", m)),
        (
            r"decode_head\.scale_final_layer\.([135])\.(\w+)",
            lambda m: f"scale_head.predictor.{_LINEAR[int(m[1])]}.{m[2]}",
        ),
        (r"decode_head\.conv_[a-z]+\.(\w+)", lambda m: f"decode_head.predictor.{m[1]}"),
    )
    for pattern, rename in rules:
        if match := re.fullmatch(pattern, name):
            return rename(match)
    return name


def _upsampling_to_module(match: re.Match) -> str:
    step = 3 if "deconv_layers" in match[0] else 1
    return f"decode_head.upsample_layers.{int(match[1]) // step}.convolution.{match[2]}"


def _conv_to_module(head: str, match: re.Match) -> str:
    return f"{head}.conv_layers.{int(match[1]) // 3}.convolution.{match[2]}"


def _linear_to_module(match: re.Match) -> str:
    return f"scale_head.predictor.{_LINEAR[int(match[1])]}.{match[2]}"


def _official_entries(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the official entries for the port's names in memory."""
    is_task = any(name.startswith("model.embeddings.") for name in state)
    task = _task_of_port(state, config) if is_task else None
    shuffles = any(name.startswith("decode_head.input_conv.") for name in state)
    inner = "model." if is_task else ""
    entries: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith(("decode_head.", "scale_head.")):
            entries[_head_to_official(name, task, shuffles)] = value
        elif not is_task or name.startswith(inner):
            official = _backbone_to_official(name.removeprefix(inner))
            official = f"backbone.{official}" if is_task else official
            if ".mlp.up_proj." in name:
                continue
            if ".mlp.gate_proj." in name:
                other = name.replace("gate_proj", "up_proj")
                if other not in state:
                    raise WeightsError(f"{name} has no other half: {other} is missing")
                value = torch.cat([value, state[other]])
            entries[official] = value
        else:
            entries[name] = value
    lost = [n for n in state if ".mlp.up_proj." in n and n.replace("up_proj", "gate_proj") not in state]
    if lost:
        raise WeightsError(f"{lost[0]} has no other half: {lost[0].replace('up_proj', 'gate_proj')} is missing")
    return official_order(entries)


def _backbone_to_official(name: str) -> str:
    layer = re.fullmatch(r"model\.layer\.(\d+)\.(.+)", name)
    if layer is None:
        for official, own in _BACKBONE.items():
            if name == own or name.startswith(own + "."):
                return official + name[len(own) :]
        return name
    block, rest = f"blocks.{layer[1]}.", layer[2]
    if rest == _LAMBDA:
        return block + _GAMMA
    if match := re.fullmatch(r"mlp\.(?:gate|up)_proj\.(\w+)", rest):
        return f"{block}ffn.w12.{match[1]}"
    for official, own in _BLOCK.items():
        if rest.startswith(own + "."):
            return block + official + rest[len(own) :]
    return block + rest


def _head_to_official(name: str, task: str | None, shuffles: bool) -> str:
    upsampling = "upsample_blocks.{}.0" if shuffles else "deconv_layers.{}"
    numbers = {own: number for number, own in _LINEAR.items()}
    rules = (
        (
            r"decode_head\.upsample_layers\.(\d+)\.convolution\.(\w+)",
            lambda m: f"{upsampling.format(int(m[1]) * (1 if shuffles else 3))}.{m[2]}",
        ),
        (r"decode_head\.input_conv\.convolution\.(\w+)", lambda m: f"input_conv.0.{m[1]}"),
        (r"decode_head\.conv_layers\.(\d+)\.convolution\.(\w+)", lambda m: f"conv_layers.{3 * int(m[1])}.{m[2]}"),
        (r"scale_head\.conv_layers\.(\d+)\.convolution\.(\w+)", lambda m: f"scale_conv_layers.{3 * int(m[1])}.{m[2]}"),
        (r"scale_head\.predictor\.(.+)\.(\w+)", lambda m: f"scale_final_layer.{numbers.get(m[1], m[1])}.{m[2]}"),
        (r"decode_head\.predictor\.(\w+)", lambda m: f"{LAYER_OF_TASK.get(task, 'predictor')}.{m[1]}"),
    )
    for pattern, rename in rules:
        if match := re.fullmatch(pattern, name):
            return "decode_head." + rename(match)
    return name


def _task_of_port(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> str | None:
    """Return the task by the class that the config names, else by the head's parts and outputs."""
    for name in config.get("architectures") or ():
        if name not in _TASKS:
            raise WeightsError(f"config.json names the class {name}, which is not known; known: {', '.join(_TASKS)}")
        return _TASKS[name]
    predictor = state.get("decode_head.predictor.weight")
    if predictor is None:
        return None
    if any(name.startswith("scale_head.") for name in state):
        return "pointmap"
    if any(name.startswith("decode_head.input_conv.") for name in state):
        return "matting" if predictor.shape[0] == 4 else "normals"
    doublings = {name.split(".")[2] for name in state if name.startswith("decode_head.upsample_layers.")}
    return "segmentation" if len(doublings) > 2 else "pose"


_ORDER = ("cls_token", "storage_tokens", "patch_embed", "rope_embed", "tokenizer", "blocks", "ln1")
_ATTENTION = ("wq", "wk", "wv", "q_norm", "k_norm", "proj", "gamma")
_PARTS = ("ln1", *(f"attn.{part}" for part in _ATTENTION), "ln2", "ffn.w12", "ffn.w3")


def official_order(entries: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sort as the official models list themselves: tokens, patch embedding, blocks, final norm; then the rest.

    Containers keep no order, or one of their own: safetensors sorts by name.
    """

    def key(name: str) -> tuple[int, ...]:
        bare = name.removeprefix("backbone.")
        first = bare.split(".")[0]
        if name.startswith("decode_head.") or first not in _ORDER:
            return (len(_ORDER),)
        block = re.match(r"(?:tokenizer\.)?blocks\.(\d+)\.", bare)
        if block is None:
            tokens = ("tokenizer.local_pos_embed", "tokenizer.w_cls")
            number = tokens.index(bare) if bare in tokens else int(not name.endswith("weight"))
            return (_ORDER.index(first), -1, number)
        part = bare[block.end() :].rpartition(".")[0]
        place = _PARTS.index(part) if part in _PARTS else len(_PARTS)
        return (_ORDER.index(first), int(block[1]), place, int(not name.endswith(".weight")))

    return {name: entries[name] for name in sorted(entries, key=key)}


# ---------------------------------------------------------------------------------------------------- config.json


def _config_json(state: Mapping[str, Tensor], config: Sapiens2Config, task: str | None) -> dict[str, Any]:
    head = head_shapes(state)
    outputs = head["out_channels"] if head else 2
    grouped = config.num_heads // 2 if config.num_kv_heads is None else config.num_kv_heads
    biases = ("query", "key", "value", "proj", "mlp")
    return {
        "architectures": [CLASSES[task]],
        "model_type": "sapiens2",
        "dtype": str(state[next(iter(state))].dtype).removeprefix("torch."),
        "patch_size": config.patch_size,
        "image_size": list(config.image_size),
        "num_channels": config.in_channels,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads_per_layer": [config.kv_heads(i) for i in range(config.depth)],
        "num_key_value_attention_heads": grouped,
        "num_first_full_attention_layers": config.full_attention_ends,
        "num_last_full_attention_layers": config.full_attention_ends,
        "num_register_tokens": config.num_registers,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": config.rope_base,
        "layerscale_value": config.layer_scale_init,
        "drop_path_rate": config.drop_path,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "pos_embed_shift": config.rope_shift,
        "pos_embed_jitter": config.rope_jitter,
        "pos_embed_rescale": config.rope_rescale,
        "use_gated_mlp": True,
        "use_qk_norm": True,
        "use_mask_token": False,
        **{f"{name}_bias": True for name in biases},
        "normalize_backbone_outputs": True,
        "reshape_hidden_states": True,
        "semantic_loss_ignore_index": 255,
        "id2label": {str(i): f"LABEL_{i}" for i in range(outputs)},
        "label2id": {f"LABEL_{i}": i for i in range(outputs)},
        "head_config": _head_config(head),
        OWN: {"rope_dtype": config.rope_dtype, "arch": config.arch},
    }


def _head_config(head: dict[str, Any] | None) -> dict[str, Any]:
    found: dict[str, Any] = {"model_type": "sapiens2_head"}
    if head is None:
        return found
    found |= {
        "upsample_out_channels": head["upsample_channels"],
        "upsample_kernel_sizes": head["kernels"][0],
        "use_pixel_shuffle": head["task"] not in ("pose", "segmentation") or None,
        "conv_out_channels": head["conv_channels"],
        "conv_kernel_sizes": head["kernels"][1],
    }
    if head["task"] == "pointmap":
        found |= {
            "scale_conv_out_channels": head["scale_channels"],
            "scale_conv_kernel_sizes": [1] * len(head["scale_channels"]),
            "scale_final_input_size": head["scale_inputs"],
            "scale_final_hidden_sizes": head["scale_hidden"],
        }
    return found
