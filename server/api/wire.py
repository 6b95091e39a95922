"""What all wire types are made of: strict objects, refusals of what is not done here, and limits of lists."""

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

# Types of our own errors, which `server.api.errors` passes on as the `code`. A context key `param` names the field
# where the error's own location is the object around it.
UNKNOWN_PARAMETER = "unknown_parameter"
UNSUPPORTED_PARAMETER = "unsupported_parameter"
UNSUPPORTED_VALUE = "unsupported_value"
LIMIT_EXCEEDED = "limit_exceeded"
INVALID_VALUE = "invalid_value"
INVALID_TYPE = "invalid_type"


class WireModel(BaseModel):
    """An object in a request: frozen, strict, without unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_field(cls, data: Any) -> Any:
        # `extra="forbid"` alone would collect an error for each of a million unknown keys.
        if isinstance(data, dict):
            known = {field.alias or name for name, field in cls.model_fields.items()}
            for name in data:
                if name not in known:
                    raise PydanticCustomError(UNKNOWN_PARAMETER, "is not a known parameter", {"param": name})
        return data


def _refuse_unless_off(value: Any) -> None:
    # null and empty collections ask for nothing; clients send them to be explicit.
    if value is not None and value != [] and value != {}:
        raise PydanticCustomError(UNSUPPORTED_PARAMETER, "is not supported by this server")


NotSupported = Annotated[
    None,
    PlainValidator(_refuse_unless_off),
    WithJsonSchema({"type": "null", "description": "Not supported: only null passes."}),
]
"""Asks for something this server does not do. null, an empty list and an empty object pass."""


def only(*accepted: Any) -> PlainValidator:
    """Lets these values and null of an option pass whose other values are not supported."""

    def check(value: Any) -> Any:
        # By type too: 1 equals true in Python.
        if value is None or any(type(value) is type(known) and value == known for known in accepted):
            return value
        raise PydanticCustomError(
            UNSUPPORTED_PARAMETER,
            "is supported by this server only as {accepted}",
            {"accepted": " or ".join(repr(known) for known in accepted)},
        )

    return PlainValidator(check)


def length_limit(limit_or_setting: int | str) -> BeforeValidator:
    """Refuses a list with more entries than the number or the setting says, before any entry is validated."""

    def check(value: Any, info: ValidationInfo) -> Any:
        limit: int = limit_or_setting if isinstance(limit_or_setting, int) else getattr(info.context, limit_or_setting)
        if isinstance(value, list) and len(value) > limit:
            raise PydanticCustomError(
                LIMIT_EXCEEDED, "has {count} entries; the limit is {limit}", {"count": len(value), "limit": limit}
            )
        return value

    return BeforeValidator(check)


def by(field: str, choices: str) -> Discriminator:
    """Chooses a member of a union by this field of the object.

    Tags stand in angle brackets, so that the path of an error can leave them out.
    """

    def choose(value: Any) -> str | None:
        kind = value.get(field) if isinstance(value, dict) else None
        return f"<{kind}>" if isinstance(kind, str) else None

    return Discriminator(
        choose,
        custom_error_type=UNSUPPORTED_VALUE,
        custom_error_message=f"must be an object whose {field} is {choices}",
    )
