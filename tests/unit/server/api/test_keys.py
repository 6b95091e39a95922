"""Several keys, each with a name, limits and caches of its own, from a file that may change."""

import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from server.api.auth import KeyRing, load_keys
from server.api.rates import Bucket, KeyQuota, KeyUse
from server.errors import TooManyRequests
from server.settings import Settings
from tests.support.api_server import CHAT, HELLO, ApiServer, serve
from tests.support.fake_engine import MODEL, Gate, say, script
from tests.support.server_process import wait_until

ALICE, BOB = {"Authorization": "Bearer alices-secret"}, {"Authorization": "Bearer bobs-secret"}


def named(name: str, key: str) -> str:
    return f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"{named('alice', 'alices-secret')}\n{named('bob', 'bobs-secret')}\n")
    return path


def ask(server: ApiServer, headers: dict[str, str], **options: Any) -> Any:
    return server.http.post(CHAT, json={"model": MODEL.model_id, "messages": HELLO} | options, headers=headers)


class TestBucket:
    def test_a_minute_brings_a_minutes_worth(self) -> None:
        bucket = Bucket(60, now_s=100)
        bucket.take(60, 100)
        assert (bucket.level(100), bucket.wait_s(1, 100)) == (0, 1)
        assert bucket.level(110) == 10
        assert bucket.level(1000) == 60
        bucket.check_invariants()

    def test_debts_are_waited_for(self) -> None:
        bucket = Bucket(600, now_s=0)
        bucket.take(1200, 0)
        assert bucket.level(0) == -600
        assert bucket.wait_s(1, 0) == pytest.approx(60.1)
        assert bucket.wait_s(1, 60.1) == 0

    def test_a_clock_that_stands_still_brings_nothing(self) -> None:
        bucket = Bucket(1, now_s=5)
        bucket.take(1, 5)
        assert bucket.level(5) == bucket.level(4) == 0


class TestKeyUse:
    def test_requests_a_minute(self) -> None:
        use = KeyUse(KeyQuota(2, None, None), 0)
        for _ in range(2):
            with use.request(0):
                pass
        with pytest.raises(TooManyRequests) as caught, use.request(0):
            pass
        assert (caught.value.code, caught.value.retry_after_s) == ("rate_limit_exceeded", 30)
        with use.request(30):
            use.check_invariants()

    def test_what_is_refused_for_tokens_costs_no_request(self) -> None:
        use = KeyUse(KeyQuota(10, 60, None), 0)
        use.on_tokens(90, 0)
        with pytest.raises(TooManyRequests, match="60 tokens per minute") as caught, use.request(0):
            pass
        assert caught.value.retry_after_s == 31
        assert use.headers(0)["x-ratelimit-remaining-requests"] == "10"

    def test_places_come_back(self) -> None:
        use = KeyUse(KeyQuota(None, None, 1), 0)
        use.on_duration(41)  # the mean was 1, and is 5 now
        with use.request(0), pytest.raises(TooManyRequests, match="1 requests at once") as caught, use.request(0):
            pass
        assert caught.value.retry_after_s == 5
        with pytest.raises(ZeroDivisionError), use.request(0):
            raise ZeroDivisionError
        with use.request(0):
            use.check_invariants()

    def test_headers_are_openais(self) -> None:
        use = KeyUse(KeyQuota(10, 6000, None), 0)
        use.on_tokens(50, 0)
        with use.request(0):
            pass
        assert use.headers(0) == {
            "x-ratelimit-limit-requests": "10",
            "x-ratelimit-remaining-requests": "9",
            "x-ratelimit-reset-requests": "6s",
            "x-ratelimit-limit-tokens": "6000",
            "x-ratelimit-remaining-tokens": "5950",
            "x-ratelimit-reset-tokens": "500ms",
        }
        use.on_tokens(50_000, 0)
        assert use.headers(0)["x-ratelimit-remaining-tokens"] == "0"
        assert use.headers(0)["x-ratelimit-reset-tokens"] == "8m21s"
        assert KeyUse(KeyQuota(None, None, 3), 0).headers(0) == {}


