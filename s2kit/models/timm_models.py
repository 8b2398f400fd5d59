"""Sapiens2 as timm's users expect a model: names in the registry, features, classifier, parameter groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from timm.models import _registry as registry
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from s2kit.models.config import SAPIENS2, backbone_config
from s2kit.models.sapiens2 import Sapiens2

POOLS = ("", "token", "avg", "max", "avgmax")
#: timm's words for fields of `Sapiens2Config`.
TIMM_WORDS = {"img_size": "image_size", "in_chans": "in_channels", "drop_path_rate": "drop_path"}
#: Options of timm's transformers that ask for what Sapiens2 always does: take images of any size that divides.
ALWAYS_SO = ("dynamic_img_size", "strict_img_size")
#: What timm reads beside a model: its input, and where a classifier and the first convolution are.
default_cfgs = {
    name: {
        "input_size": (3, *config.image_size),
        "num_classes": 0,
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "patch_embed.projection",
        "classifier": "head",
        "license": "sapiens2-license",
    }
    for name, config in SAPIENS2.items()
}


class TimmSapiens2(Sapiens2):
    """`Sapiens2` with the methods of timm's vision transformers, and a classifier if asked for.

    Without a classifier the state dict is the official one, so an official file loads as it is.

    Args:
        num_classes: classes of the linear classifier; 0 is none.
        global_pool: what the classifier sees: "token" (the class token), "avg", "max" or "avgmax" of the patches, or
            "" for all tokens.
        drop_rate: dropout before the classifier.
        device, dtype: where and how the parameters are made; None is torch's default.
        img_size: (height, width), or one number for both; None is the size's own.
        options: the other fields of `Sapiens2Config`, `drop_path_rate` and `in_chans` among them under timm's names.
    """

    def __init__(
        self,
        arch: str,
        num_classes: int = 0,
        global_pool: str = "token",
        drop_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        for name in ALWAYS_SO:
            options.pop(name, None)
        for timms, ours in TIMM_WORDS.items():
            if timms in options:
                options[ours] = options.pop(timms)
        if isinstance(options.get("image_size"), int):
            options["image_size"] = (options["image_size"],) * 2
        with torch.device(device if device is not None else torch.get_default_device()):
            super().__init__(backbone_config(arch, **options))
            self.head_drop = nn.Dropout(drop_rate)
            self.head: nn.Module = nn.Identity()
            self.reset_classifier(num_classes, global_pool)
        if dtype is not None:
            self.to(dtype)
        self.num_features = self.head_hidden_size = self.config.embed_dim
        self.num_prefix_tokens = self.num_prefix
        self.num_reg_tokens = self.config.num_registers
        self.feature_info = [
            {"module": f"blocks.{i}", "num_chs": self.config.embed_dim, "reduction": self.config.stride}
            for i in range(self.config.depth)
        ]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter groups for layer-wise learning rates: the embeddings, each block, and, unnamed, what
        comes after the last block and gets the full rate (spec 5.1)."""
        return {"stem": r"^cls_token|^storage_tokens|^patch_embed|^tokenizer", "blocks": r"^blocks\.(\d+)"}

    def no_weight_decay(self) -> set[str]:
        """Parameters of more than one dimension that the release does not decay."""
        return {name for name, _ in self.named_parameters() if "pos_embed" in name}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in the backward pass, or no longer."""
        self.set_checkpointing("full" if enable else "none")

    def set_input_size(self, img_size: tuple[int, int] | int) -> None:
        """Says which image size the model is meant for; it has no position embedding to resize."""
        size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        self.config = replace(self.config, image_size=size)

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier by a fresh one, or by none for 0 classes."""
        if global_pool is not None and global_pool not in POOLS:
            raise ValueError(f"global_pool must be one of {POOLS}, got {global_pool!r}")
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        like = self.cls_token
        self.head = nn.Identity()
        if num_classes > 0:
            self.head = nn.Linear(self.config.embed_dim, num_classes, device=like.device, dtype=like.dtype)
            nn.init.normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> all tokens (B, 9 + h * w, D), after the final norm."""
        return self.forward_tokens(x)

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """Tokens (B, N, D) -> (B, D), or all of them for ""."""
        pool_type = self.global_pool if pool_type is None else pool_type
        patches = x[:, self.num_prefix :]
        if pool_type == "token":
            return x[:, 0]
        if pool_type == "avg":
            return patches.mean(dim=1)
        if pool_type == "max":
            return patches.amax(dim=1)
        return 0.5 * (patches.mean(dim=1) + patches.amax(dim=1)) if pool_type == "avgmax" else x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, N, D) -> logits (B, num_classes), or (B, D) without a classifier or with `pre_logits`."""
        x = self.head_drop(self.pool(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> what `forward_head` gives."""
        return self.forward_head(self.forward_features(x))

    def _taken(self, indices: int | Sequence[int] | None) -> tuple[list[int], int]:
        """Blocks meant by `indices`, counted from the first, and the last of them."""
        depth = len(self.blocks)
        if indices is None or isinstance(indices, int):
            count = depth if indices is None else indices
            taken = list(range(depth - count, depth)) if 0 < count <= depth else []
        else:
            taken = [index % depth for index in indices if -depth <= index < depth]
        if not taken or (not isinstance(indices, int | None) and len(taken) != len(indices)):
            raise IndexError(f"indices must name blocks of {depth}, or how many of the last, got {indices}")
        return taken, max(taken)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> Any:
        """Outputs of several blocks, as timm's transformers give them.

        Args:
            x: images (B, 3, H, W).
            indices: blocks: the last so many, a list (negative counts from the end), or None for all.
            return_prefix_tokens: give (patches, prefix tokens) for each block.
            norm: apply the final norm to each of them.
            stop_early: run no block after the last one asked for.
            output_fmt: "NCHW" for maps (B, D, h, w), "NLC" for tokens (B, h * w, D).
            intermediates_only: leave out the final tokens.
            output_dict: a dict of "image_intermediates", "image_intermediates_prefix", "image_features".
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be NCHW or NLC, got {output_fmt!r}")
        take, last = self._taken(indices)
        tokens, height, width = self._embed(x)
        rope = self.rope_embed(height, width, self.num_prefix, tokens.device)
        tokens = self._with_prefix(tokens)
        kept = []
        for index, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            tokens = block(tokens, rope)
            if index in take:
                kept.append(self.ln1(tokens) if norm else tokens)
        prefix = [value[:, : self.num_prefix] for value in kept]
        if output_fmt == "NCHW":
            maps = [self._feature_map(value, height, width).contiguous() for value in kept]
        else:
            maps = [value[:, self.num_prefix :] for value in kept]
        if output_dict:
            result = {"image_intermediates": maps}
            if return_prefix_tokens:
                result["image_intermediates_prefix"] = prefix
            return result if intermediates_only else {**result, "image_features": self.ln1(tokens)}
        outputs = list(zip(maps, prefix)) if return_prefix_tokens else maps
        return outputs if intermediates_only else (self.ln1(tokens), outputs)

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
    ) -> list[Any]:
        """Outputs of the last `n` blocks, or of the blocks `n`, as DINO's models give them."""
        layout = "NCHW" if reshape else "NLC"
        return self.forward_intermediates(x, n, return_prefix_tokens, norm, output_fmt=layout, intermediates_only=True)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes what the outputs of the blocks `indices` do not need; returns those, counted from the first."""
        take, last = self._taken(indices)
        self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.ln1 = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take


def _create(arch: str, pretrained: bool, **options: Any) -> nn.Module:
    overlay = options.get("pretrained_cfg_overlay") or {}
    if pretrained and not overlay.get("file"):
        raise RuntimeError(
            f"timm has no weights of {arch}: Meta publishes them under the Sapiens2 License, which you accept where "
            f"you fetch them (https://huggingface.co/facebook). Give the file that you fetched: timm.create_model("
            f"'{arch}', checkpoint_path='FILE.safetensors'), or pretrained=True with pretrained_cfg_overlay="
            "{'file': 'FILE.safetensors'}"
        )
    return build_model_with_cfg(
        TimmSapiens2,
        arch,
        pretrained,
        arch=arch,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **options,
    )


def _entrypoint(arch: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        return _create(arch, pretrained, **options)

    create.__name__ = create.__qualname__ = arch
    create.__doc__ = f"Sapiens2 {arch.removeprefix('sapiens2_')}, see `TimmSapiens2` for the options."
    return create


def sapiens2_0(pretrained: bool = False, pretrained_cfg: Any = None, **options: Any) -> nn.Module:
    """The sizes below one billion: timm takes what follows the dot of "sapiens2_0.4b" for the tag of "sapiens2_0"."""
    arch = f"sapiens2_0.{pretrained_cfg}"
    if arch not in SAPIENS2:
        sizes = ", ".join(name for name in SAPIENS2 if name.startswith("sapiens2_0."))
        raise ValueError(
            f"sapiens2_0 goes with one of its sizes ({sizes}) and no pretrained_cfg, got {pretrained_cfg!r}"
        )
    return _create(arch, pretrained, **options)


for _arch in SAPIENS2:
    register_model(_entrypoint(_arch))
register_model(sapiens2_0)
# A name that only completes others is left out of timm's lists, as its deprecated names are.
getattr(registry, "_deprecated_models", {})["sapiens2_0"] = None
