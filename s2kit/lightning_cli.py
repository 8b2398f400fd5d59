"""LightningCLI with s2kit's run folder, callbacks and one-line errors."""

import logging
import re
import shutil
import sys
import warnings
from contextlib import chdir, suppress
from pathlib import Path
from typing import Any, ClassVar

import jsonargparse
import torch
from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO

from data_modules.bad_samples import FILE_NAME as BAD_SAMPLES
from data_modules.base import TaskDataModule
from s2kit.callbacks import (
    AtomicCheckpointIO,
    CheckpointConfig,
    NaNGuard,
    Panels,
    PredictionWriter,
    StepProgress,
    Throughput,
)
from s2kit.cli import COMMANDS
from s2kit.errors import UserError
from s2kit.export import export_task
from s2kit.report import print_metrics
from s2kit.run_folder import RunConfig, run_folder
from s2kit.strategies.fsdp2 import load_whole_state
from s2kit.tasks import Task
from s2kit.usage import config_files, explain, root_cause

#: Warnings of Lightning that a user of this command line can do nothing about, or that state what was asked for.
QUIET = (
    r".*does not have many workers.*",
    r".*The number of training batches .* is smaller than the logging interval.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*`LeafSpec\(\)`.*|.*isinstance\(treespec, LeafSpec\).*",
    r".*LightningCLI's args parameter is intended to run from within Python.*",
    r".*GPU available but not used.*",
    r".*Experiment logs directory .* exists and is not empty.*",
    r".*You have overridden `on_before_batch_transfer`.*",
    r".*Total length of `list` across ranks is zero.*",
    r".*module\(s\) in eval mode at the start of training.*",
    # Nothing writes into what a backbone returns.
    r"FSDP2-wrapped module .* returned a view tensor.*",
)


#: What ``--help`` of a command says at its top. The options that matter come first, the Trainer's many last.
USAGE = """python -m s2kit {command} --config FILE [--config FILE ...] [--OPTION VALUE ...]

{purpose}. Start from a config: --config experiments/normals.yaml.
Options override configs, and later configs earlier ones. See what it comes to with --print_config.
The options of a task and its data: --model.help s2kit.tasks.NormalsTask, --data.help data_modules.NormalsDataModule"""

PARSER_OPTIONS = {
    command: {"usage": USAGE.format(command=command, purpose=purpose[0].upper() + purpose[1:]), "description": None}
    for command, purpose in COMMANDS.items()
}


class Parser(LightningArgumentParser):
    """A parser whose errors are one line."""

    #: The words of the command line, to say where a wrong option was given.
    words: ClassVar[list[str]] = []
    #: Where it was given.
    folder: ClassVar[Path] = Path()

    def error(self, message: str, ex: Exception | None = None) -> None:
        """Print what is wrong, without the usage text, and exit with code 2."""
        with chdir(self.folder):  # jsonargparse reads a config from within its folder
            print(f"s2kit: error: {explain(message, self.words)}", file=sys.stderr)
        self.exit(2)


