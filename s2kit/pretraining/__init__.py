"""Pretraining of backbones on pictures alone."""

from s2kit.pretraining.module import Pretraining

__all__ = ["Pretraining"]
