"""Fixtures of the whole suite. Tiny data is made by code, once per session, in a temporary folder."""

import os
from pathlib import Path

# Two test processes share the cores, and the tensors are small: threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import cv2
import numpy as np
import pytest

#: Sizes of the session's synthetic sets, small enough to render in seconds.
SYNTH = {"train": 6, "val": 2, "test": 3, "image_size": (64, 48), "samples_per_pixel": 4}


@pytest.fixture(scope="session")
def synth_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that holds the session's synthetic sets, rendered by the real generator."""
    from data_modules.base import SPLITS, SyntheticSets

    cache = tmp_path_factory.mktemp("cache")
    sets = SyntheticSets(**SYNTH, cache=str(cache), workers=1)
    for split in SPLITS:
        sets.prepare(split)
    return cache


@pytest.fixture(scope="session")
def synth_options(synth_cache: Path) -> list[str]:
    """Options that give an experiment the session's synthetic sets."""
    height, width = SYNTH["image_size"]
    options = {**SYNTH, "image_size": f"[{height}, {width}]", "cache": synth_cache}
    return [f"--data.synth.{name}={value}" for name, value in options.items()]


@pytest.fixture(scope="session")
def tiny_normals(synth_options: list[str]) -> list[str]:
    """Options that make ``experiments/normals.yaml`` tiny: the session's data, a two-layer model, two steps."""
    options = {
        "model.image_size": "[32, 32]",
        "model.backbone": "{patch_size: 16, embed_dim: 16, depth: 2, num_heads: 2, mlp_dim: 32}",
        "model.head": "{upsample_channels: [8, 8, 8, 8], conv_channels: [8]}",
        "model.warmup_steps": 1,
        "data.batch_size": 2,
        "data.num_workers": 0,
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 1,
        "trainer.log_every_n_steps": 1,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
    }
    return [*synth_options, *(f"--{name}={value}" for name, value in options.items())]


@pytest.fixture(scope="session")
def experiments() -> Path:
    """The folder of the shipped configs."""
    return Path(__file__).parent.parent / "experiments"


@pytest.fixture
def picture_folder(tmp_path: Path) -> Path:
    """Pictures as users have them: several formats and sizes, upper-case suffix, gray, alpha, and one broken file."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (50, 70, 3), np.uint8)
    cv2.imwrite(str(folder / "wide.jpg"), picture)
    cv2.imwrite(str(folder / "tall.PNG"), picture.transpose(1, 0, 2))
    cv2.imwrite(str(folder / "gray.png"), picture[..., 0])
    cv2.imwrite(str(folder / "alpha.png"), np.dstack([picture, picture[..., :1]]))
    (folder / "broken.jpg").write_bytes(b"<html>not a picture</html>")
    return folder
