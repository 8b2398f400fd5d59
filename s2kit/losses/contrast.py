"""The contrast of self-distillation between views (paper section 1; DINO, Caron et al., 2021)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from s2kit.losses.masked import at_least_float32
from s2kit.precision import without_autocast


def all_sum(x: Tensor) -> Tensor:
    """Return the sum of ``x`` over all ranks; no gradient passes."""
    x = x.detach().clone()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x)
    return x


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class SoftmaxCentring(nn.Module):
    """Teacher logits to probabilities: the running mean over samples is taken away before the softmax.

    The mean is that of earlier steps, over all ranks, so that no rank sees another probability for the same logits.

    Args:
        prototypes: Number of logits P.
        momentum: Weight of the past in the running mean.
    """

    centre: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centre", torch.zeros(1, prototypes))

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float, counts: bool = True) -> Tensor:
        """Logits (..., P) of this rank -> probabilities, float32; then, in training, move the mean.

        All ranks must call it in training; one whose logits say nothing (``counts``) adds nothing to the mean.
        """
        logits = logits.float()
        probabilities = F.softmax((logits - self.centre) / temperature, dim=-1)
        if self.training:
            rows = logits.flatten(0, -2)
            total = all_sum(counts * torch.cat([rows.sum(0), rows.new_tensor([len(rows)])]))
            mean = total[None, :-1] / total[-1].clamp(min=1)
            # A step whose loss is not finite is skipped, and must leave nothing behind here either.
            counted = (total[-1] > 0) & total.isfinite().all()
            self.centre.copy_(torch.where(counted, self.centre.lerp(mean, 1 - self.momentum), self.centre))
        return probabilities


class SinkhornKnopp(nn.Module):
    """Teacher logits to probabilities that use all prototypes alike, over the samples of all ranks.

    In evaluation, where ranks may have different numbers of batches, over those of this rank.

    Args:
        iterations: Of normalising the prototypes' shares, then the samples'.
    """

    def __init__(self, iterations: int = 3) -> None:
        super().__init__()
        self.iterations = iterations

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float, counts: bool = True) -> Tensor:
        """Logits (..., P) of this rank -> probabilities, float32; of logits that do not count, zeros."""
        shape = logits.shape
        total = all_sum if self.training else Tensor.detach
        scaled = logits.float().flatten(0, -2) / temperature
        # One shift for all ranks: only ratios between samples and prototypes count.
        top = scaled.max()
        if self.training and world_size() > 1:
            dist.all_reduce(top, op=dist.ReduceOp.MAX)
        shares = (scaled - top).exp() * counts
        samples = total(shares.new_tensor(float(len(shares) * counts)))
        for _ in range(self.iterations):
            prototypes = total(shares.sum(0, keepdim=True))
            # A prototype that underflowed for every sample has no share to give.
            shares = shares / prototypes.clamp(min=torch.finfo(shares.dtype).tiny) * samples / shares.shape[1]
            shares = shares / shares.sum(1, keepdim=True).clamp(min=torch.finfo(shares.dtype).tiny)
        return shares.reshape(shape)


def contrast_loss(student: Tensor, teacher: Tensor, temperature: float = 0.1) -> Tensor:
    """Return the cross-entropy from teacher to student, averaged over pairs of different views and over samples.

    Every pair of a teacher's view and another view of the student counts: global with global, and global with local;
    never a view with itself, and never two locals, which no teacher sees.

    Args:
        student: Logits (S, B, P) of S views, the globals first.
        teacher: Probabilities (T, B, P) of the T <= S global views, without gradient.
        temperature: Of the student.

    Raises:
        ValueError: There is no pair: a single view.
    """
    views, globals_ = len(student), len(teacher)
    if globals_ < 1 or views < max(globals_, 2):
        raise ValueError(f"{views} views of the student and {globals_} of the teacher make no pair of different views")
    logs = F.log_softmax(at_least_float32(student) / temperature, dim=-1)
    with without_autocast(logs):
        crossed = -torch.einsum("tbp,sbp->ts", teacher.detach().to(logs.dtype), logs) / student.shape[1]
    different = ~torch.eye(globals_, views, dtype=torch.bool, device=student.device)
    return (crossed * different).sum() / different.sum()
