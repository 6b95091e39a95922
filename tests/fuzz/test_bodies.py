"""Bodies that hypothesis thinks of: whatever a client sends, it gets an answer or a refusal, never a 500."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.api.protocol import ChatCompletionRequest
from tests.support.api_server import ApiServer, serve
from tests.support.fake_engine import MODEL

ROUTES = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize", "/detokenize"]
BOUNDED = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
"""The same examples every time, so that a failure is a change of the code."""

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["\x00", "\ud800", "</s>", "<image>", "<用户>", "data:image/png;base64,", "user", "text", "image_url"]
    )
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["type", "text", "role", "content", "image_url", "url", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)
FIELDS = st.dictionaries(st.sampled_from(sorted(ChatCompletionRequest.model_fields)), VALUES, max_size=4)
VALID: dict[str, Any] = {"model": MODEL.model_id, "messages": [{"role": "user", "content": "x"}], "prompt": "x"}


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with serve() as running:
        yield running


def check(server: ApiServer, route: str, body: bytes) -> None:
    response = server.http.post(route, content=body, headers={"content-type": "application/json"})
    assert response.status_code < 500, (response.text, body[:500])
    if response.status_code != 200:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert len(response.content) < 4000


def dumps(value: Any) -> bytes:
    return json.dumps(value).encode()  # NaN and Infinity as Python writes them, lone surrogates as escapes


@pytest.mark.parametrize("route", ROUTES)
@BOUNDED
@given(fields=FIELDS)
def test_wrong_values_of_known_fields(server: ApiServer, route: str, fields: dict[str, Any]) -> None:
    check(server, route, dumps(VALID | fields))


@BOUNDED
@given(content=VALUES)
def test_contents_of_any_shape(server: ApiServer, content: Any) -> None:
    check(server, ROUTES[0], dumps(VALID | {"messages": [{"role": "user", "content": content}]}))
    check(server, ROUTES[0], dumps(VALID | {"messages": content}))


@pytest.mark.parametrize("route", ROUTES)
@BOUNDED
@given(body=st.binary(max_size=200) | VALUES.map(dumps))
def test_bodies_of_anything(server: ApiServer, route: str, body: bytes) -> None:
    check(server, route, body)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'{"model": "' + b"x" * 10**6 + b'"}',
        b'{"seed": ' + b"9" * 10**5 + b"}",
        b'{"temperature": 1e99999}',
        b'{"model": NaN}',
        b'{"model": "\\ud800"}',
        b'{"model": "\\u0000"}',
        b"\xef\xbb\xbf{}",
        '{"model": "x"}'.encode("utf-16"),
        b'{"model": "a", "model": "b"}',
        b'{"messages": [' + b"{}," * 10**5 + b"{}]}",
        b"{" + b",".join(b'"k%d": 0' % number for number in range(50_000)) + b"}",
    ],
    ids=lambda body: repr(body[:24]),
)
def test_known_traps(server: ApiServer, route: str, body: bytes) -> None:
    check(server, route, body)
