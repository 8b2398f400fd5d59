"""The data module base: where samples come from, what a batch is made of, and what happens to bad samples."""

import importlib
import json
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from data_modules.bad_samples import BadSamples, kind_of
from data_modules.base import ShardSource, TaskDataModule
from data_modules.samples import EvaluationSamples, TrainingSamples
from data_modules.shards import ShardDataset, ShardError, StorageError
from data_modules.transforms import SampleRejected
from s2kit.errors import UserError

sys.path.append(str(Path(__file__).parent))
run = importlib.import_module("resume_run")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("sets")
    return [run.write_set(folder / name, size, name) for name, size in (("train", 10), ("val", 7), ("test", 3))]


@pytest.fixture
def damaged(tmp_path: Path) -> str:
    """A set of 12 samples in 3 shards: a picture in the first has a changed byte, the last has a damaged index."""
    folder = Path(run.write_set(tmp_path / "damaged", 12, "d"))
    for path, place in ((folder / "d-000000.tar", b"\xff\xd8\xff"), (folder / "d-000002.tar.index", b"d008")):
        content = bytearray(path.read_bytes())
        content[content.index(place) + 3] ^= 1
        path.write_bytes(content)
    return str(folder)


# ---------------------------------------------------------------------------------------------------- which sets


def test_sets_are_named_in_every_form(sets):
    root, train, val = str(Path(sets[0]).parent), sets[0], sets[1]
    assert TaskDataModule(root=root).sources("val") == [ShardSource(val, 1.0)]
    assert TaskDataModule(root=root, val=train).sources("val") == [ShardSource(train, 1.0)]
    assert TaskDataModule(train=[train, ShardSource(val, 3)]).sources("train") == [
        ShardSource(train, 1.0),
        ShardSource(val, 3),
    ]
    assert TaskDataModule(root="s3://bucket/people/").sources("test") == [ShardSource("s3://bucket/people/test", 1.0)]
    synthetic = TaskDataModule()
    assert synthetic.is_synthetic
    assert synthetic.sources("test") == [ShardSource(str(synthetic.synth.folder("test")), 1.0)]


def test_what_is_not_named_is_not_replaced_by_synthetic_people(sets):
    data = run.RecordedData(train=sets[0])
    assert not data.is_synthetic
    assert (data.val_dataloader(), data.test_dataloader()) == ([], [])
    with pytest.raises(UserError, match=r"data\.train is not given"):
        run.RecordedData(val=sets[0]).train_dataloader()
    with pytest.raises(FileNotFoundError, match=r"data\.root=.* has no folder 'val'"):
        run.RecordedData(root=sets[0]).val_dataloader()


def test_a_run_without_evaluation_trains(sets, tmp_path):
    model = run.Recorder()
    run.make_trainer(tmp_path, max_steps=3).fit(model, datamodule=run.RecordedData(train=sets[0], batch_size=2))
    assert [len(step) for step in model.taken] == [2, 2, 2]


class People(run.RecordedData):
    per_person = True


def test_a_set_without_items_is_refused(sets):
    with pytest.raises(UserError, match=r"data\.train: .*train has no people"):
        People(train=sets[0]).train_dataloader()


# ---------------------------------------------------------------------------------------------------- samples


def test_training_draws_by_weight_and_augments_by_number(sets):
    samples = TrainingSamples([ShardDataset(path) for path in sets], run.augment, [6, 3, 1], seed=4)
    assert len(samples) == 20
    items = samples.__getitems__(range(300))
    parts, _ = samples.order.batch(np.arange(10_000))
    assert np.bincount(parts).tolist() == [6000, 3000, 1000]
    for number in (0, 19, 20, 299):
        part, index = samples.order[number]
        assert items[number]["key"] == samples.sets[part].key(index) == samples[number]["key"]
        assert items[number]["draw"] == np.float32(np.random.default_rng([4, number]).random())
    assert len({float(item["draw"][0]) for item in items}) > 295


def test_a_set_behind_a_url_gives_the_same_samples_and_is_read_ahead(sets, monkeypatch):
    fsspec.filesystem("memory").put(sets[0], "/people", recursive=True)
    asked: list[int] = []
    prefetch = ShardDataset.prefetch
    monkeypatch.setattr(ShardDataset, "prefetch", lambda self, which: (asked.extend(which), prefetch(self, which)))
    local, remote = (run.RecordedData(train=path, batch_size=4, num_workers=0) for path in (sets[0], "memory://people"))
    expected = [batch["key"] for batch in local.train_dataloader()]
    asked.clear()
    loader = remote.train_dataloader()
    assert [batch["key"] for batch in loader] == expected
    order = loader.dataset.order.batch(np.arange(12))[1].tolist()
    assert asked == order[:8] + order[4:]  # each batch, and with it the next one


def test_evaluation_takes_the_sets_one_after_the_other(sets):
    samples = EvaluationSamples([ShardDataset(path) for path in sets], run.present)
    assert [samples[i]["key"] for i in range(20)] == [
        f"{name}{i:03d}" for name, size in (("train", 10), ("val", 7), ("test", 3)) for i in range(size)
    ]
    loader = run.RecordedData(val=[ShardSource(sets[2]), ShardSource(sets[1], 9)], batch_size=4).val_dataloader()
    keys = [batch["key"] for batch in loader]
    assert [len(part) for part in keys] == [4, 4, 2]
    assert keys[0] == ["test000", "test001", "test002", "val000"]


# ---------------------------------------------------------------------------------------------------- bad samples


