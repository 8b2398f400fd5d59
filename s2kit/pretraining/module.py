"""The joint objective: a backbone learns from pictures alone, by reconstruction and by self-distillation."""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from s2kit import optim
from s2kit.inference.drawing import draw_heat
from s2kit.losses.contrast import SinkhornKnopp, SoftmaxCentring, contrast_loss
from s2kit.losses.koleo import koleo_loss
from s2kit.losses.reconstruction import normalised_patches, patchify, reconstruction_loss, unpatchify
from s2kit.models.mae_decoder import MAEDecoder
from s2kit.models.projection_head import ProjectionHead
from s2kit.planning.flops import Flops
from s2kit.planning.pretraining import pretraining_flops
from s2kit.pretraining.colours import change_colours
from s2kit.pretraining.looks import cls_attention, feature_colours
from s2kit.pretraining.masking import masked_count
from s2kit.pretraining.meters import collapse_meters
from s2kit.pretraining.options import build_colours, check_choices, check_options, fields_for
from s2kit.pretraining.teacher import check_alike, make_teacher, update_teacher
from s2kit.pretraining.views import MultiCrop, crop_and_resize
from s2kit.tasks.base import Task

#: Gray of a hidden patch in a panel.
HIDDEN = 128


class Pretraining(Task):
    """Masked reconstruction and self-distilled contrast in one pass (paper section 1).

    Of each picture ``views`` global crops are cut on the device, without any change of colour, and ``local_views``
    smaller ones with it. Most patches of a global crop are hidden and the student computes the others only. A decoder
    predicts the pixels of the hidden patches, each normalised by its own mean and variance. The same pass gives the
    [cls] token whose assignment to prototypes must agree with that of a teacher, the student's moving average, which
    sees other global crops whole; the local crops must agree as well. A term of weight 0 is neither built nor computed.

    Crops, masks and colours follow from the sample's number, so a resumed run sees the same. The exported backbone is
    what every task takes as ``--model.weights``; the rest stays with the checkpoint.

    Args:
        reconstruction, contrast, koleo: Weights of the three terms.
        decoder: Overrides of ``MAEDecoder``'s fields; ``by_arch`` as for ``backbone``.
        head: Overrides of ``ProjectionHead``'s fields, likewise.
        views: Global crops of a picture in a step.
        local_views: Local ones.
        local_size: Their (height, width) in pixels; by default half of each side, in whole patches.
        crop_scale, local_scale: Range of a crop's area, as a share of the picture's.
        crop_aspect: Range of the factor on the network input's aspect.
        flip: How often a crop is mirrored.
        colours: Overrides of ``ColourChanges``' fields, for the local crops.
        mask_ratio: Share of a global crop's patches that is hidden from the student.
        blockwise: How often the hidden patches form blocks instead of lying singly.
        centring: What keeps the teacher from one answer to everything: ``softmax`` or ``sinkhorn``.
        centre_momentum: Weight of the past in the mean that ``softmax`` centring takes away.
        student_temperature: Of the student's softmax.
        teacher_temperature: Of the teacher's, from the first value to the second over ``temperature_steps``.
        temperature_steps: Optimiser steps.
        teacher_momentum: Weight of the past in the teacher.
        final_teacher_momentum, final_weight_decay: Values at the end of the run, reached along half a cosine over its
            optimiser steps; by default these two do not change.
        export: Whose backbone is exported, ``teacher`` or ``student``; without self-distillation it is the student's.
        final_lr: Learning rate at the end of a schedule that decays.
        lr, weight_decay, betas, warmup_steps, schedule, clip: See ``Task``; the defaults are the paper's.
        **kwargs: See ``Task``.

    Raises:
        ValueError: If the backbone cannot leave patches out (it is timm's, or of the first generation), or a value
            cannot be.
    """

    name: ClassVar[str] = "pretraining"
    metric_units: ClassVar[dict[str, str]] = {"reconstruction": "squared error / variance of a patch"}
    baseline_title: ClassVar[str] = "mean colour of each patch"
    _looks: tuple[Tensor, dict[str, np.ndarray]] | None = None

    def __init__(
        self,
        reconstruction: float = 1.0,
        contrast: float = 0.4,
        koleo: float = 0.04,
        decoder: dict[str, Any] | None = None,
        views: int = 2,
        local_views: int = 4,
        local_size: tuple[int, int] | None = None,
        crop_scale: tuple[float, float] = (0.5, 1.0),
        local_scale: tuple[float, float] = (0.2, 0.7),
        crop_aspect: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        colours: dict[str, Any] | None = None,
        mask_ratio: float = 0.75,
        blockwise: float = 0.4,
        centring: Literal["softmax", "sinkhorn"] = "softmax",
        centre_momentum: float = 0.9,
        student_temperature: float = 0.1,
        teacher_temperature: tuple[float, float] = (0.065, 0.07),
        temperature_steps: int = 1000,
        teacher_momentum: float = 0.992,
        final_teacher_momentum: float | None = None,
        export: Literal["teacher", "student"] = "teacher",
        lr: float | None = 1e-4,
        final_lr: float = 1e-7,
        weight_decay: float = 0.05,
        final_weight_decay: float | None = None,
        betas: tuple[float, float] = (0.9, 0.95),
        warmup_steps: int = 1000,
        schedule: optim.Schedule = "cosine",
        clip: float | None = 5.0,
        layer_decay: float | None = 1.0,
        **kwargs: Any,
    ) -> None:
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
        if contrast and kwargs.get("weights") is not None:
            # What was loaded is the student's; the teacher begins where the student does.
            for name, part in self.teacher.items():
                part.load_state_dict(getattr(self, name).state_dict())

    # ------------------------------------------------------------------------------------------------ what it is

    def configure_models(self) -> None:
        options = self.hparams
        check_choices(Pretraining.__init__, options)
        check_options(options)
        decoder = fields_for(options.arch, "decoder", options.decoder, MAEDecoder)
        head = fields_for(options.arch, "head", options.head, ProjectionHead)
        self.backbone = self.build_backbone()
        if not hasattr(self.backbone, "forward_visible"):
            raise ValueError(f"model.arch {options.arch}: only Sapiens2 backbones can leave patches out")
        config = self.backbone.config
        self.grid = self.backbone.grid_size(*self.image_size)
        masked_count(self.grid, options.mask_ratio)
        step = config.stride
        self.local_size = tuple(options.local_size or (max(step, side // 2 // step * step) for side in self.image_size))
        try:
            config.check_size(*self.local_size)
        except ValueError as error:
            raise ValueError(f"local_size: {error}") from None
        # With the window tokenizer a token covers 64 pixels, of which the paper reconstructs half the resolution.
        self.target_scale = 1 if config.window_tokenizer_depth is None else 2
        self.patch_pixels = step // self.target_scale
        self.multi_crop = self._multi_crop()
        if options.reconstruction:
            self.decoder = MAEDecoder(config.embed_dim, self.patch_pixels, in_channels=config.in_channels, **decoder)
            for block in self.decoder.blocks:
                block.checkpointing = config.checkpointing
                if config.compile:
                    block.compile(dynamic=False)
        if options.contrast:
            self.head = ProjectionHead(config.embed_dim, **head)
            self.teacher = nn.ModuleDict({"backbone": make_teacher(self.backbone), "head": make_teacher(self.head)})

    def configure_losses(self) -> None:
        options = self.hparams
        if options.contrast:
            prototypes = self.head.prototypes.out_features
            soft = options.centring == "softmax"
            self.centring = SoftmaxCentring(prototypes, options.centre_momentum) if soft else SinkhornKnopp()

    def configure_metrics(self) -> None:
        names = ["reconstruction"] * bool(self.hparams.reconstruction) + ["contrast"] * bool(self.hparams.contrast)
        self.val_metrics = nn.ModuleDict({name: MeanMetric() for name in names})
        baseline = ["baseline_reconstruction"] * bool(self.hparams.reconstruction)
        self.test_metrics = nn.ModuleDict({name: MeanMetric() for name in [*names, *baseline]})

    @property
    def monitor(self) -> str:
        """The metric that chooses the best checkpoint: the reconstruction's, or without one the contrast's."""
        return "val/reconstruction" if self.hparams.reconstruction else "val/contrast"

    def train(self, mode: bool = True) -> "Pretraining":
        super().train(mode)
        if self.hparams.contrast:
            self.teacher.eval()
        return self

    def summary(self, training: bool = True) -> str:
        parts = {"the backbone": self.backbone}
        parts |= {"the decoder": self.decoder} if self.hparams.reconstruction else {}
        parts |= {"the head": self.head} if self.hparams.contrast else {}
        sizes = [f"{sum(p.numel() for p in part.parameters()) / 1e6:.1f} M in {name}" for name, part in parts.items()]
        height, width = self.image_size
        patches = self.grid[0] * self.grid[1]
        visible = patches - masked_count(self.grid, self.hparams.mask_ratio)
        return (
            f"pretraining: {self.hparams.arch} at {height} x {width}, parameters: {', '.join(sizes)}; the student sees "
            f"{visible} of {patches} patches"
        )

    def flops(self) -> Flops:
        return pretraining_flops(self)

    # ------------------------------------------------------------------------------------------------ views

    def _multi_crop(self) -> MultiCrop:
        """Return what draws the views."""
        names = ("views", "crop_scale", "local_scale", "crop_aspect", "flip", "mask_ratio", "blockwise")
        options = {name: self.hparams[name] for name in names}
        local_views = self.hparams.local_views if self.hparams.contrast else 0
        colours = build_colours(self.hparams.colours)
        return MultiCrop(
            self.image_size, self.local_size, self.grid, local_views=local_views, colours=colours, **options
        )

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        # Before the transfer: reading sizes and seeds back from a GPU would make every step wait for it.
        return self.draw_views(batch, self.trainer.training) if batch.get("key") else batch

    def draw_views(self, batch: dict[str, Any], training: bool) -> dict[str, Any]:
        """Add to a batch on the CPU which crops are cut and what is hidden (see ``MultiCrop``).

        Args:
            batch: ``size`` (B, 2) and ``seed`` as ``PretrainingDataModule`` gives them.
            training: Without it, ``centre`` is added, too: what ``MultiCrop.draw_centre`` returns.
        """
        sizes, seeds = batch["size"].tolist(), batch["seed"]
        # A batch says all that is computed of it, the schedules' step among it: so a step can be replayed.
        drawn = {**batch, "step": self.global_step, **self.multi_crop.draw(sizes, seeds)}
        return drawn if training else {**drawn, "centre": self.multi_crop.draw_centre(sizes, seeds)}

    def cut(self, image: Tensor, boxes: Tensor, flips: Tensor, size: tuple[int, int]) -> Tensor:
        """Return crops (V B, 3, h, w) of images (B, 3, H, W), in their range 0..255."""
        return crop_and_resize(image.float().repeat(len(boxes) // len(image), 1, 1, 1), boxes, flips, size)

    def global_views(self, batch: dict[str, Any], drawn: dict[str, Tensor] | None = None) -> Tensor:
        """Return the global crops (V B, 3, H, W), normalised; their colours are the picture's."""
        drawn = batch if drawn is None else drawn
        return self.normalise(self.cut(batch["image"], drawn["boxes"], drawn["flips"], self.image_size))

    def local_views(self, batch: dict[str, Any]) -> Tensor:
        """Return the local crops (V B, 3, h, w), their colours changed, normalised."""
        crops = self.cut(batch["image"], batch["local_boxes"], batch["local_flips"], self.local_size)
        return self.normalise(255 * change_colours(crops / 255, batch["local_colours"]))

    # ------------------------------------------------------------------------------------------------ computation

    def forward(self, views: Tensor, keep: Tensor) -> Tensor:
        """Predict all patches (V B, h w, P P 3), each normalised, of crops of which only ``keep`` (V B, K) is seen."""
        seen = self.backbone.forward_visible(views, keep)
        return self.decoder(seen.cls, seen.tokens, keep, self.grid)

    def targets(self, views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normalised patches of crops, and their means and deviations (see ``normalised_patches``)."""
        return normalised_patches(self._shrink(views), self.patch_pixels)

    def _shrink(self, views: Tensor) -> Tensor:
        return F.avg_pool2d(views, self.target_scale) if self.target_scale > 1 else views

    def training_losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the weighted sum ``loss`` and its terms; with self-distillation, also what tells a collapse."""
        options, views = self.hparams, self.global_views(batch)
        if options.contrast:
            # First: the room that it works in is free again before the student's activations come.
            teacher = self.teacher_probabilities(views, batch["step"], bool(batch["key"]))
        # One pass over what is seen serves all terms.
        seen = self.backbone.forward_visible(views, batch["keep"])
        terms: dict[str, Tensor] = {}
        if options.reconstruction:
            prediction = self.decoder(seen.cls, seen.tokens, batch["keep"], self.grid)
            terms["reconstruction"] = reconstruction_loss(prediction, self.targets(views)[0], batch["masked"])
        by_view = seen.cls.unflatten(0, (options.views, -1))
        if options.koleo:
            terms["koleo"] = torch.stack([koleo_loss(cls) for cls in by_view]).mean()
        meters: dict[str, Tensor] = {}
        if options.contrast:
            student = by_view
            if options.local_views:
                local = self.backbone(self.local_views(batch)).cls
                student = torch.cat([student, local.unflatten(0, (options.local_views, -1))])
            terms["contrast"] = contrast_loss(self.head(student), teacher, options.student_temperature)
            meters = collapse_meters(teacher, by_view[0])
        total = sum(options[name] * term for name, term in terms.items())
        return {"loss": total, **terms, **{f"collapse/{name}": value for name, value in meters.items()}}

    @torch.no_grad()
    def teacher_probabilities(self, views: Tensor, step: int, counts: bool = True) -> Tensor:
        """Return the teacher's probabilities (V, B, P) for global crops, which it sees whole.

        Their temperature is that of optimiser step ``step``. With blank crops (``counts`` is false) this rank takes no
        part in centring.
        """
        first, last = self.hparams.teacher_temperature
        share = min(1.0, step / max(1, self.hparams.temperature_steps))
        logits = self.teacher["head"](self.teacher["backbone"](views).cls).unflatten(0, (self.hparams.views, -1))
        return self.centring(logits, first + (last - first) * share, counts)

    def blank_loss(self) -> Tensor:
        height, width = self.image_size
        blank = {
            "key": [],
            "image": torch.zeros(1, 3, height, width, dtype=torch.uint8),
            "size": torch.tensor([[height, width]]),
            "seed": [0],
        }
        drawn = self.draw_views(blank, training=True)
        on_device = {name: x.to(self.device) if isinstance(x, Tensor) else x for name, x in drawn.items()}
        return 0.0 * self.training_losses(on_device)["loss"]

    def _predict_batch(self, batch: dict[str, Any]) -> list[dict[str, Tensor]]:
        if not self.hparams.reconstruction:
            return [{} for _ in batch["key"]]
        drawn = batch["centre"]
        views = self.global_views(batch, drawn)
        target, mean, deviation = self.targets(views)
        prediction = self(views, drawn["keep"]).float()
        masked = drawn["masked"][..., None]
        truth = patchify(self._shrink(views), self.patch_pixels)
        pictures = {
            "picture": truth,
            "seen": truth.masked_fill(masked, float("nan")),
            "reconstruction": torch.where(masked, prediction * deviation + mean, truth),
        }
        pictures = {name: self._colours(unpatchify(x, self.grid, self.patch_pixels)) for name, x in pictures.items()}
        return [
            {
                **{name: value[index] for name, value in pictures.items()},
                "loss": reconstruction_loss(prediction[index], target[index], drawn["masked"][index]),
                "baseline": reconstruction_loss(torch.zeros_like(target[index]), target[index], drawn["masked"][index]),
            }
            for index in range(len(views))
        ]

    def _colours(self, images: Tensor) -> Tensor:
        """Return normalised pictures as RGB in 0..255, uint8; what is NaN is gray."""
        return (images * self.pixel_std + self.pixel_mean).round().clamp(0, 255).nan_to_num(HIDDEN).byte()

    # ------------------------------------------------------------------------------------------------ the teacher

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.hparams.contrast:
            for name, part in self.teacher.items():
                check_alike(part, getattr(self, name))

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        step, options = self.global_step, self.hparams
        if options.final_weight_decay is not None:
            decay = self.scheduled(options.weight_decay, options.final_weight_decay, step)
            for group in optimizer.param_groups:
                # Groups without decay stay without it. Their value does not tell them: a decay may begin at 0.
                if self.decays(group["names"][0], group["params"][0]):
                    group["weight_decay"] = decay
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        # Here and not at the end of the batch, which comes after the checkpoint of this step.
        if options.contrast:
            momentum = self.scheduled(options.teacher_momentum, options.final_teacher_momentum, step)
            for name, part in self.teacher.items():
                update_teacher(part, getattr(self, name), momentum)

    def scheduled(self, first: float, last: float | None, step: int) -> float:
        """Return the value at optimiser step ``step``, from ``first`` to ``last`` along half a cosine over the run."""
        if last is None:
            return first
        share = min(1.0, step / max(1, self.total_steps - 1))
        return last + (first - last) * 0.5 * (1 + math.cos(math.pi * share))

    @property
    def exported_backbone(self) -> nn.Module:
        """The backbone that others get: the teacher's, or the student's."""
        averaged = self.hparams.contrast and self.hparams.export == "teacher"
        return self.teacher["backbone"] if averaged else self.backbone

    def exported_state(self) -> dict[str, Tensor]:
        """Return the backbone to export, under its official names."""
        return self.exported_backbone.state_dict()

    # ------------------------------------------------------------------------------------------------ what it shows

    def update_metrics(self, stage: str, predictions: Sequence[dict[str, Tensor]], batch: dict[str, Any]) -> None:
        metrics = self.test_metrics if stage == "test" else self.val_metrics
        for prediction in predictions:
            if self.hparams.reconstruction:
                metrics["reconstruction"].update(prediction["loss"])
                if stage == "test":
                    metrics["baseline_reconstruction"].update(prediction["baseline"])
        if self.hparams.contrast:
            metrics["contrast"].update(self.training_losses(batch)["contrast"], weight=len(predictions))

    def compute_metrics(self, stage: str) -> dict[str, Tensor]:
        metrics = self.test_metrics if stage == "test" else self.val_metrics
        values = {name: metric.compute() for name, metric in metrics.items()}
        for metric in metrics.values():
            metric.reset()
        return values

    def panel(self, prediction: dict[str, Tensor], index: int, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        maps = self._looks_of(batch)
        attention = cv2.resize(maps["attention"][index], self.image_size[::-1], interpolation=cv2.INTER_NEAREST)
        seen = {
            "where [cls] looks": draw_heat(attention, float(attention.max()) or 1.0),
            "features": cv2.resize(maps["colours"][index], self.image_size[::-1], interpolation=cv2.INTER_NEAREST),
        }
        if not prediction:
            return {"picture": self.source_picture(index, batch), **seen}
        titles = {
            "picture": "crop",
            "seen": "what is seen",
            "reconstruction": f"filled in, error {prediction['loss']:.2f}",
        }
        return {title: prediction[name].permute(1, 2, 0).cpu().numpy() for name, title in titles.items()} | seen

    def _looks_of(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Maps of a batch's whole crops, computed once a batch: ``attention`` (B, h, w), ``colours`` (B, h, w, 3)."""
        if self._looks is None or self._looks[0] is not batch["image"]:
            with self.trainer.precision_plugin.forward_context(), torch.no_grad():
                views = self.global_views(batch, batch["centre"])
                attention = cls_attention(self.exported_backbone, views)
                colours = feature_colours(self.exported_backbone(views).patches).permute(0, 2, 3, 1)
            maps = {"attention": attention.cpu().numpy(), "colours": (255 * colours).byte().cpu().numpy()}
            self._looks = (batch["image"], maps)
        return self._looks[1]

    def to_numpy(self, prediction: dict[str, Tensor]) -> np.ndarray:
        """Return the crop with its hidden patches filled in, uint8 (H, W, 3)."""
        return prediction["reconstruction"].permute(1, 2, 0).cpu().numpy()

    def draw(self, prediction: np.ndarray, picture: np.ndarray | None = None) -> np.ndarray:
        return prediction

    # ------------------------------------------------------------------------------------------------ optimisation

    def decays(self, name: str, parameter: torch.nn.Parameter) -> bool:
        """No decay of norms, biases, positional and special tokens (paper section 1)."""
        return super().decays(name, parameter) and not name.endswith(("_token", "_tokens"))
