"""Callbacks that every run of the command line has; each is configurable under its name."""

from s2kit.callbacks.checkpoints import AtomicCheckpointIO, CheckpointConfig
from s2kit.callbacks.nan_guard import NaNGuard
from s2kit.callbacks.panels import Panels
from s2kit.callbacks.predictions import PredictionWriter
from s2kit.callbacks.probes import OnlineProbes
from s2kit.callbacks.progress import StepProgress
from s2kit.callbacks.throughput import Throughput

__all__ = [
    "AtomicCheckpointIO",
    "CheckpointConfig",
    "NaNGuard",
    "OnlineProbes",
    "Panels",
    "PredictionWriter",
    "StepProgress",
    "Throughput",
]
