"""The result as a picture: how latencies are distributed, one line for each server and load.

The SVG is written here, as text: three panels of lines need no plotting library in everybody's installation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from server.bench.duration import format_seconds
from server.bench.report import Result
from server.bench.summary import percentile

_COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#bf3989", "#0a7ea4", "#57606a")
_PANEL_WIDTH = 300
_PANEL_HEIGHT = 220
_LEFT = 46
_TOP = 56
_LINE_HEIGHT = 18
_STEPS = 200
"""Points of a line: a million gaps make no larger a file than a hundred."""


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    lines: Sequence[tuple[int, Sequence[float]]]
    """Number of the series, and its values in seconds, ascending, not empty."""


def plot_svg(result: Result) -> str:
    """An SVG document: of TTFT, ITL and end-to-end latency, the share that took at most so long."""
    keys = [(load, target) for load, target, _ in result.rows()]
    panels = _panels(result, keys)
    height = _TOP + _PANEL_HEIGHT + 40 + _LINE_HEIGHT * len(keys) + 10
    width = (_PANEL_WIDTH + _LEFT) * len(panels) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-size="14">{escape(_title(result))}</text>',
    ]
    for number, panel in enumerate(panels):
        parts += _panel(panel, _LEFT + number * (_PANEL_WIDTH + _LEFT))
    for number, (load, target) in enumerate(keys):
        y = _TOP + _PANEL_HEIGHT + 48 + number * _LINE_HEIGHT
        parts.append(f'<line x1="{_LEFT}" x2="{_LEFT + 24}" y1="{y - 4}" y2="{y - 4}" {_stroke(number)}/>')
        parts.append(f'<text x="{_LEFT + 32}" y="{y}">{escape(f"{target}, {load}")}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _title(result: Result) -> str:
    return f"Latency distributions, {result.surroundings.date[:10]}: {', '.join(one.name for one in result.targets)}"


def _panels(result: Result, keys: Sequence[tuple[object, str]]) -> list[Panel]:
    lines: dict[str, list[tuple[int, list[float]]]] = {"TTFT": [], "ITL (between chunks)": [], "end to end": []}
    for number, key in enumerate(keys):
        measured = [one for one in result.measurements if (one.load, one.target) == key]
        good = [record for one in measured for record in one.records if record.failure is None]
        values = (
            [record.ttft_s for record in good if record.ttft_s is not None],
            [gap for record in good for gap in record.gaps_s],
            [record.end_to_end_s for record in good],
        )
        for panel, found in zip(lines.values(), values, strict=True):
            if found:
                panel.append((number, sorted(found)))
    return [Panel(title, found) for title, found in lines.items()]


def _panel(panel: Panel, left: int) -> list[str]:
    bottom = _TOP + _PANEL_HEIGHT
    parts = [f'<text x="{left}" y="{_TOP - 10}" font-weight="bold">{escape(panel.title)}</text>']
    for share in (0.0, 0.5, 0.9, 0.99, 1.0):
        y = bottom - share * _PANEL_HEIGHT
        parts.append(f'<line x1="{left}" x2="{left + _PANEL_WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#d0d7de"/>')
        if share != 0.99:  # its label would lie on that of 1
            parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#57606a">{share:.0%}</text>')
    if not panel.lines:
        return parts
    low, high = log_range([values for _, values in panel.lines])
    scale = _PANEL_WIDTH / (math.log10(high) - math.log10(low))

    def x_of(seconds: float) -> float:
        return left + (math.log10(max(seconds, low)) - math.log10(low)) * scale

    for tick in log_ticks(low, high):
        x = x_of(tick)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}" stroke="#eaeef2"/>')
        label = format_seconds(tick)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle" fill="#57606a">{label}</text>')
    for number, values in panel.lines:
        shares = [step / _STEPS for step in range(_STEPS + 1)]
        points = " ".join(
            f"{x_of(percentile(values, share)):.1f},{bottom - share * _PANEL_HEIGHT:.1f}" for share in shares
        )
        parts.append(f'<polyline fill="none" {_stroke(number)} points="{points}"/>')
    return parts


def _stroke(number: int) -> str:
    """A colour for each of eight lines, then the same ones dashed."""
    dash = ' stroke-dasharray="5 3"' if number // len(_COLOURS) % 2 else ""
    return f'stroke="{_COLOURS[number % len(_COLOURS)]}" stroke-width="2"{dash}'


_LOWEST_S = 1e-4
"""Logarithms need something above 0: two chunks of one read have the same time."""


def log_range(lines: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The ends of a logarithmic axis on which all values lie: 1, 2 or 5 times a power of ten, seconds."""
    low = max(min(values[0] for values in lines), _LOWEST_S)
    high = max(max(values[-1] for values in lines), low)
    below = log_ticks(low / 10, low)[-1]
    above = next(tick for tick in log_ticks(high, high * 10) if tick > below)
    return below, above


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from low to high, both included; powers of ten alone over four decades."""
    steps = (1, 2, 5) if high / low <= 100 else (1,)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{step}e{exponent}") for exponent in exponents for step in steps]
    return [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