class TestKeyFile:
    def test_names(self, file: Path) -> None:
        file.write_text(f"# keys\n{named('alice', 'a')}\nplain\n")
        ring = load_keys(Settings(api_key_file=file, api_keys=("s",)))  # type: ignore[arg-type]  # str, as users write
        found = [ring.find(key) for key in (b"a", b"plain", b"s", b"x")]
        assert [key.name if key else None for key in found] == ["alice", "line-3", "setting-1", None]

    def test_rotation_without_a_restart(self, file: Path, caplog: pytest.LogCaptureFixture) -> None:
        ring = KeyRing(file=file)
        ring.refresh(0)
        new = file.with_name("new")
        new.write_text(f"{named('alice', 'alices-secret')}\n{named('alice', 'alices-next')}\n")
        os.replace(new, file)
        ring.refresh(0.5)
        assert ring.accepts(b"bobs-secret")  # not looked at again so soon
        ring.refresh(1.1)
        assert [ring.accepts(key) for key in (b"alices-secret", b"alices-next", b"bobs-secret")] == [True, True, False]

    @pytest.mark.parametrize("content", [b"", b"# none\n", b"\xff", None])
    def test_a_file_that_cannot_be_used_changes_nothing(
        self, file: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        ring = KeyRing(file=file)
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        ring.refresh(2)
        assert ring.accepts(b"bobs-secret")
        assert not ring.accepts(b"")
        assert caplog.text.count("the keys stay as they were") == 1
        ring.refresh(4)
        assert caplog.text.count("the keys stay as they were") == 1
        file.write_text("another")
        ring.refresh(6)
        assert [ring.accepts(b"another"), ring.accepts(b"bobs-secret")] == [True, False]


def test_requests_of_a_key_are_limited_and_others_are_not(file: Path) -> None:
    with serve(api_key_file=file, key_requests_per_minute=2) as server:
        answers = [ask(server, ALICE) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
        error = answers[2].json()["error"]
        assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
        assert 1 <= int(answers[2].headers["retry-after"]) <= 30
        assert ask(server, BOB).status_code == 200
        assert server.http.get("/v1/models", headers=ALICE).status_code == 200
        assert server.metric("requests_rejected_total", reason="rate_limit_exceeded") == 1
        assert server.metric("key_requests_total", key="alice") == 2


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_are_paid_when_they_are_known(file: Path, stream: bool) -> None:
    """7 of the prompt and 2 of the answer."""
    with serve(api_key_file=file, key_tokens_per_minute=9) as server:
        assert ask(server, ALICE, stream=stream).headers["x-ratelimit-limit-tokens"] == "9"
        wait_until(lambda: server.metric("key_tokens_total", key="alice") == 9, 10, "the end to be counted")
        with pytest.raises(openai.RateLimitError, match="9 tokens per minute"):
            server.client("alices-secret").chat.completions.create(model=MODEL.model_id, messages=HELLO)  # type: ignore[arg-type]
        assert ask(server, BOB).status_code == 200


def test_requests_of_a_key_at_once(file: Path, gate: Gate) -> None:
    with serve(api_key_file=file, key_max_requests=1) as server, ThreadPoolExecutor(1) as pool:
        server.engine.answer = script(*say("Hel", finish_reason=None), gate, *say("lo"))
        running = pool.submit(ask, server, ALICE, stream=True)
        gate.wait_reached()
        assert ask(server, ALICE).status_code == 429
        server.engine.answer = script(*say("x"))
        assert ask(server, BOB).status_code == 200
        gate.open()
        assert running.result().status_code == 200
        wait_until(lambda: ask(server, ALICE).status_code == 200, 10, "the place to come back")


def test_no_limits_no_headers(file: Path) -> None:
    with serve(api_key_file=file) as server:
        assert not [name for name in ask(server, ALICE).headers if name.startswith("x-ratelimit")]


def test_logs_have_the_name_and_never_the_key(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), serve(api_key_file=file) as server:
        ask(server, ALICE)
        ask(server, {"x-api-key": "wrong-secret"})
        wait_until(lambda: server.metric("key_tokens_total", key="alice") > 0, 10, "the end to be counted")
        assert "secret" not in server.metrics.render().decode()
    records = [getattr(record, "fields", {}) for record in caplog.records]
    assert "alice" in [fields.get("key") for fields in records]
    assert "secret" not in caplog.text + str(records)


@pytest.mark.parametrize("isolate", [False, True])
def test_salts_of_requests_and_keys(file: Path, isolate: bool) -> None:
    with serve(api_key_file=file, isolate_keys=isolate) as server:
        for headers in (ALICE, BOB):
            for options in ({}, {"cache_salt": "x"}, {"cache_salt": "3:bob"}):
                assert ask(server, headers, **options).status_code == 200
        salts = [request.cache_salt for request in server.engine.requests]
        assert salts[:3] == ([b"5:alice", b"5:alicex", b"5:alice3:bob"] if isolate else [b"", b"x", b"3:bob"])
        assert len(set(salts)) == (6 if isolate else 3)


def test_a_salt_without_any_key(server: ApiServer) -> None:
    assert server.chat(cache_salt="mine").status_code == 200
    assert server.engine.requests[0].cache_salt == b"mine"
    for wrong in ("", "x" * 257, 7):
        assert server.chat(cache_salt=wrong).json()["error"]["param"] == "cache_salt"


@pytest.mark.parametrize("option", [{"key_requests_per_minute": 1}, {"key_max_requests": 1}, {"isolate_keys": True}])
def test_limits_without_keys_are_a_mistake(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="need api_keys or api_key_file"):
        Settings(**option)
