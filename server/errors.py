"""Every failure a client can see.

    ApiError
    +-- InvalidRequest            400  a field is wrong, missing or not supported
    |   +-- ContextOverflow       400  prompt and max_tokens exceed the context
    |   +-- InvalidImage          400  a picture cannot be accepted
    +-- Unauthorized              401
    +-- NotFound                  404  path or model
    +-- MethodNotAllowed          405
    +-- RequestTimeout            408  the body did not arrive in time
    +-- PayloadTooLarge           413
    +-- UnsupportedMediaType      415
    +-- TooManyRequests           429  admission is full; Retry-After
    +-- InternalError             500  the cause stays in the log, the client gets the request id
    +-- EngineUnavailable         503  starting, draining, or restarting; Retry-After

One handler renders them all (`server.api.app`), also inside a stream that has already begun.
"""


class ApiError(Exception):
    """Base class. Subclasses fix `status`, `type` and a default `code`; instances may name the `param`."""

    status: int = 500
    type: str = "server_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code
        self.retry_after_s = retry_after_s


class InvalidRequest(ApiError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class ContextOverflow(InvalidRequest):
    code = "context_length_exceeded"


class InvalidImage(InvalidRequest):
    code = "invalid_image"

    def at(self, param: str) -> "InvalidImage":
        """The same refusal, naming the field that the picture came in."""
        return InvalidImage(f"{param}: {self.message}", param=param, code=self.code)


class Unauthorized(ApiError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class NotFound(ApiError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class MethodNotAllowed(ApiError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class RequestTimeout(ApiError):
    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class PayloadTooLarge(ApiError):
    status = 413
    type = "invalid_request_error"
    code = "payload_too_large"


class UnsupportedMediaType(ApiError):
    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class TooManyRequests(ApiError):
    status = 429
    type = "rate_limit_error"
    code = "too_many_requests"


class InternalError(ApiError):
    status = 500
    type = "server_error"
    code = "internal_error"


class EngineUnavailable(ApiError):
    status = 503
    type = "server_error"
    code = "engine_unavailable"
