"""What the model tests share: the published key lists, and the tiny model of spec 10.1 from its rule."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from s2kit.models import Sapiens2, create_backbone, create_head

DATA = Path(__file__).parent.parent / "data"


def _sections(path: Path, start: str) -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if match := re.fullmatch(start, line):
            lines = sections.setdefault(match.group(1), [])
        elif not line.startswith("#"):
            lines.append(line)
    return sections


def _expand(lines: list[str]) -> list[str]:
    """Writes out `blocks.0..7:` sections block by block."""
    expanded, repeated = [], {}
    for line in lines:
        if match := re.fullmatch(r"(.+)\.(\d+)\.\.(\d+):", line):
            repeated = {"prefix": match[1], "range": range(int(match[2]), int(match[3]) + 1), "entries": []}
            expanded.append(repeated)
        elif line.startswith("  "):
            repeated["entries"].append(line.strip())
        else:
            expanded.append(line)
    flat = []
    for item in expanded:
        if isinstance(item, str):
            flat.append(item)
        else:
            flat += [f"{item['prefix']}.{i}.{entry}" for i in item["range"] for entry in item["entries"]]
    return flat


@pytest.fixture(scope="session")
def backbone_keys() -> dict[str, list[str]]:
    """Backbone name -> lines `key shape dtype` in the order of the published files."""
    sections = _sections(DATA / "backbone_keys.txt", r"\[(.+)\]")
    return {name: _expand(lines) for name, lines in sections.items()}


@pytest.fixture(scope="session")
def first_generation_keys() -> dict[str, list[str]]:
    """First-generation backbone -> lines `key shape dtype` in the order of the published files."""
    sections = _sections(DATA / "first_generation_keys.txt", r"\[(.+)\]")
    return {name: _expand(lines) for name, lines in sections.items()}


@pytest.fixture(scope="session")
def head_keys() -> dict[str, list[str]]:
    """ "task size" -> lines `decode_head.key shape dtype`."""
    return _sections(DATA / "head_keys.txt", r"# (.+)")


@pytest.fixture(scope="session")
def describe():
    def describe(module: torch.nn.Module, prefix: str = "") -> list[str]:
        """The lines of a key list for a module's state dict."""
        return [
            f"{prefix}{key} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
            for key, value in module.state_dict().items()
        ]

    return describe


def wave_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights of spec 10.1 by their rule.

    Entry number j of the state dict has elements sin(0.7 i + 1.3 j + 0.1 cos(0.013 i (j + 1))), scaled by 0.08 for
    matrices and tokens, 0.02 for biases, 0.1 about 1 for norms and 0.1 about 0.5 for LayerScale. The periods stay.
    """
    weights = {}
    for j, (key, value) in enumerate(model.state_dict().items()):
        i = torch.arange(value.numel(), dtype=torch.float64)
        wave = torch.sin(0.7 * i + 1.3 * j + 0.1 * torch.cos(0.013 * i * (j + 1)))
        if key.endswith("periods"):
            weights[key] = value
            continue
        if "gamma" in key:
            values = 0.5 + (0.1 * wave).float()
        elif "norm" in key or "ln" in key:
            values = 1.0 + (0.1 * wave).float()
        else:
            values = ((0.02 if value.ndim == 1 else 0.08) * wave).float()
        weights[key] = values.reshape(value.shape)
    return weights


@pytest.fixture(scope="session")
def make_tiny():
    def make_tiny(**overrides) -> Sapiens2:
        """The tiny model of spec 10.1: blocks 8 and 9 are grouped, bfloat16 RoPE."""
        options = {"rope_dtype": "bfloat16", **overrides}
        model = create_backbone("sapiens2_nano", (64, 48), embed_dim=64, depth=18, num_heads=4, mlp_dim=128, **options)
        model.load_state_dict(wave_weights(model), strict=True)
        return model.eval()

    return make_tiny


@pytest.fixture(scope="session")
def wave_image():
    def wave_image(height: int, width: int) -> torch.Tensor:
        """The input of spec 10.1, (1, 3, height, width)."""
        i = torch.arange(3 * height * width, dtype=torch.float64)
        return torch.sin(0.37 * i + 0.011 * (i % 97)).float().reshape(1, 3, height, width)

    return wave_image


@pytest.fixture(scope="session")
def published_outputs() -> dict[str, torch.Tensor]:
    """Raw outputs of the release for the tiny model: "plain" at 64 x 48, "plain_res" at 96 x 80."""
    return load_file(DATA / "tiny_backbone_outputs.safetensors")


class TinyModel(torch.nn.Module):
    """A backbone with grouped blocks and the bfloat16 rotary rule, and a task's head, as small as they can be."""

    def __init__(self, name: str, **head) -> None:
        super().__init__()
        self.name = name
        self.image_size = (256, 192)
        options = {"embed_dim": 16, "depth": 18, "num_heads": 2, "mlp_dim": 32, "rope_dtype": "bfloat16"}
        self.backbone = create_backbone("sapiens2_nano", self.image_size, **options)
        deconvolutions = name == "pose"
        options = {"upsample_channels": (8, 6) if deconvolutions else (8, 6, 4, 4), "conv_channels": (6, 5)}
        if name == "pointmap":
            options |= {"scale_channels": (8, 4), "scale_hidden": (6, 5), "image_size": self.image_size}
        self.decode_head = create_head(name, "sapiens2_nano", 16, **{**options, **head})


@pytest.fixture(scope="session")
def tiny_model():
    """Makes a `TinyModel`: tiny_model("normals", out_channels=4)."""
    return TinyModel
