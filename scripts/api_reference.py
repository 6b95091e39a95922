"""Write docs/api-reference.md: the routes of the server's own OpenAPI, and the fields of what they take.

python -m scripts.api_reference
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from server.api.openapi import OPERATIONS, openapi_document
from server.api.wire import NotSupported, WireModel

PAGE = Path(__file__).resolve().parent.parent / "docs" / "api-reference.md"

HEAD = """# API reference

<!-- Written by `make docs` from the server's own types: change them there. -->

Routes, and the fields of their bodies with types and bounds. What the fields mean, what is the default, and what is
refused is in [the API](api.md); limits that settings move are in [settings](settings.md). A field in bold must be
there, and `null` is the same as leaving one out. What a field "of its own form" may be is in the API, too.
"""


def page() -> str:
    """The whole text of docs/api-reference.md."""
    document = openapi_document()
    schemas = document["components"]["schemas"]
    models = {model.__name__: model for model in _subclasses(WireModel)}
    bodies = {one.path: one.body for one in OPERATIONS if one.body is not None}
    lines = [HEAD]
    for path, operations in document["paths"].items():
        lines += _route(path, operations)
        if path in bodies:
            lines += _fields(schemas[bodies[path].__name__], bodies[path])
        for media_type, content in operations.get("post", {}).get("requestBody", {"content": {}})["content"].items():
            if media_type == "multipart/form-data":
                lines += _fields(content["schema"], None)
    lines.append("## Objects in bodies\n")
    for name in sorted(schemas.keys() - {body.__name__ for body in bodies.values()}):
        lines.append(f"### {name}\n")
        if "description" in schemas[name]:
            lines.append(_one_line(schemas[name]["description"]) + "\n")
        lines += _fields(schemas[name], models.get(name))
    return "\n".join(lines).rstrip("\n") + "\n"


def _subclasses(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for one in model.__subclasses__():
        yield one
        yield from _subclasses(one)


def _route(path: str, operations: dict[str, Any]) -> Iterator[str]:
    methods = ", ".join(sorted(method.upper() for method in operations))
    yield f"## `{methods} {path}`\n"
    operation = operations[min(operations)]
    yield _one_line(operation.get("description", operation["summary"])).rstrip(".") + ".\n"


def _fields(schema: dict[str, Any], model: type[BaseModel] | None) -> Iterator[str]:
    """A table of an object's fields, then those for which only the value that asks for nothing passes."""
    refused = {name for name, field in model.model_fields.items() if _is_refused(field.metadata)} if model else set()
    required = schema.get("required", ())
    taken = {name: field for name, field in schema.get("properties", {}).items() if name not in refused}
    if taken:
        yield "| field | type |"
        yield "|---|---|"
        for name, field in taken.items():
            yield f"| {f'**`{name}`**' if name in required else f'`{name}`'} | {words(field)} |"
        yield ""
    if refused:
        yield "Not supported, refused by name: " + ", ".join(f"`{name}`" for name in sorted(refused)) + ".\n"


def _is_refused(metadata: list[Any]) -> bool:
    return any(mark in metadata for mark in get_args(NotSupported)[1:])


def words(schema: dict[str, Any]) -> str:
    """A type in words, for a cell of a table."""
    for key in ("anyOf", "oneOf"):
        if key in schema:
            parts = [words(part) for part in schema[key] if part != {"type": "null"}]
            return " or ".join(dict.fromkeys(parts))
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "array":
        return f"list of {words(schema.get('items', {}))}{_bounds(schema, 'minItems', 'maxItems', 'entries')}"
    if kind == "object":
        inner = schema.get("additionalProperties")
        return f"object of {words(inner)}" if isinstance(inner, dict) else "object"
    if kind == "string":
        return f"string{_bounds(schema, 'minLength', 'maxLength', 'characters')}"
    if kind in ("integer", "number"):
        return f"{kind}{_range(schema)}"
    return str(kind) if kind else "of its own form"


def _bounds(schema: dict[str, Any], least: str, most: str, unit: str) -> str:
    if most in schema:
        return f", {schema.get(least, 0)} to {schema[most]} {unit}"
    return ", not empty" if least in schema else ""


def _range(schema: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return "".join(f", {sign} {schema[key]}" for key, sign in signs.items() if key in schema)


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text.strip()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
