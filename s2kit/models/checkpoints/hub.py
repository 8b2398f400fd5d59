"""Weights from the Hugging Face hub, or a mirror of it named by ``HF_ENDPOINT``."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from s2kit.models.checkpoints.errors import WeightsError
from s2kit.models.checkpoints.files import first_line

PREFIX = "hf://"
#: What is fetched beside the weights: their description and their terms.
_BESIDE = ("config.json", "model.json", "LICENSE*", "NOTICE*")
_ADDRESS = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+?)(?:@(?P<revision>refs/(?:pr|heads|convert)/[\w.-]+|[^/@\s]+))?(?:/(?P<file>[^\s@]+))?/?"
)


def parse(address: str) -> tuple[str, str | None, str | None]:
    """Split ``hf://owner/name[@revision][/file]`` into repository, revision and file.

    Raises:
        WeightsError: If it is no such address.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise WeightsError(f"{address}: not an address on the hub; write hf://owner/name[@revision][/file]")
    return match["repo"], match["revision"], match["file"]


def download(address: str, choose: Callable[[list[str], dict[str, Any], str], str]) -> Path:
    """Return the local path of a repository's weights (or of the index of its shards), fetching what is not there.

    What is in the hub's local cache serves when the hub cannot be reached.

    Args:
        address: ``hf://owner/name[@revision][/file]``.
        choose: Chooses among the names of a repository, see `s2kit.models.checkpoints.locate.choose`.

    Raises:
        WeightsError: If there is no such repository, revision or file, access to it was not granted, or the hub cannot
            be reached and its cache has no copy; the text says what to do.
    """
    repo, revision, file = parse(address)
    try:
        from huggingface_hub import errors
    except ImportError as error:
        raise WeightsError(f"{address}: needs the package huggingface_hub (pip install huggingface_hub)") from error
    try:
        return _fetch(address, repo, revision, file, choose)
    except errors.GatedRepoError as error:
        raise WeightsError(
            f"{address}: access to {repo} must be granted first: accept its terms on {_page(repo)}, then "
            "`hf auth login` here"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(f"{address}: {repo} has no revision {revision!r}; see {_page(repo)}/tree/main") from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(
            f"{address}: there is no repository {repo} on {_endpoint()}, or it is private (`hf auth login`)"
        ) from error
    except errors.HFValidationError as error:
        raise WeightsError(f"{address}: {first_line(error)}") from error
    except WeightsError:
        raise
    except Exception as error:  # each release of huggingface_hub has other errors of the network beneath it
        cached = _cached(address, repo, revision, file, choose)
        if cached is not None:
            return cached
        raise WeightsError(_unreachable(address, repo, revision, file, error)) from error


def _fetch(address: str, repo: str, revision: str | None, file: str | None, choose: Callable) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    from s2kit.models.checkpoints.locate import INDEX_SUFFIX, read_json

    info = HfApi().model_info(repo, revision=revision, timeout=30)
    names = [sibling.rfilename for sibling in info.siblings or ()]

    def fetch(name: str) -> Path:
        # By the branch's name, so that the cache knows which commit it was when the hub cannot be reached.
        return Path(hf_hub_download(repo, name, revision=revision))

    if file is not None and file not in names:
        close = ", ".join(name for name in names if name.endswith((".safetensors", ".pth", ".pt", ".bin", ".ckpt")))
        raise WeightsError(f"{address}: {repo} has no file {file}; its files of weights: {close or 'none'}")
    folder = file.rpartition("/")[0] + "/" if file and "/" in file else ""
    here = [name[len(folder) :] for name in names if name.startswith(folder) and "/" not in name[len(folder) :]]
    beside = {name: fetch(folder + name) for name in here if any(fnmatch(name, pattern) for pattern in _BESIDE)}
    if file is None:
        jsons = {name: read_json(path) for name, path in beside.items() if path.suffix == ".json"}
        file = choose(sorted(here), jsons, address)
    path = fetch(file)
    parts = [file]
    if file.endswith(INDEX_SUFFIX):
        weight_map = read_json(path).get("weight_map") or {}
        parts = [folder + shard for shard in sorted(set(weight_map.values()) & set(here))]
    for part in parts:
        fetch(part)
        if part + ".sha256" in names:
            fetch(part + ".sha256")
    return path


def _cached(address: str, repo: str, revision: str | None, file: str | None, choose: Callable) -> Path | None:
    """Return the path in the local cache, or None if the weights are not there."""
    from huggingface_hub import constants

    from s2kit.models.checkpoints.locate import read_json

    # The layout of the cache is documented: a branch's commit in refs/, a commit's files in snapshots/.
    here = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    branch = here / "refs" / (revision or "main")
    folder = here / "snapshots" / (branch.read_text().strip() if branch.is_file() else revision or "main")
    if not folder.is_dir():
        return None
    if file is not None:
        return folder / file if (folder / file).is_file() else None
    names = sorted(path.name for path in folder.iterdir())
    jsons = {name: read_json(folder / name) for name in ("config.json", "model.json") if name in names}
    try:
        return folder / choose(names, jsons, address)
    except WeightsError:
        return None


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _page(repo: str) -> str:
    return f"{_endpoint()}/{repo}"


def _unreachable(address: str, repo: str, revision: str | None, file: str | None, error: Exception) -> str:
    """Say where to put the files by hand."""
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE or type(error).__name__ == "OfflineModeIsEnabled"
    why = "HF_HUB_OFFLINE is set" if offline else f"{constants.ENDPOINT} cannot be reached ({first_line(error)})"
    what = f"{file} and what lies beside it" if file else "its files"
    at = f"/tree/{revision}" if revision else ""
    return (
        f"{address}: {why}, and the cache {constants.HF_HUB_CACHE} has no copy. Download {what} from {_page(repo)}{at} "
        f"on another machine, put them into a folder here, such as weights/{repo.rpartition('/')[2]}, and give that "
        "folder instead of the address"
    )
