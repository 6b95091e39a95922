"""`minicpmv batch` against a server in a thread: what is asked, what is written, and what a second run does."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.__main__ import main
from server.batch.requests import InputError, index_requests
from server.batch.results import OutputError, ResultFile
from tests.support.api_server import HELLO, ApiServer, serve
from tests.support.fake_engine import MODEL

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def shared() -> Iterator[ApiServer]:
    with serve() as running:
        yield running


@pytest.fixture
def server(shared: ApiServer) -> ApiServer:
    shared.engine.reset()
    return shared


def line(custom_id: str, url: str = CHAT, **body: Any) -> dict[str, Any]:
    body = {"model": MODEL.model_id, "messages": HELLO} | body if url == CHAT else {"model": MODEL.model_id} | body
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    return path


def read(path: Path) -> list[Any]:
    return [json.loads(one) for one in path.read_text(encoding="utf-8").splitlines()]


def run(server: ApiServer, folder: Path, *flags: str) -> int:
    paths = [str(folder / "in.jsonl"), str(folder / "out.jsonl")]
    return main(["batch", *paths, "--url", f"{server.url}/v1", *flags])


def test_every_route_in_the_order_of_the_input(server: ApiServer, tmp_path: Path) -> None:
    lines = [line(f"chat-{number}") for number in range(20)]
    lines += [line("text", "/v1/completions", prompt="Once"), line("response", "/v1/responses", input="hello")]
    write(tmp_path / "in.jsonl", lines)
    assert run(server, tmp_path, "--concurrency", "4") == 0
    results = read(tmp_path / "out.jsonl")
    assert [one["custom_id"] for one in results] == [one["custom_id"] for one in lines]
    first, text, response = results[0], results[-2], results[-1]
    assert (first["error"], first["response"]["status_code"]) == (None, 200)
    assert first["id"].startswith("batch_req_")
    assert first["response"]["request_id"].startswith("req_")
    assert first["response"]["body"]["choices"][0]["message"]["content"] == "Hello."
    assert text["response"]["body"]["choices"][0]["text"] == "Hello."
    assert response["response"]["body"]["object"] == "response"
    assert not (tmp_path / "out.errors.jsonl").exists()


def test_what_fails_goes_into_a_file_of_its_own_and_is_asked_again_on_demand(server: ApiServer, tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", [line("good"), line("bad", temperature=9)])
    assert run(server, tmp_path) == 1
    (failure,) = read(tmp_path / "out.errors.jsonl")
    assert (failure["custom_id"], failure["error"]) == ("bad", None)
    assert failure["response"]["status_code"] == 400
    assert failure["response"]["body"]["error"]["param"] == "temperature"
    assert [one["custom_id"] for one in read(tmp_path / "out.jsonl")] == ["good"]

    write(tmp_path / "in.jsonl", [line("good"), line("bad", temperature=1)])
    server.engine.requests.clear()
    assert run(server, tmp_path) == 1, "nothing is asked again unless it is wanted"
    assert server.engine.requests == []
    assert run(server, tmp_path, "--retry-failed") == 0
    assert len(server.engine.requests) == 1
    assert [one["custom_id"] for one in read(tmp_path / "out.jsonl")] == ["good", "bad"]
    assert not (tmp_path / "out.errors.jsonl").exists()


def test_a_run_goes_on_where_an_interrupted_one_ended(server: ApiServer, tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", [line(str(number)) for number in range(6)])
    assert run(server, tmp_path) == 0
    whole = (tmp_path / "out.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    # Answers come in any order, and the last one was being written.
    (tmp_path / "out.jsonl").write_bytes(lines[4] + lines[1] + lines[3][:20])
    server.engine.requests.clear()
    assert run(server, tmp_path) == 0
    assert len(server.engine.requests) == 4
    results = read(tmp_path / "out.jsonl")
    assert [one["custom_id"] for one in results] == [str(number) for number in range(6)]
    kept = {json.dumps(one) for one in results}
    assert {json.dumps(json.loads(lines[at])) for at in (4, 1)} <= kept


def test_a_busy_server_is_asked_again(tmp_path: Path) -> None:
    with serve(max_requests=1) as server:
        write(tmp_path / "in.jsonl", [line(str(number)) for number in range(3)])
        assert run(server, tmp_path, "--concurrency", "3", "--tries", "20") == 0
        assert len(read(tmp_path / "out.jsonl")) == 3


def test_no_answer_is_an_error_with_a_reason(tmp_path: Path, server: ApiServer) -> None:
    write(tmp_path / "in.jsonl", [line("a")])
    status = main(
        [
            "batch",
            str(tmp_path / "in.jsonl"),
            str(tmp_path / "out.jsonl"),
            "--url",
            "http://127.0.0.1:1",
            "--tries",
            "1",
        ]
    )
    assert status == 1
    (failure,) = read(tmp_path / "out.errors.jsonl")
    assert failure["response"] is None
    assert failure["error"]["code"] == "no_answer"


def test_a_server_with_keys(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    write(tmp_path / "in.jsonl", [line("a")])
    with serve(api_keys=["secret"]) as server:
        assert run(server, tmp_path, "--api-key-file", str(tmp_path / "key")) == 0


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ([1], "is not an object"),
        ([{}], "has no custom_id"),
        ([line("a") | {"method": "GET"}], "has another method than POST"),
        ([line("a", "/v1/embeddings")], "has a url that is none of"),
        ([line("a") | {"body": None}], "has no body"),
        ([line("a", stream=True)], "asks for a stream"),
        ([line("a"), line("a")], "is there twice"),
        ([], "holds no request"),
    ],
)
def test_wrong_lines_are_told_of_before_anything_is_asked(
    tmp_path: Path, wrong: list[Any], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "in.jsonl", wrong)
    with pytest.raises(InputError, match=reason):
        index_requests(path)
    assert main(["batch", str(path), str(tmp_path / "out.jsonl"), "--url", "http://127.0.0.1:1"]) == 1
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_only_the_first_complaints_are_told(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"nonsense\n" * 30)
    with pytest.raises(InputError, match=r"line 10: is not JSON(.|\n)*and 20 more"):
        index_requests(tmp_path / "in.jsonl")
    with pytest.raises(InputError, match="cannot read"):
        index_requests(tmp_path / "gone.jsonl")


def test_an_output_that_is_something_else_is_left_alone(tmp_path: Path) -> None:
    for content in ("hello\n", "{}\n", '{"custom_id": 1}\n'):
        path = tmp_path / "out.jsonl"
        path.write_text(content)
        with pytest.raises(OutputError, match="line 1"):
            ResultFile(path)
        assert path.read_text() == content
    with pytest.raises(OutputError, match="cannot write"):
        ResultFile(tmp_path / "no" / "folder")


@pytest.mark.parametrize(
    "flags",
    [
        ["in", "in"],
        ["in", "out", "--url", "ftp://x"],
        ["in", "out", "--url", "http://x", "--", "--model", "y"],
        ["in", "out", "--concurrency", "0"],
        ["in", "out", "--api-key-file", "/nowhere/at/all"],
    ],
)
def test_wrong_flags(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["batch", *flags])
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err
