"""What a backbone sees, as maps to draw: where its class token looks, and how its features tell parts apart."""

import torch
from torch import Tensor, nn

from s2kit.precision import without_autocast

#: Share of the features' values that is cut off at either end before they become colours.
CUT = 0.02


@torch.no_grad()
def cls_attention(backbone: nn.Module, images: Tensor) -> Tensor:
    """Return how much the class token attends to each patch in the last block, the mean over its heads.

    Args:
        backbone: A Sapiens2 backbone.
        images: Normalised (B, 3, H, W).

    Returns:
        float32 (B, h, w), shares of one: with those of the class and storage tokens a row sums to 1.
    """
    rows: list[Tensor] = []

    def look(attention: nn.Module, arguments: tuple) -> None:
        q, k, _ = attention.project(*arguments)
        q, k = q[:, :1].float().transpose(1, 2), k.float().permute(0, 2, 3, 1)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        with without_autocast(q):
            shares = (q @ k / q.shape[-1] ** 0.5).softmax(dim=-1)
        rows.append(shares.mean(dim=1)[:, 0, backbone.num_prefix :])

    # A hook runs where the block's weights are gathered, if they are sharded; compiled blocks would not call it.
    handle = backbone.blocks[-1].attn.register_forward_pre_hook(look)
    try:
        with torch.compiler.set_stance("force_eager"):
            backbone(images)
    finally:
        handle.remove()
    return rows[0].unflatten(1, backbone.grid_size(*images.shape[-2:]))


@torch.no_grad()
def feature_colours(patches: Tensor) -> Tensor:
    """Return features as colours: their three main directions over all patches of the batch as red, green and blue.

    A direction's sign is arbitrary, so it is fixed: each grows from the border of the pictures, which is background in
    pictures of people, to their middle.

    Args:
        patches: Feature maps (B, D, h, w), at least three channels and three patches in all.

    Returns:
        float32 (B, 3, h, w) in 0..1; features that are all equal give 0.5.
    """
    batch, _, height, width = patches.shape
    x = patches.float().permute(0, 2, 3, 1).flatten(0, 2)
    x = x - x.mean(dim=0)
    # The directions of a D x D matrix: its size does not grow with the batch.
    with without_autocast(x):
        directions = torch.linalg.eigh(x.T @ x).eigenvectors[:, -3:].flip(1)
        scores = (x @ directions).unflatten(0, (batch, height, width))
    middle = torch.zeros(height, width, dtype=torch.bool, device=x.device)
    middle[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    sign = (scores[:, middle].mean(dim=(0, 1)) - scores[:, ~middle].mean(dim=(0, 1))).sign()
    scores = scores * torch.where(sign == 0, 1.0, sign)
    flat = scores.flatten(0, 2).sort(dim=0).values
    cut = int(CUT * (len(flat) - 1))
    low, high = flat[cut], flat[len(flat) - 1 - cut]
    spread = (high - low).clamp(min=1e-12)
    colours = torch.where(high - low > 1e-6, (scores - low) / spread, 0.5).clamp(0, 1)
    return colours.permute(0, 3, 1, 2)
