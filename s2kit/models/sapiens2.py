"""The Sapiens2 backbone and its table of sizes (spec 1). State-dict keys are the official ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from s2kit.models.config import SAPIENS2, Sapiens2Config, backbone_config, list_backbones
from s2kit.models.layers import NORM_EPS, Block, RMSNorm, init_weights
from s2kit.models.recompute import CHECKPOINTING
from s2kit.models.rope import RotaryEmbedding, RotaryTables
from s2kit.models.window_tokenizer import WindowTokenizer

if TYPE_CHECKING:
    from s2kit.models.backbones import TimmBackbone
    from s2kit.models.sapiens1 import Sapiens1

__all__ = [
    "SAPIENS2",
    "BackboneOutput",
    "Sapiens2",
    "Sapiens2Config",
    "VisibleOutput",
    "backbone_config",
    "create_backbone",
    "list_backbones",
]

#: What the names of timm's models begin with.
TIMM_PREFIX = "timm/"
#: And of the first generation's, such as "sapiens_1b".
FIRST_GENERATION_PREFIX = "sapiens_"
#: Compiled variants of a block that torch keeps before it gives up compiling.
RECOMPILE_LIMIT = 64


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
        self.ln1 = RMSNorm(dim, eps=NORM_EPS)
        self.set_checkpointing(config.checkpointing)
        self.reset_parameters()
        self._freeze()
        if config.compile:
            self.compile_blocks()

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

    def set_checkpointing(self, mode: str) -> None:
        """Sets what the backward pass computes again: "none", "full" or "selective" (see `recompute`)."""
        if mode not in CHECKPOINTING:
            raise ValueError(f"checkpointing must be one of {CHECKPOINTING}, got {mode!r}")
        for block in self.blocks:
            block.checkpointing = mode

    def compile_blocks(self) -> None:
        """Compiles each block in place for static shapes; names and state dict stay.

        Blocks of one kind share their code. Each new image or batch size compiles again.
        """
        from torch._dynamo import config as compiler

        # Two kinds of blocks, training and evaluation, several crop sizes: more than the default of eight.
        compiler.recompile_limit = max(compiler.recompile_limit, RECOMPILE_LIMIT)
        tokenizer_blocks = [] if self.tokenizer is None else self.tokenizer.blocks
        for block in (*tokenizer_blocks, *self.blocks):
            block.compile(dynamic=False)

    def __setstate__(self, state: dict) -> None:
        # A copy or an unpickled model comes without compiled code.
        super().__setstate__(state)
        if self.config.compile:
            self.compile_blocks()

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

    def _feature_map(self, x: Tensor, height: int, width: int) -> Tensor:
        patches = x[:, self.num_prefix :]
        return patches.reshape(x.shape[0], height, width, -1).permute(0, 3, 1, 2)

    def _encode(self, x: Tensor) -> tuple[Tensor, int, int]:
        tokens, height, width = self._embed(x)
        rope = self.rope_embed(height, width, self.num_prefix, tokens.device)
        tokens = self._with_prefix(tokens)
        for block in self.blocks:
            tokens = block(tokens, rope)
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
            tokens = self.blocks[index](tokens, rope)
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
        for block in self.blocks:
            tokens = block(tokens, rope)
        tokens = self.ln1(tokens)
        return VisibleOutput(tokens[:, 0], tokens[:, self.num_prefix :])


def create_backbone(
    name: str, image_size: tuple[int, int] | None = None, **overrides
) -> Sapiens2 | TimmBackbone | Sapiens1:
    """Makes a backbone with random weights.

    Args:
        name: a size of `list_backbones()`, such as "sapiens2_1b"; for baselines with the same outputs, "timm/" and the
            name of a vision transformer of timm (`TimmBackbone`), or a first-generation size, such as "sapiens_1b"
            (`Sapiens1`).
        image_size: (height, width) the model is meant for; None is the size's own, (1024, 768) for most. It must
            be a multiple of the patch size.
        overrides: any other field of `Sapiens2Config`; for timm, of `create_timm_backbone`; of `Sapiens1Config`.

    Raises:
        ValueError: an unknown name or field (the message lists the right ones), or a value that cannot be.
    """
    if name.startswith(TIMM_PREFIX):
        from s2kit.models.backbones import create_timm_backbone

        return create_timm_backbone(name, image_size, **overrides)
    if name.startswith(FIRST_GENERATION_PREFIX):
        from s2kit.models.sapiens1 import create_sapiens1

        return create_sapiens1(name, image_size, **overrides)
    return Sapiens2(backbone_config(name, image_size, **overrides))
