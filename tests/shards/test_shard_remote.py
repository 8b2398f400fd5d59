"""Sets behind a URL: an object store, a web server that fails in every way, and whole shards kept on disk."""

import importlib.util
import multiprocessing
import os
import pickle
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from data_modules.shards import ShardCache, ShardDataset, ShardError, ShardWriter, StorageError, encode_sample
from data_modules.shards import cache as cache_module
from data_modules.shards import reader as reader_module
from data_modules.shards import storage as storage_module
from s2kit.errors import UserError

pytest.importorskip("s3fs", reason="part of the extras 'remote' and 'test'")
moto_server = pytest.importorskip("moto.server", reason="part of the extra 'test'")

_spec = importlib.util.spec_from_file_location("fault_server", Path(__file__).with_name("fault_server.py"))
fault_server = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fault_server)

SAMPLES = 7


@pytest.fixture(scope="module")
def folder(make_sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("remote") / "set"
    with ShardWriter(folder, samples_per_shard=3) as writer:
        for number in range(SAMPLES):
            writer.write_encoded(f"p{number}", encode_sample(make_sample(f"p{number}", seed=number)))
    return folder


@pytest.fixture(scope="module")
def truth(folder):
    samples = ShardDataset(folder, fields=("image", "depth", "box"))
    return [samples[number] for number in range(SAMPLES)]


@pytest.fixture
def server(folder, monkeypatch):
    monkeypatch.setattr(storage_module, "FIRST_PAUSE", 0.001)
    server = fault_server.FaultServer(folder.parent)
    yield server
    server.close()


@pytest.fixture(scope="module")
def bucket(folder):
    """The set in an object store: its URL and the options for it."""
    import s3fs

    server = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"key": "k", "secret": "s", "client_kwargs": {"endpoint_url": f"http://{host}:{port}"}}
    system = s3fs.S3FileSystem(**options)
    system.mkdir("people")
    system.put(str(folder), "people/train", recursive=True)
    yield "s3://people/train", options
    server.stop()


def open_set(url, **options):
    return ShardDataset(url, fields=("image", "depth", "box"), **options)


def assert_all(samples, truth):
    assert len(samples) == len(truth)
    for number, expected in enumerate(truth):
        assert_same(samples[number], expected)


def assert_same(read, expected):
    assert read.keys() == expected.keys() and read["key"] == expected["key"]
    for name in ("image", "depth", "box"):
        np.testing.assert_array_equal(read[name], expected[name])


def test_an_object_store_is_read_in_parts(bucket, truth, folder):
    url, options = bucket
    samples = open_set(url, storage_options=options)
    assert samples.digest == ShardDataset(folder).digest and samples.counts.tolist() == [3, 3, 1]
    assert_all(samples, truth)
    assert_all(open_set(f"{url}/manifest.json", storage_options=options), truth)


def test_an_object_store_is_read_through_a_cache(bucket, truth, tmp_path):
    url, options = bucket
    cache = ShardCache(str(tmp_path / "cache"))
    assert_all(open_set(url, storage_options=options, cache=cache), truth)
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 3


@pytest.mark.parametrize(("method", "cached"), [("spawn", False), ("fork", False), ("fork", True)])
def test_loader_processes_read_an_object_store(bucket, truth, tmp_path, method, cached):
    url, options = bucket
    cache = ShardCache(str(tmp_path / "cache")) if cached else None
    samples = open_set(url, storage_options=options, cache=cache)
    assert_same(samples[0], truth[0])  # this process has connections and threads when the others begin
    loader = DataLoader(
        samples,
        batch_size=2,
        num_workers=2,
        collate_fn=list,
        multiprocessing_context=multiprocessing.get_context(method),
    )
    for batch, first in zip(loader, range(0, SAMPLES, 2), strict=True):
        for read, expected in zip(batch, truth[first : first + 2], strict=True):
            assert_same(read, expected)


def test_what_is_not_in_an_object_store(bucket):
    options = bucket[1]
    with pytest.raises(StorageError, match=r"s3://people/validation/manifest.json: there is no such file: it is gone"):
        open_set("s3://people/validation", storage_options=options)
    with pytest.raises(StorageError, match=r"s3://nobody/train/manifest.json: there is no such file"):
        open_set("s3://nobody/train", storage_options=options)
    with pytest.raises(UserError, match="nosuchprotocol"):
        open_set("nosuchprotocol://bucket/set")


def test_only_the_needed_members_are_fetched(server, truth, folder):
    samples = open_set(f"{server.url}/set")
    assert_same(samples[4], truth[4])
    paths = [path for path, _ in server.requests]
    assert sorted(paths) == ["/set/manifest.json", "/set/samples-000001.tar", "/set/samples-000001.tar.index"]
    first, last = map(int, server.requests[-1][1].removeprefix("bytes=").split("-"))
    assert last - first < (folder / "samples-000001.tar").stat().st_size / 3


