"""Memory of a training step on one device: weights, gradients, optimiser, communication and activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from s2kit.planning.activations import Activations
from s2kit.planning.numerics import Numerics

GIB = 2**30
#: The CUDA context, the libraries' workspaces and communication buffers.
CONTEXT = 1.0 * GIB
#: Share of what is asked for that the caching allocator loses to rounding and fragmentation.
FRAGMENTATION = 0.05
#: AdamW keeps two moments for each trained parameter.
MOMENTS = 2
#: Elements of one of DeepSpeed's buckets, as Lightning sets it.
DEEPSPEED_BUCKET = 200_000_000
KINDS = ("single", "ddp", "fsdp2", "deepspeed")


@dataclass(frozen=True)
class Strategy:
    """How the training state is laid out over the devices.

    Attributes:
        kind: "single", "ddp", "fsdp2" (ModelParallelStrategy, sharded over all devices) or "deepspeed".
        devices: in all.
        stage: of DeepSpeed's ZeRO: 1 shards the optimiser, 2 gradients as well, 3 weights as well.
        bucket_views: whether DDP's gradients are views of its buckets (`gradient_as_bucket_view`), not copies.
    """

    kind: str = "single"
    devices: int = 1
    stage: int = 0
    bucket_views: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"strategy must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.devices < 1:
            raise ValueError(f"devices must be at least 1, got {self.devices}")
        if self.kind == "deepspeed" and self.stage not in (1, 2, 3):
            raise ValueError(f"the stage of deepspeed must be 1, 2 or 3, got {self.stage}")

    def __str__(self) -> str:
        return f"deepspeed stage {self.stage}" if self.kind == "deepspeed" else self.kind


@dataclass(frozen=True)
class Parameters:
    """Counts of parameters.

    Attributes:
        total, trained: of the whole task.
        cast: trained weights of linear layers and convolutions whose copies by autocast are kept for the backward pass.
        cast_in_forward: the same with those of checkpointed blocks, whose copies go when the forward pass ends.
        largest_unit: of the largest block, or the head, which a sharding strategy gathers at once.
    """

    total: int
    trained: int
    cast: int
    cast_in_forward: int
    largest_unit: int


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        weights, gradients, optimiser: of the parameters, as far as this device has them.
        copies: of weights, which autocast makes in the precision of the products.
        communication: buckets of gradients, gathered blocks.
        activations: see `Activations`.
        reserve: the context of the device and what the allocator loses.
    """

    weights: float
    copies: float
    gradients: float
    optimiser: float
    communication: float
    activations: Activations
    reserve: float

    @property
    def total(self) -> float:
        parts = asdict(self)
        parts["activations"] = self.activations.total
        return sum(parts.values())


def step_numerics(strategy: Strategy, how: Numerics) -> Numerics:
    """The bytes inside a step: DeepSpeed casts the whole module, and so the residual stream, and uses no autocast.

    With FSDP2 the blocks are gathered in the precision of the products, under Lightning's autocast; activations keep
    the width that they have on one device.
    """
    if strategy.kind == "deepspeed":
        return replace(how, weights=how.compute, stream=how.compute, autocast=False)
    return how


def _state(count: Parameters, strategy: Strategy, how: Numerics) -> tuple[float, float, float, float, float]:
    """Bytes of weights, copies, gradients, optimiser and communication."""
    devices = strategy.devices
    width = how.weights
    if strategy.kind == "deepspeed":
        # DeepSpeed's own mixed precision: half-precision weights and gradients; float32 weights, gradients and moments
        # in its optimiser, sharded from stage 1 on.
        half = how.compute
        weights = half * count.total / (devices if strategy.stage == 3 else 1)
        gradients = half * count.trained / (devices if strategy.stage >= 2 else 1)
        per_parameter = 4 * MOMENTS + (8 if half == 2 else 0)
        buckets = 2 * half * min(DEEPSPEED_BUCKET, count.trained)
        gathered = 2 * half * count.largest_unit if strategy.stage == 3 else 0
        return weights, 0.0, gradients, per_parameter * count.trained / devices, buckets + gathered
    shards = devices if strategy.kind == "fsdp2" else 1
    weights, gradients = width * count.total / shards, width * count.trained / shards
    optimiser = MOMENTS * width * count.trained / shards
    if strategy.kind == "fsdp2":
        # One block is computed while the next is gathered, in the precision of the products; gradients are reduced in
        # that of the weights, a block at a time.
        gathered = (2 * how.compute + width) * count.largest_unit
        return weights, 0.0, gradients, optimiser, gathered
    copies = how.compute * count.cast if how.autocast else 0
    buckets = width * count.trained if strategy.kind == "ddp" and not strategy.bucket_views else 0
    return weights, copies, gradients, optimiser, buckets


def memory_per_device(count: Parameters, strategy: Strategy, how: Numerics, kept: Activations) -> Memory:
    """Peak memory of a training step with AdamW on one device.

    Everything counts at once: Lightning frees the last step's gradients after the forward pass, when the activations
    are already there.
    """
    state = _state(count, strategy, how)
    if state[1]:
        # Copies that only the forward pass has share their place with what the backward pass works in.
        passing = how.compute * (count.cast_in_forward - count.cast)
        kept = replace(kept, workspace=max(kept.workspace, passing))
    reserve = (CONTEXT if how.device == "cuda" else 0.0) + FRAGMENTATION * (sum(state) + kept.total)
    return Memory(*state, kept, reserve)


def largest_batch(fits: Callable[[int], bool], limit: int = 65536) -> int:
    """The largest batch that fits, up to `limit`; 0 if not even one image does. `fits` must be monotonous."""
    low, high = 0, 1
    while high <= limit and fits(high):
        low, high = high, min(2 * high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
