"""What every task's data module shares: where the samples come from, and loaders over them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader, Dataset

from data_modules.bad_samples import BadSamples
from data_modules.collate import collate, collate_pictures, collate_training
from data_modules.loader import ResumableLoader
from data_modules.locations import cache_folder
from data_modules.memory import keep_freed_memory
from data_modules.order.ranks import RankSlice
from data_modules.predict import PictureDataset
from data_modules.samples import EvaluationSamples, TrainingSamples
from data_modules.shards import ShardCache, ShardDataset
from data_modules.transforms import EvalTransform
from s2kit.errors import UserError

SPLITS = ("train", "val", "test")


@dataclass
class ShardSource:
    """A shard set and its share in a mixture.

    Args:
        path: Its folder, its manifest or a URL of one.
        weight: Its share of the training samples, in any unit: sets of weights 3 and 1 give three to one, whatever
            their sizes. Evaluation takes every sample once and ignores it.
    """

    path: str
    weight: float = 1.0


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
        cache: Folder that keeps the sets; by default ``$S2KIT_CACHE`` or the user's cache folder.
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

        cache = Path(self.cache).expanduser() if self.cache else cache_folder()
        height, width = self.image_size
        name = f"{split}-{getattr(self, split)}-{height}x{width}-spp{self.samples_per_pixel}-seed{self.seed}"
        name += f"-v{GENERATOR_VERSION}"
        return cache / "synth" / name

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


class TaskDataModule(LightningDataModule):
    """Loaders over shard sets for one task, and over a user's pictures for ``predict``.

    Where no set is named at all, synthetic humans are made. A run goes on from a checkpoint with exactly the samples
    that remain (see ``ResumableLoader``).

    Args:
        image_size: Network input (height, width); the command line takes it from the model.
        root: Folder or URL that holds the shard sets ``train``, ``val`` and ``test``.
        train: A shard set, or a list of sets with weights to mix (see ``ShardSource``); over ``root``.
        val: A shard set, or a list of sets to score one after the other; over ``root``. If sets are named but none
            for this split, there is no such evaluation.
        test: Likewise.
        cache: Where to keep whole shards of sets given as URLs; by default only the parts that are needed are fetched.
        storage_options: For the file systems of URLs, such as ``{profile: work}`` for ``s3://``.
        synth: The synthetic sets to make if no set is named.
        batch_size: Samples per step and device.
        num_workers: Loader processes per device.
        seed: Seed of order and augmentation.
        block: Shards whose samples are mixed with each other in training; more of them mix better and read farther
            apart.
        max_bad_share: Share of training samples that may be unusable before the run stops, once 200 have been seen.
        allow_changed: Whether to resume although data, weights or seed are not those of the checkpoint.
        predict_path: Pictures for ``predict``: a file, a folder, a glob pattern or a text list.
    """

    #: Fields of a sample that the task reads, and those that every set must have.
    fields: ClassVar[tuple[str, ...]] = ("image",)
    required: ClassVar[tuple[str, ...]] = ("image",)
    #: Whether an item is a person instead of an image.
    per_person: ClassVar[bool] = False

    def __init__(
        self,
        image_size: tuple[int, int] = (1024, 768),
        root: str | None = None,
        train: list[ShardSource | str] | str | None = None,
        val: list[ShardSource | str] | str | None = None,
        test: list[ShardSource | str] | str | None = None,
        cache: ShardCache | None = None,
        storage_options: dict[str, Any] | None = None,
        synth: SyntheticSets | None = None,
        batch_size: int = 8,
        num_workers: int = 2,
        seed: int = 0,
        block: int = 8,
        max_bad_share: float = 0.1,
        allow_changed: bool = False,
        predict_path: str | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1 or num_workers < 0:
            raise ValueError(
                f"data.batch_size={batch_size} must be at least 1, and data.num_workers={num_workers} at least 0"
            )
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.root = root
        self.named = {"train": train, "val": val, "test": test}
        self.cache, self.storage_options = cache, storage_options
        self.synth = synth or SyntheticSets()
        self.batch_size, self.num_workers, self.seed, self.block = batch_size, num_workers, seed, block
        self.bad_samples = BadSamples(max_bad_share)
        self.allow_changed = allow_changed
        self.predict_path = predict_path
        self._train_loader: ResumableLoader | None = None
        self._loader_trainer: Any = None
        self._restored: dict[str, Any] = {}

    def train_transform(self) -> Callable[..., dict]:
        """Return ``transform(sample, rng) -> item`` of the task."""
        raise NotImplementedError

    def eval_transform(self) -> Callable[[dict], dict]:
        """Return ``transform(sample) -> item`` of the task."""
        raise NotImplementedError

    def picture_transform(self) -> Callable[[dict], dict]:
        """Return ``transform(sample) -> item`` of the task for a picture without labels."""
        return EvalTransform(self.image_size)

    # ------------------------------------------------------------------------------------------------ which sets

    @property
    def is_synthetic(self) -> bool:
        """Whether no set is named, so that synthetic humans are made."""
        return self.root is None and all(named is None for named in self.named.values())

    def _splits(self) -> tuple[str, ...]:
        """Return the splits that the running Trainer function needs; without a Trainer, all."""
        if self.trainer is None or self.trainer.state.fn is None or self.trainer.state.fn == TrainerFn.FITTING:
            return SPLITS
        return {TrainerFn.VALIDATING: ("val",), TrainerFn.TESTING: ("test",)}.get(self.trainer.state.fn, ())

    def prepare_data(self) -> None:
        if self.is_synthetic:
            for split in self._splits():
                self.synth.prepare(split)

    def sources(self, split: str) -> list[ShardSource]:
        """Return the shard sets of ``split``; none if others are named but not these.

        Raises:
            FileNotFoundError: If ``root`` is a folder that lacks them.
        """
        named = self.named[split]
        if named is not None:
            listed = [named] if isinstance(named, str) else named
            return [ShardSource(source) if isinstance(source, str) else source for source in listed]
        if self.is_synthetic:
            return [ShardSource(str(self.synth.folder(split)))]
        if self.root is None:
            return []
        if "://" in self.root:
            return [ShardSource(f"{self.root.rstrip('/')}/{split}")]
        folder = Path(self.root).expanduser() / split
        if not folder.is_dir():
            raise FileNotFoundError(
                f"data.root={self.root} has no folder {split!r}: it must hold the shard sets {', '.join(SPLITS)}"
            )
        return [ShardSource(str(folder))]

    def fields_of(self, split: str) -> tuple[str, ...]:
        """Return the fields that are read in ``split``."""
        return self.fields

    def open_sets(self, split: str) -> list[ShardDataset]:
        """Open the shard sets of ``split``.

        Raises:
            UserError: One is empty.
            data_modules.shards.ShardError: One cannot be read or lacks what the task needs.
        """
        sets = []
        for source in self.sources(split):
            part = ShardDataset(
                source.path,
                self.fields_of(split),
                self.required,
                self.per_person,
                cache=self.cache,
                storage_options=self.storage_options,
            )
            if len(part) == 0:
                raise UserError(f"data.{split}: {source.path} has no {'people' if self.per_person else 'samples'}")
            sets.append(part)
        return sets

    # ------------------------------------------------------------------------------------------------ loaders

    def _ranks(self) -> dict[str, int]:
        # Not the Trainer's own rank: devices that share one model by tensor parallelism must get the same samples.
        known = (self.trainer.distributed_sampler_kwargs if self.trainer is not None else None) or {}
        return {"rank": known.get("rank", 0), "world_size": known.get("num_replicas", 1)}

    def train_dataloader(self) -> DataLoader:
        weights = [source.weight for source in self.sources("train")]
        if not weights:
            raise UserError("data.train is not given, although data.val or data.test are")
        dataset = TrainingSamples(self.open_sets("train"), self.train_transform(), weights, self.seed, self.block)
        # A process is given its next batch so many numbers later.
        dataset.ahead = self.batch_size * self._ranks()["world_size"] * max(1, self.num_workers)
        if self.trainer is not None and self.trainer.overfit_batches > 0:
            return self._sliced(dataset, collate_training)  # the same batches again and again: nothing to go on with
        loader = ResumableLoader(
            dataset,
            self.batch_size,
            dataset.identity(),
            **self._ranks(),
            allow_changed=self.allow_changed,
            unfinished=self._unfinished_batches,
            num_workers=self.num_workers,
            collate_fn=collate_training,
            worker_init_fn=keep_freed_memory,
            # New workers every epoch would make each begin with a pause.
            persistent_workers=self.num_workers > 0,
        )
        if self._restored:
            loader.load_state_dict(self._restored["loader"])
        elif self._train_loader is not None and self._loader_trainer is self.trainer:
            loader.load_state_dict(self._train_loader.state_dict())  # Trainer(reload_dataloaders_every_n_epochs=...)
        self._train_loader, self._loader_trainer = loader, self.trainer
        return loader

    def _evaluation_loader(self, split: str) -> DataLoader | list[DataLoader]:
        sets = self.open_sets(split)
        if not sets:
            return []
        dataset = EvaluationSamples(sets, self.eval_transform())
        return self._sliced(dataset, collate)

    def _sliced(self, dataset: Dataset, collate_fn: Callable) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=RankSlice(len(dataset), **self._ranks()),
            num_workers=self.num_workers,
            collate_fn=collate_fn,
            worker_init_fn=keep_freed_memory,
        )

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader | list[DataLoader]:
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader:
        if self.predict_path is None:
            raise ValueError("nothing to predict: give --data.predict_path a picture, a folder, a glob or a text list")
        return self._sliced(PictureDataset(self.predict_path, self.picture_transform()), collate_pictures)

    # ------------------------------------------------------------------------------------------------ resuming

    @property
    def samples_seen(self) -> int:
        """Training samples handed out to all ranks since the start of training, over all resumed runs."""
        return self._train_loader.samples_seen if self._train_loader is not None else 0

    def _unfinished_batches(self) -> int:
        """Return how many batches are in training now: a run that stops by an exception has not learned from them."""
        if self.trainer is None:
            return 0
        current = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return current.ready - current.processed

    def state_dict(self) -> dict[str, Any]:
        """Return the training loader's state. Lightning saves it with every checkpoint and always loads it, while it
        leaves out the loader's own when a run resumes at the end of an epoch."""
        if self._train_loader is None or self.trainer is None:
            return {}
        return {"loader": self._train_loader.state_dict(), "epoch_batches": self.trainer.num_training_batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return  # a checkpoint to be scored; the run's own position stays
        self._restored = state
        if self._train_loader is not None and self._loader_trainer is self.trainer:
            self._train_loader.load_state_dict(state["loader"])

    def align_epoch(self) -> None:
        """Fit Lightning's count of the epoch's batches to the present size of a batch; called by the task.

        The count says how many batches of the epoch are done. With another number of ranks or another batch size an
        epoch has more or fewer of them, and the count would end it at the wrong place. Which samples come is not
        touched: the order does not know Lightning's epochs.
        """
        state, self._restored = self._restored, {}
        before, now = state.get("epoch_batches"), self.trainer.num_training_batches
        if not before or before == now:
            return
        count = self.trainer.fit_loop.epoch_loop.batch_progress.current
        accumulate = self.trainer.accumulate_grad_batches
        # At an end it stays at the end; else the same share of the epoch, at the beginning of an accumulation.
        done = now if count.processed >= before else count.processed * now // before // accumulate * accumulate
        shift = done - count.processed
        for name in ("ready", "started", "processed", "completed"):
            setattr(count, name, getattr(count, name) + shift)

    def teardown(self, stage: str) -> None:
        self._restored = {}
