"""API keys: every path is closed but those on one list."""

import hashlib
import hmac
import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import Unauthorized
from server.settings import InvalidSettings, Settings

PUBLIC_PATHS = frozenset({"/health", "/health/live", "/health/ready", "/metrics", "/metrics/routing"})
"""What probes and collectors ask for; they carry no keys. Nothing there tells of requests."""

_NAMED_DIGEST = re.compile(r"[^:]+:([0-9a-fA-F]{64})")


class KeyRing:
    """The digests of all keys that are accepted. An empty ring lets everybody in."""

    def __init__(self, digests: Iterable[bytes]) -> None:
        self._digests = tuple(digests)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accepts(self, key: bytes) -> bool:
        """Whether the key is one of ours, in a time that does not depend on which or how nearly."""
        digest = hashlib.sha256(key).digest()
        # A list, not a generator: `any` would stop at the first match.
        return any([hmac.compare_digest(digest, known) for known in self._digests])  # noqa: C419


def load_keys(settings: Settings) -> KeyRing:
    """The keys of the settings and of the key file.

    Raises:
        InvalidSettings: the key file cannot be read, or holds no key.
    """
    digests = [hashlib.sha256(key.get_secret_value().encode()).digest() for key in settings.api_keys]
    if settings.api_key_file is not None:
        try:
            lines = settings.api_key_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as err:
            raise InvalidSettings(f"api_key_file: {settings.api_key_file} cannot be read") from err
        entries = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
        if not entries:
            # Most likely a mistake, and without keys everybody would be let in.
            raise InvalidSettings(f"api_key_file: {settings.api_key_file} holds no key")
        digests += [_digest(entry) for entry in entries]
    return KeyRing(digests)


def _digest(entry: str) -> bytes:
    named = _NAMED_DIGEST.fullmatch(entry)
    return bytes.fromhex(named[1]) if named else hashlib.sha256(entry.encode()).digest()


class ApiKeys:
    """ASGI middleware: refuses what carries no accepted key, before anything of it is read."""

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises Unauthorized, which the middleware around it renders."""
        # The path of the scope is what the router matches; one rebuilt from the Host header is the client's choice.
        if self._keys and scope["type"] == "http" and scope["path"] not in PUBLIC_PATHS:
            key = _key(scope)
            if key is None:
                raise Unauthorized("no API key: send it as Authorization: Bearer KEY, or as x-api-key: KEY")
            if not self._keys.accepts(key):
                raise Unauthorized("the API key is not accepted")
        await self._app(scope, receive, send)


def _key(scope: Scope) -> bytes | None:
    headers: dict[bytes, bytes] = dict(scope["headers"])
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and token.strip():
        return token.strip()
    return headers.get(b"x-api-key") or None
