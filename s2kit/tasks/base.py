"""What every task shares: building from plain config, optimisation, evaluation at the source's size, prediction."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from data_modules.bad_samples import FEW, BadSamples
from data_modules.base import TaskDataModule
from s2kit import optim
from s2kit.inference.augmentation import predict_output
from s2kit.inference.geometry import unletterbox
from s2kit.models import create_backbone
from s2kit.models.checkpoints import load_weights
from s2kit.planning.flops import Flops, task_flops
from s2kit.schemas import SchemaError
from s2kit.tasks.prediction import PredictionHooks

#: ImageNet statistics of RGB in 0..255 (release, data).
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
#: Consecutive steps without a finite gradient after which a run stops.
MAX_BAD_STEPS = 10


def overrides_for(arch: str, overrides: dict[str, Any] | None) -> dict[str, Any]:
    """Return the overrides that hold for ``arch``: those of its entry in ``by_arch``, and over them all others."""
    others = dict(overrides or {})
    by_arch = others.pop("by_arch", None) or {}
    return {**by_arch.get(arch, {}), **others}


class Task(PredictionHooks, LightningModule):
    """A backbone, a head, losses and metrics for one task. Built from plain values, so that a checkpoint rebuilds it.

    A concrete task defines ``build_head``, ``configure_losses``, ``configure_metrics``, ``compute_losses``,
    ``unflip``, ``finish``, ``update_metrics``, ``compute_metrics``, ``draw`` and ``panel``.

    Args:
        arch: Name of the backbone (``sapiens2_nano``, ``sapiens2_0.1b``, ..., ``sapiens2_5b``), or ``timm/<name>`` for
            a vision transformer of timm, or a first-generation size (``sapiens_1b``).
        image_size: Network input (height, width).
        weights: Weights to start from, a task's or a backbone's in any layout (docs/checkpoints.md): a file, a folder,
            or ``hf://owner/name[@revision]``.
        strict: Whether every entry of ``weights`` must fit, else what fits is taken; a backbone's file leaves the head
            as it was initialised.
        backbone: Overrides of the backbone's fields, such as ``{drop_path: 0.1}``. What stands under ``by_arch`` and
            the name of a backbone holds for that one only: a config can shape one size and still be run with another.
        head: Overrides of the head's fields, likewise.
        lr: Peak learning rate; by default 5e-4, the published value for most sizes.
        weight_decay: AdamW's decay, on matrices only.
        layer_decay: Factor on the learning rate from layer to layer; by default what was published for ``arch``.
        betas: AdamW's momenta.
        warmup_steps: Optimiser steps of linear warm-up; half of a run that is not longer.
        schedule: ``linear``, ``cosine`` or ``constant`` after the warm-up.
        clip: Limit on the gradient's global norm; by default what was published for ``arch``.
        flip_test: Whether evaluation and prediction average the output with that of the mirrored picture.
    """

    #: Name of the task, as ``load_task`` and ``model.json`` know it.
    name: ClassVar[str]
    #: Metric that chooses the best checkpoint, and its direction.
    monitor: ClassVar[str]
    monitor_mode: ClassVar[str] = "min"
    #: Units of the metrics, and what ``baseline_*`` metrics are, for the table in the terminal.
    metric_units: ClassVar[dict[str, str]] = {}
    baseline_title: ClassVar[str] = "trivial baseline"
    #: ``load_schema(name)``, with ``names``: what the task's labels follow, if they follow a schema.
    load_schema: ClassVar[Callable[[Any], Any] | None] = None
    #: What metrics that are named ``metric/something`` are of.
    row_title: ClassVar[str] = "class"
    #: Whose weights a training started from: a file's name or ``hf://owner/name``; None for random ones.
    weights_from: str | None = None
    #: A line on the weights that a training begins with; empty for random ones.
    start: str = ""
    #: Whether the last optimiser step was left out, because its gradient was not finite.
    skipped: bool = False
    #: Peak learning rates that differ from 5e-4, by arch.
    published_lr: ClassVar[dict[str, float]] = {}
    #: Limits on the gradient's norm that differ from those of the arch in other tasks.
    published_clip: ClassVar[dict[str, float]] = {}

    def __init__(
        self,
        arch: str = "sapiens2_0.4b",
        image_size: tuple[int, int] = (1024, 768),
        weights: str | None = None,
        strict: bool = True,
        backbone: dict[str, Any] | None = None,
        head: dict[str, Any] | None = None,
        lr: float | None = None,
        weight_decay: float = 0.1,
        layer_decay: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup_steps: int = 500,
        schedule: optim.Schedule = "linear",
        clip: float | None = None,
        flip_test: bool = False,
    ) -> None:
        super().__init__()
        # A rebuilt checkpoint brings its own weights: the file they started from may be gone.
        self.save_hyperparameters(ignore=["weights", "strict"])
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.configure_models()
        self.configure_losses()
        self.configure_metrics()
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1), persistent=False)
        self._bad_steps = 0
        self._bad_samples = BadSamples()
        self._batch_keys: list[str] = []
        if weights is not None:
            filled = load_weights(self, weights, strict=strict).filled
            self.start = f"begins with {weights}: " + ("backbone and head" if filled == "all" else "the backbone alone")

    # ------------------------------------------------------------------------------------------------ what it is

    def build_head(self, dim: int) -> nn.Module:
        """Return the task's head on features of ``dim`` channels."""
        raise NotImplementedError

    def configure_models(self) -> None:
        """Build ``backbone`` and ``decode_head``."""
        self.backbone = self.build_backbone()
        self.decode_head = self.build_head(self.backbone.config.embed_dim)

    def build_backbone(self) -> nn.Module:
        """Return the backbone that ``arch``, ``image_size`` and ``backbone`` say."""
        options = overrides_for(self.hparams.arch, self.hparams.backbone)
        backbone = create_backbone(self.hparams.arch, image_size=self.image_size, **options)
        # Weights that timm fetched are in the checkpoint from now on: rebuilding it must not fetch them again.
        if options.get("pretrained"):
            self.weights_from = self.hparams.arch
        kept = {name: value for name, value in options.items() if not name.startswith("pretrained")}
        self.hparams.backbone = kept or None
        return backbone

    def configure_losses(self) -> None:
        """Build what ``compute_losses`` needs."""
        raise NotImplementedError

    def configure_metrics(self) -> None:
        """Build the metrics of the stages ``val`` and ``test``."""
        raise NotImplementedError

    def compute_losses(self, output: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the terms of a training batch's loss; ``loss`` is their weighted sum."""
        raise NotImplementedError

    def finish(self, output: Any, index: int, batch: dict[str, Any]) -> Any:
        """Return sample ``index`` of an output at its source's size, in the task's units."""
        raise NotImplementedError

    def finish_batch(self, output: Any, batch: dict[str, Any]) -> list[Any]:
        """Return every sample of an output finished."""
        return [self.finish(output, index, batch) for index in range(len(batch["key"]))]

    def update_metrics(self, stage: str, predictions: Sequence[Any], batch: dict[str, Any]) -> None:
        """Add a batch of finished predictions to the metrics of ``stage``."""
        raise NotImplementedError

    def compute_metrics(self, stage: str) -> dict[str, Tensor]:
        """Return the metrics of ``stage`` over all ranks and reset them; ``baseline_*`` is the trivial answer's."""
        raise NotImplementedError

    def panel(self, prediction: Any, index: int, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Return the pictures of one sample (title -> uint8 (H, W, 3) RGB), in the order to be shown."""
        raise NotImplementedError

    def flops(self) -> Flops:
        """Return the FLOPs of a training step per picture."""
        first, second = task_flops(self.backbone, self.decode_head, self.image_size)
        return first + second

    def configure_model(self) -> None:
        """Shard the model where the strategy says so (FSDP2); Lightning calls this with the strategy's devices."""
        if self.device_mesh is not None:
            from s2kit.strategies.fsdp2 import shard

            compute = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else None
            shard(self, self.device_mesh["data_parallel"], compute)

    def summary(self, training: bool = True) -> str:
        """Return one line: the task, the backbone, its input, the numbers of parameters, and how it is trained."""
        backbone, head = (sum(p.numel() for p in part.parameters()) / 1e6 for part in (self.backbone, self.decode_head))
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad) / 1e6
        height, width = self.image_size
        return (
            f"{self.name}: {self.hparams.arch} at {height} x {width}, {backbone:.1f} M parameters in the backbone and "
            f"{head:.1f} M in the head"
            + (f", {trained:.1f} M of them trained; {self._optimisation_summary()}" if training else "")
        )

    def _optimisation_summary(self) -> str:
        """Return the values that follow from task and arch where the config leaves them open."""
        lr = np.format_float_scientific(self.lr, trim="-", exp_digits=1)
        return f"lr {lr}, layer decay {self.layer_decay:g}, gradient clipped at {self.clip:g}"

    def exported_state(self) -> dict[str, Tensor]:
        """Return the weights that a finished run leaves for others."""
        return self.state_dict()

    def setup(self, stage: str) -> None:
        """Check that model and data number their labels alike.

        Raises:
            SchemaError: If they do not.
        """
        given = getattr(self.trainer.datamodule, "schema", None)
        if self.load_schema is None or given is None or stage == "predict":
            return
        if self.load_schema(self.hparams.schema).names != self.load_schema(given).names:
            raise SchemaError(f"model.schema={self.hparams.schema}, but data.schema={given}: give both the same")

    def on_fit_start(self) -> None:
        # Weights that are trained on follow the frame of the data from now on.
        self.__dict__.pop("frame", None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["s2kit"] = {"frame": getattr(self, "frame", None), "weights_from": self.weights_from}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        said = checkpoint.get("s2kit", {})
        self.weights_from = said.get("weights_from", self.weights_from)
        if "frame" in said and hasattr(self, "frame"):
            self.frame = said["frame"]

    # ------------------------------------------------------------------------------------------------ computation

    def normalise(self, image: Tensor) -> Tensor:
        """Map RGB in 0..255, ``(B, 3, H, W)`` of any type, to the backbone's input."""
        return (image.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std

    def forward(self, image: Tensor) -> Any:
        """Map a normalised image ``(B, 3, H, W)`` to the head's raw output."""
        return self.decode_head(self.backbone(image).patches)

    def training_losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the terms of the loss of a training batch with at least one sample."""
        return self.compute_losses(self(self.normalise(batch["image"])), batch)

    def on_train_start(self) -> None:
        data = self.trainer.datamodule
        if isinstance(data, TaskDataModule):
            data.align_epoch()
            self._bad_samples = data.bad_samples
        folder = self.trainer.log_dir if self.trainer.loggers and not self.trainer.fast_dev_run else None
        self._bad_samples.write_to(folder, self.global_rank)

    def on_train_end(self) -> None:
        # Before anything is scored or exported: a short run on damaged data may have learned nothing.
        if self._bad_samples.count:
            where = f", see {self._bad_samples.path}" if self._bad_samples.path else ""
            rank_zero_warn(f"{self._bad_samples.count} of {self._bad_samples.seen} samples were left out{where}")
            if self._bad_samples.seen >= FEW:
                self._bad_samples.check()

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        self._batch_keys = batch["key"]
        self._log_data(batch)
        if not batch["key"]:
            return self.blank_loss()
        losses = self.training_losses(batch)
        size = len(batch["key"])
        self.log("train/loss", losses["loss"], prog_bar=True, batch_size=size)
        self.log_dict({f"train/{name}": losses[name] for name in losses if name != "loss"}, batch_size=size)
        return losses["loss"]

    def blank_loss(self) -> Tensor:
        """Return 0 with a gradient of 0, of a blank picture: what a rank adds to a step that has no sample for it.

        The model runs all the same, as other ranks wait for this one's part in what they gather and reduce.
        """
        output = self(self.normalise(torch.zeros(1, 3, *self.image_size, device=self.device)))
        parts = output.values() if isinstance(output, dict) else output if isinstance(output, tuple) else (output,)
        return sum(0.0 * part.float().sum() for part in parts if isinstance(part, Tensor))

    def _log_data(self, batch: dict[str, Any]) -> None:
        """Count the samples, and those that the loader could not use.

        Raises:
            RuntimeError: When the share of these is above the limit.
        """
        values = {}
        if isinstance(self.trainer.datamodule, TaskDataModule):
            values["data/samples_seen"] = self.trainer.datamodule.samples_seen
        rejected = batch.get("rejected", [])
        self._bad_samples.add(len(batch["key"]), rejected, self.global_step)
        if rejected:
            values |= self._bad_samples.metrics()
        # float64: float32 counts to 17 million only.
        exact = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
        self.log_dict(exact, batch_size=max(1, len(batch["key"])))

    def _predict_batch(self, batch: dict[str, Any]) -> list[Any]:
        return self.finish_batch(predict_output(self, [batch], self.hparams.flip_test), batch)

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> list[Any]:
        predictions = self._predict_batch(batch)
        self.update_metrics("val", predictions, batch)
        return predictions

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def test_step(self, batch: dict[str, Any], batch_index: int) -> list[Any]:
        predictions = self._predict_batch(batch)
        self.update_metrics("test", predictions, batch)
        return predictions

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def predict_step(self, batch: dict[str, Any], batch_index: int) -> list[Any]:
        return self._predict_batch(batch) if batch["key"] else []

    def _log_metrics(self, stage: str) -> None:
        for name, value in self.compute_metrics(stage).items():
            key = f"{stage}/{name}"
            self.log(key, value.float(), prog_bar=key == self.monitor, rank_zero_only=False)

    @staticmethod
    def source_picture(index: int, batch: dict[str, Any]) -> np.ndarray:
        """Return the network's input picture of sample ``index`` at its source's size, uint8 (H, W, 3)."""
        height, width = (int(side) for side in batch["source_size"][index])
        picture = unletterbox(batch["image"][index].float(), batch["crop"][index], (height, width))
        return picture.round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()

    # ------------------------------------------------------------------------------------------------ optimisation

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Tell whether weight decay applies to a parameter."""
        return optim.is_decayed(name, parameter)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run, over which schedules are laid."""
        trainer = self.trainer
        return int(trainer.max_steps if trainer.max_steps > 0 else trainer.estimated_stepping_batches)

    @property
    def lr(self) -> float:
        """Peak learning rate: the one given, else what was published for the task and ``arch``."""
        given = self.hparams.lr
        return self.published_lr.get(self.hparams.arch, optim.DEFAULT_LR) if given is None else given

    @property
    def layer_decay(self) -> float:
        """Factor on the learning rate from layer to layer: the one given, else what was published for ``arch``."""
        given = self.hparams.layer_decay
        return optim.LAYER_DECAY.get(self.hparams.arch, 1.0) if given is None else given

    @property
    def clip(self) -> float:
        """Limit on the gradient's norm: the one given, else what was published for the task and ``arch``."""
        if self.hparams.clip is not None:
            return self.hparams.clip
        usual = optim.GRADIENT_CLIP.get(self.hparams.arch, optim.DEFAULT_GRADIENT_CLIP)
        return self.published_clip.get(self.hparams.arch, usual)

    def _warmup(self) -> int:
        """Return the steps of warm-up: a run too short for those asked for, as a first try is, gives it its half."""
        if self.trainer.fast_dev_run:
            return 0
        steps, total = self.hparams.warmup_steps, self.total_steps
        if steps < total:
            return steps
        rank_zero_warn(
            f"model.warmup_steps={steps} is no less than the run's {total} steps: the warm-up takes {total // 2}"
        )
        return total // 2

    def configure_optimizers(self) -> dict[str, Any]:
        hparams, lr, layer_decay = self.hparams, self.lr, self.layer_decay
        groups = optim.parameter_groups(
            self.named_parameters(), lr, hparams.weight_decay, layer_decay, self.backbone.config.depth, self.decays
        )
        optimizer = torch.optim.AdamW(groups, lr=lr, betas=tuple(hparams.betas), fused=True)
        final = getattr(hparams, "final_lr", 0.0) / lr
        factor = optim.learning_rate_factor(self.total_steps, self._warmup(), hparams.schedule, final=final)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient's norm, and skip a step whose gradient is not finite.

        The norm is taken after the reduction over ranks, so all of them decide alike.

        Raises:
            RuntimeError: After ``MAX_BAD_STEPS`` such steps in a row.
        """
        limit = self.clip if gradient_clip_val is None else gradient_clip_val
        norm = self._gradient_norm()
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        self.skipped = not bool(torch.isfinite(norm))
        if not self.skipped:
            self._bad_steps = 0
            return
        self._bad_steps += 1
        optimizer.zero_grad(set_to_none=True)
        where = f"step {self.global_step}: the gradient is not finite; this batch: {', '.join(self._batch_keys)}"
        if self._bad_steps >= MAX_BAD_STEPS:
            raise RuntimeError(f"{where}; {MAX_BAD_STEPS} such steps in a row, so the run stops. Lower model.lr?")
        rank_zero_warn(f"{where}; the step is skipped")

    def _gradient_norm(self) -> Tensor:
        """Return the norm of the whole gradient, over all shards, and log it and that of each part of the task."""
        by_part: dict[str, list[Tensor]] = {}
        for name, parameter in self.named_parameters():
            if parameter.grad is not None:
                by_part.setdefault(name.partition(".")[0], []).append(parameter.grad)
        norms = {name: nn.utils.get_total_norm(gradients) for name, gradients in by_part.items()}
        # A shard's norm is a part of the whole one, which all ranks must know to decide alike.
        norms = {name: norm.full_tensor() if hasattr(norm, "full_tensor") else norm for name, norm in norms.items()}
        total = torch.stack([*norms.values()]).norm() if norms else torch.zeros((), device=self.device)
        values = {"train/gradient_norm": total} | {f"train/gradient_norm/{name}": norm for name, norm in norms.items()}
        self.log_dict(values, batch_size=max(1, len(self._batch_keys)))
        return total
