"""Errors of a request that was translated into another one, told in the words that the client used."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy

from server.errors import ApiError


@contextmanager
def named_as(names: Mapping[str, str]) -> Iterator[None]:
    """Within the block, errors about a field are told about the field that the client gave.

    Args:
        names: path of the translated field -> the client's. A path stands for everything below it as well; the longest
            one that fits counts.
    """
    try:
        yield
    except ApiError as err:
        if err.param is None:
            raise
        retold = copy(err)
        retold.param = translate(err.param, names)
        # Most messages begin with the path.
        if err.message.startswith(err.param):
            retold.message = retold.param + err.message[len(err.param) :]
        raise retold from err


def translate(path: str, names: Mapping[str, str]) -> str:
    """The client's path for a translated one; the path itself where nothing was translated."""
    fitting = [name for name in names if path == name or path.startswith((f"{name}.", f"{name}["))]
    if not fitting:
        return path
    longest = max(fitting, key=len)
    return names[longest] + path[len(longest) :]
