"""The fields of a Sapiens2 backbone and the table of sizes (spec 1.1)."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields, replace

from s2kit.models.recompute import CHECKPOINTING
from s2kit.models.rope import ROPE_DTYPES


@dataclass(frozen=True)
class Sapiens2Config:
    """Every number that shapes a Sapiens2 backbone.

    Attributes:
        arch: name in the table of sizes.
        embed_dim: channels D of a token.
        depth: number of blocks L.
        num_heads: query heads.
        mlp_dim: hidden channels of each branch of the feed-forward layer.
        num_kv_heads: key-value heads of the grouped blocks; None is half the query heads.
        full_attention_ends: the first and the last so many blocks have a key-value head for each query head.
        window_tokenizer_depth: blocks of the 4K variant's window tokenizer; None is no tokenizer.
        window_size: patches along the side of a tokenizer's window.
        image_size: (height, width) the model is meant for; others work too.
        patch_size: pixels along the side of a patch.
        in_channels: image channels.
        num_registers: storage tokens beside the class token.
        drop_path: stochastic-depth rate of the last block; it grows linearly from 0 at the first.
        layer_scale_init: first value of the factors on the attention branch.
        rope_dtype, rope_base, rope_min_period, rope_max_period, rope_normalize, rope_shift, rope_jitter,
        rope_rescale: see `RotaryEmbedding`.
        checkpointing: what the backward pass computes again: nothing ("none"), each block ("full"), or what lies
            between its matrix products and attention ("selective"); see `recompute`.
        compile: compile each block with `torch.compile` for static shapes.
        frozen_stages: the embeddings and the first so many blocks never train; 0 or -1 freezes nothing.
    """

    arch: str
    embed_dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    num_kv_heads: int | None = None
    full_attention_ends: int = 8
    window_tokenizer_depth: int | None = None
    window_size: int = 4
    image_size: tuple[int, int] = (1024, 768)
    patch_size: int = 16
    in_channels: int = 3
    num_registers: int = 8
    drop_path: float = 0.0
    layer_scale_init: float = 1e-4
    rope_dtype: str = "bfloat16"
    rope_base: float | None = 100.0
    rope_min_period: float | None = None
    rope_max_period: float | None = None
    rope_normalize: str = "separate"
    rope_shift: float | None = None
    rope_jitter: float | None = None
    rope_rescale: float | None = None
    checkpointing: str = "none"
    compile: bool = False
    frozen_stages: int = 0

    def __post_init__(self) -> None:
        for name in ("embed_dim", "depth", "num_heads", "mlp_dim", "patch_size", "in_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.embed_dim % (4 * self.num_heads):
            raise ValueError(
                f"embed_dim must be a multiple of 4 x num_heads = {4 * self.num_heads}, got {self.embed_dim}"
            )
        if any(self.kv_heads(i) < 1 or self.num_heads % self.kv_heads(i) for i in range(self.depth)):
            raise ValueError(
                f"num_kv_heads must divide num_heads = {self.num_heads}, got {self.num_kv_heads} (None is half of "
                "num_heads); full_attention_ends >= depth / 2 leaves no grouped block"
            )
        if self.rope_dtype not in ROPE_DTYPES:
            raise ValueError(f"rope_dtype must be one of {sorted(ROPE_DTYPES)}, got {self.rope_dtype!r}")
        if self.checkpointing not in CHECKPOINTING:
            raise ValueError(f"checkpointing must be one of {CHECKPOINTING}, got {self.checkpointing!r}")
        if not 0.0 <= self.drop_path < 1.0:
            raise ValueError(f"drop_path must be in [0, 1), got {self.drop_path}")
        if not -1 <= self.frozen_stages <= self.depth:
            raise ValueError(f"frozen_stages must be from 0 to depth = {self.depth}, got {self.frozen_stages}")
        object.__setattr__(self, "image_size", tuple(self.image_size))
        self.check_size(*self.image_size)

    def kv_heads(self, layer: int) -> int:
        """Key-value heads of a block: all heads near both ends, fewer in between (spec 1.1)."""
        if layer < self.full_attention_ends or layer >= self.depth - self.full_attention_ends:
            return self.num_heads
        return self.num_heads // 2 if self.num_kv_heads is None else self.num_kv_heads

    @property
    def stride(self) -> int:
        """Pixels along the side of a token."""
        return self.patch_size * (1 if self.window_tokenizer_depth is None else self.window_size)

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError if an image of this size does not divide into tokens."""
        if height < 1 or width < 1 or height % self.stride or width % self.stride:
            what = f"the patch size {self.patch_size}"
            if self.window_tokenizer_depth is not None:
                what = f"patch size x window = {self.patch_size} x {self.window_size} = {self.stride}"
            near = tuple(max(1, round(side / self.stride)) * self.stride for side in (height, width))
            raise ValueError(
                f"image height and width must be multiples of {what}, got {height} x {width} (nearest: {near[0]} x "
                f"{near[1]})"
            )


SAPIENS2 = {
    config.arch: config
    for config in (
        Sapiens2Config("sapiens2_0.1b", embed_dim=768, depth=12, num_heads=12, mlp_dim=3072),
        Sapiens2Config("sapiens2_0.4b", embed_dim=1024, depth=24, num_heads=16, mlp_dim=4096),
        Sapiens2Config("sapiens2_0.8b", embed_dim=1280, depth=32, num_heads=16, mlp_dim=5120),
        Sapiens2Config("sapiens2_1b", embed_dim=1536, depth=40, num_heads=24, mlp_dim=6144),
        Sapiens2Config("sapiens2_5b", embed_dim=2432, depth=56, num_heads=32, mlp_dim=9728),
        Sapiens2Config(
            "sapiens2_1b_4k",
            embed_dim=1536,
            depth=40,
            num_heads=24,
            mlp_dim=6144,
            window_tokenizer_depth=4,
            image_size=(4096, 3072),
        ),
        # Ours, for CPUs and tests; no published weights to match, so float32 RoPE, and attention that counts from
        # the first of its few steps.
        Sapiens2Config(
            "sapiens2_nano",
            embed_dim=192,
            depth=8,
            num_heads=3,
            mlp_dim=768,
            image_size=(256, 192),
            layer_scale_init=1.0,
            rope_dtype="float32",
        ),
    )
}


def list_backbones() -> list[str]:
    """Names that `create_backbone` knows."""
    return list(SAPIENS2)


def backbone_config(name: str, image_size: tuple[int, int] | None = None, **overrides) -> Sapiens2Config:
    """The config of a named size with some fields replaced; see `create_backbone`."""
    if name not in SAPIENS2:
        whole = f"sapiens2_{name}"
        close = [whole] if whole in SAPIENS2 else difflib.get_close_matches(name, SAPIENS2, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"unknown backbone {name!r}{hint}; known: {', '.join(SAPIENS2)}, and timm/<name>")
    known = [field.name for field in fields(Sapiens2Config) if field.name != "arch"]
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        raise ValueError(
            f"unknown field{'s' * (len(unknown) > 1)} {', '.join(unknown)} for {name}; fields: {', '.join(known)}"
        )
    if image_size is not None:
        overrides["image_size"] = tuple(image_size)
    return replace(SAPIENS2[name], **overrides)
