"""Where models come from, with a fake hub in place of the network."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx

from server import hub
from server.hub import (
    DownloadFailed,
    IncompleteModel,
    ModelError,
    ModelNotFound,
    WrongContent,
    demo_folder,
    missing_files,
    resolve_config,
    resolve_model,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def make_checkpoint(folder: Path, *, without: tuple[str, ...] = ()) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    index = {"weight_map": {"first": SHARDS[0], "second": SHARDS[1], "third": SHARDS[1]}}
    contents = {name: name for name in ("config.json", "tokenizer.model", "tokenizer_config.json", *SHARDS)}
    contents["model.safetensors.index.json"] = json.dumps(index)
    for name, content in contents.items():
        if name not in without:
            (folder / name).write_text(content)
    return folder


class FakeHub:
    """Stands for `snapshot_download`: a cache folder, and a network that can be made to fail."""

    def __init__(self, cache: Path) -> None:
        self.snapshot = cache / "snapshots" / COMMIT
        self.calls: list[dict[str, object]] = []
        self.network_error: Exception | None = None
        self.leaves_out: tuple[str, ...] = ()

    def __call__(self, model: str, **options: object) -> str:
        self.calls.append({"model": model, **options})
        if options["local_files_only"]:
            if not self.snapshot.is_dir():
                raise LocalEntryNotFoundError("nothing in the cache")
        elif self.network_error is not None:
            raise self.network_error
        else:
            make_checkpoint(self.snapshot, without=self.leaves_out)
        return str(self.snapshot)

    @property
    def num_downloads(self) -> int:
        return sum(not call["local_files_only"] for call in self.calls)


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "cache")
    monkeypatch.setattr(hub, "snapshot_download", fake)
    monkeypatch.chdir(tmp_path)
    return fake


def http_error(kind: type[Exception], status: int) -> Exception:
    response = httpx.Response(status, request=httpx.Request("GET", "https://hub.invalid"))
    return kind("refused", response=response)


def test_demo_comes_with_the_package_and_is_complete():
    resolved = resolve_model("demo", None, "huggingface")

    assert (resolved.folder, resolved.model_id, resolved.revision) == (demo_folder(), "demo", None)
    assert missing_files(demo_folder()) == []


def test_folder_is_taken_as_it_is_and_named_after_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_checkpoint(tmp_path / "my-model")
    monkeypatch.chdir(tmp_path / "my-model")

    resolved = resolve_model(".", None, "huggingface")

    assert resolved.model_id == "my-model"
    assert resolved.revision is None


def test_revision_of_a_folder_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match=r"revision \(main\) belongs to a hub id"):
        resolve_model(str(make_checkpoint(tmp_path)), "main", "huggingface")


@pytest.mark.parametrize("name", ["no-such-folder", "/no/such/folder", "a/b/c", "owner/na me"])
def test_neither_folder_nor_hub_id_is_refused_without_asking_the_hub(name: str, fake_hub: FakeHub):
    with pytest.raises(ModelNotFound, match=r"no folder here, no hub id"):
        resolve_model(name, None, "huggingface")

    assert fake_hub.calls == []


@pytest.mark.parametrize(
    ("without", "named"),
    [
        (("config.json", "tokenizer.model"), "config.json, tokenizer.model"),
        ((SHARDS[1],), SHARDS[1]),
        (("model.safetensors.index.json",), "model.safetensors"),
    ],
)
def test_incomplete_folder_names_what_is_missing(tmp_path: Path, without: tuple[str, ...], named: str):
    make_checkpoint(tmp_path, without=without)

    with pytest.raises(IncompleteModel, match=f"missing: {named}$"):
        resolve_model(str(tmp_path), None, "huggingface")


def test_configuration_alone_of_a_hub_model(fake_hub: FakeHub):
    fake_hub.leaves_out = SHARDS

    assert resolve_config("owner/name", None, "huggingface") == fake_hub.snapshot
    assert [call["allow_patterns"] for call in fake_hub.calls] == [["config.json"]] * 2


def test_configuration_of_a_folder(tmp_path: Path):
    assert resolve_config("demo", None, "huggingface") == demo_folder()
    with pytest.raises(IncompleteModel, match=r"missing: config\.json$"):
        resolve_config(str(tmp_path), None, "huggingface")
    with pytest.raises(ModelError, match="belongs to a hub id"):
        resolve_config(str(tmp_path), "main", "huggingface")


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_damaged_index_counts_as_missing(tmp_path: Path, index: str):
    make_checkpoint(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(index)

    assert missing_files(tmp_path) == ["model.safetensors.index.json (damaged)"]


def test_single_weight_file_needs_no_index(tmp_path: Path):
    make_checkpoint(tmp_path, without=("model.safetensors.index.json", *SHARDS))
    (tmp_path / "model.safetensors").write_text("weights")

    assert missing_files(tmp_path) == []


def test_download_takes_safetensors_and_no_code(fake_hub: FakeHub):
    resolved = resolve_model("owner/name", "v1", "huggingface")

    assert (resolved.folder, resolved.model_id, resolved.revision) == (fake_hub.snapshot, "owner/name", COMMIT)
    assert fake_hub.num_downloads == 1
    download = fake_hub.calls[-1]
    assert download["revision"] == "v1"
    assert download["allow_patterns"] == [
        "config.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "*.safetensors",
    ]


def test_complete_cached_copy_starts_without_the_network(fake_hub: FakeHub):
    make_checkpoint(fake_hub.snapshot)
    fake_hub.network_error = http_error(RepositoryNotFoundError, 404)

    assert resolve_model("owner/name", None, "huggingface").revision == COMMIT
    assert fake_hub.num_downloads == 0


def test_incomplete_cached_copy_is_completed(fake_hub: FakeHub):
    make_checkpoint(fake_hub.snapshot, without=(SHARDS[1],))

    resolved = resolve_model("owner/name", None, "huggingface")

    assert fake_hub.num_downloads == 1
    assert missing_files(resolved.folder) == []


def test_repository_without_weights_names_them(fake_hub: FakeHub):
    fake_hub.leaves_out = ("model.safetensors.index.json", *SHARDS)

    with pytest.raises(IncompleteModel, match=r"missing: model\.safetensors$"):
        resolve_model("owner/name", None, "huggingface")


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (http_error(RepositoryNotFoundError, 404), ModelNotFound, "has no model owner/name"),
        (HFValidationError("bad id"), ModelNotFound, "has no model owner/name"),
        (http_error(RevisionNotFoundError, 404), ModelNotFound, "owner/name has no revision 'v9'"),
        (LocalEntryNotFoundError("no connection"), DownloadFailed, "cannot be reached"),
        (httpx.ReadTimeout("too slow"), DownloadFailed, "broke off.*too slow"),
        (OSError(28, "No space left on device"), DownloadFailed, "broke off.*No space left"),
    ],
)
def test_what_the_hub_answers_becomes_a_clear_error(
    fake_hub: FakeHub, error: Exception, expected: type[ModelError], message: str
):
    fake_hub.network_error = error

    with pytest.raises(expected, match=message) as raised:
        resolve_model("owner/name", "v9", "huggingface")

    assert raised.value.__cause__ is error


def pin(monkeypatch: pytest.MonkeyPatch, content: dict[str, str]) -> None:
    pinned = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in content.items()}
    monkeypatch.setitem(hub._PINNED_SHA256, "openbmb/minicpm-v-2", pinned)


def official_content() -> dict[str, str]:
    return {name: name for name in ("tokenizer.model", *SHARDS)}


def test_official_id_is_hashed_once(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch):
    pin(monkeypatch, official_content())
    resolve_model("openbmb/MiniCPM-V-2", None, "huggingface")
    # Were it hashed again at each start, this would be noticed.
    (fake_hub.snapshot / SHARDS[0]).write_text("changed later")

    resolve_model("openbmb/MiniCPM-V-2", None, "huggingface")

    assert fake_hub.num_downloads == 1


def test_cached_copy_that_was_never_verified_is_hashed(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch):
    pin(monkeypatch, official_content())
    make_checkpoint(fake_hub.snapshot)
    (fake_hub.snapshot / SHARDS[1]).write_text("cut off")

    with pytest.raises(WrongContent, match=rf"{SHARDS[1]} is not the official file.*Delete .*{SHARDS[1]}"):
        resolve_model("openbmb/MiniCPM-V-2", None, "huggingface")


def test_wrong_content_is_found_again_at_the_next_start(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch):
    pin(monkeypatch, official_content() | {"tokenizer.model": "another tokenizer"})

    for _ in range(2):
        with pytest.raises(WrongContent, match=r"^tokenizer\.model is not the official file"):
            resolve_model("openbmb/MiniCPM-V-2", None, "huggingface")


def test_official_file_that_is_not_there_is_named(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch):
    pin(monkeypatch, {"model-00001-of-00001.safetensors": "all in one"})

    with pytest.raises(WrongContent, match=r"include model-00001-of-00001\.safetensors"):
        resolve_model("openbmb/MiniCPM-V-2", None, "huggingface")


def test_revision_given_by_the_operator_is_not_held_to_the_pinned_content(fake_hub: FakeHub):
    assert resolve_model("openbmb/MiniCPM-V-2", COMMIT, "huggingface").folder == fake_hub.snapshot


def test_cache_that_cannot_be_written_is_still_verified(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch):
    pin(monkeypatch, official_content())
    write_text = Path.write_text

    def refuse_marker(path: Path, text: str, **options: str) -> int:
        if path.name == ".minicpmv-verified":
            raise OSError(30, "Read-only file system")
        return write_text(path, text, **options)

    monkeypatch.setattr(Path, "write_text", refuse_marker)

    assert resolve_model("openbmb/MiniCPM-V-2", None, "huggingface").revision == COMMIT
    assert not (fake_hub.snapshot / ".minicpmv-verified").exists()


def install_modelscope(monkeypatch: pytest.MonkeyPatch, download: Callable[..., str]) -> type[Exception]:
    """Put a package named modelscope in place; returns its error class."""
    names = ("modelscope", "modelscope.hub", "modelscope.hub.errors", "modelscope.hub.snapshot_download")
    modules = {name: ModuleType(name) for name in names}
    modules["modelscope.hub.errors"].HubError = type("HubError", (Exception,), {})
    modules["modelscope.hub.snapshot_download"].snapshot_download = download
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return modules["modelscope.hub.errors"].HubError


def test_modelscope_downloads_what_its_cache_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []

    def download(model: str, *, local_files_only: bool, **options: object) -> str:
        calls.append((local_files_only, options["revision"]))
        if local_files_only:
            raise ValueError("not in the cache")
        return str(make_checkpoint(tmp_path))

    install_modelscope(monkeypatch, download)

    resolved = resolve_model("owner/name", None, "modelscope")

    assert (resolved.folder, resolved.revision) == (tmp_path, "master")
    assert calls == [(True, None), (False, None)]


def test_modelscope_failure_is_told(monkeypatch: pytest.MonkeyPatch):
    def download(model: str, *, local_files_only: bool, **options: object) -> str:
        if local_files_only:
            raise ValueError("not in the cache")
        raise error("E1020 no such repository")

    error = install_modelscope(monkeypatch, download)

    with pytest.raises(DownloadFailed, match="ModelScope did not deliver owner/name: E1020"):
        resolve_model("owner/name", None, "modelscope")


def test_missing_modelscope_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "modelscope", None)

    with pytest.raises(DownloadFailed, match=r"pip install 'minicpmv\[modelscope\]'"):
        resolve_model("owner/name", None, "modelscope")
