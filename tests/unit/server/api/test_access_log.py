"""One line a request, which says what became of it, and nothing of what was said unless that is asked for."""

import logging
from typing import Any

import pytest
from PIL import Image

from server.errors import EngineUnavailable
from tests.support.api_server import CHAT, ApiServer, serve
from tests.support.fake_engine import MODEL, Gate, say, script
from tests.support.pictures import question
from tests.support.server_process import wait_until


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [record.fields for record in caplog.records if record.name == "server.access"]  # type: ignore[attr-defined]


def the_line(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    """The only one. It is written after the answer's last byte, when the client may have gone on already."""
    wait_until(lambda: bool(lines(caplog)), 10, "the line")
    (line,) = lines(caplog)
    return line


@pytest.fixture(autouse=True)
def at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="server")


def test_refused(server: ApiServer, caplog: pytest.LogCaptureFixture) -> None:
    server.chat(temperature=5)
    line = the_line(caplog)
    expected = {"status": 400, "route": CHAT, "error_code": "invalid_value", "error_param": "temperature"}
    assert line.items() >= expected.items()
    assert "outcome" not in line


def test_path_that_is_none_of_ours(server: ApiServer, caplog: pytest.LogCaptureFixture) -> None:
    server.http.get("/" + "x" * 1000)
    line = the_line(caplog)
    assert (line["status"], len(line["route"])) == (404, 200)


def test_probes_are_not_worth_a_line(server: ApiServer, caplog: pytest.LogCaptureFixture) -> None:
    for path in ("/health", "/health/ready", "/metrics", "/metrics/routing"):
        server.http.get(path)
    assert lines(caplog) == []


def test_stream_that_fails(server: ApiServer, caplog: pytest.LogCaptureFixture) -> None:
    server.engine.answer = script(*say("Hel", finish_reason=None), EngineUnavailable("gone"))
    server.chat(stream=True)
    line = the_line(caplog)
    expected = {"status": 200, "outcome": "failed", "error_code": "engine_unavailable", "stream": True}
    assert line.items() >= expected.items()


def test_client_that_leaves(server: ApiServer, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    server.engine.answer = script(*say("Hel", finish_reason=None), gate)
    body = {"model": MODEL.model_id, "messages": [{"role": "user", "content": "x"}], "stream": True}
    with server.http.stream("POST", CHAT, json=body) as response:
        next(response.iter_bytes())
    line = the_line(caplog)
    assert (line["outcome"], line["completion_tokens"]) == ("aborted", 1)


def test_content_when_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    with serve(log_content=True) as server:
        server.chat(question("a private question", Image.new("RGB", (30, 20))))
    line = the_line(caplog)
    assert line["messages"] == [{"role": "user", "content": "[picture 30x20]\na private question"}]
    assert line["answers"] == ["Hello."]


def test_other_endpoints_too(caplog: pytest.LogCaptureFixture) -> None:
    with serve(log_content=True) as server:
        server.http.post("/v1/completions", json={"model": MODEL.model_id, "prompt": "Once upon", "n": 2})
        server.http.post("/v1/responses", json={"model": MODEL.model_id, "input": "Hello?"})
    completion, response = lines(caplog)
    assert (completion["route"], completion["model"]) == ("/v1/completions", MODEL.model_id)
    assert completion["messages"] == [{"role": "user", "content": "Once upon"}]
    assert len(completion["answers"]) == 2
    assert (response["route"], response["answers"]) == ("/v1/responses", ["Hello."])
    assert response["messages"][-1]["content"] == "Hello?"
