"""Weights from the hub: against a loopback server that stands in for it, and without any."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from s2kit.models.checkpoints import WeightsError, read_checkpoint
from s2kit.models.checkpoints.hub import parse

huggingface_hub = pytest.importorskip("huggingface_hub")


class Hub:
    """Repositories in memory, served as the hub serves them: files at a revision, with a commit and an etag."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.gated: set[str] = set()
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args) -> None:
                pass

            def do_HEAD(self) -> None:
                self.answer(with_body=False)

            def do_GET(self) -> None:
                self.answer(with_body=True)

            def refuse(self, status: int, code: str) -> None:
                self.send_response(status)
                self.send_header("X-Error-Code", code)
                self.send_header("X-Error-Message", code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def answer(self, with_body: bool) -> None:
                path = self.path.partition("?")[0].strip("/")
                hub.requests.append(f"{self.command} /{path}")
                parts = path.split("/")
                api = parts[:2] == ["api", "models"]
                parts = parts[2:] if api else parts
                name, rest = "/".join(parts[:2]), parts[2:]
                if name in hub.gated:
                    return self.refuse(403, "GatedRepo")
                if name not in hub.repositories:
                    return self.refuse(404, "RepoNotFound")
                revision = rest[1] if len(rest) > 1 else "main"
                revisions = hub.repositories[name]
                by_commit = {hub.commit(name, key): key for key in revisions}
                revision = by_commit.get(revision, revision)
                if revision not in revisions:
                    return self.refuse(404, "RevisionNotFound")
                files = revisions[revision]
                if api:
                    siblings = [{"rfilename": file} for file in files]
                    info = {"id": name, "sha": hub.commit(name, revision), "siblings": siblings}
                    body, etag = json.dumps(info | {"tags": [], "private": False}).encode(), "x"
                else:
                    file = "/".join(rest[2:])
                    if file not in files:
                        return self.refuse(404, "EntryNotFound")
                    body = files[file]
                    etag = hashlib.sha256(body).hexdigest()
                self.send_response(200)
                self.send_header("ETag", f'"{etag}"')
                self.send_header("X-Repo-Commit", hub.commit(name, revision))
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Content-Type", "application/json" if api else "application/octet-stream")
                self.end_headers()
                if with_body:
                    self.wfile.write(body)
                return None

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @staticmethod
    def commit(name: str, revision: str) -> str:
        return hashlib.sha1(f"{name}@{revision}".encode()).hexdigest()


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def state(make_tiny):
    return dict(make_tiny().state_dict())


@pytest.fixture
def hub(tmp_path, state, monkeypatch):
    """A hub with some repositories, and a cache of its own."""
    hub = Hub()
    (tmp_path / "official").mkdir()
    save_file(state, tmp_path / "official" / "sapiens2_tiny_pretrain.safetensors")
    (tmp_path / "official" / "LICENSE.md").write_text("Sapiens2 License")
    (tmp_path / "official" / "config.json").write_text(
        json.dumps({"model_type": "sapiens2", "transformers_weights": "sapiens2_tiny_pretrain.safetensors"})
    )
    files = content(tmp_path / "official")
    changed = {name: value + 1 if value.dtype == torch.float32 else value for name, value in state.items()}
    save_file(changed, tmp_path / "official" / "sapiens2_tiny_pretrain.safetensors")
    hub.repositories["ours/tiny"] = {"main": files, "v2": content(tmp_path / "official")}
    weights = files["sapiens2_tiny_pretrain.safetensors"]
    hub.repositories["ours/several"] = {
        "main": {"a.safetensors": weights, "b/c.safetensors": weights, "d.safetensors": b""}
    }
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for module in [module for name, module in sys.modules.items() if name.startswith("huggingface_hub")]:
        for name in ("ENDPOINT", "HF_HUB_CACHE", "HUGGINGFACE_CO_URL_TEMPLATE"):
            if name in vars(module):
                value = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
                value = {"ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache")}.get(name, value)
                monkeypatch.setattr(module, name, value)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def refusal(address: str) -> str:
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(address)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(address)
    return text


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("hf://facebook/sapiens2-normal-1b", ("facebook/sapiens2-normal-1b", None, None)),
        ("hf://a/b@main", ("a/b", "main", None)),
        ("hf://a/b@refs/pr/3", ("a/b", "refs/pr/3", None)),
        ("hf://a/b.c@0123abc/folder/x.safetensors", ("a/b.c", "0123abc", "folder/x.safetensors")),
        ("hf://a/b/x.safetensors", ("a/b", None, "x.safetensors")),
        ("hf://a/b/", ("a/b", None, None)),
    ],
)
def test_addresses(address, parts):
    assert parse(address) == parts


