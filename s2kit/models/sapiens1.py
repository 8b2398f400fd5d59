"""The first generation of Sapiens backbones, a plain vision transformer (spec 9.1), for baselines.

State-dict keys are those of its published files, so one loads with ``strict=True`` once its positions have the model's
grid (`fit_positions`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2kit.models.layers import NORM_EPS, DropPath
from s2kit.models.sapiens2 import BackboneOutput


@dataclass(frozen=True)
class Sapiens1Config:
    """Every number that shapes a first-generation backbone.

    Attributes:
        arch: name in the table of sizes.
        embed_dim: channels D of a token.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_dim: hidden channels of the feed-forward layers.
        image_size: (height, width) that the position table is made for; others get a resized table.
        patch_size: pixels along the side of a patch.
        patch_padding: zeros around the image. The published pose and normals models and the CIHP and LIP
            segmentation models need 2, which moves every patch by 2 pixels; the other segmentation models, face and
            depth need 0. No file tells it.
        in_channels: image channels.
        class_token: whether there is a class token, as in the pretrained files; the task models have none.
        drop_path: stochastic-depth rate of the last block; it grows linearly from 0 at the first.
    """

    arch: str
    embed_dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    image_size: tuple[int, int] = (1024, 768)
    patch_size: int = 16
    patch_padding: int = 0
    in_channels: int = 3
    class_token: bool = False
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", tuple(self.image_size))
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim must be a multiple of num_heads = {self.num_heads}, got {self.embed_dim}")
        if not 0 <= 2 * self.patch_padding < self.patch_size:
            raise ValueError(
                f"patch_padding must be from 0 to below half the patch, {self.patch_size // 2}, else the grid grows; "
                f"got {self.patch_padding}"
            )
        self.check_size(*self.image_size)

    @property
    def stride(self) -> int:
        """Pixels along the side of a token."""
        return self.patch_size

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError if an image of this size does not divide into patches."""
        if height < 1 or width < 1 or height % self.patch_size or width % self.patch_size:
            near = tuple(max(1, round(side / self.patch_size)) * self.patch_size for side in (height, width))
            raise ValueError(
                f"image height and width must be multiples of the patch size {self.patch_size}, got {height} x {width} "
                f"(nearest: {near[0]} x {near[1]})"
            )


SAPIENS1 = {
    config.arch: config
    for config in (
        Sapiens1Config("sapiens_0.3b", embed_dim=1024, depth=24, num_heads=16, mlp_dim=4096),
        Sapiens1Config("sapiens_0.6b", embed_dim=1280, depth=32, num_heads=16, mlp_dim=5120),
        Sapiens1Config("sapiens_1b", embed_dim=1536, depth=40, num_heads=24, mlp_dim=6144),
        Sapiens1Config("sapiens_2b", embed_dim=1920, depth=48, num_heads=32, mlp_dim=7680),
    )
}


class _Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, length, dim))


