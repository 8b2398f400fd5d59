"""How a model is laid out over devices, beyond what Lightning's own strategies do."""

from s2kit.strategies.fsdp2 import FSDP2Strategy, gather, shard

__all__ = ["FSDP2Strategy", "gather", "shard"]
