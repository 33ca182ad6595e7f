"""Finding files on the hub, against a server on the loopback that speaks its protocol."""

import http.server
import threading

import numpy as np
import pytest

from xlmfam.common.checkpoints import locate
from xlmfam.common.checkpoints.files import open_checkpoint, save_checkpoint
from xlmfam.common.checkpoints.locate import resolve_file
from xlmfam.common.checkpoints.source import TensorSpec
from xlmfam.common.errors import CheckpointError

COMMIT = "a" * 40
TOKEN = "hf_secret"


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers the resolve URLs of four repositories."""

    files: dict[str, bytes]
    asked: list[str]

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        owner, repository, _, revision, name = [*self.path[1:].split("/", 4), "", "", ""][:5]
        self.asked.append(f"{self.command} {self.path}")
        if f"{owner}/{repository}" not in ("own/open", "own/private", "own/gated"):
            return self.refuse(401, "RepoNotFound")
        known = self.headers.get("authorization") == f"Bearer {TOKEN}"
        if repository != "open" and not known:
            gated = repository == "gated"
            return self.refuse(*((403, "GatedRepo") if gated else (401, "RepoNotFound")))
        if revision not in ("main", "v1", COMMIT):
            return self.refuse(404, "RevisionNotFound")
        if name not in self.files:
            return self.refuse(404, "EntryNotFound")
        data = self.files[name]
        self.head(200, len(data), ("ETag", f'"{hash(data)}"'))
        if body:
            self.wfile.write(data)
        return None

    def refuse(self, status, code):
        self.head(status, 0, ("X-Error-Code", code))

    def head(self, status, length, *headers):
        self.send_response(status)
        for name, value in (*headers, ("X-Repo-Commit", COMMIT), ("Content-Length", str(length))):
            self.send_header(name, value)
        self.end_headers()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    handler = type("Handler", (Hub,), {"files": {"config.json": b"{}"}, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    # The library reads the environment when it is imported, which may be long ago.
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(locate, "_unreachable_since", {})
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_file_is_downloaded_once(hub, tmp_path):
    path = resolve_file("own/open", "config.json")
    assert path is not None
    assert path.read_bytes() == b"{}"
    assert (tmp_path / "cache") in path.parents
    hub.asked.clear()
    assert resolve_file("own/open", "config.json") == path
    assert not [line for line in hub.asked if line.startswith("GET /own")]


def test_cache_dir(hub, tmp_path):
    path = resolve_file("own/open", "config.json", cache_dir=tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere") in path.parents


def test_a_missing_file_is_none(hub):
    assert resolve_file("own/open", "model.safetensors") is None


def test_revision_and_subfolder(hub):
    hub.files["sub/x.json"] = b"[]"
    assert resolve_file("own/open", "x.json", subfolder="sub", revision="v1").read_text() == "[]"
    assert any("/resolve/v1/sub/x.json" in line for line in hub.asked)
    with pytest.raises(CheckpointError, match=r"revision v9.*no such revision"):
        resolve_file("own/open", "config.json", revision="v9")


def test_private_and_gated_repositories_want_a_token(hub):
    with pytest.raises(CheckpointError, match=r"private.*token="):
        resolve_file("own/private", "config.json")
    with pytest.raises(CheckpointError, match=r"is gated; ask.*token="):
        resolve_file("own/gated", "config.json")
    for name in ("own/private", "own/gated"):
        assert resolve_file(name, "config.json", token=TOKEN).is_file()


def test_missing_repository(hub):
    with pytest.raises(CheckpointError, match=r"'own/none'.*no such folder.*no such repository"):
        resolve_file("own/none", "config.json")


def test_the_cache_alone(hub):
    path = resolve_file("own/open", "config.json")
    hub.asked.clear()
    assert resolve_file("own/open", "config.json", local_files_only=True) == path
    assert resolve_file("own/open", "other.json", local_files_only=True) is None
    with pytest.raises(CheckpointError, match="not in the cache"):
        resolve_file("own/private", "config.json", local_files_only=True)
    with pytest.raises(CheckpointError, match="not in the cache"):
        resolve_file("own/open", "config.json", local_files_only=True, revision="v1")
    assert hub.asked == []


def test_offline_by_environment(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"HF_HUB_OFFLINE.*folder"):
        resolve_file("own/open", "config.json")
    assert hub.asked == []


def test_a_hub_that_is_down_is_asked_once(monkeypatch, hub):
    import huggingface_hub
    from huggingface_hub import errors

    modes = []

    def down(*args, local_files_only, **kwargs):
        modes.append(local_files_only)
        raise errors.LocalEntryNotFoundError("nobody there")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", down)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="could not be reached"):
            resolve_file("own/open", "config.json")
    assert modes == [False, True]


@pytest.mark.parametrize(
    "name", ["./none", "/none/at/all", "a/b/c", "~/none", "a--b/c", "../x", ".\\x"]
)
def test_what_can_only_be_a_path_is_never_asked_for(hub, name, tmp_path, monkeypatch):
    here = tmp_path / "outer" / "here"  # "../x" may be there where the tests were started
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    with pytest.raises(CheckpointError, match="no such folder"):
        resolve_file(name, "config.json")
    assert hub.asked == []


def test_a_whole_sharded_checkpoint(hub, tmp_path):
    arrays = {"a": np.arange(4, dtype=np.float32), "b": np.arange(6, dtype=np.float32)}
    specs = {name: TensorSpec(a.shape, a.dtype) for name, a in arrays.items()}
    for path in save_checkpoint(tmp_path / "m", specs, arrays.__getitem__, max_shard_size=16):
        hub.files[path.name] = path.read_bytes()
    with open_checkpoint("own/open") as source:
        assert source.specs() == specs
        np.testing.assert_array_equal(source.read("b"), arrays["b"])
    with pytest.raises(CheckpointError, match=r"repository.*none of tf_model\.h5"):
        open_checkpoint("own/open", format="tf")
    del hub.files["model-00002-of-00002.safetensors"]
    with pytest.raises(CheckpointError, match="1 of 2 shards are missing"):
        open_checkpoint("own/open", cache_dir=tmp_path / "fresh")


def test_filename_is_a_name(tmp_path):
    with pytest.raises(CheckpointError, match="filename"):
        resolve_file(tmp_path, "../x")
