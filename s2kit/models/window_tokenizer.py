"""The 4K variant's window tokenizer: one token from each window of patches (spec 1.9)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from s2kit.models.layers import Block

WINDOWS_PER_CHUNK = 1024


class WindowTokenizer(nn.Module):
    """Runs a small transformer inside each window of patches and keeps its class token.

    Its blocks have full attention and no query-key norm, no LayerScale and no rotary embedding.

    Args:
        dim: channels D.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_dim: hidden channels of the feed-forward layers.
        window_size: patches along each side of a window.
    """

    def __init__(self, dim: int, depth: int, num_heads: int, mlp_dim: int, window_size: int = 4) -> None:
        super().__init__()
        self.window_size = window_size
        self.local_pos_embed = nn.Parameter(torch.zeros(1, window_size**2 + 1, dim))
        self.w_cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, mlp_dim, qk_norm=False, layer_scale_init=None) for _ in range(depth)
        )

    def reset_parameters(self) -> None:
        nn.init.normal_(self.local_pos_embed, std=0.02)
        nn.init.normal_(self.w_cls, std=0.02)

    def _tokens(self, windows: Tensor) -> Tensor:
        x = torch.cat([self.w_cls.expand(windows.shape[0], -1, -1), windows], dim=1) + self.local_pos_embed
        for block in self.blocks:
            x = block(x)
        return x[:, 0]

    def forward(self, patches: Tensor) -> Tensor:
        """Patch embeddings (B, D, h, w) -> window tokens (B, D, h / window, w / window), in the input's dtype.

        h and w must be multiples of the window; the backbone checks the image size before.
        """
        batch, dim, height, width = patches.shape
        size = self.window_size
        rows, columns = height // size, width // size
        windows = patches.reshape(batch, dim, rows, size, columns, size).permute(0, 2, 4, 3, 5, 1)
        windows = windows.reshape(batch * rows * columns, size * size, dim)
        # A 4096 x 3072 image has 3072 windows of 17 tokens: chunks bound the memory and change no number.
        recompute = self.training and torch.is_grad_enabled()
        tokens = [
            checkpoint(self._tokens, chunk, use_reentrant=False) if recompute else self._tokens(chunk)
            for chunk in windows.split(WINDOWS_PER_CHUNK)
        ]
        tokens = torch.cat(tokens).to(patches.dtype)
        return tokens.view(batch, rows, columns, dim).permute(0, 3, 1, 2)
