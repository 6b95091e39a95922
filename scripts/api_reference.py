"""Write docs/api-reference.md: the routes of the server's own OpenAPI, and the fields of what they take.

python -m scripts.api_reference
"""

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.api.admission import Admission
from server.api.app import create_app
from server.api.auth import KeyRing
from server.api.completion_protocol import OF_CHAT_ALONE, CompletionRequest
from server.api.protocol import ChatCompletionRequest
from server.api.remote_images import RemoteImages
from server.api.responses_protocol import ResponsesRequest
from server.api.tokenize import DetokenizeRequest, TokenizeRequest
from server.api.wire import NotSupported, WireModel
from server.engine.client import Engine
from server.metrics import Metrics
from server.settings import Settings
from server.version import VERSION

PAGE = Path(__file__).resolve().parent.parent / "docs" / "api-reference.md"

BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponsesRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
"""What the routes that take a body read it as. They read it themselves, under limits, so FastAPI does not know."""

HEAD = """# API reference

<!-- Written by `make docs` from the server's own types: change them there. -->

Routes, and the fields of their bodies with types and bounds. What the fields mean, what is the default, and what is
refused is in [the API](api.md); limits that settings move are in [settings](settings.md). A field in bold must be
there, and `null` is the same as leaving one out. What a field "of its own form" may be is in the API, too.
"""


def openapi() -> dict[str, Any]:
    """The server's OpenAPI document, with the bodies that its routes take."""
    settings = Settings()
    metrics = Metrics(version=VERSION)
    # No request is answered, so nothing is asked of the engine.
    engine = cast(Engine, object())
    app = create_app(
        settings,
        engine,
        admission=Admission(engine, max_requests=settings.max_requests),
        metrics=metrics,
        keys=KeyRing(),
        remote_images=RemoteImages(settings, metrics),
    )
    with warnings.catch_warnings():
        # GET and HEAD of one function have one name.
        warnings.filterwarnings("ignore", message="Duplicate Operation ID")
        document: dict[str, Any] = app.openapi()
    _, schemas = models_json_schema(
        [(body, "validation") for body in BODIES.values()], ref_template="#/components/schemas/{model}"
    )
    document["components"] = {"schemas": schemas["$defs"]}
    for path, body in BODIES.items():
        reference = {"$ref": f"#/components/schemas/{body.__name__}"}
        document["paths"][path]["post"]["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": reference}},
        }
    return document


def page() -> str:
    """The whole text of docs/api-reference.md."""
    document = openapi()
    schemas = document["components"]["schemas"]
    models = {model.__name__: model for model in _subclasses(WireModel)}
    lines = [HEAD]
    for path, operations in document["paths"].items():
        lines += _route(path, operations)
        if path in BODIES:
            lines += _fields(schemas[BODIES[path].__name__], BODIES[path])
        if path == "/v1/completions":
            left_out = ", ".join(f"`{name}`" for name in sorted(OF_CHAT_ALONE))
            lines.append(f"Besides, the fields of chat completions, without {left_out}.\n")
    lines.append("## Objects in bodies\n")
    bodies = {body.__name__ for body in BODIES.values()}
    for name in sorted(schemas.keys() - bodies):
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
