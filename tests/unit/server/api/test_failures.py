"""Failures at every stage: as a response while the status is unspent, as an event afterwards."""

import json
import logging

import httpx
import openai
import pytest

from server.errors import ContextOverflow, EngineUnavailable, InternalError
from tests.support.api_server import CHAT, ApiServer, serve
from tests.support.fake_engine import MODEL, say, script

UNAVAILABLE = EngineUnavailable("the engine stopped while this request was running", retry_after_s=7)


def error_of(response: httpx.Response, status: int) -> dict[str, object]:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, object] = body["error"]
    return error


@pytest.mark.parametrize("stream", [False, True])
def test_refusal_while_preparing(server: ApiServer, stream: bool) -> None:
    server.engine.prepare_error = ContextOverflow("5000 tokens do not fit 4096", param="messages")
    error = error_of(server.chat(stream=stream), 400)
    assert error == {
        "message": "5000 tokens do not fit 4096",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
    }


@pytest.mark.parametrize("stream", [False, True])
def test_failure_before_the_first_token_has_its_own_status(server: ApiServer, stream: bool) -> None:
    server.engine.answer = script(UNAVAILABLE)
    response = server.chat(stream=stream)
    assert error_of(response, 503)["code"] == "engine_unavailable"
    assert response.headers["retry-after"] == "7"


def test_failure_after_the_first_token_of_a_whole_answer(server: ApiServer) -> None:
    server.engine.answer = script(*say("Hel", finish_reason=None), UNAVAILABLE)
    assert error_of(server.chat(), 503)["code"] == "engine_unavailable"


def test_failure_in_a_stream_becomes_an_event_and_an_end(server: ApiServer) -> None:
    before = server.metric("stream_errors_total", reason="engine_unavailable")
    server.engine.answer = script(*say("Hel", finish_reason=None), UNAVAILABLE)
    response = server.chat(stream=True)
    assert response.status_code == 200
    *_, error, done, rest = response.text.split("\n\n")
    assert json.loads(error.removeprefix("data: ")) == {
        "error": {"message": UNAVAILABLE.message, "type": "server_error", "param": None, "code": "engine_unavailable"}
    }
    assert (done, rest) == ("data: [DONE]", "")
    assert server.metric("stream_errors_total", reason="engine_unavailable") == before + 1


def test_client_raises_for_the_event(server: ApiServer) -> None:
    server.engine.answer = script(*say("Hel", finish_reason=None), UNAVAILABLE)
    stream = server.client().chat.completions.create(
        model=MODEL.model_id, messages=[{"role": "user", "content": "x"}], stream=True
    )
    assert [next(stream).choices[0].delta.content for _ in range(2)] == ["", "Hel"]
    with pytest.raises(openai.APIError, match="the engine stopped"):
        next(stream)


@pytest.mark.parametrize("stage", ["prepare", "answer"])
@pytest.mark.parametrize("stream", [False, True])
def test_our_own_bug_is_an_id_to_the_client_and_a_traceback_to_the_log(
    server: ApiServer, stage: str, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    bug = ZeroDivisionError("secret detail")
    if stage == "prepare":
        server.engine.prepare_error = bug
    else:
        server.engine.answer = script(bug)
    response = server.http.post(
        CHAT,
        json={"model": MODEL.model_id, "messages": [{"role": "user", "content": "x"}], "stream": stream},
        headers={"x-request-id": "the-id"},
    )
    error = error_of(response, 500)
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "the-id" in str(error["message"])
    assert "secret" not in response.text
    assert "secret detail" in caplog.text


def test_our_own_bug_in_a_stream_is_an_event(server: ApiServer, caplog: pytest.LogCaptureFixture) -> None:
    server.engine.answer = script(*say("Hel", finish_reason=None), ZeroDivisionError("secret detail"))
    response = server.chat(stream=True)
    assert '"code":"internal_error"' in response.text
    assert "secret" not in response.text
    assert "secret detail" in caplog.text
    assert response.text.endswith("data: [DONE]\n\n")


def test_failure_of_this_request_alone(server: ApiServer) -> None:
    server.engine.answer = script(InternalError("the engine failed on this request"))
    assert error_of(server.chat(), 500)["message"] == "the engine failed on this request"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing/here", 404, "not_found"),
        ("GET", "/v1", 404, "not_found"),
        ("POST", "/v1/chat/completions/", 404, "not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/docs", 404, "not_found"),
    ],
)
def test_paths_and_methods(server: ApiServer, method: str, path: str, status: int, code: str) -> None:
    response = server.http.request(method, path)
    error = error_of(response, status)
    assert error["code"] == code
    assert f"{method} {path}" in str(error["message"])
    assert ("allow" in response.headers) == (status == 405)


