"""Bytes that the forward pass keeps for the backward pass, tensor by tensor, and the room that the backward pass needs.

Each formula names what autograd keeps: a linear layer its input, a norm its input and a number a row, attention its
inputs and output, a product of two tensors both. Copies that autocast makes of an input are kept in its place.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from s2kit.models import Sapiens2Config
from s2kit.models.window_tokenizer import WINDOWS_PER_CHUNK
from s2kit.planning.flops import token_count
from s2kit.planning.numerics import Numerics
from s2kit.planning.trace import trace_module

#: Maps of the output's size, in float32, that a loss keeps: 6.5 measured for that of normals, which keeps most.
LOSS_MAPS = 6.5


@dataclass(frozen=True)
class Activations:
    """Bytes on one device for one batch.

    Attributes:
        batch: images as they come and as the backbone takes them, and labels.
        backbone: kept by the backbone.
        head: kept by the head.
        loss: the head's output and what a loss keeps of it.
        workspace: the room that the backward pass takes beside what is still kept at that time: gradients of
            activations, and with checkpointing the block that is computed again.
    """

    batch: float
    backbone: float
    head: float
    loss: float
    workspace: float

    @property
    def total(self) -> float:
        return self.batch + self.backbone + self.head + self.loss + self.workspace


@dataclass(frozen=True)
class BlockShape:
    """One transformer block on `tokens` tokens in all."""

    tokens: float
    dim: int
    num_heads: int
    kv_heads: int
    mlp_dim: int
    qk_norm: bool = True
    layer_scale: bool = True

    @property
    def kv_dim(self) -> int:
        return self.dim // self.num_heads * self.kv_heads


def attention_bytes(block: BlockShape, how: Numerics, inputs: bool = True) -> float:
    """Kept by scaled dot-product attention: q, k, v (`inputs`), its output, and a float32 number a row and head."""
    head_dim = block.dim // block.num_heads
    rows = block.tokens * block.num_heads
    width = how.compute
    copies = 0.0
    if how.device == "cuda" and how.compute == 2:
        # The flash kernels take heads of a multiple of 8 channels; others are padded.
        padded = -(-head_dim // 8) * 8
        copies = width * rows * head_dim if padded != head_dim else 0.0
        head_dim = padded
    elif how.device == "cuda" and block.kv_heads != block.num_heads:
        # Grouped heads are folded into longer sequences, and unfolded after; the unfolded output is a copy.
        copies = width * rows * head_dim
    total = width * rows * head_dim + 4 * rows
    if inputs:
        total += width * rows * head_dim * (1 + 2 * block.kv_heads / block.num_heads) + copies
    return total


def block_bytes(block: BlockShape, how: Numerics, checkpointing: str = "none") -> float:
    """Kept by one block, its input included."""
    tokens, dim = block.tokens, block.dim
    per_token = how.compute * tokens * dim
    if checkpointing == "full":
        return how.stream * tokens * dim
    if checkpointing == "selective":
        products = how.compute * tokens * (2 * dim + 2 * block.kv_dim + 2 * block.mlp_dim)
        if block.mlp_dim <= 2 * dim:
            products += per_token  # the last product is kept, too, unless it narrows to less than half
        return how.stream * tokens * dim + products + attention_bytes(block, how, inputs=False)
    total = 2 * how.norm(tokens * dim, tokens, how.stream)
    total += 2 * per_token  # what the three projections take, and what the feed-forward layer takes
    if block.qk_norm:
        total += how.norm(tokens * dim, tokens * block.num_heads, how.compute)
        total += how.norm(tokens * block.kv_dim, tokens * block.kv_heads, how.compute)
    total += attention_bytes(block, how)
    if block.layer_scale:
        total += per_token
    # The gate and the value (2 F), and their product, which the last layer takes.
    return total + how.compute * tokens * 3 * block.mlp_dim


def block_workspace(block: BlockShape, how: Numerics) -> float:
    """Gradients that live together while a block's feed-forward layer, its widest part, is differentiated."""
    return how.compute * block.tokens * 5 * block.mlp_dim + 2 * how.stream * block.tokens * block.dim


