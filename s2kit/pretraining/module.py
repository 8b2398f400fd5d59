"""Masked reconstruction: a backbone learns from pictures alone."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric

from s2kit import optim
from s2kit.losses.reconstruction import normalised_patches, patchify, reconstruction_loss, unpatchify
from s2kit.models.mae_decoder import MAEDecoder
from s2kit.pretraining.masking import masked_count, random_mask, visible_indices
from s2kit.pretraining.views import centre_box, crop_and_resize, random_box
from s2kit.tasks.base import Task, overrides_for

#: Gray of a hidden patch in a panel.
HIDDEN = 128


class Pretraining(Task):
    """Masked reconstruction of random crops (paper section 1).

    Of each picture ``views`` crops are cut on the device, without any change of colour: they are the target. Most
    patches of a crop are hidden, the backbone computes the others only, and a decoder predicts the pixels of the hidden
    ones, each patch normalised by its own mean and variance. Crops and masks are functions of the sample's number, so a
    resumed run sees the same. The trained backbone is what every task takes as ``--model.weights``; the decoder stays
    with the checkpoint.

    Args:
        decoder: Overrides of ``MAEDecoder``'s fields; ``by_arch`` as for ``backbone``.
        views: Crops of a picture in a step.
        crop_scale: Range of a crop's area, as a share of the picture's.
        crop_aspect: Range of the factor on the network input's aspect.
        flip: How often a crop is mirrored.
        mask_ratio: Share of a crop's patches that is hidden.
        blockwise: How often the hidden patches form blocks instead of lying singly.
        final_lr: Learning rate at the end of a schedule that decays.
        lr, weight_decay, betas, warmup_steps, schedule, clip: See ``Task``; the defaults are the paper's.
        **kwargs: See ``Task``.

    Raises:
        ValueError: If the backbone cannot leave patches out (it is timm's, or of the first generation).
    """

    name: ClassVar[str] = "pretraining"
    monitor: ClassVar[str] = "val/reconstruction"
    metric_units: ClassVar[dict[str, str]] = {"reconstruction": "squared error / variance of a patch"}
    baseline_title: ClassVar[str] = "mean colour of each patch"

    def __init__(
        self,
        decoder: dict[str, Any] | None = None,
        views: int = 2,
        crop_scale: tuple[float, float] = (0.5, 1.0),
        crop_aspect: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        mask_ratio: float = 0.75,
        blockwise: float = 0.4,
        lr: float | None = 1e-4,
        final_lr: float = 1e-7,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.95),
        warmup_steps: int = 1000,
        schedule: optim.Schedule = "cosine",
        clip: float | None = 5.0,
        layer_decay: float | None = 1.0,
        **kwargs: Any,
    ) -> None:
        if views < 1:
            raise ValueError(f"views={views}: at least one crop of a picture is needed")
        super().__init__(
            lr=lr,
            weight_decay=weight_decay,
            betas=betas,
            warmup_steps=warmup_steps,
            schedule=schedule,
            clip=clip,
            layer_decay=layer_decay,
            **kwargs,
        )

    # ------------------------------------------------------------------------------------------------ what it is

    def configure_models(self) -> None:
        self.backbone = self.build_backbone()
        if not hasattr(self.backbone, "forward_visible"):
            raise ValueError(f"model.arch {self.hparams.arch}: only Sapiens2 backbones can leave patches out")
        config = self.backbone.config
        self.grid = self.backbone.grid_size(*self.image_size)
        masked_count(self.grid, self.hparams.mask_ratio)
        # With the window tokenizer a token covers 64 pixels, of which the paper reconstructs half the resolution.
        self.target_scale = 1 if config.window_tokenizer_depth is None else 2
        self.patch_pixels = config.stride // self.target_scale
        options = overrides_for(self.hparams.arch, self.hparams.decoder)
        self.decoder = MAEDecoder(config.embed_dim, self.patch_pixels, in_channels=config.in_channels, **options)

    def configure_losses(self) -> None:
        """Nothing to build: the loss has no parameters."""

    def configure_metrics(self) -> None:
        self.val_metrics, self.test_metrics, self.test_baseline = MeanMetric(), MeanMetric(), MeanMetric()

    def summary(self, training: bool = True) -> str:
        backbone, decoder = (sum(p.numel() for p in part.parameters()) / 1e6 for part in (self.backbone, self.decoder))
        height, width = self.image_size
        patches = self.grid[0] * self.grid[1]
        visible = patches - masked_count(self.grid, self.hparams.mask_ratio)
        return (
            f"pretraining: {self.hparams.arch} at {height} x {width}, {backbone:.1f} M parameters in the backbone and "
            f"{decoder:.1f} M in the decoder; {visible} of {patches} patches are seen"
        )

    # ------------------------------------------------------------------------------------------------ views

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        # Before the transfer: reading sizes and seeds back from a GPU would make every step wait for it.
        return self.draw_views(batch, training=self.trainer.training) if batch.get("key") else batch

    def draw_views(self, batch: dict[str, Any], training: bool) -> dict[str, Any]:
        """Add to a batch on the CPU which crops are cut and which patches are hidden.

        Args:
            batch: ``size`` (B, 2) and ``seed`` as ``PretrainingDataModule`` gives them.
            training: Whether there are ``views`` random crops; else one, the largest in the middle, not mirrored.

        Returns:
            The batch with ``boxes`` (V B, 4), ``flips`` (V B,), ``masked`` bool (V B, h w) and ``keep`` int64 (V B, K),
            view by view.
        """
        options = self.hparams
        aspect = self.image_size[1] / self.image_size[0]
        range_of_aspect = (aspect * options.crop_aspect[0], aspect * options.crop_aspect[1])
        boxes, flips, masks = [], [], []
        for view in range(options.views if training else 1):
            for size, seed in zip(batch["size"].tolist(), batch["seed"]):
                rng = np.random.default_rng([seed, view])
                if training:
                    boxes.append(random_box(size, options.crop_scale, range_of_aspect, rng))
                    flips.append(rng.random() < options.flip)
                else:
                    boxes.append(centre_box(size, aspect))
                    flips.append(False)
                masks.append(random_mask(self.grid, options.mask_ratio, rng, options.blockwise))
        stacked = np.stack(masks)
        return {
            **batch,
            "boxes": torch.from_numpy(np.stack(boxes)).float(),
            "flips": torch.tensor(flips),
            "masked": torch.from_numpy(stacked).flatten(1),
            "keep": torch.from_numpy(visible_indices(stacked)),
        }

    def cut_views(self, batch: dict[str, Any]) -> Tensor:
        """Return the crops (V B, 3, H, W) of a batch, normalised."""
        images = batch["image"].float()
        images = images.repeat(len(batch["boxes"]) // len(images), 1, 1, 1)
        return self.normalise(crop_and_resize(images, batch["boxes"], batch["flips"], self.image_size))

    # ------------------------------------------------------------------------------------------------ computation

    def forward(self, views: Tensor, keep: Tensor) -> Tensor:
        """Predict all patches (V B, h w, P P 3), each normalised, of crops of which only ``keep`` (V B, K) is seen."""
        seen = self.backbone.forward_visible(views, keep)
        return self.decoder(seen.cls, seen.tokens, keep, self.grid)

    def targets(self, views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normalised patches of crops, and their means and deviations (see ``normalised_patches``)."""
        if self.target_scale > 1:
            views = F.avg_pool2d(views, self.target_scale)
        return normalised_patches(views, self.patch_pixels)

    def training_losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        views = self.cut_views(batch)
        loss = reconstruction_loss(self(views, batch["keep"]), self.targets(views)[0], batch["masked"])
        return {"loss": loss}

    def _predict_batch(self, batch: dict[str, Any]) -> list[dict[str, Tensor]]:
        views = self.cut_views(batch)
        target, mean, deviation = self.targets(views)
        prediction = self(views, batch["keep"]).float()
        masked = batch["masked"][..., None]
        truth = patchify(F.avg_pool2d(views, self.target_scale) if self.target_scale > 1 else views, self.patch_pixels)
        pictures = {
            "picture": truth,
            "seen": truth.masked_fill(masked, float("nan")),
            "reconstruction": torch.where(masked, prediction * deviation + mean, truth),
        }
        pictures = {
            name: self._colours(unpatchify(value, self.grid, self.patch_pixels)) for name, value in pictures.items()
        }
        return [
            {
                **{name: value[index] for name, value in pictures.items()},
                "loss": reconstruction_loss(prediction[index], target[index], batch["masked"][index]),
                "baseline": reconstruction_loss(torch.zeros_like(target[index]), target[index], batch["masked"][index]),
            }
            for index in range(len(views))
        ]

    def _colours(self, images: Tensor) -> Tensor:
        """Return normalised pictures as RGB in 0..255, uint8; what is NaN is gray."""
        return (images * self.pixel_std + self.pixel_mean).round().clamp(0, 255).nan_to_num(HIDDEN).byte()

    # ------------------------------------------------------------------------------------------------ what it shows

    def update_metrics(self, stage: str, predictions: Sequence[dict[str, Tensor]], batch: dict[str, Any]) -> None:
        for prediction in predictions:
            if stage == "test":
                self.test_metrics.update(prediction["loss"])
                self.test_baseline.update(prediction["baseline"])
            else:
                self.val_metrics.update(prediction["loss"])

    def compute_metrics(self, stage: str) -> dict[str, Tensor]:
        metrics = {"reconstruction": self.test_metrics if stage == "test" else self.val_metrics}
        if stage == "test":
            metrics["baseline_reconstruction"] = self.test_baseline
        values = {name: metric.compute() for name, metric in metrics.items()}
        for metric in metrics.values():
            metric.reset()
        return values

    def panel(self, prediction: dict[str, Tensor], index: int, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        titles = {
            "picture": "crop",
            "seen": "what is seen",
            "reconstruction": f"filled in, error {prediction['loss']:.2f}",
        }
        return {title: prediction[name].permute(1, 2, 0).cpu().numpy() for name, title in titles.items()}

    def to_numpy(self, prediction: dict[str, Tensor]) -> np.ndarray:
        """Return the crop with its hidden patches filled in, uint8 (H, W, 3)."""
        return prediction["reconstruction"].permute(1, 2, 0).cpu().numpy()

    def draw(self, prediction: np.ndarray) -> np.ndarray:
        return prediction

    # ------------------------------------------------------------------------------------------------ optimisation

    def decays(self, name: str, parameter: torch.nn.Parameter) -> bool:
        """No decay of norms, biases, positional and special tokens (paper section 1)."""
        return super().decays(name, parameter) and not name.endswith(("_token", "_tokens"))
