"""The API reference is made from the server, is current, and leaves out no route."""

import pytest

from scripts import api_reference
from scripts.api_reference import BODIES, openapi, words


def test_the_page_is_current():
    assert api_reference.PAGE.read_text(encoding="utf-8") == api_reference.page(), "run `make docs`"


def test_every_route_that_takes_a_body_has_its_fields():
    paths = openapi()["paths"]
    assert {path for path, operations in paths.items() if "post" in operations} == BODIES.keys()


def test_a_body_is_in_the_document_with_all_that_it_refers_to():
    document = openapi()
    reference = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    schemas = document["components"]["schemas"]
    chat = schemas[reference["$ref"].rpartition("/")[2]]
    assert chat["required"] == ["messages", "model"]
    assert {"UserMessage", "ImagePart", "StreamOptions"} <= schemas.keys()


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "boolean"}, "boolean"),
        ({"anyOf": [{"type": "integer", "minimum": 1, "exclusiveMaximum": 9}, {"type": "null"}]}, "integer, ≥ 1, < 9"),
        ({"type": "array", "items": {"$ref": "#/components/schemas/TextPart"}, "minItems": 1},
         "list of [TextPart](#textpart), not empty"),
        ({"type": "object", "additionalProperties": {"type": "string"}}, "object of string"),
        ({"type": "object", "additionalProperties": False}, "object"),
        ({"type": "string", "maxLength": 5}, "string, 0 to 5 characters"),
        ({"enum": ["auto", "high"], "type": "string"}, "`auto`, `high`"),
        ({"const": "text"}, "`text`"),
        ({"default": None}, "of its own form"),
    ],
)  # fmt: skip
def test_a_type_in_words(schema, text):
    assert words(schema) == text
