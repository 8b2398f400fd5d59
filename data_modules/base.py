"""What every task's data module shares: where the samples come from, and loaders over them."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader, Dataset, Sampler

from data_modules.collate import collate, collate_pictures, collate_training
from data_modules.predict import PictureDataset
from data_modules.sampling import EpochSampler, RankSlice
from data_modules.shards import ShardDataset
from data_modules.transforms import SampleRejected

SPLITS = ("train", "val", "test")


@dataclass
class SyntheticSets:
    """Synthetic humans made on first use, when no ``root`` is given. Every sample shows a new person.

    Args:
        train: Number of training samples.
        val: Number of validation samples, of other people.
        test: Number of test samples, of yet other people.
        image_size: Rendered (height, width) in pixels.
        samples_per_pixel: Paths traced per pixel.
        seed: Seed of everything in them; the three sets never share a person.
        workers: Rendering processes; by default one per core.
        cache: Folder that keeps the sets; by default ``$S2KIT_CACHE`` or ``~/.cache/s2kit``.
    """

    train: int = 320
    val: int = 32
    test: int = 64
    image_size: tuple[int, int] = (256, 192)
    samples_per_pixel: int = 12
    seed: int = 0
    workers: int | None = None
    cache: str | None = None

    def folder(self, split: str) -> Path:
        """Return the cache folder of ``split``; its name says what determines its content."""
        from data_modules.synth.generator import GENERATOR_VERSION

        cache = self.cache or os.environ.get("S2KIT_CACHE") or Path.home() / ".cache" / "s2kit"
        height, width = self.image_size
        name = f"{split}-{getattr(self, split)}-{height}x{width}-spp{self.samples_per_pixel}-seed{self.seed}"
        name += f"-v{GENERATOR_VERSION}"
        return Path(cache).expanduser() / "synth" / name

    def prepare(self, split: str) -> None:
        """Render ``split`` into its folder, unless a finished set is there."""
        from data_modules.synth import generate

        generate(
            self.folder(split),
            getattr(self, split),
            image_size=self.image_size,
            # Sample i of seed s is drawn from the pair (s, i): distinct seeds per split give distinct people.
            seed=len(SPLITS) * self.seed + SPLITS.index(split),
            workers=self.workers,
            samples_per_pixel=self.samples_per_pixel,
        )


class TrainingSamples(Dataset[dict[str, Any]]):
    """Training samples of a shard set; the augmentation of a sample is a function of ``seed`` and its number.

    Args:
        folder: A shard set (its folder or manifest).
        fields: What to decode.
        transform: ``transform(sample, rng) -> item``.
        seed: Seed of the augmentation.
    """

    def __init__(self, folder: Path, fields: tuple[str, ...], transform: Callable[..., dict], seed: int) -> None:
        self.samples = ShardDataset(folder, fields=fields)
        self.transform, self.seed = transform, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index_and_number: tuple[int, int]) -> dict[str, Any]:
        """Return an item, or ``key`` and ``rejected`` (the reason) for a sample that the task cannot learn from."""
        index, number = index_and_number
        try:
            return self.transform(self.samples[index], np.random.default_rng([self.seed, number]))
        except SampleRejected as error:
            return {"key": error.key, "rejected": error.reason}


class EvaluationSamples(Dataset[dict[str, Any]]):
    """Every sample of a shard set through ``transform(sample) -> item``; one that cannot be read is an error."""

    def __init__(self, folder: Path, fields: tuple[str, ...], transform: Callable[[dict], dict]) -> None:
        self.samples = ShardDataset(folder, fields=fields)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.transform(self.samples[index])


class TaskDataModule(LightningDataModule):
    """Loaders over shard sets for one task, and over a user's pictures for ``predict``.

    Args:
        image_size: Network input (height, width); the command line takes it from the model.
        root: Folder with the shard sets ``train``, ``val`` and ``test``. Without it synthetic humans are made.
        synth: The synthetic sets to make without ``root``.
        batch_size: Samples per step and device.
        num_workers: Loader processes per device.
        seed: Seed of order and augmentation.
        predict_path: Pictures for ``predict``: a file, a folder, a glob pattern or a text list.
    """

    #: Fields of a sample that the task reads.
    fields: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(
        self,
        image_size: tuple[int, int] = (1024, 768),
        root: str | None = None,
        synth: SyntheticSets | None = None,
        batch_size: int = 8,
        num_workers: int = 2,
        seed: int = 0,
        predict_path: str | None = None,
    ) -> None:
        super().__init__()
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.root = root
        self.synth = synth or SyntheticSets()
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.predict_path = predict_path

    def train_transform(self) -> Callable[..., dict]:
        """Return ``transform(sample, rng) -> item`` of the task."""
        raise NotImplementedError

    def eval_transform(self) -> Callable[[dict], dict]:
        """Return ``transform(sample) -> item`` of the task."""
        raise NotImplementedError

    def _splits(self) -> tuple[str, ...]:
        """Return the splits that the running Trainer function needs; without a Trainer, all."""
        if self.trainer is None or self.trainer.state.fn is None or self.trainer.state.fn == TrainerFn.FITTING:
            return SPLITS
        return {TrainerFn.VALIDATING: ("val",), TrainerFn.TESTING: ("test",)}.get(self.trainer.state.fn, ())

    def prepare_data(self) -> None:
        if self.root is None:
            for split in self._splits():
                self.synth.prepare(split)

    def folder(self, split: str) -> Path:
        """Return the shard set of ``split``.

        Raises:
            FileNotFoundError: If ``root`` lacks it.
        """
        if self.root is None:
            return self.synth.folder(split)
        folder = Path(self.root).expanduser() / split
        if not folder.is_dir():
            raise FileNotFoundError(
                f"data.root={self.root} has no folder {split!r}: it must hold the shard sets {', '.join(SPLITS)}"
            )
        return folder

    def _loader(self, dataset: Dataset, sampler: Sampler | None, collate_fn: Callable, **options: Any) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate_fn,
            persistent_workers=False,
            **options,
        )

    def _ranks(self) -> dict[str, int]:
        if self.trainer is None:
            return {"rank": 0, "world_size": 1}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def train_dataloader(self) -> DataLoader:
        dataset = TrainingSamples(self.folder("train"), self.fields, self.train_transform(), self.seed)
        sampler = EpochSampler(len(dataset), self.batch_size, self.seed, **self._ranks())
        return self._loader(dataset, sampler, collate_training, drop_last=True)

    def _evaluation_loader(self, split: str) -> DataLoader:
        dataset = EvaluationSamples(self.folder(split), self.fields, self.eval_transform())
        return self._loader(dataset, RankSlice(len(dataset), **self._ranks()), collate)

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader:
        if self.predict_path is None:
            raise ValueError("nothing to predict: give --data.predict_path a picture, a folder, a glob or a text list")
        dataset = PictureDataset(self.predict_path, self.image_size)
        return self._loader(dataset, RankSlice(len(dataset), **self._ranks()), collate_pictures)
