"""`/v1/files` and questions about what was sent there, through the official `openai` client."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.support.api_server import ApiServer, serve
from tests.support.fake_engine import MODEL
from tests.support.pictures import draw_page, encode

PAGE = encode(draw_page(30, 20))


@pytest.fixture(scope="module")
def shared() -> Iterator[ApiServer]:
    with serve(file_memory=100_000, max_files=3, file_ttl_s=7200) as running:
        yield running


@pytest.fixture
def server(shared: ApiServer) -> Iterator[ApiServer]:
    shared.engine.reset()
    yield shared
    for file in shared.client().files.list():
        shared.client().files.delete(file.id)


def send(server: ApiServer, data: bytes = PAGE, **options: Any) -> Any:
    options = {"purpose": "vision"} | options
    return server.client(options.pop("api_key", "unused")).files.create(file=("page.png", data), **options)


def about(server: ApiServer, part: dict[str, Any]) -> Any:
    return server.chat([{"role": "user", "content": [part, {"type": "text", "text": "?"}]}])


def test_the_life_of_a_file(server: ApiServer) -> None:
    client = server.client()
    file = send(server)
    assert file.id.startswith("file-")
    assert (file.object, file.bytes, file.filename, file.purpose, file.status) == (
        "file",
        len(PAGE),
        "page.png",
        "vision",
        "processed",
    )
    assert file.expires_at - file.created_at == 7200
    assert file.to_dict()["width"] == 30
    assert client.files.retrieve(file.id) == file
    content = client.files.content(file.id)
    assert content.read() == PAGE
    assert content.response.headers["x-content-type-options"] == "nosniff"
    assert client.files.delete(file.id).deleted
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            call(file.id)
        assert (caught.value.param, caught.value.code) == ("file_id", "file_not_found")


def test_pages_of_the_list(server: ApiServer) -> None:
    sent = [send(server, purpose=purpose).id for purpose in ("vision", "user_data", "vision")]
    files = server.client().files
    assert [file.id for file in files.list()] == sent[::-1]
    assert [file.id for file in files.list(order="asc", limit=1)] == sent
    assert [file.id for file in files.list(purpose="user_data")] == sent[1:2]
    page = server.http.get("/v1/files", params={"limit": 2}).json()
    assert (page["has_more"], page["first_id"], page["last_id"]) == (True, sent[2], sent[1])


@pytest.mark.parametrize(
    ("query", "status", "param"),
    [
        ({"limit": "0"}, 400, "limit"),
        ({"limit": "x"}, 400, "limit"),
        ({"order": "up"}, 400, "order"),
        ({"colour": "red"}, 400, "colour"),
        ({"after": "file-x"}, 404, "after"),
    ],
)
def test_wrong_queries(server: ApiServer, query: dict[str, str], status: int, param: str) -> None:
    response = server.http.get("/v1/files", params=query)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


def test_a_stored_picture_is_asked_about_many_times_in_every_form(server: ApiServer) -> None:
    file_id = send(server).id
    for part in (
        {"type": "file", "file": {"file_id": file_id}},
        {"type": "image_url", "image_url": {"url": file_id, "detail": "high"}},
    ):
        assert about(server, part).status_code == 200
    server.client().responses.create(
        model=MODEL.model_id,
        input=[{"role": "user", "content": [{"type": "input_image", "file_id": file_id, "detail": "auto"}]}],
    )
    for request in server.engine.requests:
        (image,) = request.messages[0].images
        assert (image.data, image.width, image.height) == (PAGE, 30, 20)
    assert len(server.engine.requests) == 3


def test_a_file_that_is_gone_is_a_404_that_names_the_field(server: ApiServer) -> None:
    told = about(server, {"type": "file", "file": {"file_id": "file-gone"}})
    assert (told.status_code, told.json()["error"]["param"]) == (404, "messages[0].content[0].file.file_id")
    told = about(server, {"type": "image_url", "image_url": {"url": "file-gone"}})
    assert (told.status_code, told.json()["error"]["param"]) == (404, "messages[0].content[0].image_url.url")
    with pytest.raises(openai.NotFoundError) as caught:
        server.client().responses.create(
            model=MODEL.model_id,
            input=[{"role": "user", "content": [{"type": "input_image", "file_id": "file-gone", "detail": "auto"}]}],
        )
    assert (caught.value.param, caught.value.code) == ("input[0].content[0].file_id", "file_not_found")
    told = about(server, {"type": "file", "file": {"file_id": "x", "file_data": "data:,"}})
    assert told.json()["error"]["param"] == "messages[0].content[0].file.file_data"


@pytest.mark.parametrize(
    ("options", "status", "param", "code"),
    [
        ({"data": b"hello"}, 400, "file", "invalid_image"),
        ({"purpose": "fine-tune"}, 400, "purpose", "invalid_value"),
        ({"expires_after": {"anchor": "created_at", "seconds": 7201}}, 400, "expires_after[seconds]", "limit_exceeded"),
        ({"expires_after": {"anchor": "created_at", "seconds": 0}}, 400, "expires_after[seconds]", "invalid_value"),
        ({"expires_after": {"anchor": "now", "seconds": 10}}, 400, "expires_after[anchor]", "invalid_value"),
        ({"extra_body": {"colour": "red"}}, 400, "colour", "unknown_parameter"),
    ],
)
def test_what_is_refused_at_the_door(
    server: ApiServer, options: dict[str, Any], status: int, param: str, code: str
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        send(server, **options)
    assert (caught.value.status_code, caught.value.param, caught.value.code) == (status, param, code)


def test_a_form_without_its_fields(server: ApiServer) -> None:
    for form in ({"files": {"file": PAGE}}, {"files": {"purpose": (None, "vision")}}):
        assert server.http.post("/v1/files", **form).json()["error"]["code"] == "missing_required_parameter"  # type: ignore[arg-type]
    assert server.http.post("/v1/files", json={}).status_code == 415


def test_a_shorter_life(server: ApiServer) -> None:
    file = send(server, expires_after={"anchor": "created_at", "seconds": 60})
    assert file.expires_at - file.created_at == 60


def test_a_full_store_says_so(server: ApiServer) -> None:
    for _ in range(3):
        send(server)
    with pytest.raises(openai.RateLimitError) as caught:
        send(server)
    assert caught.value.code == "storage_full"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60


def test_files_are_their_keys_own() -> None:
    with serve(file_memory=10**6, api_keys=["one", "two"]) as server:
        file = send(server, api_key="one")
        assert [known.id for known in server.client("one").files.list()] == [file.id]
        assert list(server.client("two").files.list()) == []
        with pytest.raises(openai.NotFoundError):
            server.client("two").files.content(file.id)
        for key, status in (("one", 200), ("two", 404)):
            part = {"type": "file", "file": {"file_id": file.id}}
            body = {"model": MODEL.model_id, "messages": [{"role": "user", "content": [part]}]}
            headers = {"Authorization": f"Bearer {key}"}
            assert server.http.post("/v1/chat/completions", json=body, headers=headers).status_code == status


def test_files_are_off_unless_they_are_given_room() -> None:
    with serve() as server:
        with pytest.raises(openai.NotFoundError, match="--file-memory"):
            send(server)
        assert server.http.get("/v1/files").status_code == 404
        told = about(server, {"type": "file", "file": {"file_id": "file-x"}})
        assert (told.status_code, "--file-memory" in told.text) == (404, True)
        told = about(server, {"type": "image_url", "image_url": {"url": "file-x"}})
        assert (told.status_code, "--file-memory" in told.text) == (404, True)
