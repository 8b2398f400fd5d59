"""The decoder of masked pretraining: from visible tokens to the pixels of every patch (paper section 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s2kit.models.layers import NORM_EPS, Block, RMSNorm, init_weights
from s2kit.models.rope import RotaryEmbedding


class MAEDecoder(nn.Module):
    """Transformer blocks of the backbone's kind over all patches, the masked ones as one learned token.

    Positions enter as they do in the backbone, by rotation. The paper states 8 layers of 512 channels; heads and the
    kind of block are our decision.

    Args:
        embed_dim: Channels of the backbone's tokens.
        patch_pixels: Pixels of a side of what one token reconstructs.
        dim: Channels of the decoder.
        depth: Blocks.
        num_heads: Heads of a block.
        mlp_dim: Hidden channels of the gated layer; by default 4 ``dim``.
        in_channels: Channels of a pixel.
    """

    def __init__(
        self,
        embed_dim: int,
        patch_pixels: int,
        dim: int = 512,
        depth: int = 8,
        num_heads: int = 16,
        mlp_dim: int | None = None,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if min(depth, num_heads) < 1 or dim % num_heads:
            raise ValueError(f"a decoder needs blocks, and heads that divide dim: got {depth=}, {dim=}, {num_heads=}")
        self.embed = nn.Linear(embed_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.rope_embed = RotaryEmbedding(dim // num_heads, "float32")
        # No LayerScale: it starts deep backbones gently, and would keep these few blocks from attending for long.
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, mlp_dim or 4 * dim, layer_scale_init=None) for _ in range(depth)
        )
        self.norm = RMSNorm(dim, eps=NORM_EPS)
        self.pixels = nn.Linear(dim, patch_pixels**2 * in_channels)
        self.apply(init_weights)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, cls: Tensor, visible: Tensor, keep: Tensor, grid: tuple[int, int]) -> Tensor:
        """Predict all patches.

        Args:
            cls: (B, D), the backbone's class token, which takes part as one more token.
            visible: (B, K, D), its visible tokens.
            keep: int64 (B, K), their row-major places in the grid.
            grid: (h, w) in patches.

        Returns:
            (B, h w, P P C): the pixels of each patch as ``patchify`` lays them out.
        """
        visible = self.embed(visible)
        tokens = self.mask_token.to(visible.dtype).expand(len(visible), grid[0] * grid[1], -1)
        tokens = tokens.scatter(1, keep[..., None].expand(-1, -1, visible.shape[2]), visible)
        tokens = torch.cat([self.embed(cls)[:, None], tokens], dim=1)
        rope = self.rope_embed(*grid, 1, tokens.device)
        for block in self.blocks:
            tokens = block(tokens, rope)
        return self.pixels(self.norm(tokens[:, 1:]))
