"""Two-dimensional rotary position embedding with the release's rounding (spec 1.6).

The published weights were trained with tables built and applied in bfloat16, rounded after every elementary
operation, and their outputs move by 1e-2 if that is done in float32. So the tables are always rebuilt from the rule
in the declared dtype. The `periods` buffer is there for the state dict only: `.float()`, `.half()` or a precision
plugin may change it and nothing else changes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor, nn

ROPE_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
NORMALIZE_MODES = ("separate", "min", "max")
CACHED_GRIDS = 16


class RotaryTables(NamedTuple):
    """Cosines and sines, (N, 1, head_dim) or (B, N, 1, head_dim), of N tokens; both in the rotary dtype.

    The sine's first half is negated, so that a rotation is `x * cos + swap_halves(x) * sin`. Prefix tokens have
    cosine 1 and sine 0, which leaves them as they are.
    """

    cos: Tensor
    sin: Tensor


def rotate(x: Tensor, tables: RotaryTables) -> Tensor:
    """Rotates queries or keys (B, N, heads, head_dim) in the tables' dtype, and returns that dtype.

    Element i pairs with i + head_dim / 2 (the half-split convention).
    """
    x = x.to(tables.cos.dtype)
    return x * tables.cos + x.roll(x.shape[-1] // 2, dims=-1) * tables.sin


class RotaryEmbedding(nn.Module):
    """Builds and keeps the rotary tables of patch grids.

    Args:
        head_dim: channels of one attention head, a multiple of 4.
        dtype: "bfloat16" (the release's rule) or "float32".
        base: periods are base ** (2 k / (head_dim / 2)). Give either this or both of the next two.
        min_period, max_period: periods spaced evenly in their logarithm, from one to the other.
        normalize: what the pixel-centre coordinates are divided by: each axis by its own length ("separate"), or
            both by the shorter ("min") or the longer ("max") one.
        shift, jitter, rescale: training-time changes of the coordinates; None is off. Each axis gets U(-shift,
            shift) added, is multiplied by exp(U(-ln jitter, ln jitter)), and both axes are multiplied by one
            exp(U(-ln rescale, ln rescale)).
    """

    periods: Tensor

    def __init__(
        self,
        head_dim: int,
        dtype: str = "bfloat16",
        base: float | None = 100.0,
        min_period: float | None = None,
        max_period: float | None = None,
        normalize: str = "separate",
        shift: float | None = None,
        jitter: float | None = None,
        rescale: float | None = None,
    ) -> None:
        super().__init__()
        if head_dim % 4:
            raise ValueError(f"head_dim must be a multiple of 4 for two-dimensional RoPE, got {head_dim}")
        if dtype not in ROPE_DTYPES:
            raise ValueError(f"rope_dtype must be one of {sorted(ROPE_DTYPES)}, got {dtype!r}")
        if normalize not in NORMALIZE_MODES:
            raise ValueError(f"rope_normalize must be one of {NORMALIZE_MODES}, got {normalize!r}")
        if (base is None) == (min_period is None and max_period is None) or (
            (min_period is None) != (max_period is None)
        ):
            raise ValueError(
                "RoPE needs either rope_base or both rope_min_period and rope_max_period, got "
                f"base={base}, min_period={min_period}, max_period={max_period}"
            )
        for name, factor in (("rope_jitter", jitter), ("rope_rescale", rescale)):
            if factor is not None and factor < 1:
                raise ValueError(f"{name} is a largest factor and must be at least 1, got {factor}")
        self.head_dim = head_dim
        self.dtype = ROPE_DTYPES[dtype]
        self.base, self.min_period, self.max_period = base, min_period, max_period
        self.normalize = normalize
        self.shift, self.jitter, self.rescale = shift, jitter, rescale
        self._cache: OrderedDict[tuple, RotaryTables] = OrderedDict()
        default_device = torch.empty(0).device  # "meta" inside such a context
        self.register_buffer("periods", self._rule().to(default_device), persistent=True)

    def _rule(self) -> Tensor:
        """The head_dim / 4 periods by the rule, on the CPU, rounded as the release rounds them."""
        count = self.head_dim // 4
        if self.base is not None:
            exponents = 2 * torch.arange(count, dtype=self.dtype, device="cpu") / (self.head_dim // 2)
            return self.base**exponents
        ratio = self.max_period / self.min_period
        return self.min_period * ratio ** torch.linspace(0, 1, count, dtype=self.dtype, device="cpu")

    def _axis(self, length: int, divisor: int) -> Tensor:
        """Pixel-centre coordinates of one axis, mapped from [0, divisor] to [-1, 1]."""
        centres = torch.arange(0.5, length, dtype=self.dtype, device="cpu") / divisor
        return 2.0 * centres - 1.0

    def _augmented(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        def uniform(limit: float) -> float:
            return (2 * torch.rand((), device="cpu").item() - 1) * limit

        if self.shift:
            rows, columns = rows + uniform(self.shift), columns + uniform(self.shift)
        if self.jitter:
            limit = math.log(self.jitter)
            rows, columns = rows * math.exp(uniform(limit)), columns * math.exp(uniform(limit))
        if self.rescale:
            factor = math.exp(uniform(math.log(self.rescale)))
            rows, columns = rows * factor, columns * factor
        return rows, columns

    def sin_cos(self, height: int, width: int, augment: bool = False) -> tuple[Tensor, Tensor]:
        """Sines and cosines, each (height * width, head_dim), of a patch grid in row-major order, on the CPU.

        These are the release's tables, bit for bit (spec 1.6 gives their checksums); always built on the CPU, so
        that every device uses the same ones.
        """
        pairs = {"separate": (height, width), "min": (min(height, width),) * 2, "max": (max(height, width),) * 2}
        divisors = pairs[self.normalize]
        rows, columns = self._axis(height, divisors[0]), self._axis(width, divisors[1])
        if augment:
            rows, columns = self._augmented(rows, columns)
        periods = self._rule()
        row_angles = (2 * math.pi * rows)[:, None] / periods
        column_angles = (2 * math.pi * columns)[:, None] / periods
        quarter = periods.numel()
        angles = torch.cat(
            [
                row_angles[:, None].expand(height, width, quarter),
                column_angles[None].expand(height, width, quarter),
            ],
            dim=-1,
        ).reshape(height * width, 2 * quarter)
        angles = angles.repeat(1, 2)
        return angles.sin(), angles.cos()

    @torch.compiler.disable
    def forward(self, height: int, width: int, num_prefix: int, device: torch.device) -> RotaryTables:
        """Tables of `num_prefix` unrotated tokens and then the height x width patches, on `device`.

        Kept per (grid, prefix, device), unless the training-time augmentations make each call different.
        A compiler must not see this function: fusing its steps would skip the roundings.
        """
        augment = self.training and any((self.shift, self.jitter, self.rescale))
        key = (height, width, num_prefix, str(device))
        if not augment and key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        # Tables first made in validation's inference mode must be usable in a later training step.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            sin, cos = self.sin_cos(height, width, augment)
            sin = torch.cat([-sin[:, : self.head_dim // 2], sin[:, self.head_dim // 2 :]], dim=-1)
            cos = torch.cat([cos.new_ones(num_prefix, self.head_dim), cos])
            sin = torch.cat([sin.new_zeros(num_prefix, self.head_dim), sin])
            tables = RotaryTables(cos[:, None].to(device), sin[:, None].to(device))
        if not augment:
            self._cache[key] = tables
            if len(self._cache) > CACHED_GRIDS:
                self._cache.popitem(last=False)
        return tables

    def _apply(self, fn, recurse: bool = True) -> RotaryEmbedding:
        # Moves follow the module; a cast, or memory that was never filled (to_empty), is undone by the rule.
        super()._apply(fn, recurse)
        if not self.periods.is_meta:
            self.periods = self._rule().to(self.periods.device)
        return self

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        stored = state_dict.get(prefix + "periods")
        rule = self._rule().float()
        if stored is not None and not stored.is_meta and stored.shape == rule.shape:
            values = stored.detach().float().cpu()
            if not torch.allclose(values, rule, rtol=1e-2):
                errors.append(
                    f"{prefix}periods: the file was made with periods {values.tolist()}, this model's rule (base "
                    f"{self.base}, min {self.min_period}, max {self.max_period}) gives {rule.tolist()}"
                )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)

    def extra_repr(self) -> str:
        return f"head_dim={self.head_dim}, dtype={self.dtype}, base={self.base}, normalize={self.normalize!r}"
