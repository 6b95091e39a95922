"""API keys: every path is closed but those on one list. Who has which key, and what each may use."""

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.caller import Caller, caller_var
from server.api.rates import KeyQuota, KeyUse
from server.errors import Unauthorized
from server.metrics import Metrics
from server.settings import InvalidSettings, Settings

logger = logging.getLogger(__name__)

PUBLIC_PATHS = frozenset({"/health", "/health/live", "/health/ready", "/metrics", "/metrics/routing"})
"""What probes and collectors ask for; they carry no keys. Nothing there tells of requests."""

_NAMED_DIGEST = re.compile(r"([^:]{1,64}):([0-9a-fA-F]{64})")
_LOOK_EVERY_S = 1.0
"""How often the key file is looked at, at most: a key that is taken out of it works that much longer."""


@dataclass(frozen=True, slots=True)
class Key:
    name: str
    digest: bytes
    """SHA-256 of the key, which itself is kept nowhere."""


class KeyRing:
    """All keys that are accepted. An empty ring lets everybody in."""

    def __init__(self, keys: Iterable[Key] = (), file: Path | None = None) -> None:
        """
        Args:
            keys: that stay as they are.
            file: of further keys, read now and again whenever it has changed.

        Raises:
            InvalidSettings: the file cannot be read, or holds no key.
        """
        self._fixed = tuple(keys)
        self._file = file
        self._state: object = None
        self._looked_s = float("-inf")
        self._keys = self._fixed
        if file is not None:
            self._state = _state(file)
            self._keys = (*self._fixed, *read_key_file(file))

    def __bool__(self) -> bool:
        return bool(self._keys)

    def find(self, key: bytes) -> Key | None:
        """The entry of this key, in a time that does not depend on which one it is or how nearly it matches."""
        digest = hashlib.sha256(key).digest()
        # A list, not a generator: it would stop at the first match.
        found = [known for known in self._keys if hmac.compare_digest(digest, known.digest)]
        return found[0] if found else None

    def accepts(self, key: bytes) -> bool:
        return self.find(key) is not None

    def refresh(self, now_s: float) -> None:
        """Reads the file again if it has changed. One that cannot be used leaves the keys as they are, with an error
        in the log: nobody is locked out, and nobody let in, by a file that is half written."""
        if self._file is None or now_s - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = now_s
        state = _state(self._file)
        if state == self._state:
            return
        self._state = state
        try:
            self._keys = (*self._fixed, *read_key_file(self._file))
        except InvalidSettings as err:
            logger.error("the keys stay as they were: %s", err)
        else:
            logger.info("the key file was read again: %d keys", len(self._keys))


def load_keys(settings: Settings) -> KeyRing:
    """The keys of the settings and of the key file.

    Raises:
        InvalidSettings: the key file cannot be read, or holds no key.
    """
    fixed = [
        Key(f"setting-{number}", hashlib.sha256(key.get_secret_value().encode()).digest())
        for number, key in enumerate(settings.api_keys, 1)
    ]
    return KeyRing(fixed, settings.api_key_file)


def read_key_file(file: Path) -> list[Key]:
    """The entries of a key file. Raises InvalidSettings."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise InvalidSettings(f"api_key_file: {file} cannot be read") from err
    entries = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    keys = [_key(entry, number) for number, entry in entries if entry and not entry.startswith("#")]
    if not keys:
        # Most likely a mistake, and without keys everybody would be let in.
        raise InvalidSettings(f"api_key_file: {file} holds no key")
    return keys


def _key(entry: str, line: int) -> Key:
    named = _NAMED_DIGEST.fullmatch(entry)
    if named:
        return Key(named[1], bytes.fromhex(named[2]))
    return Key(f"line-{line}", hashlib.sha256(entry.encode()).digest())


def _state(file: Path) -> object:
    """What changes when the file is written, or another one is put in its place, as mounted secrets are."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


class ApiKeys:
    """ASGI middleware: refuses what carries no accepted key, or is beyond its key's limits, before it is read."""

    def __init__(self, app: ASGIApp, keys: KeyRing, settings: Settings, metrics: Metrics) -> None:
        self._app = app
        self._keys = keys
        self._quota = KeyQuota.of(settings)
        self._isolates = settings.isolate_keys
        self._metrics = metrics
        self._uses: dict[str, KeyUse] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises Unauthorized and TooManyRequests, which the middleware around it renders."""
        # The path of the scope is what the router matches; one rebuilt from the Host header is the client's choice.
        if not self._keys or scope["type"] != "http" or scope["path"] in PUBLIC_PATHS:
            await self._app(scope, receive, send)
            return
        began_s = time.monotonic()
        caller = self._caller(scope, began_s)
        # Looking at models or files costs nothing; what does is a POST.
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        use = caller.use
        # Whether the request is refused or not, its answer says how much is left.
        scope["state"]["headers"] = lambda: use.headers(time.monotonic())
        with use.request(began_s):
            self._metrics.on_key_request(caller.name)
            token = caller_var.set(caller)
            try:
                await self._app(scope, receive, send)
            finally:
                caller_var.reset(token)
                use.on_duration(time.monotonic() - began_s)

    def _caller(self, scope: Scope, now_s: float) -> Caller:
        self._keys.refresh(now_s)
        given = _given_key(scope)
        if given is None:
            raise Unauthorized("no API key: send it as Authorization: Bearer KEY, or as x-api-key: KEY")
        key = self._keys.find(given)
        if key is None:
            raise Unauthorized("the API key is not accepted")
        if key.name not in self._uses:
            self._uses[key.name] = KeyUse(self._quota, now_s)
        return Caller(key.name, self._uses[key.name], key.name if self._isolates else "")


def _given_key(scope: Scope) -> bytes | None:
    headers: dict[bytes, bytes] = dict(scope["headers"])
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and token.strip():
        return token.strip()
    return headers.get(b"x-api-key") or None