def reject_some(sample: dict, rng: np.random.Generator) -> dict:
    if sample["key"] in ("d004", "d005"):
        raise SampleRejected(sample["key"], f"{sample['key'][-1]} valid pixels, at least 64 needed")
    return run.augment(sample, rng)


class Rejecting(run.RecordedData):
    def train_transform(self):
        return reject_some


def test_bad_samples_are_left_out_and_never_replaced(damaged):
    data = Rejecting(train=damaged, batch_size=12, num_workers=0)
    batch = next(iter(data.train_dataloader()))
    good = sorted(batch["key"])
    bad = dict(batch["rejected"])
    assert len(good) == 5
    assert len(bad) == 7
    assert not set(good) & set(bad)
    assert batch["draw"].shape == (5, 1)
    reasons = [kind_of(reason) for reason in bad.values()]
    assert sorted(reasons) == ["N valid pixels, at least N needed"] * 2 + ["unreadable"] * 5


def test_a_shard_that_is_gone_stops_a_run(damaged):
    (Path(damaged) / "d-000001.tar").unlink()
    with pytest.raises(StorageError, match=r"d-000001\.tar: the shard is missing"):
        list(run.RecordedData(train=damaged, batch_size=12, num_workers=0).train_dataloader())


def test_a_bad_sample_in_evaluation_is_an_error(damaged):
    with pytest.raises(ShardError, match=r"d-000000\.tar"):
        list(run.RecordedData(val=damaged, num_workers=0).val_dataloader())


def test_bad_samples_are_counted_by_reason_and_listed(tmp_path):
    bad = BadSamples(max_share=0.5, min_seen=10)
    bad.write_to(tmp_path / "run", rank=3)
    bad.add(2, [("a", "unreadable: x.tar: 3 bytes"), ("b", "its box [1.5, -2] is empty")], step=7)
    bad.add(2, [("c", "unreadable: y.tar: 4 bytes")], step=8)
    assert (bad.seen, bad.count) == (7, 3)
    assert bad.reasons == {"unreadable": 2, "its box N is empty": 1}
    assert bad.metrics() == {
        "data/bad_samples": 3,
        "data/bad_samples/unreadable": 2,
        "data/bad_samples/its_box_N_is_empty": 1,
    }
    assert BadSamples().metrics() == {}
    lines = [json.loads(line) for line in (tmp_path / "run" / "bad_samples.jsonl").read_text().splitlines()]
    assert lines[0] == {"key": "a", "reason": "unreadable: x.tar: 3 bytes", "step": 7, "rank": 3}
    assert [(line["key"], line["step"]) for line in lines] == [("a", 7), ("b", 7), ("c", 8)]
    bad.add(0, [("d", "unreadable: z"), ("e", "unreadable: z")])  # 5 of 9: too few seen to tell
    with pytest.raises(
        RuntimeError, match=r"6 of 10 .* more than data\.max_bad_share=0\.5; the last one: f: unreadable"
    ):
        bad.add(0, [("f", "unreadable: z")])
    with pytest.raises(ValueError, match=r"data\.max_bad_share=10"):
        TaskDataModule(max_bad_share=10)


def test_a_task_lists_bad_samples_in_its_run_folder_and_logs_the_counter(tmp_path, damaged):
    from lightning import Trainer
    from lightning.pytorch.loggers import CSVLogger

    from s2kit.tasks import NormalsTask

    class Data(Rejecting):
        def train_transform(self):
            def transform(sample, rng):
                item = reject_some(sample, rng)
                shape = np.ones((1, 32, 32), bool)
                image = np.full((3, 32, 32), 9, np.uint8)
                return {**item, "image": image, "normals": np.float32([0, 0, 1])[:, None, None] * shape, "valid": shape}

            return transform

    model = NormalsTask(
        arch="sapiens2_nano",
        image_size=(32, 32),
        backbone={"embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32},
        head={"upsample_channels": (8, 8, 8, 8), "conv_channels": (8,)},
        warmup_steps=0,
    )
    logger = CSVLogger(tmp_path, name="people", version="one")
    trainer = Trainer(max_steps=4, accelerator="cpu", logger=logger, log_every_n_steps=1, enable_checkpointing=False,
                      enable_progress_bar=False)  # fmt: skip
    trainer.fit(model, datamodule=Data(train=damaged, batch_size=6, num_workers=0, max_bad_share=0.6))
    lines = (tmp_path / "people" / "one" / "bad_samples.jsonl").read_text().splitlines()
    assert len(lines) == 14  # two epochs
    assert sorted(json.loads(line)["key"] for line in lines if "valid" in line) == ["d004", "d004", "d005", "d005"]
    assert trainer.callback_metrics["data/samples_seen"] == torch.tensor(24.0, dtype=torch.float64)
    assert trainer.callback_metrics["data/bad_samples"] == 14
    assert trainer.callback_metrics["data/bad_samples/unreadable"] == 10


def test_a_short_run_on_damaged_data_is_an_error_at_its_end(tmp_path, damaged):
    from data_modules.bad_samples import FEW, BadSamples

    few = BadSamples(0.5)
    few.add(7, [(f"a{n}", "torn") for n in range(8)])  # too few to say anything
    with pytest.raises(RuntimeError, match=r"8 of 15 training samples could not be used.*a7: torn"):
        few.check()
    none = BadSamples(0.5)
    none.add(0, [("a", "torn")] * (FEW - 1))
    with pytest.raises(RuntimeError, match=rf"{FEW} of {FEW} training samples could not be used"):
        none.add(0, [("b", "torn")])
