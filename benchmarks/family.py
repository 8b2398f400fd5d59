"""The tables of sizes in docs/backbones.md: parameters counted, FLOPs and activations computed, nothing allocated.

python benchmarks/family.py
"""

from dataclasses import replace

import torch

from s2kit.models import SAPIENS2, create_backbone
from s2kit.models.recompute import CHECKPOINTING
from s2kit.planning import backbone_flops, numerics
from s2kit.planning.activations import backbone_bytes

#: Parameters and FLOPs as the release's README gives them.
PUBLISHED = {
    "sapiens2_0.1b": ("0.114 B", "0.342 T"),
    "sapiens2_0.4b": ("0.398 B", "1.260 T"),
    "sapiens2_0.8b": ("0.818 B", "2.592 T"),
    "sapiens2_1b": ("1.462 B", "4.715 T"),
    "sapiens2_5b": ("5.071 B", "15.722 T"),
    "sapiens2_1b_4k": ("1.607 B", "none"),
}
PRECISIONS = ("32-true", "bf16-mixed")


def print_sizes() -> None:
    """Print parameters and FLOPs at each size's own image size, beside the published figures."""
    columns = (
        "size",
        "D",
        "blocks (grouped)",
        "heads",
        "image",
        "parameters",
        "published",
        "FLOPs forward",
        "training",
    )
    print(f"| {' | '.join(columns)} | published |")
    print("|---" * (len(columns) + 1) + "|")
    for name, config in SAPIENS2.items():
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in create_backbone(name).parameters())
        flops = backbone_flops(config)
        grouped = sum(config.kv_heads(layer) < config.num_heads for layer in range(config.depth))
        parameters, published = PUBLISHED.get(name, ("ours", "ours"))
        height, width = config.image_size
        print(
            f"| {name} | {config.embed_dim} | {config.depth} ({grouped}) | {config.num_heads} | {height} x {width} | "
            f"{count:,} | {parameters} | {flops.forward / 1e12:.3f} T | {flops.model / 1e12:.2f} T | {published} |"
        )


def print_activations() -> None:
    """Print what the backward pass keeps of one image, in GiB."""
    print("\n| size | weights | " + " | ".join(f"{p}, {c}" for p in PRECISIONS for c in CHECKPOINTING) + " |")
    print("|---" * (2 + len(PRECISIONS) * len(CHECKPOINTING)) + "|")
    for name, config in SAPIENS2.items():
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in create_backbone(name).parameters())
        kept = [
            backbone_bytes(replace(config, checkpointing=mode), config.image_size, 1, numerics(precision, "cuda"))
            for precision in PRECISIONS
            for mode in CHECKPOINTING
        ]
        print(f"| {name} | {4 * count / 2**30:.2f} | " + " | ".join(f"{size / 2**30:.2f}" for size in kept) + " |")


if __name__ == "__main__":
    print_sizes()
    print_activations()