class _FeedForward(nn.Module):
    """Linear, GELU, linear, nested as the published names have it."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Sequential(nn.Linear(dim, hidden), nn.GELU()), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class _Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, mlp_dim: int, drop_path: float) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = _Attention(dim, num_heads)
        self.ln2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.ffn = _FeedForward(dim, mlp_dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.ln1(x)))
        return x + self.drop_path(self.ffn(self.ln2(x)))


class Sapiens1(nn.Module):
    """First-generation Sapiens vision transformer.

    Images are float (B, 3, H, W), RGB, normalised with the ImageNet mean and standard deviation; H and W are multiples
    of the patch size, else ValueError.
    """

    def __init__(self, config: Sapiens1Config) -> None:
        super().__init__()
        self.config = config
        dim = config.embed_dim
        height, width = self.grid_size(*config.image_size)
        if config.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, height * width + config.class_token, dim))
        self.patch_embed = nn.Module()
        self.patch_embed.projection = nn.Conv2d(
            config.in_channels, dim, config.patch_size, config.patch_size, padding=config.patch_padding
        )
        self.layers = nn.ModuleList(
            _Block(dim, config.num_heads, config.mlp_dim, config.drop_path * i / max(1, config.depth - 1))
            for i in range(config.depth)
        )
        self.ln1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.reset_parameters()

    @property
    def embed_dim(self) -> int:
        return self.config.embed_dim

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """Patch grid (h, w) of an image of this size; ValueError if it does not divide."""
        self.config.check_size(height, width)
        return height // self.config.patch_size, width // self.config.patch_size

    def reset_parameters(self) -> None:
        """Xavier-uniform matrices, sine-cosine positions, class token normal(0, 0.02) (spec 9.2)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            table = sine_positions(self.grid_size(*self.config.image_size), self.config.embed_dim)
            self.pos_embed.zero_()
            self.pos_embed[0, int(self.config.class_token) :] = table
        if self.config.class_token:
            nn.init.normal_(self.cls_token, std=0.02)

    def _embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        if x.ndim != 4 or x.shape[1] != self.config.in_channels:
            raise ValueError(f"expected images of shape (B, {self.config.in_channels}, H, W), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(
                f"expected float images normalised with the ImageNet mean and standard deviation, got {x.dtype}"
            )
        grid = self.grid_size(x.shape[2], x.shape[3])
        tokens = self.patch_embed.projection(x).flatten(2).transpose(1, 2)
        own = self.grid_size(*self.config.image_size)
        prefix = self.pos_embed[:, : int(self.config.class_token)]
        positions = resize_positions(self.pos_embed[:, int(self.config.class_token) :], own, grid)
        tokens = tokens + positions
        if self.config.class_token:
            tokens = torch.cat([(self.cls_token + prefix).expand(x.shape[0], -1, -1), tokens], dim=1)
        return tokens, grid

    def _feature_map(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        patches = tokens[:, int(self.config.class_token) :]
        return patches.reshape(tokens.shape[0], *grid, -1).permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> BackboneOutput:
        """Images (B, 3, H, W) -> class token (without one: the patches' mean), no registers, the feature map."""
        tokens, grid = self._embed(x)
        for block in self.layers:
            tokens = block(tokens)
        tokens = self.ln1(tokens)
        cls = tokens[:, 0] if self.config.class_token else tokens.mean(dim=1)
        return BackboneOutput(cls, tokens[:, :0], self._feature_map(tokens, grid))

    def intermediate(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Feature maps (B, D, h, w) after the blocks `layers`; only the last block's is normalised."""
        depth = len(self.layers)
        wrong = [layer for layer in layers if not -depth <= layer < depth]
        if wrong or not len(layers):
            raise IndexError(f"layers must name blocks from {-depth} to {depth - 1}, got {list(layers)}")
        tokens, grid = self._embed(x)
        wanted, maps = [layer % depth for layer in layers], {}
        for index in range(max(wanted) + 1):
            tokens = self.layers[index](tokens)
            if index in wanted:
                maps[index] = self._feature_map(self.ln1(tokens) if index == depth - 1 else tokens, grid)
        return [maps[layer] for layer in wanted]


def sine_positions(grid: tuple[int, int], dim: int) -> Tensor:
    """The pretraining's position table, (h * w, dim): sine and cosine of the row, then of the column (spec 9.2)."""
    quarter = dim // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    parts = [f(axis.flatten()[:, None] * frequencies) for axis in (rows, columns) for f in (torch.sin, torch.cos)]
    return torch.cat(parts, dim=1).float()


def resize_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resize a table (1, h * w, D) from one grid to another, bicubic in float32 as the release does (spec 9.1)."""
    if old == new:
        return positions
    table = positions.reshape(1, *old, -1).permute(0, 3, 1, 2).float()
    table = F.interpolate(table, size=new, mode="bicubic", align_corners=False)
    return table.flatten(2).transpose(1, 2).to(positions.dtype)


def grid_of(length: int) -> tuple[tuple[int, int], bool]:
    """The grid (h, w) of a position table of so many entries, and whether the first is a class token's.

    A grid is square or 4:3, as in the release (spec 9.1).

    Raises:
        ValueError: no such grid has this many patches.
    """
    for class_token in (False, True):
        count = length - class_token
        side = round(count**0.5)
        if count > 0 and side * side == count:
            return (side, side), class_token
        unit = round((count / 12) ** 0.5)
        if unit > 0 and 12 * unit * unit == count:
            return (4 * unit, 3 * unit), class_token
    raise ValueError(f"a position table of {length} entries is no square and no 4:3 grid, with or without class token")


def fit_positions(state: Mapping[str, Tensor], model: Sapiens1) -> dict[str, Tensor]:
    """Return a published state dict as ``model`` needs it: with or without class token, positions on its grid.

    Raises:
        ValueError: the file's grid is neither square nor 4:3, or it lacks the class token that the model has.
    """
    entries = dict(state)
    if "pos_embed" not in entries:
        return entries
    own = tuple(model.pos_embed.shape)
    grid, has_class = model.grid_size(*model.config.image_size), model.config.class_token
    old, found_class = grid_of(entries["pos_embed"].shape[1])
    if has_class and not found_class:
        raise ValueError("the file has no class token; set class_token to false")
    prefix, table = entries["pos_embed"][:, : int(found_class)], entries["pos_embed"][:, int(found_class) :]
    table = resize_positions(table, old, grid)
    entries["pos_embed"] = torch.cat([prefix, table], dim=1) if has_class else table
    if not has_class:
        entries.pop("cls_token", None)
    assert entries["pos_embed"].shape[1] == own[1]
    return entries


def create_sapiens1(name: str, image_size: tuple[int, int] | None = None, **overrides) -> Sapiens1:
    """Makes a first-generation backbone with random weights.

    Args:
        name: a size of `SAPIENS1`, such as "sapiens_1b".
        image_size: (height, width) that the position table is made for; None is (1024, 768).
        overrides: any other field of `Sapiens1Config`, such as `patch_padding=2`.

    Raises:
        ValueError: an unknown name or field, or a value that cannot be.
    """
    if name not in SAPIENS1:
        close = difflib.get_close_matches(name, SAPIENS1, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"unknown backbone {name!r}{hint}; known: {', '.join(SAPIENS1)}")
    known = [field.name for field in fields(Sapiens1Config) if field.name != "arch"]
    if unknown := sorted(set(overrides) - set(known)):
        raise ValueError(f"unknown field {', '.join(unknown)} for {name}; fields: {', '.join(known)}")
    if image_size is not None:
        overrides["image_size"] = tuple(image_size)
    return Sapiens1(replace(SAPIENS1[name], **overrides))