def test_members_far_apart_come_by_requests_of_their_own(server, truth, monkeypatch):
    monkeypatch.setattr(storage_module, "_GAP", 0)
    samples = open_set(f"{server.url}/set")
    assert_same(samples[4], truth[4])
    assert [path for path, _ in server.requests].count("/set/samples-000001.tar") == 3


def test_files_and_memory_are_urls_too(folder, truth):
    import fsspec

    assert_all(open_set(f"file://{folder}"), truth)
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/set", recursive=True)
    assert_all(open_set("memory://set"), truth)
    memory.rm("/set", recursive=True)


FAULTS = ["500", "503", "cut", "short", "long", "changed", "drop"]
FILES = ["000001.tar", "000001.tar.index", "manifest.json"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("cached", [False, True])
def test_one_failure_is_overcome(server, truth, fault, file, cached, tmp_path):
    server.faults.append((file, fault))
    samples = open_set(f"{server.url}/set", cache=ShardCache(str(tmp_path)) if cached else None)
    assert_all(samples, truth)
    assert not server.faults


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("cached", [False, True])
def test_what_fails_always_is_one_clear_error(server, truth, fault, cached, tmp_path):
    samples = open_set(f"{server.url}/set", cache=ShardCache(str(tmp_path)) if cached else None)
    assert_same(samples[0], truth[0])
    server.faults += [("000001.tar", fault)] * 50
    message = "cannot be read, 6 attempts in 0 s failed; the last one"
    if fault == "changed":
        message = "the shard is damaged, or the manifest" if cached else "the shard is damaged or the index"
    elif fault in ("short", "long"):
        message += r": OSError: gave \d+ bytes instead of \d+: it is cut off, or another file"
    with pytest.raises((StorageError, ShardError), match=rf"{server.url}/set/samples-000001.tar: .*{message}"):
        samples[3]
    assert_same(samples[6], truth[6])
    server.faults.clear()
    assert_all(samples, truth)


@pytest.mark.parametrize("fault", ["404", "403"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_shard_that_is_gone_or_forbidden_is_not_asked_for_again(server, truth, fault, cached, tmp_path):
    samples = open_set(f"{server.url}/set", cache=ShardCache(str(tmp_path)) if cached else None)
    server.faults += [("000002.tar", fault)] * 50
    message = "there is no such file: it is gone, or never was there" if fault == "404" else "ClientResponseError: 403"
    with pytest.raises(StorageError, match=f"samples-000002.tar: {message}"):
        samples[6]
    assert len(server.faults) == 49


def test_a_server_that_hangs_is_given_up(server, truth, monkeypatch):
    samples = open_set(f"{server.url}/set")
    assert_same(samples[3], truth[3])
    monkeypatch.setattr(storage_module, "TIMEOUT", 0.2)
    server.faults.append(("000001.tar", "slow"))
    assert_same(samples[4], truth[4])
    server.faults += [("000001.tar", "slow")] * 6
    with pytest.raises(StorageError, match="FSTimeoutError"):
        samples[5]


def test_a_slow_server_is_asked_for_many_samples_at_once(server, truth):
    server.delay = 0.3
    samples = open_set(f"{server.url}/set")
    for number in range(SAMPLES):
        samples.key(number)
    server.faults += [(".tar", "slow")] * SAMPLES
    busy = []

    def count(number):
        busy.append(sum(fetching.running() for fetching in samples._state.ahead.values()))
        return number

    samples.prefetch(range(SAMPLES))
    count(0)
    for read, expected in zip(samples.__getitems__(list(range(SAMPLES))), truth, strict=True):
        assert_same(read, expected)
    assert busy == [SAMPLES]
    assert [path.endswith(".tar") for path, _ in server.requests].count(True) == SAMPLES
    assert not samples._state.ahead


def test_a_prefetch_that_fails_fails_when_its_sample_is_read(server, truth):
    samples = open_set(f"{server.url}/set")
    server.faults.append(("000002.tar", "404"))
    samples.prefetch([5, 6])
    assert_same(samples[5], truth[5])
    with pytest.raises(StorageError, match=r"000002.tar: there is no such file"):
        samples[6]
    assert_same(samples[6], truth[6])


def test_few_prefetched_samples_wait(server, truth, monkeypatch):
    monkeypatch.setattr(reader_module, "MAX_AHEAD", 2)
    samples = open_set(f"{server.url}/set")
    samples.prefetch(range(SAMPLES))
    assert len(samples._state.ahead) == 2
    assert_all(samples, truth)


def test_a_server_that_cannot_send_parts(server, truth, tmp_path):
    server.ranges = False
    samples = open_set(f"{server.url}/set")
    with pytest.raises(StorageError, match=r"cannot send parts of a file; fetch shards whole, with data.cache"):
        samples[0]
    assert_all(open_set(f"{server.url}/set", cache=ShardCache(str(tmp_path))), truth)


def test_a_cached_shard_is_fetched_once_in_parts(server, truth, tmp_path, monkeypatch, folder):
    monkeypatch.setattr("data_modules.shards.cache._PART", 10_000)
    cache = ShardCache(str(tmp_path))
    assert_all(open_set(f"{server.url}/set", cache=cache), truth)
    fetched = [path for path, _ in server.requests if path.endswith("000001.tar")]
    assert len(fetched) == -(-(folder / "samples-000001.tar").stat().st_size // 10_000)
    server.requests.clear()
    assert_all(open_set(f"{server.url}/set", cache=cache), truth)
    assert not [path for path, _ in server.requests if path.endswith(".tar")]


def test_several_readers_fetch_a_shard_once(server, truth, tmp_path):
    cache = ShardCache(str(tmp_path))
    readers = [open_set(f"{server.url}/set", cache=cache) for _ in range(4)]
    server.delay = 0.2
    server.faults.append(("000000.tar", "slow"))
    found = []
    threads = [threading.Thread(target=lambda one=one: found.append(one[1])) for one in readers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for read in found:
        assert_same(read, truth[1])
    assert len(found) == 4 and [path for path, _ in server.requests].count("/set/samples-000000.tar") == 1


def test_a_process_forked_during_a_download_does_not_keep_others_waiting(tmp_path):
    with cache_module._locked(tmp_path / "x.lock"):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(20,))
        child.start()
    taken = threading.Event()

    def take():
        with cache_module._locked(tmp_path / "x.lock"):
            taken.set()

    threading.Thread(target=take, daemon=True).start()
    assert taken.wait(5)
    child.kill()
    child.join()


def test_the_cache_keeps_to_its_size(server, truth, tmp_path, folder):
    size = (folder / "samples-000000.tar").stat().st_size
    cache = ShardCache(str(tmp_path), max_bytes=2 * size)
    samples = open_set(f"{server.url}/set", cache=cache)
    for number in (0, 3, 6, 1, 0):
        assert_same(samples[number], truth[number])
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2 * size
    kept = {path.name[-10:-4] for path in tmp_path.glob("*.tar")}
    assert "000002" in kept and len(kept) == 2
    with pytest.raises(UserError, match=rf"cache.max_bytes is 1000, less than the {size} bytes of one shard"):
        open_set(f"{server.url}/set", cache=ShardCache(str(tmp_path / "small"), max_bytes=1000))[0]


def test_what_was_used_last_stays_in_the_cache(server, truth, tmp_path, folder):
    sizes = [(folder / f"samples-00000{shard}.tar").stat().st_size for shard in range(3)]
    cache = ShardCache(str(tmp_path), max_bytes=sizes[0] + sizes[1] + sizes[2] - 1)
    samples = open_set(f"{server.url}/set", cache=cache)
    for number in (0, 3):
        samples[number]
    first = next(tmp_path.glob("*000000.tar"))
    second = next(tmp_path.glob("*000001.tar"))
    os.utime(first, (2e9, 2e9))
    samples[6]
    assert first.exists() and not second.exists()
    assert_same(samples[4], truth[4])  # it is open, and goes on being read


def test_a_download_that_nobody_continues_makes_room(tmp_path, server, truth, folder):
    size = (folder / "samples-000000.tar").stat().st_size
    left = tmp_path / "x.tar.part"
    left.write_bytes(bytes(size))
    cache = ShardCache(str(tmp_path), max_bytes=size + 10)
    os.utime(left, (1e9, 1e9))
    assert_same(open_set(f"{server.url}/set", cache=cache)[0], truth[0])
    assert not left.exists()


def test_a_cached_shard_that_rots_is_fetched_again(server, truth, tmp_path):
    cache = ShardCache(str(tmp_path))
    samples = open_set(f"{server.url}/set", cache=cache)
    assert_same(samples[3], truth[3])
    path = next(tmp_path.glob("*000001.tar"))
    path.write_bytes(bytes(path.stat().st_size))
    assert_same(samples[4], truth[4])
    path.write_bytes(b"cut off")
    assert_all(open_set(f"{server.url}/set", cache=cache), truth)


def test_shards_are_fetched_ahead_into_the_cache(server, truth, tmp_path):
    samples = open_set(f"{server.url}/set", cache=ShardCache(str(tmp_path)))
    samples.prefetch_shards([0, 1, 6])
    samples._state.pool.shutdown(wait=True)
    assert sorted(path.name[-5:-4] for path in tmp_path.glob("*.tar")) == ["0", "2"]


def test_a_set_of_a_url_is_picklable(server, truth):
    samples = open_set(f"{server.url}/set")
    samples.prefetch([0, 1])
    assert_all(pickle.loads(pickle.dumps(samples)), truth)


def test_scaled_images_alone(folder, server):
    samples = ShardDataset(f"{server.url}/set", fields=("image",), min_size=(16, 12))
    assert samples[0]["image"].shape == (16, 12, 3)
    with pytest.raises(ShardError, match="min_size changes the image's size"):
        ShardDataset(folder, fields=("image", "box"), min_size=(16, 12))
