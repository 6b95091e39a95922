"""What an answer has to look like, as clients say it: response_format and structured_outputs, to a Constraint."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from server.api.protocol import ChatCompletionRequest
from server.api.scoring import answers_to_score
from server.api.wire import INVALID_VALUE, LIMIT_EXCEEDED
from server.api.wire_structured import StructuredOutputs
from server.errors import InvalidRequest
from server.request import Constraint
from server.settings import Settings

_WHITESPACE = r"[ \n]?"
"""Between the parts of JSON at most one: a small model that may put any number of them sometimes never stops."""
_ANY_OBJECT: dict[str, Any] = {"type": "object"}
_OWN_OPTIONS = "x-guidance"
_MAX_MULTIPLE = 1000
"""Of multipleOf: compiling takes as long as the number is large, seconds from some 100000 on."""


def constraint_of(wire: ChatCompletionRequest, settings: Settings) -> Constraint | None:
    """What the request wants its answers to match; None for free text.

    Raises:
        InvalidRequest: it is more than a limit allows, or two fields contradict each other.
    """
    if answers_to_score(wire):
        _check_choice(wire, settings)
        return None
    found = [one for one in (_from_format(wire, settings), _from_structured(wire, settings)) if one is not None]
    if not found:
        return None
    if len(found) > 1:
        raise _refused("structured_outputs", "and response_format cannot be given together", INVALID_VALUE)
    check_combination(wire)
    return found[0]


def check_combination(wire: ChatCompletionRequest) -> None:
    """Raises InvalidRequest when something is asked for that an answer with a form of its own cannot have."""
    for param, is_asked in (
        ("ignore_eos", bool(wire.ignore_eos)),
        ("min_tokens", bool(wire.min_tokens)),
        ("skip_special_tokens", wire.skip_special_tokens is False),
    ):
        if is_asked:
            raise _refused(param, "cannot be combined with an answer that has to match something", INVALID_VALUE)


def json_schema(
    schema: Any, settings: Settings, *, param: str, strict: bool | None, whitespace: str | None = None
) -> dict[str, Any]:
    """The schema with the options that it is compiled with.

    Args:
        strict: False leaves out what cannot be enforced; otherwise that is refused when it is compiled.
        whitespace: a regular expression of what may stand between the parts of JSON.

    Raises:
        InvalidRequest: it is larger than the limits.
    """
    if isinstance(schema, str):
        schema = _parse(schema, param)
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise _refused(param, "must be a JSON schema: an object", INVALID_VALUE)
    _check_depth(schema, settings, param)
    check_bytes(json.dumps(schema), settings, param=param)
    for words, _ in _walk(schema):
        if isinstance(words, dict):
            _check_words(words, settings, param)
    options = {
        "whitespace_pattern": _WHITESPACE if whitespace is None else whitespace,
        "lenient": strict is False,
        "coerce_one_of": strict is False,
    }
    return {name: value for name, value in schema.items() if name != _OWN_OPTIONS} | {_OWN_OPTIONS: options}


def check_bytes(text: str, settings: Settings, *, param: str) -> None:
    """Raises InvalidRequest when the text is more than a grammar may have."""
    if (num_bytes := len(text.encode(errors="replace"))) > settings.max_grammar_bytes:
        raise _refused(param, f"has {num_bytes} bytes; the limit is {settings.max_grammar_bytes}", LIMIT_EXCEEDED)


def _from_format(wire: ChatCompletionRequest, settings: Settings) -> Constraint | None:
    wanted = wire.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return _of_schema(_ANY_OBJECT, settings, param="response_format", strict=None)
    given = wanted.json_schema
    return _of_schema(
        _ANY_OBJECT if given.schema_ is None else given.schema_,
        settings,
        param="response_format.json_schema.schema",
        strict=given.strict,
    )


def _from_structured(wire: ChatCompletionRequest, settings: Settings) -> Constraint | None:
    wanted = wire.structured_outputs
    if wanted is None:
        return None
    kind = _one_kind(wanted)
    param = f"structured_outputs.{kind}"
    if kind in ("json", "json_object"):
        schema = _ANY_OBJECT if kind == "json_object" else wanted.json_
        if wanted.disable_additional_properties:
            schema = _parse(schema, param) if isinstance(schema, str) else schema
            _check_depth(schema, settings, param)
            schema = _closed(schema)
        whitespace = "" if wanted.disable_any_whitespace else wanted.whitespace_pattern
        if whitespace is not None:
            _check_regex(whitespace, settings, "structured_outputs.whitespace_pattern")
        return _of_schema(schema, settings, param=param, strict=None, whitespace=whitespace)
    if kind == "regex":
        assert wanted.regex is not None
        _check_regex(wanted.regex, settings, param)
        return Constraint("regex", wanted.regex, param)
    if kind == "choice":
        assert wanted.choice is not None
        return Constraint("choice", _check_choice(wire, settings), param)
    assert wanted.grammar is not None
    check_bytes(wanted.grammar, settings, param=param)
    return Constraint("grammar", wanted.grammar, param)


def _check_choice(wire: ChatCompletionRequest, settings: Settings) -> str:
    """The list of choices as JSON."""
    assert wire.structured_outputs is not None
    source = json.dumps(wire.structured_outputs.choice, ensure_ascii=False)
    check_bytes(source, settings, param="structured_outputs.choice")
    return source


def _one_kind(wanted: StructuredOutputs) -> str:
    given = {
        "json": wanted.json_ is not None,
        "regex": wanted.regex is not None,
        "choice": wanted.choice is not None,
        "grammar": wanted.grammar is not None,
        "json_object": bool(wanted.json_object),
    }
    kinds = [kind for kind, is_given in given.items() if is_given]
    if len(kinds) != 1:
        said = f"has {' and '.join(kinds)}" if kinds else "says nothing"
        raise _refused("structured_outputs", f"{said}; give one of {', '.join(given)}", INVALID_VALUE)
    return kinds[0]


def _of_schema(
    schema: Any, settings: Settings, *, param: str, strict: bool | None, whitespace: str | None = None
) -> Constraint:
    ready = json_schema(schema, settings, param=param, strict=strict, whitespace=whitespace)
    return Constraint("json_schema", json.dumps(ready), param)


def _parse(text: str, param: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as err:
        raise _refused(param, "is not JSON", INVALID_VALUE) from err


def _walk(root: Any) -> Iterator[tuple[Any, int]]:
    """Every object and list in it with its depth, the root's being 1. Without recursion: the depth is the client's."""
    pending = [(root, 1)]
    while pending:
        node, depth = pending.pop()
        yield node, depth
        children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        pending += [(child, depth + 1) for child in children if isinstance(child, dict | list)]


def _check_depth(schema: Any, settings: Settings, param: str) -> None:
    if any(depth > settings.max_schema_depth for _, depth in _walk(schema)):
        raise _refused(param, f"is nested deeper than {settings.max_schema_depth}", LIMIT_EXCEEDED)


def _check_words(words: Mapping[str, Any], settings: Settings, param: str) -> None:
    """Of an object anywhere in the schema, so also of a property of such a name, which is harmless."""
    multiple = words.get("multipleOf")
    if isinstance(multiple, int | float) and multiple > _MAX_MULTIPLE:
        raise _refused(param, f"multipleOf {multiple} is more than {_MAX_MULTIPLE}", LIMIT_EXCEEDED)
    if isinstance(pattern := words.get("pattern"), str):
        _check_regex(pattern, settings, param)
    if isinstance(patterns := words.get("patternProperties"), dict):
        for pattern in patterns:
            _check_regex(pattern, settings, param)


def _check_regex(pattern: str, settings: Settings, param: str) -> None:
    if len(pattern) > settings.max_regex_chars:
        raise _refused(
            param,
            f"has a pattern of {len(pattern)} characters; the limit is {settings.max_regex_chars}",
            LIMIT_EXCEEDED,
        )


def _closed(schema: Any) -> Any:
    """The schema in which no object has properties that it does not name."""
    if isinstance(schema, list):
        return [_closed(member) for member in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: _closed(value) for name, value in schema.items()}
    names_some = schema.get("type") == "object" or isinstance(schema.get("properties"), dict)
    return inner | {"additionalProperties": False} if names_some else inner


def _refused(param: str, message: str, code: str) -> InvalidRequest:
    return InvalidRequest(f"{param} {message}", param=param, code=code)
