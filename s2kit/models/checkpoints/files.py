"""One file to tensors: safetensors and pickles, told apart by content; every broken file ends in one clear error."""

from __future__ import annotations

import errno
import hashlib
import json
import pickle
import re
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from s2kit.models.checkpoints.errors import WeightsError

#: Longest header of a safetensors file that its format allows.
MAX_HEADER = 100_000_000
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_LFS = b"version https://git-lfs.github.com/spec/"


def check_path(path: Path) -> None:
    """Check that a path leads to a file with something in it.

    Raises:
        FileNotFoundError: If there is nothing.
        WeightsError: If it is a loop of links, a dangling link, no regular file, not readable, or empty.
    """
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            with path.open("rb"):
                pass
    except FileNotFoundError:
        if path.is_symlink():
            raise WeightsError(f"{path}: a symbolic link to {path.readlink()}, which does not exist") from None
        raise FileNotFoundError(f"{path}: no such file of weights") from None
    except NotADirectoryError:
        raise FileNotFoundError(f"{path}: no such file of weights") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise WeightsError(f"{path}: a loop of symbolic links, which leads to no file") from None
        raise WeightsError(f"{path}: cannot be opened ({error.strerror})") from None
    if not stat.S_ISREG(status.st_mode):
        raise WeightsError(f"{path}: not a regular file")
    if status.st_size == 0:
        raise WeightsError(f"{path}: the file is empty (0 bytes); download or copy it again")


def read_file(path: Path) -> tuple[Any, dict[str, str]]:
    """Read one file by its content, whatever its name.

    A ``PATH.sha256`` beside it (as ``sha256sum`` writes it) is compared first.

    Returns:
        What it holds: a flat dict of tensors for safetensors, any nest of plain values and tensors for a pickle; and
        the metadata of safetensors.

    Raises:
        FileNotFoundError, WeightsError: See `check_path`; and if the content is no weights, damaged, or a pickle that
            needs more than ``weights_only=True`` allows.
    """
    check_path(path)
    with path.open("rb") as file:
        start = file.read(4096)
    refuse_text(path, start)
    check_sum(path)
    if start.startswith(_ZIP):
        return _read_zip(path), {}
    # Before pickles: the length of a header may begin with the byte that they begin with.
    if start[8:9] == b"{":
        return _read_safetensors(path)
    if start.startswith(_PICKLE):
        return _load_pickle(path), {}
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    raise WeightsError(
        f"{path}: not a readable file of weights: neither safetensors nor a PyTorch file (it starts with {start[:8]!r})"
    )


def refuse_text(path: Path, start: bytes) -> None:
    """Refuse what a failed download leaves: a web page, an error message, a git-lfs pointer."""
    if start.startswith(_LFS):
        size = re.search(rb"^size (\d+)$", start, re.M)
        what = f" of {int(size[1]):,} bytes" if size else ""
        raise WeightsError(
            f"{path}: a git-lfs pointer to a file{what}, not the file itself; run `git lfs pull` in its repository"
        )
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if re.match(rb"<!doctype html|<html|<head|<\?xml|<!--|<error", text):
        title = re.search(rb"<title[^>]*>\s*(.*?)\s*</title>", start, re.I | re.S)
        named = f' titled "{_printable(title[1])}"' if title else ""
        raise WeightsError(
            f"{path}: not a readable file of weights: it is a web page{named} (a download that needed a login or a "
            "direct link?)"
        )
    if text[:1] in (b"{", b"["):
        raise WeightsError(
            f'{path}: not a readable file of weights: it is JSON text, beginning "{_printable(start[:80])}"'
        )


def _printable(text: bytes) -> str:
    return " ".join(text.decode("utf-8", "replace").split())[:80]


def check_sum(path: Path) -> None:
    """Compare a file with ``PATH.sha256`` if there is one.

    Raises:
        WeightsError: If they disagree, or the checksum's file holds none.
    """
    sidecar = path.with_name(path.name + ".sha256")
    if not sidecar.is_file():
        return
    words = sidecar.read_text(errors="replace").split()
    if not words or not re.fullmatch(r"[0-9a-fA-F]{64}", words[0]):
        raise WeightsError(f"{sidecar}: holds no SHA-256 checksum; remove it, or write it with sha256sum")
    found = sha256(path)
    if found != words[0].lower():
        raise WeightsError(
            f"{path}: damaged, or another version: its SHA-256 is {found[:12]}..., but {sidecar.name} says "
            f"{words[0][:12].lower()}..."
        )


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------------- safetensors


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    _check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, AttributeError) as error:
        raise WeightsError(
            f"{path}: not a readable file of weights: its safetensors header is damaged ({first_line(error)})"
        ) from error


def _check_header(path: Path) -> None:
    """Say in plain words what safetensors' own reader says in its own: truncated, too long, or damaged."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if length > MAX_HEADER or length < 2:
            raise WeightsError(
                f"{path}: not a readable file of weights: no safetensors header, or a damaged one (its length would "
                f"be {length:,} bytes)"
            )
        if 8 + length > size:
            raise WeightsError(
                f"{path}: truncated or damaged: its header alone has {length:,} bytes, but the file only {size:,}"
            )
        raw = file.read(length)
    try:
        entries = json.loads(raw)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        end = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise WeightsError(
            f"{path}: not a readable file of weights: its safetensors header is damaged ({first_line(error)})"
        ) from error
    if end > size:
        raise WeightsError(f"{path}: truncated: {size:,} of {end:,} bytes are there; download or copy it again")
    if end < size:
        raise WeightsError(f"{path}: damaged: {size - end:,} bytes follow the last tensor, or the header is wrong")


# ---------------------------------------------------------------------------------------------------- pickles


def _read_zip(path: Path) -> Any:
    """Read PyTorch's zip file; its members carry checksums, which mapping it into memory would not compare."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
                raise WeightsError(
                    f"{path}: refused: a TorchScript or exported program, not a file of weights; take the release's "
                    "plain checkpoint instead"
                )
            if not any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
                raise WeightsError(f"{path}: a zip archive, but not one of PyTorch (it holds {', '.join(names[:3])})")
            bad = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise WeightsError(
            f"{path}: truncated or damaged: not a complete PyTorch file ({first_line(error)}); copy it again"
        ) from error
    if bad is not None:
        raise WeightsError(f"{path}: damaged: the checksum of its member {bad} does not match")
    return _load_pickle(path, mmap=True)


def _load_pickle(path: Path, mmap: bool = False) -> Any:
    try:
        if path.suffix == ".safetensors":  # torch.load would go by the name
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise WeightsError(_refusal(path, str(error))) from error
    except Exception as error:  # hostile or damaged pickles raise anything
        raise WeightsError(f"{path}: not a readable file of weights: a damaged pickle ({first_line(error)})") from error


def _refusal(path: Path, message: str) -> str:
    """Say which object a pickle wanted to build."""
    wanted = re.findall(r"GLOBAL ([\w.]+)", message) or re.findall(
        r"Unsupported (?:class|global)[: ]+([\w.]+)", message
    )
    if not wanted:
        detail = message.partition("WeightsUnpickler error:")[2] or message
        return f"{path}: not a readable file of weights: a damaged pickle ({first_line(detail)})"
    return (
        f"{path}: refused: it is a pickle that needs {wanted[0]}, and a pickle that builds objects can run any code; "
        "only tensors and plain values are read (weights_only=True). Ask for safetensors, or let whoever trusts the "
        "file save its state dict alone"
    )


def first_line(error: BaseException | str) -> str:
    """Return an error's first line, or its type if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].strip()[:200] if lines else type(error).__name__
