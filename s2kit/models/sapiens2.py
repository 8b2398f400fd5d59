"""The Sapiens2 backbone and its table of sizes (spec 1). State-dict keys are the official ones."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from s2kit.models.layers import NORM_EPS, Block, init_weights
from s2kit.models.rope import ROPE_DTYPES, RotaryEmbedding, RotaryTables
from s2kit.models.window_tokenizer import WindowTokenizer

CHECKPOINTING = ("none", "full")


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
        checkpointing: "full" recomputes each block in the backward pass, "none" keeps the activations.
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


class BackboneOutput(NamedTuple):
    """What `Sapiens2.forward` returns, after the final norm.

    Attributes:
        cls: class token, (B, D).
        registers: storage tokens, (B, 8, D).
        patches: feature map, (B, D, h, w), a view with the channels last in memory.
    """

    cls: Tensor
    registers: Tensor
    patches: Tensor


class VisibleOutput(NamedTuple):
    """What `Sapiens2.forward_visible` returns, after the final norm: cls (B, D), tokens (B, K, D)."""

    cls: Tensor
    tokens: Tensor


class Sapiens2(nn.Module):
    """Sapiens2 vision transformer.

    Images are float (B, 3, H, W), RGB, normalised with the ImageNet mean and standard deviation; H and W are
    multiples of the patch size (of patch x window with the window tokenizer), else ValueError. The token grid is
    h x w = H / stride x W / stride, row-major.

    Args:
        config: the sizes; `create_backbone` makes it from a name.
    """

    def __init__(self, config: Sapiens2Config) -> None:
        super().__init__()
        self.config = config
        dim = config.embed_dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.storage_tokens = nn.Parameter(torch.zeros(1, config.num_registers, dim))
        self.patch_embed = nn.Module()
        self.patch_embed.projection = nn.Conv2d(config.in_channels, dim, config.patch_size, config.patch_size)
        self.rope_embed = RotaryEmbedding(
            dim // config.num_heads,
            config.rope_dtype,
            config.rope_base,
            config.rope_min_period,
            config.rope_max_period,
            config.rope_normalize,
            config.rope_shift,
            config.rope_jitter,
            config.rope_rescale,
        )
        self.tokenizer: WindowTokenizer | None = None
        if config.window_tokenizer_depth is not None:
            self.tokenizer = WindowTokenizer(
                dim, config.window_tokenizer_depth, config.num_heads, config.mlp_dim, config.window_size
            )
        self.blocks = nn.ModuleList(
            Block(
                dim,
                config.num_heads,
                config.mlp_dim,
                config.kv_heads(i),
                layer_scale_init=config.layer_scale_init,
                drop_path=config.drop_path * i / max(1, config.depth - 1),
            )
            for i in range(config.depth)
        )
        self.ln1 = nn.RMSNorm(dim, eps=NORM_EPS)
        self.reset_parameters()
        self._freeze()

    @property
    def embed_dim(self) -> int:
        return self.config.embed_dim

    @property
    def num_prefix(self) -> int:
        """Tokens before the patches: one class token and the storage tokens."""
        return 1 + self.config.num_registers

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """Token grid (h, w) of an image of this size; ValueError if it does not divide."""
        self.config.check_size(height, width)
        return height // self.config.stride, width // self.config.stride

    def reset_parameters(self) -> None:
        """The official initialisation (spec 1.7), also of memory that `to_empty` left unfilled."""
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.storage_tokens, std=0.02)
        if self.tokenizer is not None:
            self.tokenizer.reset_parameters()
        self.apply(init_weights)

    def _frozen_modules(self) -> list[nn.Module]:
        stages = self.config.frozen_stages
        if stages < 1:
            return []
        modules = [self.patch_embed, *self.blocks[:stages]]
        if self.tokenizer is not None:
            modules.append(self.tokenizer)
        if stages == self.config.depth:
            modules.append(self.ln1)
        return modules

    def _freeze(self) -> None:
        modules = self._frozen_modules()
        for module in modules:
            module.requires_grad_(False)
        if modules:
            self.cls_token.requires_grad_(False)
            self.storage_tokens.requires_grad_(False)

    def train(self, mode: bool = True) -> Sapiens2:
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _check_image(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.config.in_channels:
            raise ValueError(f"expected images of shape (B, {self.config.in_channels}, H, W), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(
                f"expected float images normalised with the ImageNet mean and standard deviation, got {x.dtype}"
            )
        self.config.check_size(x.shape[2], x.shape[3])

    def _embed(self, x: Tensor) -> tuple[Tensor, int, int]:
        """Patch (or window) tokens (B, h * w, D), h and w."""
        self._check_image(x)
        x = self.patch_embed.projection(x)
        if self.tokenizer is not None:
            x = self.tokenizer(x)
        return x.flatten(2).transpose(1, 2), x.shape[2], x.shape[3]

    def _with_prefix(self, patches: Tensor) -> Tensor:
        batch = patches.shape[0]
        prefix = (self.cls_token.expand(batch, -1, -1), self.storage_tokens.expand(batch, -1, -1))
        return torch.cat([*prefix, patches], dim=1)

    def _run_block(self, index: int, x: Tensor, rope: RotaryTables) -> Tensor:
        block = self.blocks[index]
        frozen = index < self.config.frozen_stages
        if self.config.checkpointing == "full" and self.training and torch.is_grad_enabled() and not frozen:
            return checkpoint(block, x, rope, use_reentrant=False)
        return block(x, rope)

    def _feature_map(self, x: Tensor, height: int, width: int) -> Tensor:
        patches = x[:, self.num_prefix :]
        return patches.reshape(x.shape[0], height, width, -1).permute(0, 3, 1, 2)

    def _encode(self, x: Tensor) -> tuple[Tensor, int, int]:
        tokens, height, width = self._embed(x)
        rope = self.rope_embed(height, width, self.num_prefix, tokens.device)
        tokens = self._with_prefix(tokens)
        for index in range(len(self.blocks)):
            tokens = self._run_block(index, tokens, rope)
        return self.ln1(tokens), height, width

    def forward(self, x: Tensor) -> BackboneOutput:
        """Images (B, 3, H, W) -> class token, registers and feature map, after the final norm."""
        tokens, height, width = self._encode(x)
        return BackboneOutput(tokens[:, 0], tokens[:, 1 : self.num_prefix], self._feature_map(tokens, height, width))

    def forward_tokens(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> all tokens (B, 9 + h * w, D): class, storage, patches (the release's "raw")."""
        return self._encode(x)[0]

    def intermediate(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Feature maps (B, D, h, w) after the blocks `layers`, in the order asked; -1 is the last block.

        As in the release, the final norm is applied after the last block and to no other. Blocks after the last
        one asked for do not run. Raises IndexError for a block that is not there.
        """
        depth = len(self.blocks)
        wrong = [layer for layer in layers if not -depth <= layer < depth]
        if wrong or not len(layers):
            raise IndexError(
                f"layers must name blocks from {-depth} to {depth - 1}, got {list(layers)} for {self.config.arch}"
            )
        wanted = [layer % depth for layer in layers]
        tokens, height, width = self._embed(x)
        rope = self.rope_embed(height, width, self.num_prefix, tokens.device)
        tokens = self._with_prefix(tokens)
        maps = {}
        for index in range(max(wanted) + 1):
            tokens = self._run_block(index, tokens, rope)
            if index in wanted:
                output = self.ln1(tokens) if index == depth - 1 else tokens
                maps[index] = self._feature_map(output, height, width)
        return [maps[layer] for layer in wanted]

    def forward_visible(self, x: Tensor, keep: Tensor) -> VisibleOutput:
        """Encodes a subset of the patches, each rotated by its true position, as masked pretraining does.

        With the window tokenizer the subset is taken after the windows, so that nothing leaks across masked
        regions (paper section 1).

        Args:
            x: images (B, 3, H, W).
            keep: patch indices (B, K), int64, row-major in the token grid, each from 0 to h * w - 1.

        Returns:
            The class token (B, D) and the K visible tokens (B, K, D) in the order of `keep`.
        """
        tokens, height, width = self._embed(x)
        if keep.ndim != 2 or keep.shape[0] != tokens.shape[0] or keep.dtype != torch.int64:
            raise ValueError(
                f"keep must be int64 of shape (B, K) with B = {tokens.shape[0]}, got {keep.dtype} of shape "
                f"{tuple(keep.shape)}"
            )
        rope = self.rope_embed(height, width, self.num_prefix, tokens.device)
        tokens = tokens.gather(1, keep[..., None].expand(-1, -1, tokens.shape[2]))
        tokens = self._with_prefix(tokens)
        prefix = torch.arange(self.num_prefix, device=keep.device).expand(keep.shape[0], -1)
        rows = torch.cat([prefix, keep + self.num_prefix], dim=1)
        rope = RotaryTables(rope.cos[rows], rope.sin[rows])
        for index in range(len(self.blocks)):
            tokens = self._run_block(index, tokens, rope)
        tokens = self.ln1(tokens)
        return VisibleOutput(tokens[:, 0], tokens[:, self.num_prefix :])


def list_backbones() -> list[str]:
    """Names that `create_backbone` knows."""
    return list(SAPIENS2)


def backbone_config(name: str, image_size: tuple[int, int] | None = None, **overrides) -> Sapiens2Config:
    """The config of a named size with some fields replaced; see `create_backbone`."""
    if name not in SAPIENS2:
        close = difflib.get_close_matches(name, SAPIENS2, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"unknown backbone {name!r}{hint}; known: {', '.join(SAPIENS2)}")
    known = [field.name for field in fields(Sapiens2Config) if field.name != "arch"]
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        raise ValueError(
            f"unknown field{'s' * (len(unknown) > 1)} {', '.join(unknown)} for {name}; fields: {', '.join(known)}"
        )
    if image_size is not None:
        overrides["image_size"] = tuple(image_size)
    return replace(SAPIENS2[name], **overrides)


def create_backbone(name: str, image_size: tuple[int, int] | None = None, **overrides) -> Sapiens2:
    """Makes a Sapiens2 backbone with random weights.

    Args:
        name: a size of `list_backbones()`, such as "sapiens2_1b".
        image_size: (height, width) the model is meant for; None is the size's own, (1024, 768) for most. It must
            be a multiple of the patch size.
        overrides: any other field of `Sapiens2Config`.

    Raises:
        ValueError: an unknown name or field (the message lists the right ones), or a value that cannot be.
    """
    return Sapiens2(backbone_config(name, image_size, **overrides))
