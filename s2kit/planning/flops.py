"""FLOPs of a training step, counted honestly: 2 per multiply-add, attention included (spec 1.3).

Elementwise work, norms and softmax are left out, as `torch.utils.flop_counter` does: they are bound by memory, not by
arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from torch import nn

from s2kit.models import Sapiens2Config
from s2kit.planning.trace import trace_module


@dataclass(frozen=True)
class Flops:
    """FLOPs per image.

    Attributes:
        forward: of the forward pass.
        backward: of the gradients of weights and inputs; none for what is frozen.
        recomputed: of checkpointed blocks, which the backward pass computes again.
        rescored: of the scores that a fused attention kernel computes again in its own backward pass.
    """

    forward: float
    backward: float = 0.0
    recomputed: float = 0.0
    rescored: float = 0.0

    def __add__(self, other: Flops) -> Flops:
        return Flops(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))

    def __mul__(self, factor: float) -> Flops:
        return Flops(*(getattr(self, part.name) * factor for part in fields(self)))

    @property
    def model(self) -> float:
        """What MFU counts: forward and backward, however they are carried out."""
        return self.forward + self.backward

    @property
    def hardware(self) -> float:
        """All that the device computes; `torch.utils.flop_counter` counts this in a training step."""
        return self.model + self.recomputed + self.rescored


def block_flops(
    tokens: int, dim: int, kv_dim: int, mlp_dim: int, trained: bool = True, checkpointing: str = "none"
) -> Flops:
    """FLOPs of one transformer block on one sequence of `tokens`."""
    linear = 2.0 * tokens * dim * (2 * dim + 2 * kv_dim + 3 * mlp_dim)
    attention = 4.0 * tokens**2 * dim
    if not trained:
        return Flops(linear + attention)
    recomputed = 0.0
    if checkpointing == "full":
        # Nothing in the backward pass needs the block's output, so the last product is not repeated.
        recomputed = linear + attention - 2.0 * tokens * dim * mlp_dim
    return Flops(linear + attention, 2 * (linear + attention), recomputed, attention / 2)


def token_count(config: Sapiens2Config, image_size: tuple[int, int]) -> int:
    """Tokens of an image in the trunk, the class and storage tokens among them."""
    config.check_size(*image_size)
    height, width = (side // config.stride for side in image_size)
    return 1 + config.num_registers + height * width


def _tokenizer_flops(config: Sapiens2Config, patches: int, trained: bool) -> Flops:
    if config.window_tokenizer_depth is None:
        return Flops(0.0)
    tokens = config.window_size**2 + 1
    dims = (tokens, config.embed_dim, config.embed_dim, config.mlp_dim, trained)
    block = block_flops(*dims)
    total = block * config.window_tokenizer_depth
    if trained:
        # The windows are always checkpointed; only the last block's last product is not repeated.
        last = 2.0 * tokens * config.embed_dim * config.mlp_dim
        total += Flops(0.0, 0.0, total.forward - last)
    return total * (patches // config.window_size**2)


def backbone_flops(
    config: Sapiens2Config, image_size: tuple[int, int] | None = None, visible: int | None = None
) -> Flops:
    """FLOPs of a Sapiens2 backbone per image (H, W); by default the config's own size.

    `visible` is the number of patches, or windows, that masked pretraining lets into the trunk; by default all.
    """
    size = config.image_size if image_size is None else image_size
    tokens = token_count(config, size) if visible is None else 1 + config.num_registers + visible
    patches = size[0] * size[1] // config.patch_size**2
    trained = config.frozen_stages < 1
    embed = 2.0 * patches * config.in_channels * config.patch_size**2 * config.embed_dim
    # The image needs no gradient: of the patch embedding only the weights' is computed.
    total = Flops(embed, embed if trained else 0.0) + _tokenizer_flops(config, patches, trained)
    for layer in range(config.depth):
        kv_dim = config.embed_dim // config.num_heads * config.kv_heads(layer)
        total += block_flops(
            tokens, config.embed_dim, kv_dim, config.mlp_dim, layer >= config.frozen_stages, config.checkpointing
        )
    return total


def module_flops(module: nn.Module, shape: tuple[int, ...], of_features: bool = True) -> Flops:
    """FLOPs per sample of a head, or of another module of the usual layers, on an input of `shape` (1, ...).

    `of_features` says whether the input has a gradient, as a feature map has and an image has not.
    """
    traced = trace_module(module, shape, of_features=of_features)
    return Flops(traced.flops, traced.backward_flops, 0.0, traced.rescored_flops)


def task_flops(backbone: nn.Module, head: nn.Module, image_size: tuple[int, int]) -> tuple[Flops, Flops]:
    """FLOPs per image (H, W) of a task's backbone and of its head.

    The modules may be on any device, the meta device among them; nothing is computed.
    """
    config = getattr(backbone, "config", None)
    if isinstance(config, Sapiens2Config):
        height, width = (side // config.stride for side in image_size)
        first, features = backbone_flops(config, image_size), (1, config.embed_dim, height, width)
    else:
        image = (1, 3, *image_size)
        first = module_flops(backbone, image, of_features=False)
        if getattr(config, "checkpointing", "none") != "none":
            first = replace(first, recomputed=first.forward)
        features = trace_module(backbone, image, of_features=False).output_shape
    trained = any(parameter.requires_grad for parameter in backbone.parameters())
    return first, module_flops(head, features, of_features=trained)
