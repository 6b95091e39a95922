"""API keys: every path but the listed ones is closed, whatever way the key comes."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from server.api.auth import load_keys
from server.settings import InvalidSettings, Settings
from tests.support.api_server import CHAT, ApiServer, serve


@pytest.fixture(scope="module")
def closed() -> Iterator[ApiServer]:
    with serve(api_keys=["first-key", "second-kéy"]) as running:
        yield running


def status(server: ApiServer, headers: dict[str, str] | dict[str, bytes], path: str = "/v1/models") -> int:
    return server.http.get(path, headers=headers).status_code


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer first-key"},
        {"authorization": "bearer first-key"},
        {"Authorization": "Bearer second-kéy".encode()},
        {"x-api-key": "first-key"},
        {"Authorization": "Basic abc", "x-api-key": "first-key"},
    ],
)
def test_accepted_keys(closed: ApiServer, headers: dict[str, str]) -> None:
    assert status(closed, headers) == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer first-key2"},
        {"Authorization": "Bearer first-ke"},
        {"Authorization": "Bearer FIRST-KEY"},
        {"Authorization": "Bearer"},
        {"Authorization": "first-key"},
        {"Authorization": "Basic first-key"},
        {"x-api-key": ""},
        {"x-api-key": "wrong"},
        {"Authorization": "Bearer wrong", "x-api-key": "first-key"},
        {"Authorization": b"Bearer \xff\xfe"},
    ],
)
def test_refused_keys(closed: ApiServer, headers: dict[str, str]) -> None:
    response = closed.http.get("/v1/models", headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    error = response.json()["error"]
    assert (error["code"], error["type"]) == ("invalid_api_key", "invalid_request_error")
    assert "key2" not in response.text
    assert response.headers["x-request-id"]


def test_client_with_and_without_the_key(closed: ApiServer) -> None:
    assert len(closed.client("first-key").models.list().data) == 1
    with pytest.raises(openai.AuthenticationError):
        closed.client("wrong").models.list()


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/metrics"])
def test_probes_need_no_key(closed: ApiServer, path: str) -> None:
    assert status(closed, {}, path) == 200


@pytest.mark.parametrize(
    "path", [CHAT, "/v1/models/x", "/", "/nothing", "/health/", "/health/x", "/metrics/", "//health"]
)
def test_everything_else_is_closed(closed: ApiServer, path: str) -> None:
    assert status(closed, {}, path) == 401


@pytest.mark.parametrize("host", ["/health", "x/health?", "x:80/health#", "health"])
def test_the_host_header_opens_nothing(closed: ApiServer, host: str) -> None:
    assert closed.http.get("/v1/models", headers={"Host": host}).status_code in (400, 401)


def test_without_keys_all_is_open(server: ApiServer) -> None:
    assert status(server, {}) == 200
    assert status(server, {"Authorization": "Bearer whatever"}) == 200


def test_key_file(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"third").hexdigest()
    file = tmp_path / "keys"
    file.write_text(f"# keys of the house\n\nplain-key\nwith:colon\n  alice:{digest}\nbob:{digest.upper()[:-1]}\n")
    ring = load_keys(Settings(api_key_file=file, api_keys=("one",)))  # type: ignore[arg-type]  # a str, as users write
    for key in ("one", "plain-key", "with:colon", "third", f"bob:{digest.upper()[:-1]}"):
        assert ring.accepts(key.encode()), key
    for key in ("", "alice", digest, f"alice:{digest}", "# keys of the house"):
        assert not ring.accepts(key.encode()), key


@pytest.mark.parametrize("content", [b"", b"# nothing\n\n", b"\xff\xff"])
def test_key_file_without_keys_is_refused(tmp_path: Path, content: bytes) -> None:
    """An empty ring would let everybody in."""
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(InvalidSettings, match="api_key_file"):
        load_keys(Settings(api_key_file=file))


def test_missing_key_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="missing"):
        load_keys(Settings(api_key_file=tmp_path / "missing"))
