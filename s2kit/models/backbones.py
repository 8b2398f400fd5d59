"""Vision transformers of timm with the interface of `Sapiens2`, so that they serve as baselines in every task."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2kit.models.sapiens2 import TIMM_PREFIX, BackboneOutput

#: Pixels along the side of a token, for all tasks: the heads upsample sixteen-fold.
STRIDE = 16
#: What a transformer of timm has before its first block, as far as it has it; freezes with the first stage.
EMBEDDINGS = ("patch_embed", "cls_token", "reg_token", "dist_token", "pos_embed", "norm_pre")


@dataclass(frozen=True)
class TimmConfig:
    """What the tasks read of a backbone.

    Attributes:
        arch: "timm/" and timm's name.
        embed_dim: channels D of a token.
        depth: number of blocks.
        patch_size: pixels along the side of the model's own patch.
        image_size: (height, width) the model is built for.
        num_registers: tokens beside the class token and the patches.
        any_size: whether it takes other image sizes too, resampling its positions.
        checkpointing: "full" recomputes each block in the backward pass, "none" keeps the activations.
        compile: each block is compiled with `torch.compile`.
        frozen_stages: the embeddings and the first so many blocks never train.
    """

    arch: str
    embed_dim: int
    depth: int
    patch_size: int
    image_size: tuple[int, int]
    num_registers: int
    any_size: bool = True
    checkpointing: str = "none"
    compile: bool = False
    frozen_stages: int = 0

    @property
    def stride(self) -> int:
        """Pixels of the image along the side of a token."""
        return STRIDE


class TimmBackbone(nn.Module):
    """A vision transformer of timm that gives what `Sapiens2` gives: class token, registers, a feature map at 1/16.

    Images (B, 3, H, W) have sides that are multiples of 16. A model with another patch size p sees them resized to
    (p H / 16, p W / 16), so that every model has the same token grid, h x w = H / 16 x W / 16, and each token its own
    pixels: the cost of the tokens and the head are those of Sapiens2. (The other way, to resize the feature map, blurs
    it, and gives a model of patch 14 a third more tokens.)

    Args:
        model: a transformer of timm without a classifier: `patch_embed`, a list of `blocks`, `forward_features` that
            gives (B, N, D) with the prefix tokens first.
        config: see `TimmConfig`.

    Attributes:
        model: the same; state-dict keys are timm's behind "model.".
    """

    def __init__(self, model: nn.Module, config: TimmConfig) -> None:
        super().__init__()
        self.config = config
        self.model = model
        if config.checkpointing == "full":
            model.set_grad_checkpointing(True)
        for part in self._frozen():
            part.requires_grad_(False)
        if config.compile:
            self.compile_blocks()

    @property
    def embed_dim(self) -> int:
        return self.config.embed_dim

    @property
    def num_prefix(self) -> int:
        """Tokens before the patches."""
        return self.model.num_prefix_tokens

    def compile_blocks(self) -> None:
        """Compiles each block in place for static shapes; names and state dict stay."""
        for block in self.model.blocks:
            block.compile(dynamic=False)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        if self.config.compile:
            self.compile_blocks()

    def _frozen(self) -> list[nn.Module | nn.Parameter]:
        stages = self.config.frozen_stages
        if stages < 1:
            return []
        parts = [getattr(self.model, name, None) for name in EMBEDDINGS]
        return [part for part in parts if part is not None] + list(self.model.blocks[:stages])

    def train(self, mode: bool = True) -> TimmBackbone:
        super().train(mode)
        for part in self._frozen():
            if isinstance(part, nn.Module):
                part.eval()
        return self

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """Token grid (h, w) of an image of this size; ValueError if it does not divide."""
        _check_size(height, width)
        return height // STRIDE, width // STRIDE

    def _resize(self, x: Tensor) -> tuple[Tensor, int, int]:
        if x.ndim != 4 or not x.is_floating_point():
            raise ValueError(f"expected normalised float images (B, 3, H, W), got {x.dtype} of shape {tuple(x.shape)}")
        height, width = self.grid_size(x.shape[2], x.shape[3])
        if not self.config.any_size and x.shape[2:] != self.config.image_size:
            raise ValueError(
                f"{self.config.arch} takes images of one size, {self.config.image_size}, got {tuple(x.shape[2:])}"
            )
        size = (height * self.config.patch_size, width * self.config.patch_size)
        if size != tuple(x.shape[2:]):
            x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
        return x, height, width

    def _final_norm(self, tokens: Tensor) -> Tensor:
        # Models that average their tokens have the norm after the pooling.
        return self.model.fc_norm(tokens) if self._norms_after_pooling else tokens

    @property
    def _norms_after_pooling(self) -> bool:
        return isinstance(self.model.norm, nn.Identity) and isinstance(getattr(self.model, "fc_norm", None), nn.Module)

    def forward_tokens(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> all tokens (B, prefix + h * w, D) after the final norm."""
        return self._final_norm(self.model.forward_features(self._resize(x)[0]))

    def forward(self, x: Tensor) -> BackboneOutput:
        """Images (B, 3, H, W) -> class token (the mean of the patches where there is none), registers, feature map."""
        x, height, width = self._resize(x)
        tokens = self._final_norm(self.model.forward_features(x))
        patches = tokens[:, self.num_prefix :]
        has_class = self.num_prefix > self.config.num_registers
        cls = tokens[:, 0] if has_class else patches.mean(dim=1)
        registers = tokens[:, int(has_class) : self.num_prefix]
        return BackboneOutput(cls, registers, patches.reshape(len(x), height, width, -1).permute(0, 3, 1, 2))

    def intermediate(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Feature maps (B, D, h, w) after the blocks `layers`, in the order asked; -1 is the last block.

        The final norm is applied after the last block and to no other. IndexError for a block that is not there.
        """
        depth = self.config.depth
        if not len(layers) or any(not -depth <= layer < depth for layer in layers):
            raise IndexError(
                f"layers must name blocks from {-depth} to {depth - 1}, got {list(layers)} for {self.config.arch}"
            )
        wanted = sorted({layer % depth for layer in layers})
        x, height, width = self._resize(x)
        tokens = self.model.forward_intermediates(
            x, indices=wanted, output_fmt="NLC", intermediates_only=True, stop_early=True
        )
        maps = {}
        for layer, value in zip(wanted, tokens):
            if layer == depth - 1:
                value = self._final_norm(self.model.norm(value))
            maps[layer] = value.reshape(len(x), height, width, -1).permute(0, 3, 1, 2)
        return [maps[layer % depth] for layer in layers]


def _check_size(height: int, width: int) -> None:
    if height < 1 or width < 1 or height % STRIDE or width % STRIDE:
        near = tuple(max(1, round(side / STRIDE)) * STRIDE for side in (height, width))
        raise ValueError(
            f"image height and width must be multiples of {STRIDE}, got {height} x {width} (nearest: {near[0]} x "
            f"{near[1]})"
        )


def _patch_size(model: nn.Module, name: str) -> int:
    """The side of a patch; ValueError for a model that is no plain vision transformer."""
    embed = getattr(model, "patch_embed", None)
    sides = getattr(embed, "patch_size", None)
    sides = (sides, sides) if isinstance(sides, int) else sides
    plain = isinstance(getattr(model, "blocks", None), nn.Sequential | nn.ModuleList) and hasattr(model, "norm")
    if not plain or sides is None or not hasattr(model, "num_prefix_tokens") or sides[0] != sides[1]:
        raise ValueError(
            f"{TIMM_PREFIX}{name} is no plain vision transformer (one patch embedding, one list of blocks, tokens in "
            f"and out); see timm.list_models('vit_*')"
        )
    return sides[0]


def _build(timm: Any, name: str, options: dict[str, Any], image_size: tuple[int, int]) -> tuple[nn.Module, bool]:
    """The model with the token grid of `image_size`, and whether it resamples its positions for other sizes."""
    try:
        with torch.device("meta"):
            patch = _patch_size(timm.create_model(name, num_classes=0), name)
    except RuntimeError:  # older releases of timm read numbers from tensors as they build
        patch = _patch_size(timm.create_model(name, num_classes=0), name)
    size = tuple(side // STRIDE * patch for side in image_size)
    reason = ""
    for any_size in (True, False):
        dynamic = {"dynamic_img_size": True} if any_size else {}
        try:
            return timm.create_model(name, num_classes=0, img_size=size, **dynamic, **options), any_size
        except (TypeError, AssertionError) as error:  # a model without that argument, or a value that it refuses
            reason = reason if not any_size and not str(error) else str(error)
        except OSError as error:  # of the hub's client; a file that is given and missing says so itself
            if options.get("pretrained_cfg_overlay", {}).get("file"):
                raise
            raise RuntimeError(
                f"timm could not fetch the weights of {name} ({str(error).split('. ')[0]}); without a network, give "
                "a file of them: pretrained_cfg_overlay: {file: PATH} beside pretrained: true"
            ) from error
    given = ", ".join(f"{key}={value}" for key, value in options.items())
    raise ValueError(f"timm cannot build {name} for images of {size} {given and f'with {given} '}({reason})")


def create_timm_backbone(
    name: str,
    image_size: tuple[int, int] | None = None,
    drop_path: float = 0.0,
    checkpointing: str = "none",
    compile: bool = False,
    frozen_stages: int = 0,
    **options: Any,
) -> TimmBackbone:
    """Makes a vision transformer of timm a backbone for the tasks.

    Args:
        name: timm's name, with or without "timm/" before it: "timm/vit_small_patch14_dinov2",
            "timm/vit_base_patch16_dinov3", "timm/vit_tiny_patch16_224".
        image_size: (height, width) of the images, multiples of 16; None is (1024, 768).
        drop_path: stochastic-depth rate of the last block.
        checkpointing: "full" recomputes each block in the backward pass, "none" keeps the activations.
        compile: compile each block with `torch.compile` for static shapes.
        frozen_stages: the embeddings and the first so many blocks never train.
        options: other arguments of `timm.create_model`: `pretrained: true` fetches timm's weights,
            `pretrained_cfg_overlay: {file: PATH}` with it reads them from a file.

    Raises:
        ValueError: an unknown model, one that is no plain vision transformer, or a value that cannot be.
        RuntimeError: timm is missing, or cannot fetch the weights asked for.
    """
    try:
        import timm
    except ImportError as error:
        raise RuntimeError(
            f"{name} needs timm, which cannot be imported: {error}; pip install timm torchvision"
        ) from None
    name = name.removeprefix(TIMM_PREFIX)
    if not timm.is_model(name):
        close = difflib.get_close_matches(name.split(".")[0], timm.list_models("*vit*"), n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else "; see timm.list_models('vit_*')"
        raise ValueError(f"timm {timm.__version__} has no model {name!r}{hint}")
    if checkpointing not in ("none", "full"):
        raise ValueError(f"checkpointing of timm's models must be none or full, got {checkpointing!r}")
    if not 0.0 <= drop_path < 1.0:
        raise ValueError(f"drop_path must be in [0, 1), got {drop_path}")
    height, width = image_size = tuple(image_size or (1024, 768))
    _check_size(height, width)
    if drop_path:
        options["drop_path_rate"] = drop_path
    model, any_size = _build(timm, name, options, image_size)
    if "global_pool" in inspect.signature(model.reset_classifier).parameters:
        model.reset_classifier(0, "")  # a pooling layer would never get a gradient
    depth = len(model.blocks)
    if not -1 <= frozen_stages <= depth:
        raise ValueError(f"frozen_stages must be from 0 to depth = {depth}, got {frozen_stages}")
    config = TimmConfig(
        arch=f"{TIMM_PREFIX}{name}",
        embed_dim=model.embed_dim,
        depth=depth,
        patch_size=_patch_size(model, name),
        image_size=image_size,
        num_registers=model.num_prefix_tokens - int(getattr(model, "cls_token", None) is not None),
        any_size=any_size,
        checkpointing=checkpointing,
        compile=compile,
        frozen_stages=frozen_stages,
    )
    return TimmBackbone(model, config)
