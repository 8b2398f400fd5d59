"""Files that cannot be used: each ends in one line that names the file and the reason."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from s2kit.models.checkpoints import WeightsError, load_weights, read_state_dict


class Small(torch.nn.Module):
    """A "task" whose file is small enough to try each of its bits."""

    name = "small"
    image_size = (32, 32)

    def __init__(self) -> None:
        super().__init__()
        self.backbone = torch.nn.Linear(3, 2)
        with torch.no_grad():
            for value in self.parameters():
                value.copy_(torch.linspace(-1, 1, value.numel()).reshape(value.shape))


def refusal(path: Path | str) -> str:
    """The message of the refusal, which must be one line that begins with the path."""
    with pytest.raises((WeightsError, FileNotFoundError)) as caught:
        read_state_dict(path)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    return text


TEXTS = {
    "an empty file": (b"", "the file is empty (0 bytes)"),
    "a page": (b"\n<!DOCTYPE html><html><title>Sign in\n to Hub</title>", 'it is a web page titled "Sign in to Hub"'),
    "a page in capitals": (b"<HTML><body>moved</body>", "it is a web page"),
    "a bucket's answer": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "it is a web page"),
    "an error in JSON": (b'{"error": "Invalid username or password."}', 'JSON text, beginning "{"error": "Invalid'),
    "a git-lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1811429376\n",
        "a git-lfs pointer to a file of 1,811,429,376 bytes, not the file itself; run `git lfs pull`",
    ),
    "noise": (bytes(range(7, 200)), "neither safetensors nor a PyTorch file"),
    "three bytes": (b"\x01\x02\x03", "neither safetensors nor a PyTorch file"),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".ckpt"])
@pytest.mark.parametrize("what", TEXTS)
def test_what_a_failed_download_leaves(what, suffix, tmp_path):
    content, words = TEXTS[what]
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    text = refusal(path)
    if suffix != ".safetensors" or "neither" not in words:
        assert words in text
    else:
        assert "no safetensors header, or a damaged one" in text


def test_paths_that_lead_nowhere(tmp_path):
    (tmp_path / "a.safetensors").symlink_to(tmp_path / "b.safetensors")
    (tmp_path / "b.safetensors").symlink_to(tmp_path / "a.safetensors")
    (tmp_path / "loop").symlink_to(tmp_path / "loop", target_is_directory=True)
    (tmp_path / "dangling.pth").symlink_to("blobs/0123")
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert "a loop of symbolic links" in refusal(tmp_path / "a.safetensors")
    assert "a loop of symbolic links" in refusal(tmp_path / "loop")
    assert "a symbolic link to blobs/0123, which does not exist" in refusal(tmp_path / "dangling.pth")
    assert "not a regular file" in refusal(tmp_path / "pipe.safetensors")
    assert "no such file of weights" in refusal(tmp_path / "gone.safetensors")
    (tmp_path / "file").write_text("x")
    assert "no such file of weights" in refusal(tmp_path / "file" / "weights.safetensors")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"x")
    (tmp_path / "a.pth").chmod(0)
    assert "cannot be opened" in refusal(tmp_path / "a.pth")


def test_every_truncation_of_safetensors_is_noticed(tmp_path):
    whole = save(dict(Small().state_dict()))
    path = tmp_path / "cut.safetensors"
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        text = refusal(path)
        if length >= header:
            assert f"truncated: {length} of {len(whole)} bytes are there" in text
    path.write_bytes(whole + b"\0\0")
    assert "2 bytes follow the last tensor" in refusal(path)


def test_every_bit_of_a_header_counts(tmp_path):
    """Each flip in the length or the header is noticed in reading or in fitting, or changes no weight."""
    model = Small()
    whole = save({f"backbone.{name}": value for name, value in model.backbone.state_dict().items()}, {"by": "test"})
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    path = tmp_path / "flipped.safetensors"
    noticed = 0
    for bit in range(8 * header):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        other = Small()
        torch.nn.init.zeros_(other.backbone.weight)
        try:
            load_weights(other, path)
        except WeightsError as error:
            assert "\n" not in str(error)
            noticed += 1
        else:
            for name, value in model.state_dict().items():
                assert torch.equal(other.state_dict()[name], value), (bit, name)
    assert noticed > 0.8 * 8 * header


def test_a_flip_in_the_data_needs_a_checksum(tmp_path):
    """Without one, a flip that leaves the number finite cannot be told from another weight; with one it can."""
    path = tmp_path / "weights.safetensors"
    save_file(dict(Small().state_dict()), path)
    whole = path.read_bytes()
    good = Small().state_dict()
    sidecar = tmp_path / "weights.safetensors.sha256"
    flipped = bytearray(whole)
    flipped[-1] ^= 1  # an exponent's bit: another finite number
    path.write_bytes(flipped)
    assert not torch.equal(read_state_dict(path)["backbone.weight"], good["backbone.weight"])
    sidecar.write_text(f"{hashlib.sha256(whole).hexdigest()}  weights.safetensors\n")
    assert "damaged, or another version: its SHA-256 is" in refusal(path)
    path.write_bytes(whole)
    assert torch.equal(read_state_dict(path)["backbone.weight"], good["backbone.weight"])
    sidecar.write_text("no sum")
    with pytest.raises(WeightsError, match="holds no SHA-256 checksum"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("value", "words"), [(float("nan"), "NaN"), (float("inf"), "infinite"), (-float("inf"), "inf")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_no_numbers(value, words, dtype, tmp_path):
    model = Small()
    state = {name: tensor.to(dtype, copy=True) for name, tensor in model.state_dict().items()}
    state["backbone.weight"][1, 2] = value
    save_file(state, tmp_path / "a.safetensors")
    before = model.backbone.weight.clone()
    for strict in (True, False):
        with pytest.raises(WeightsError, match=r"a\.safetensors: backbone\.weight has 1 of 6 values") as caught:
            load_weights(model, tmp_path / "a.safetensors", strict)
        assert words in str(caught.value)
    assert torch.equal(model.backbone.weight, before)


def test_whole_numbers_for_weights_do_not_fit(tmp_path):
    save_file({"weight": torch.ones(2, 3, dtype=torch.int8), "bias": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"1 of another type \(weight int8 for float32\)"):
        load_weights(Small(), tmp_path / "a.safetensors")


# ---------------------------------------------------------------------------------------------------- pickles


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(zipped, tmp_path):
    path, trace = tmp_path / "bomb.pth", tmp_path / "trace"
    torch.save({"state_dict": {}, "x": Bomb(trace)}, path, _use_new_zipfile_serialization=zipped)
    text = refusal(path)
    assert "refused: it is a pickle that needs posix.system" in text
    assert "weights_only=True" in text
    assert not trace.exists()


def test_a_pickle_of_other_objects_is_refused_with_their_name(tmp_path):
    torch.save({"state_dict": {"weight": torch.ones(1)}, "args": argparse.Namespace(lr=1)}, tmp_path / "args.pth")
    assert "refused: it is a pickle that needs argparse.Namespace" in refusal(tmp_path / "args.pth")


def test_plain_values_beside_the_weights_are_no_reason_to_refuse(tmp_path):
    content = {"model": OrderedDict(weight=torch.ones(2)), "epoch": 3, "lr": [1e-3], "name": "x", "best": None}
    torch.save(content, tmp_path / "plain.pth")
    assert torch.equal(read_state_dict(tmp_path / "plain.pth")["weight"], torch.ones(2))


def test_a_program_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.pt2")
    assert "refused: a TorchScript or exported program" in refusal(tmp_path / "program.pt2")


def test_damaged_pickles(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"weight": torch.arange(4096.0)}}, path)
    whole = path.read_bytes()
    for length in (5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "truncated or damaged" in refusal(path)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1  # in the tensor's bytes: the archive's own checksum tells
    path.write_bytes(flipped)
    assert "damaged: the checksum of its member" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photo.jpg", "x")
    assert "a zip archive, but not one of PyTorch (it holds photo.jpg)" in refusal(path)
    torch.save({"weight": torch.arange(40.0)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-30])
    assert "damaged pickle" in refusal(path)


# ---------------------------------------------------------------------------------------------------- folders


def shards(folder: Path, parts: dict[str, dict], weight_map: dict | None = None) -> Path:
    for name, state in parts.items():
        save_file(state, folder / name)
    weight_map = weight_map or {entry: name for name, state in parts.items() for entry in state}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
PARTS = {FIRST: {"weight": torch.ones(2, 3)}, SECOND: {"bias": torch.ones(2)}}


def test_shards_are_joined_from_the_folder_and_from_the_index(tmp_path):
    shards(tmp_path, PARTS)
    for source in (tmp_path, tmp_path / "model.safetensors.index.json"):
        assert list(read_state_dict(source)) == ["weight", "bias"]
        model = Small()
        load_weights(model, source)
        assert torch.equal(model.backbone.bias, torch.ones(2))


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda folder: (folder / SECOND).unlink(), f"1 of 2 shards are missing: {SECOND}"),
        (lambda folder: (folder / SECOND).write_bytes(b""), "the file is empty"),
        (
            lambda folder: shards(folder, {}, {"weight": FIRST, "bias": FIRST}),
            "lacks bias, which the index places there",
        ),
        (lambda folder: shards(folder, {}, {"weight": FIRST}), "1 entries"),
        (lambda folder: shards(folder, {}, {"weight": "../x.safetensors"}), "outside of its folder: ../x.safetensors"),
        (lambda folder: shards(folder, {}, {"weight": FIRST, "bias": SECOND, "x": SECOND}), "lacks x"),
        (lambda folder: save_file({"weight": torch.ones(1)}, folder / SECOND), f"the index places in {FIRST}"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("<html>"), "web page"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{}"), "no weight_map"),
        (lambda folder: (folder / "model.safetensors.index.json").unlink(), "without their index"),
    ],
)
def test_broken_sets_of_shards(break_it, words, tmp_path):
    shards(tmp_path, PARTS)
    break_it(tmp_path)
    if words == "1 entries":  # an index of one shard reads that shard alone
        assert list(read_state_dict(tmp_path)) == ["weight"]
        return
    with pytest.raises(WeightsError) as caught:
        read_state_dict(tmp_path)
    assert words in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_which_file_of_a_folder(tmp_path):
    def state_of(folder: Path) -> float:
        return float(read_state_dict(folder)["weight"])

    assert "a folder without weights" in refusal(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    assert "its checkpoints are in checkpoints/" in refusal(tmp_path)
    torch.save({"weight": torch.tensor(1.0)}, tmp_path / "a.pth")
    assert state_of(tmp_path) == 1
    torch.save({"weight": torch.tensor(2.0)}, tmp_path / "b.ckpt")
    assert "holds several files of weights; name the one that is meant: a.pth, b.ckpt" in refusal(tmp_path)
    save_file({"weight": torch.tensor(3.0)}, tmp_path / "weights.safetensors")
    assert state_of(tmp_path) == 3  # safetensors before pickles
    save_file({"weight": torch.tensor(4.0)}, tmp_path / "model.safetensors")
    assert "model.safetensors, weights.safetensors" in refusal(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "sapiens2"}')
    assert state_of(tmp_path) == 4
    (tmp_path / "model.json").write_text("{}")
    assert state_of(tmp_path) == 3  # a run's own
    save_file({"weight": torch.tensor(5.0)}, tmp_path / "sapiens2_1b_normal.safetensors")
    (tmp_path / "config.json").write_text('{"transformers_weights": "sapiens2_1b_normal.safetensors"}')
    assert state_of(tmp_path) == 5
    (tmp_path / "config.json").write_text('{"transformers_weights": "gone.safetensors"}')
    assert "names gone.safetensors as transformers_weights, which is not there" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(WeightsError, match=r"config\.json: not valid JSON"):
        read_state_dict(tmp_path)