class S2kitCLI(LightningCLI):
    """fit, validate, test and predict on a task and its data module."""

    def __init__(self, args: list[str], experiment: str) -> None:
        self.experiment = experiment
        Parser.words, Parser.folder = args, Path.cwd()
        self.run_path = Path()
        self.new_folders: list[Path] = []
        super().__init__(
            Task,
            TaskDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfigCallback,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs=PARSER_OPTIONS,
            auto_configure_optimizers=False,
            # Tasks keep their own plain hyper-parameters, so that a checkpoint does not depend on this command line.
            load_from_checkpoint_support=False,
            args=args,
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add Lightning's core arguments, the model and the data before the Trainer's many, for a readable help."""
        parser.add_lightning_class_args(Task, "model", subclass_mode=True)
        parser.add_lightning_class_args(TaskDataModule, "data", subclass_mode=True)
        self.add_run_arguments(parser)
        parser.add_lightning_class_args(self.trainer_class, "trainer")

    def add_run_arguments(self, parser: LightningArgumentParser) -> None:
        """Add s2kit's own arguments: the run folder and the callbacks."""
        parser.add_class_arguments(RunConfig, "run")
        parser.add_class_arguments(CheckpointConfig, "checkpoint")
        parser.add_lightning_class_args(Panels, "panels")
        parser.add_lightning_class_args(Throughput, "throughput")
        parser.add_lightning_class_args(NaNGuard, "nan_guard")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.link_arguments("model.init_args.image_size", "data.init_args.image_size")

    def _parse_ckpt_path(self) -> None:
        """Check that ``--ckpt_path`` is a checkpoint of this task.

        Lightning's own form lets the checkpoint's hyper-parameters silently override what the command line says.
        """
        config = self.config[self.config.subcommand]
        path = config.get("ckpt_path")
        if not path:
            return
        if path == "last":
            path = run_folder(RunConfig(**vars(config.run)), self.experiment) / "checkpoints" / "last.ckpt"
            if not path.is_file():
                runs = sorted(folder.parent.parent.name for folder in path.parents[2].glob("*/checkpoints/last.ckpt"))
                known = f"; there are {', '.join(runs)}" if runs else ""
                raise UserError(
                    f"--ckpt_path last: there is no {path}; name the run to go on with: --run.version NAME{known}"
                )
            config["ckpt_path"] = str(path)
        if not Path(path).is_file():
            raise UserError(f"--ckpt_path {path}: no such checkpoint")
        if Path(path).suffix == ".safetensors":
            raise UserError(f"--ckpt_path {path}: these are weights, not a run's state; give them as --model.weights")
        check_task_of_checkpoint(Path(path), config.model.class_path)

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if config.trainer.fast_dev_run:
            return
        if self.subcommand != "fit" and not config.ckpt_path and not config.model.init_args.get("weights"):
            raise UserError(f"{self.subcommand} needs a trained model: give --model.weights or --ckpt_path")
        self.run_path = run_folder(RunConfig(**vars(config.run)), self.experiment)
        self.new_folders = [path for path in (self.run_path, self.run_path.parent) if not path.exists()]
        if (self.run_path / "config.yaml").exists():
            if self.subcommand != "fit" or not config.ckpt_path:
                raise UserError(
                    f"{self.run_path} holds a run already: leave out --run.version for a new one, or go on with it by "
                    f"fit --run.version {self.run_path.name} --ckpt_path last"
                )
            keep_metrics(self.run_path)
        if self.subcommand == "predict":
            self.save_config_callback = None
        config.trainer.default_root_dir = str(self.run_path)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except Exception as error:
            # jsonargparse wraps what a class raised in a report on its type hints, which says less.
            raise root_cause(error) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer_config = self._get(self.config_init, "trainer")
        if trainer_config.get("logger") is None and not trainer_config.get("fast_dev_run"):
            kwargs["logger"] = self._loggers()
        callbacks = list(trainer_config.get("callbacks") or [])
        if self.subcommand == "fit":
            checkpoint = self._get(self.config_init, "checkpoint")
            validates = trainer_config.get("limit_val_batches") != 0 and bool(self.datamodule.sources("val"))
            interval = trainer_config.get("val_check_interval")
            pace = interval if isinstance(interval, int) and not isinstance(interval, bool) else None
            callbacks += checkpoint.callbacks(self.model.monitor, self.model.monitor_mode, validates, pace)
            plugins = trainer_config.get("plugins") or []
            plugins = list(plugins) if isinstance(plugins, list | tuple) else [plugins]
            if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
                kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        if trainer_config.get("enable_progress_bar") is not False:
            callbacks.append(StepProgress())
        kwargs["callbacks"] = callbacks
        kwargs["enable_model_summary"] = bool(trainer_config.get("enable_model_summary"))
        # The samplers of the data modules know their rank; Lightning's would pad evaluation with repeated samples.
        kwargs["use_distributed_sampler"] = False
        return super().instantiate_trainer(**kwargs)

    # ------------------------------------------------------------------------------------------------ commands

    def _loggers(self) -> list[Logger]:
        """Return TensorBoard's and the CSV's logger on the run folder; a prediction has nothing to log."""
        if self.subcommand == "predict":
            return []
        folder = {
            "save_dir": self.run_path.parent.parent,
            "name": self.run_path.parent.name,
            "version": self.run_path.name,
        }
        return [TensorBoardLogger(**folder), CSVLogger(**folder)]

    def after_instantiate_classes(self) -> None:
        if self.trainer.is_global_zero:
            print(self.model.summary(training=self.subcommand == "fit"))
            if self.model.start:
                print(self.model.start)

    def before_fit(self) -> None:
        if self.trainer.max_steps <= 0 and self.trainer.max_epochs is None and not self.trainer.fast_dev_run:
            raise UserError("how long to train is not said: set trainer.max_steps (or trainer.max_epochs)")

    def fit(self, model: Task, **kwargs: Any) -> None:
        """Train; leave no run folder behind of a run that did not begin, and say how to go on with one that stopped."""
        try:
            self.trainer.fit(model, **_plain_pickles(kwargs))
        except SystemExit as stop:  # Lightning's answer to Ctrl-C
            if not self.trainer.interrupted:
                raise
            if self.trainer.is_global_zero:
                print(self._how_to_go_on())
            raise KeyboardInterrupt from stop
        except Exception:
            # What is wrong with the data stays, also if nothing was learned from it.
            began = self.trainer.global_step > 0 or (self.run_path / BAD_SAMPLES).exists()
            if self.trainer.is_global_zero and not began:
                self._remove_new_folders()
            raise

    def _how_to_go_on(self) -> str:
        if (self.run_path / "checkpoints" / "last.ckpt").is_file():
            return f"to go on: the same command with --run.version {self.run_path.name} --ckpt_path last"
        return "stopped before the first checkpoint: there is nothing to go on from, begin anew"

    def _remove_new_folders(self) -> None:
        """Remove the run's folder, and its experiment's if that holds nothing else, where this run made them."""
        if self.run_path in self.new_folders:
            shutil.rmtree(self.run_path, ignore_errors=True)
        if self.run_path.parent in self.new_folders:
            with suppress(OSError):  # another run has begun there meanwhile
                self.run_path.parent.rmdir()

    def after_fit(self) -> None:
        """Test the best checkpoint, export its weights and say where everything is."""
        best = self.trainer.checkpoint_callback.best_model_path if self.trainer.checkpoint_callback else ""
        metrics: dict[str, float] = {}
        if self.config[self.subcommand].run.test and self.datamodule.sources("test"):
            metrics = self.test(self.model, datamodule=self.datamodule, ckpt_path=best or None)
        elif best:
            load_whole_state(self.model, torch.load(best, map_location="cpu", weights_only=True)["state_dict"])
        if not self.trainer.fast_dev_run:
            export_task(self.model, self.run_path, metrics)
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:
            print(f"run folder: {self.run_path}")

    def validate(self, model: Task, **kwargs: Any) -> dict[str, float]:
        return self._evaluate("validate", model, **kwargs)

    def test(self, model: Task, **kwargs: Any) -> dict[str, float]:
        return self._evaluate("test", model, **kwargs)

    def _evaluate(self, function: str, model: Task, **kwargs: Any) -> dict[str, float]:
        kwargs["verbose"] = False
        results = getattr(self.trainer, function)(model, **_plain_pickles(kwargs))
        metrics = {name: value for part in results for name, value in part.items()}
        if self.trainer.is_global_zero:
            print_metrics(model, metrics)
            if self.subcommand != "fit" and not self.trainer.fast_dev_run:
                print(f"run folder: {self.run_path}")
        return metrics

    def predict(self, model: Task, **kwargs: Any) -> None:
        kwargs["return_predictions"] = False
        self.trainer.predict(model, **_plain_pickles(kwargs))
        writer = next(c for c in self.trainer.callbacks if isinstance(c, PredictionWriter))
        print(f"{writer.written} of {writer.written + len(writer.failed)} pictures written to {writer.path}")
        if writer.failed:
            names = "; ".join(f"{path}: {reason}" for path, reason in writer.failed)
            raise UserError(f"{len(writer.failed)} not readable: {names}")


def _plain_pickles(options: dict[str, Any]) -> dict[str, Any]:
    """Return the Trainer's options with checkpoints read as tensors and plain values only, which all of ours are."""
    return {**options, "weights_only": True} if options.get("weights_only") is None else options


def keep_metrics(folder: Path) -> None:
    """Put a run's ``metrics.csv`` aside as ``metrics_until_N.csv`` before it goes on: the logger would delete it."""
    metrics = folder / "metrics.csv"
    if metrics.is_file():
        number = len(list(folder.glob("metrics_until_*.csv"))) + 1
        metrics.rename(folder / f"metrics_until_{number}.csv")


def check_task_of_checkpoint(path: Path, class_path: str) -> None:
    """Refuse a checkpoint of another task.

    Raises:
        UserError: If the head in ``path`` belongs to another task than ``class_path``.
        s2kit.models.checkpoints.WeightsError: If ``path`` is not a checkpoint.
    """
    from importlib import import_module

    from s2kit.models.checkpoints import read_checkpoint, task_of

    module, _, name = class_path.rpartition(".")
    expected = getattr(import_module(module), name).name
    checkpoint = read_checkpoint(path)
    # Of a pretraining's checkpoint the teacher's backbone is what others take; the rest is set aside.
    names = {*checkpoint.state, *checkpoint.set_aside}
    pretrained = any(name.startswith(("decoder.", "teacher.", "head.")) for name in names)
    found = "pretraining" if pretrained else task_of(checkpoint.state)
    if found != expected:
        raise UserError(
            f"--ckpt_path {path}: holds a model for {found or 'no known task'}, but this is the task {expected}"
        )


def read_no_urls() -> None:
    """Keep the parser from fetching URLs, which Lightning turns on for configs: a set's URL is a value, no config."""
    if hasattr(jsonargparse, "set_parsing_settings"):
        with suppress(TypeError):  # releases that know the function but not yet this setting
            jsonargparse.set_parsing_settings(config_read_mode_fsspec_enabled=False)
            return
    jsonargparse.set_config_read_mode(fsspec_enabled=False)


_usual_format = warnings.formatwarning


def one_line_warning(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> str:
    """Return a warning to the user as one line, without the place in the source that gave it."""
    if issubclass(category, UserWarning):
        return f"s2kit: warning: {message}\n"
    return _usual_format(message, category, *args, **kwargs)


def run_lightning(args: list[str]) -> int:
    """Run fit, validate, test or predict."""
    warnings.formatwarning = one_line_warning
    for pattern in QUIET:
        warnings.filterwarnings("ignore", pattern)
    read_no_urls()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not re.match(r"GPU available|TPU available|HPU available|💡|`Trainer", record.getMessage())
    )
    configs = config_files(args)
    S2kitCLI(args, Path(configs[0]).stem if configs else "run")
    return 0
