"""The OpenAPI document agrees with the routes and the wire types."""

from typing import Any

import pytest

from server.api.openapi import OPERATIONS, Operation, openapi_document
from server.api.protocol import ChatCompletionRequest
from tests.support.api_server import ApiServer

DOCUMENT = openapi_document()
SCHEMAS = DOCUMENT["components"]["schemas"]


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if "$ref" in value else []
        return own + [found for inner in value.values() for found in references(inner)]
    return [found for inner in value for found in references(inner)] if isinstance(value, list) else []


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: f"{operation.method} {operation.path}")
def test_every_operation_that_is_described_is_there(server: ApiServer, operation: Operation) -> None:
    path = operation.path.replace("{", "").replace("}", "")
    response = server.http.request(operation.method, path)
    assert response.status_code != 405
    assert "there is nothing at" not in response.text


def test_the_document_is_served(server: ApiServer) -> None:
    told = server.http.get("/openapi.json").json()
    assert told["openapi"] == "3.1.0"
    assert told["paths"].keys() == DOCUMENT["paths"].keys()


def test_every_reference_leads_somewhere() -> None:
    names = {reference.removeprefix("#/components/schemas/") for reference in references(DOCUMENT)}
    assert names
    assert names <= SCHEMAS.keys()


def test_shared_fields_are_described_where_they_are_taken() -> None:
    assert SCHEMAS["ChatCompletionRequest"]["properties"].keys() == ChatCompletionRequest.model_fields.keys()
    text, response = (SCHEMAS[name]["properties"] for name in ("CompletionRequest", "ResponsesRequest"))
    chat = SCHEMAS["ChatCompletionRequest"]["properties"]
    assert text["temperature"] == response["temperature"] == chat["temperature"]
    assert text["n"] == chat["n"]
    assert "messages" not in text
    assert "max_tokens" not in response
    assert text["logprobs"] != chat["logprobs"]
    assert "integer" in str(text["logprobs"])
    assert set(SCHEMAS["CompletionRequest"]["required"]) == {"model", "prompt"}
    assert set(SCHEMAS["ResponsesRequest"]["required"]) == {"model", "input"}


def test_what_is_not_supported_says_so() -> None:
    assert SCHEMAS["ChatCompletionRequest"]["properties"]["audio"]["type"] == "null"
