"""Why a picture was not fetched: a closed set of reasons for metrics, fixed texts for clients, details for the log."""

from enum import StrEnum

_BAD_URL = "invalid_image_url"
_NOT_FETCHED = "failed_to_download_image"


class Reason(StrEnum):
    """Label of the metric. Each has the `code` of the error that clients get."""

    code: str

    def __new__(cls, value: str, code: str) -> "Reason":
        reason = str.__new__(cls, value)
        reason._value_ = value
        reason.code = code
        return reason

    URL = "url", _BAD_URL
    """Another scheme, port or spelling than is ever fetched."""
    HOST = "host", _BAD_URL
    """Not in the operator's list."""
    NAME = "name", _BAD_URL
    """It does not resolve."""
    ADDRESS = "address", _BAD_URL
    """It resolves to an address that is not public."""
    CONNECT = "connect", _NOT_FETCHED
    """No connection, or none with a valid certificate."""
    TIMEOUT = "timeout", _NOT_FETCHED
    REDIRECT = "redirect", _NOT_FETCHED
    """Too many, or one that leads nowhere, or from https to http."""
    STATUS = "status", _NOT_FETCHED
    ENCODING = "encoding", _NOT_FETCHED
    """Compressed otherwise than with gzip."""
    BROKEN = "broken", _NOT_FETCHED
    """The answer is not HTTP, cut short, or of countless tiny pieces."""
    SIZE = "size", "invalid_image"
    REQUEST_SIZE = "request_size", "limit_exceeded"
    """All pictures of the request together."""


class FetchRefused(Exception):
    """The picture is not fetched. `message` is for the client and holds no address; `detail` is for the log."""

    def __init__(self, reason: Reason, message: str, *, detail: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.detail = detail
