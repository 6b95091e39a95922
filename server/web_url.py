"""The URL of a picture, and the names of hosts: one strict parser, whose result alone is judged and fetched.

Two parsers that read a URL differently are a classic way around a guard, so nothing here is lenient: what browsers
repair or accept (back slashes, white space, numbers for addresses, user names) is refused.
"""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote, urljoin

import idna

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_URL_CHARS = 8192
"""Signed links of object stores take up to some 2,000."""

_DEFAULT_PORTS = {"http": 80, "https": 443}
_URL = re.compile(r"(https?)://([^/?#]+)([^#]*)(?:#.*)?", re.IGNORECASE)
_AUTHORITY = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:]+)(?::([0-9]{1,5}))?")
_NOT_IN_A_URL = re.compile(r"[\x00-\x20\x7f\\]")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_MAX_HOST_CHARS = 253


class InvalidUrl(ValueError):
    """The URL is not one that is ever fetched; the message says why and repeats nothing of it."""


@dataclass(frozen=True, slots=True)
class WebUrl:
    """Every part in the form in which it is sent."""

    scheme: str
    """http or https."""
    host: str
    """A name in lower-case ASCII without a final dot, or an address without brackets."""
    port: int
    target: str
    """Path and query, ASCII."""

    @property
    def address(self) -> Address | None:
        """What the host is where it is no name."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    @property
    def authority(self) -> str:
        """As the Host header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def without_query(self) -> str:
        """For logs: queries hold signatures and tokens."""
        return f"{self.scheme}://{self.authority}{self.target.partition('?')[0]}"

    def join(self, reference: str) -> str:
        """What a `Location` header of this URL's answer leads to; to be parsed like any other URL."""
        return urljoin(f"{self.scheme}://{self.authority}{self.target}", reference)


def parse_url(text: str, *, ports: frozenset[int]) -> WebUrl:
    """The URL that `text` spells.

    Args:
        ports: those that may be asked.

    Raises:
        InvalidUrl: it is not plainly an http or https URL, or one with a user name, another port or a strange host.
    """
    if len(text) > MAX_URL_CHARS:
        raise InvalidUrl(f"it has more than {MAX_URL_CHARS} characters")
    if _NOT_IN_A_URL.search(text):
        raise InvalidUrl("spaces, control characters and back slashes must be percent-encoded")
    match = _URL.fullmatch(text)
    if match is None:
        raise InvalidUrl("it must have the form http://HOST/PATH or https://HOST/PATH")
    scheme = match[1].lower()
    if "@" in match[2]:
        raise InvalidUrl("it must not have a user name or password")
    authority = _AUTHORITY.fullmatch(match[2])
    if authority is None:
        raise InvalidUrl("its host is neither a plain name nor an address")
    port = int(authority[2]) if authority[2] else _DEFAULT_PORTS[scheme]
    if port not in ports:
        raise InvalidUrl(f"only the ports {' and '.join(map(str, sorted(ports)))} may be asked")
    target = match[3] if match[3].startswith("/") else f"/{match[3]}"
    try:
        # Only what is not ASCII: what is already encoded stays as it is.
        target = quote(target, safe="".join(map(chr, range(0x21, 0x7F))))
    except UnicodeEncodeError as err:
        raise InvalidUrl("it is not valid Unicode") from err
    return WebUrl(scheme=scheme, host=_normal_host(authority[1]), port=port, target=target)


def _normal_host(text: str) -> str:
    if not text.startswith("["):
        return normal_name(text)
    try:
        return str(ipaddress.IPv6Address(text[1:-1]))
    except ValueError as err:
        raise InvalidUrl("its host is not an address") from err


def normal_name(text: str) -> str:
    """A host's name in lower-case ASCII without a final dot; IPv4 addresses pass in their one plain spelling.

    Raises:
        InvalidUrl: it is no name. So are numbers that resolvers take for addresses: 2130706433, 0x7f.1, 0177.0.0.1.
    """
    # Before the encoding, whose cost grows faster than its text.
    if len(text) > _MAX_HOST_CHARS + 1:
        raise InvalidUrl("its host is too long")
    if not text.isascii():
        try:
            # Full-width and circled characters become plain ones here, so all checks come after.
            text = idna.encode(text, uts46=True).decode()
        except UnicodeError as err:  # idna.IDNAError is one
            raise InvalidUrl("its host is not a valid international name") from err
    name = text.lower().removesuffix(".")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError as err:
            raise InvalidUrl("its host is a number that is not a plain address") from err
    if len(name) > _MAX_HOST_CHARS or not all(map(_LABEL.fullmatch, labels)):
        raise InvalidUrl("its host is neither a plain name nor an address")
    return name


class HostList:
    """Hosts by exact name, or by `*.example.com`, which is every name below example.com but not that name itself."""

    def __init__(self, entries: Iterable[str]) -> None:
        """
        Raises:
            InvalidUrl: an entry is neither.
        """
        names, suffixes = [], []
        for entry in entries:
            if entry.startswith("*."):
                suffixes.append(f".{normal_name(entry[2:])}")
            else:
                names.append(normal_name(entry))
        self._names = frozenset(names)
        self._suffixes = tuple(suffixes)

    def __contains__(self, host: str) -> bool:
        """Whether a host in its normal form is in the list."""
        return host in self._names or host.endswith(self._suffixes)