def test_no_cors_headers(server: ApiServer) -> None:
    response = server.http.options(
        CHAT, headers={"Origin": "https://x.example", "Access-Control-Request-Method": "POST"}
    )
    assert response.status_code == 405
    assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize("given", ["abc-123", "0af7651916cd43dd:8448eb21/1+a=", "x" * 128])
def test_valid_request_id_is_echoed_on_answers_and_errors(server: ApiServer, given: str) -> None:
    for path, status in (("/v1/models", 200), ("/nothing", 404)):
        response = server.http.get(path, headers={"x-request-id": given})
        assert response.status_code == status
        assert response.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "two words", "inj\tect", "{}", "caf\u00e9".encode()])
def test_other_request_ids_are_replaced(server: ApiServer, given: str | bytes) -> None:
    response = server.http.get("/v1/models", headers={"x-request-id": given})
    assert response.headers["x-request-id"].startswith("req_")


def test_each_request_has_an_id_of_its_own(server: ApiServer) -> None:
    ids = {server.http.get("/v1/models").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


def test_streams_carry_the_id_and_the_time(server: ApiServer) -> None:
    response = server.http.post(
        CHAT,
        json={"model": MODEL.model_id, "messages": [{"role": "user", "content": "x"}], "stream": True},
        headers={"x-request-id": "mine"},
    )
    assert response.headers["x-request-id"] == "mine"
    assert int(response.headers["openai-processing-ms"]) >= 0
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"


def test_refusals_are_counted_by_their_code(server: ApiServer) -> None:
    def count() -> float:
        return server.metric("requests_rejected_total", reason="unknown_parameter")

    before = count()
    server.chat(colour=1)
    assert count() == before + 1


def test_http_requests_are_counted_by_template() -> None:
    with serve() as server:
        server.chat()
        server.chat(colour=1)
        server.http.get("/v1/models/a/b")
        server.http.get("/v1/models/c")
        server.http.get("/secret/path")

        def count(route: str, method: str, code: str) -> float:
            return server.metric("http_requests_total", route=route, method=method, code=code)

        assert count(CHAT, "POST", "200") == 1
        assert count(CHAT, "POST", "400") == 1
        assert count("/v1/models/{model_id:path}", "GET", "404") == 2
        assert count("other", "GET", "404") == 1


def test_one_line_for_a_finished_request(server: ApiServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="server"):
        server.chat([{"role": "user", "content": "a very private question"}])
    (record,) = [record for record in caplog.records if record.name == "server.access"]
    fields = record.fields  # type: ignore[attr-defined]  # set by `with_fields`
    assert record.getMessage() == "POST /v1/chat/completions 200"
    assert (fields["model"], fields["status"], fields["outcome"]) == (MODEL.model_id, 200, "completed")
    assert fields["prompt_tokens"] == 7
    assert fields["completion_tokens"] == 2
    assert (fields["queue_s"], fields["prefill_s"], fields["decode_s"]) == (0.25, 0.5, 0.75)
    assert fields["total_s"] >= fields["first_token_s"] >= fields["prepare_s"] >= 0
    assert "private" not in caplog.text
    assert "Hello" not in caplog.text