@pytest.mark.parametrize("address", ["hf://", "hf://a", "hf:///b", "hf://a/b c", "hf://a/b@"])
def test_what_is_no_address(address):
    assert "not an address on the hub; write hf://owner/name[@revision][/file]" in refusal(address)


def test_a_repository_and_its_revisions(hub, state):
    found = read_checkpoint("hf://ours/tiny")
    assert torch.equal(found.state["blocks.3.ffn.w3.weight"], state["blocks.3.ffn.w3.weight"])
    assert (found.layout, found.source.name, found.known_frame) == ("official", "hf://ours/tiny", "published")
    assert (found.source.folder / "LICENSE.md").read_text() == "Sapiens2 License"
    other = read_checkpoint("hf://ours/tiny@v2")
    assert torch.equal(other.state["blocks.3.ffn.w3.weight"], state["blocks.3.ffn.w3.weight"] + 1)
    commit = Hub.commit("ours/tiny", "v2")
    again = read_checkpoint(f"hf://ours/tiny@{commit}/sapiens2_tiny_pretrain.safetensors")
    assert torch.equal(again.state["cls_token"], other.state["cls_token"])


def test_the_second_time_the_weights_come_from_the_cache(hub, state, monkeypatch):
    read_checkpoint("hf://ours/tiny")
    hub.requests.clear()
    read_checkpoint("hf://ours/tiny")
    assert not any(request.startswith("GET") and "resolve" in request for request in hub.requests)
    hub.server.shutdown()
    hub.server.server_close()
    for address in ("hf://ours/tiny", "hf://ours/tiny/sapiens2_tiny_pretrain.safetensors"):
        found = read_checkpoint(address)
        assert torch.equal(found.state["cls_token"], state["cls_token"])


def test_what_the_hub_does_not_have(hub):
    hub.gated.add("ours/gated")
    assert "there is no repository ours/nothing on http://127.0.0.1" in refusal("hf://ours/nothing")
    assert "ours/tiny has no revision 'v9'" in refusal("hf://ours/tiny@v9")
    assert "ours/tiny has no file x.safetensors; its files of weights: sapiens2_tiny" in refusal(
        "hf://ours/tiny/x.safetensors"
    )
    assert "access to ours/gated must be granted first: accept its terms on http" in refusal("hf://ours/gated")
    assert "name the one that is meant: a.safetensors, d.safetensors" in refusal("hf://ours/several")
    assert read_checkpoint("hf://ours/several/b/c.safetensors").layout == "official"
    with pytest.raises(WeightsError, match="the file is empty"):
        read_checkpoint("hf://ours/several/d.safetensors")


def test_shards_on_the_hub(hub, state, tmp_path):
    from s2kit.models.checkpoints.writing import write_safetensors

    (tmp_path / "sharded").mkdir()
    paths = write_safetensors(state, tmp_path / "sharded", "model", {}, shard_bytes=200_000)
    assert len(paths) > 3
    hub.repositories["ours/sharded"] = {"main": content(tmp_path / "sharded")}
    found = read_checkpoint("hf://ours/sharded")
    assert list(found.state) == list(state)
    assert all(torch.equal(found.state[name], value) for name, value in state.items())


def test_a_hub_that_cannot_be_reached_and_no_copy(hub, tmp_path):
    hub.server.shutdown()
    hub.server.server_close()
    text = refusal("hf://ours/tiny@v2")
    assert f"{hub.url} cannot be reached" in text
    assert f"the cache {tmp_path / 'cache'} has no copy" in text
    assert f"Download its files from {hub.url}/ours/tiny/tree/v2 on another machine" in text
    assert "such as weights/tiny, and give that folder instead" in text


def test_by_the_environment_and_offline(hub, tmp_path):
    """The whole command in a process of its own: HF_ENDPOINT names the hub, HF_HUB_OFFLINE forbids it."""

    def run(**environment: str) -> subprocess.CompletedProcess:
        names = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        command = [sys.executable, "-m", "s2kit", "convert", "hf://ours/tiny"]
        return subprocess.run(command, env=inherited | names | environment, capture_output=True, text=True, check=False)

    offline = run(HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert offline.returncode == 1
    assert offline.stderr.startswith("s2kit: error: hf://ours/tiny: HF_HUB_OFFLINE is set, and the cache")
    assert f"Download its files from {hub.url}/ours/tiny on another machine" in offline.stderr
    assert offline.stderr.count("\n") == 1
    online = run(HF_ENDPOINT=hub.url)
    assert online.returncode == 0, online.stderr
    assert "layout:     official" in online.stdout
