"""Times as people write them: `200ms`, `2s`, `1.5m`."""

import re

_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_seconds(text: str) -> float:
    """Seconds, above 0.

    Raises:
        ValueError: the text is no number with a unit. A bare number is refused: it could be seconds or milliseconds.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s|m|h)", text.strip())
    if match is None or float(match[1]) == 0:
        raise ValueError(f"{text!r} is not a time; write for example 200ms, 2s or 1m")
    return float(match[1]) * _UNITS_S[match[2]]


def format_seconds(seconds: float) -> str:
    """Three digits and the unit that suits them."""
    if seconds >= 1:
        return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:.0f} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"
