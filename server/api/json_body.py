"""A JSON body as Python values, where it has to be looked at before its wire type is known."""

from typing import Any

from pydantic_core import from_json

from server.errors import InvalidRequest


def read_object(data: bytes) -> dict[str, Any]:
    """The object that the body is.

    Raises:
        InvalidRequest: it is not JSON, or no object. NaN and infinity are not JSON.
    """
    try:
        value = from_json(data, allow_inf_nan=False)
    except ValueError as err:
        raise InvalidRequest(f"the request body is not valid JSON: {err}", code="invalid_json") from err
    if not isinstance(value, dict):
        raise InvalidRequest("the request body must be a JSON object", code="invalid_type")
    return value
