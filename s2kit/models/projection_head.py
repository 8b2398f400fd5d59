"""The head of self-distillation on the class token (DINO, Caron et al., 2021; paper section 1)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class ProjectionHead(nn.Module):
    """A three-layer MLP, its output on the unit sphere, and the likeness to unit prototypes.

    The paper states none of the sizes; these are DINOv3's defaults and our decision.

    Args:
        embed_dim: Channels of the class token.
        hidden_dim: Of the MLP.
        bottleneck_dim: Of its output.
        prototypes: Number of logits.
    """

    def __init__(
        self, embed_dim: int, hidden_dim: int = 2048, bottleneck_dim: int = 256, prototypes: int = 65536
    ) -> None:
        super().__init__()
        if min(hidden_dim, bottleneck_dim, prototypes) < 1:
            raise ValueError(f"sizes must be at least 1: got {hidden_dim=}, {bottleneck_dim=}, {prototypes=}")
        self.mlp = nn.Sequential(
            nn.Linear(embed_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, bottleneck_dim),
        )
        self.prototypes = nn.Linear(bottleneck_dim, prototypes, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, cls: Tensor) -> Tensor:
        """Class tokens (..., D) -> logits (..., P), cosines between -1 and 1."""
        return F.linear(
            F.normalize(self.mlp(cls), dim=-1, eps=1e-6), F.normalize(self.prototypes.weight, dim=-1, eps=1e-6)
        )