def trunk_blocks(config: Sapiens2Config, tokens: float) -> list[BlockShape]:
    """The blocks that train, on `tokens` tokens in all."""
    return [
        BlockShape(tokens, config.embed_dim, config.num_heads, config.kv_heads(layer), config.mlp_dim)
        for layer in range(max(0, config.frozen_stages), config.depth)
    ]


def _tokenizer_chunk(config: Sapiens2Config, windows: float, how: Numerics) -> float:
    """Room in which one chunk of windows is computed again and differentiated."""
    tokens = min(windows, WINDOWS_PER_CHUNK) * (config.window_size**2 + 1)
    block = BlockShape(tokens, config.embed_dim, config.num_heads, config.num_heads, config.mlp_dim, False, False)
    return config.window_tokenizer_depth * block_bytes(block, how) + block_workspace(block, how)


def backbone_bytes(
    config: Sapiens2Config, image_size: tuple[int, int], batch: int, how: Numerics, visible: int | None = None
) -> float:
    """Kept by a Sapiens2 backbone for a batch, without the images; `visible`: see `backbone_flops`."""
    height, width = image_size
    tokens = batch * (token_count(config, image_size) if visible is None else 1 + config.num_registers + visible)
    trained = config.frozen_stages < 1
    kept = sum(block_bytes(block, how, config.checkpointing) for block in trunk_blocks(config, tokens))
    if config.frozen_stages < config.depth:
        kept += how.norm(tokens * config.embed_dim, tokens, how.stream)
    if trained:
        kept += how.compute * batch * config.in_channels * height * width  # what the patch embedding takes
        if config.window_tokenizer_depth is not None:
            kept += how.compute * batch * config.embed_dim * (height * width // config.patch_size**2)
    return kept


def backbone_workspace(
    config: Sapiens2Config, image_size: tuple[int, int], batch: int, how: Numerics, visible: int | None = None
) -> float:
    """The room that the backward pass of a Sapiens2 backbone takes beside what is still kept."""
    tokens = batch * (token_count(config, image_size) if visible is None else 1 + config.num_registers + visible)
    blocks = trunk_blocks(config, tokens)
    rooms = [0.0]
    for block in blocks:
        again = 0.0
        if config.checkpointing != "none":
            again = block_bytes(block, how) - block_bytes(block, how, config.checkpointing)
        rooms.append(block_workspace(block, how) + again)
    if config.window_tokenizer_depth is not None and config.frozen_stages < 1:
        windows = batch * (image_size[0] // config.stride) * (image_size[1] // config.stride)
        # By then the trunk's activations are gone.
        left = backbone_bytes(config, image_size, batch, how, visible)
        rooms.append(_tokenizer_chunk(config, windows, how) - left)
    return max(rooms)


def activations(
    backbone: nn.Module, head: nn.Module, image_size: tuple[int, int], batch: int, how: Numerics
) -> Activations:
    """Activation memory of a training step of a task on one device.

    Args:
        backbone, head: on any device, the meta device among them.
        image_size: (height, width).
        batch: images on the device.
        how: the precision and the kind of device.
    """
    height, width = image_size
    config = getattr(backbone, "config", None)
    if isinstance(config, Sapiens2Config):
        features = (batch, config.embed_dim, height // config.stride, width // config.stride)
        kept = backbone_bytes(config, image_size, batch, how)
        room = backbone_workspace(config, image_size, batch, how)
    else:
        traced = trace_module(backbone, (batch, 3, height, width), how, of_features=False)
        features, kept, room = traced.output_shape, traced.kept, 2 * traced.largest
        if getattr(config, "checkpointing", "none") != "none":
            tokens = batch * (features[2] * features[3] + getattr(config, "num_registers", 0) + 1)
            room += kept / config.depth
            kept = config.depth * how.stream * tokens * config.embed_dim
    on_head = trace_module(head, features, how)
    pixels = batch * height * width
    loss = on_head.output_bytes + LOSS_MAPS * 4 * on_head.output_bytes / how.compute
    # The head's backward pass comes first, while all is kept; the backbone's when the head's activations are gone.
    workspace = max(on_head.largest, room - on_head.kept - loss)
    return Activations(3 * pixels * (1 + 4) + 4 * 4 * pixels, kept, on_head.kept, loss, workspace)
