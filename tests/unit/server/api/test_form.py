"""Forms: what clients send is read, what is odd is refused."""

import contextlib

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.form import boundary_of, read_form
from server.errors import InvalidRequest, UnsupportedMediaType

HEAD = b'Content-Disposition: form-data; name="file"; filename="a.png"\r\nContent-Type: image/png'


def part(head: bytes = HEAD, data: bytes = b"x") -> bytes:
    return b"--B\r\n" + head + b"\r\n\r\n" + data + b"\r\n"


@given(st.binary(max_size=300), st.text(max_size=20))
def test_a_clients_form_comes_out_as_it_went_in(data: bytes, text: str) -> None:
    request = httpx.Request("POST", "http://x", data={"purpose": text}, files={"file": ('a "b".png', data)})
    form = read_form(request.read(), boundary_of(request.headers["content-type"]))
    assert form["file"].data == data
    assert form["purpose"].data.decode() == text
    assert form["purpose"].filename is None


def test_data_may_look_like_a_boundary() -> None:
    data = b"\r\n--C\r\n--"
    assert read_form(part(data=data) + b"--B--", b"B")["file"].data == data
    assert read_form(part() + b"--B--\r\n", b"B")["file"].filename == "a.png"
    assert read_form(b"--B--", b"B") == {}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b"\r\n" + part() + b"--B--",
        b"--B",
        b"--B \r\n",
        part(),
        part()[:-3],
        b"--B\r\n" + b"a: b\r\n" * 2000,
        part(b"a" * 5000) + b"--B--",
        part(b"") + b"--B--",
        part(b"nonsense") + b"--B--",
        part(b"Content-Disposition: attachment; name=a") + b"--B--",
        part(b"Content-Disposition: form-data") + b"--B--",
        part(HEAD + b"\r\nContent-Transfer-Encoding: base64") + b"--B--",
        part(HEAD + b"\nX: y") + b"--B--",
        part() + part() + b"--B--",
        b"".join(part(b"Content-Disposition: form-data; name=a%d" % n) for n in range(17)) + b"--B--",
    ],
)
def test_what_is_no_form_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_form(body, b"B")


@given(st.binary(max_size=100))
def test_nothing_else_is_raised(body: bytes) -> None:
    with contextlib.suppress(InvalidRequest):
        read_form(b"--B\r\n" + body, b"B")


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/json",
        "multipart/form-data",
        "multipart/mixed; boundary=x",
        f"multipart/form-data; boundary={'x' * 71}",
    ],
)
def test_a_type_that_is_no_form(content_type: str) -> None:
    with pytest.raises(UnsupportedMediaType):
        boundary_of(content_type)
