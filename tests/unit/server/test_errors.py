"""The tree of errors: each leaf knows its status, type and code, and the tree drawn in the module is the real one."""

import pytest

from server import errors
from server.errors import ApiError


def leaves(kind: type[ApiError] = ApiError) -> list[type[ApiError]]:
    return [leaf for child in kind.__subclasses__() for leaf in [child, *leaves(child)]]


@pytest.mark.parametrize("kind", leaves())
def test_the_drawn_tree_names_each_with_its_status(kind: type[ApiError]) -> None:
    assert errors.__doc__ is not None
    (line,) = [line for line in errors.__doc__.splitlines() if f"-- {kind.__name__} " in line]
    assert str(kind.status) in line.split()


@pytest.mark.parametrize("kind", leaves())
def test_type_follows_from_the_status(kind: type[ApiError]) -> None:
    types = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}
    assert kind.type == types.get(kind.status, "invalid_request_error")
    assert kind.code


def test_an_instance_may_say_more() -> None:
    err = errors.InvalidRequest("wrong", param="n", code="limit_exceeded", retry_after_s=3)
    assert (str(err), err.message, err.param, err.code, err.retry_after_s) == (
        "wrong",
        "wrong",
        "n",
        "limit_exceeded",
        3,
    )
    assert errors.InvalidRequest("wrong").code == "invalid_value"
