"""The API reference is made from the server, and is current."""

import pytest

from scripts import api_reference
from scripts.api_reference import words


def test_the_page_is_current():
    assert api_reference.PAGE.read_text(encoding="utf-8") == api_reference.page(), "run `make docs`"


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
