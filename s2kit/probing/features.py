"""Features of pictures under a frozen backbone, each picture computed once."""

import hashlib

import torch
from torch import Tensor, nn

from s2kit.tasks.base import PIXEL_MEAN, PIXEL_STD


class FeatureCache:
    """Computes and keeps the features of pictures, which are found again by their content.

    Two ways were weighed. One is a set of features for each probe, with rows numbered like its samples: simple, but the
    probes for normals, segmentation and albedo see the very same input, so a backbone would run three times, or the
    code would have to know whose crops agree. Here a picture's pixels are its name: whoever brings the same input gets
    the same features, computed once, and no one can be given those of another input, whatever crops the probes choose.

    Features are kept in half precision in memory, 2 bytes x D x h x w a picture: 49 kB for 128 channels on 16 x 12,
    9.4 MB for sapiens2_1b at 1024 x 768. For sets that do not fit, train a task with a frozen backbone instead
    (``--model.backbone.frozen_stages``): then the backbone runs in every step.

    Args:
        backbone: Frozen, in evaluation mode.
        batch_size: Pictures of one pass.
    """

    def __init__(self, backbone: nn.Module, batch_size: int = 32) -> None:
        self.backbone, self.batch_size = backbone, batch_size
        self.device = next(backbone.parameters()).device
        self._mean, self._std = (torch.tensor(x, device=self.device).view(3, 1, 1) for x in (PIXEL_MEAN, PIXEL_STD))
        self._rows: dict[bytes, int] = {}
        self._patches: list[Tensor] = []
        self._cls: list[Tensor] = []
        #: Pictures that were asked for; ``len`` says how many of them were computed.
        self.asked = 0

    def __len__(self) -> int:
        return len(self._patches)

    @torch.no_grad()
    def rows(self, images: Tensor) -> Tensor:
        """Return the numbers, int64 (B,), of pictures uint8 (B, 3, H, W) of the network's input size."""
        names = [hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in images]
        new = {name: index for index, name in enumerate(names) if name not in self._rows}
        for part in torch.tensor(list(new.values()), dtype=torch.int64).split(self.batch_size):
            if len(part):
                self._compute(images[part])
        for name in new:
            self._rows[name] = len(self._rows)
        self.asked += len(images)
        return torch.tensor([self._rows[name] for name in names])

    def _compute(self, images: Tensor) -> None:
        output = self.backbone((images.to(self.device).float() - self._mean) / self._std)
        self._patches += list(output.patches.half().cpu())
        self._cls += list(output.cls.float().cpu())

    def patches(self, rows: Tensor) -> Tensor:
        """Return feature maps, float32 (B, D, h, w)."""
        return torch.stack([self._patches[row] for row in rows.tolist()]).to(self.device).float()

    def cls(self, rows: Tensor) -> Tensor:
        """Return the class tokens, float32 (B, D)."""
        return torch.stack([self._cls[row] for row in rows.tolist()])

    def means(self, rows: Tensor) -> Tensor:
        """Return the mean patch features, float32 (B, D)."""
        return torch.stack([self._patches[row].float().mean(dim=(1, 2)) for row in rows.tolist()])
