"""Draws a training log as an SVG picture: shares told right, and the loss, over the steps.

python -m model.demo.curve build/demo/log.jsonl curve.svg
"""

import json
import sys
from pathlib import Path

_WIDTH, _HEIGHT, _EDGE = 760, 360, 44
_LINES = {
    "characters": ("#1b6ac9", "characters of patches"),
    "shapes": ("#2a9d4a", "shapes of patches"),
    "colours": ("#d98b1f", "colours of patches"),
    "read": ("#b0252e", "ids of texts read"),
    "other": ("#6f4aa8", "ids of other answers"),
}
"""Figures of the log that are shares: their colours and names. The loss is drawn in gray, against its own largest."""


def draw_curve(log: list[dict[str, float]]) -> str:
    """The SVG of a log with one dictionary a line: `step` and figures; a figure may be missing in some."""
    last = max(line["step"] for line in log)
    largest = max(line["loss"] for line in log)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif"'
        f' font-size="11"><rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>'
    ]
    for tenth in range(0, 11, 2):
        y = _y(tenth / 10)
        parts.append(f'<path d="M{_EDGE} {y:.1f}H{_WIDTH - _EDGE}" stroke="#ddd"/>')
        parts.append(f'<text x="{_EDGE - 6}" y="{y + 4:.1f}" text-anchor="end">{tenth * 10}%</text>')
    for fifth in range(6):
        step = last * fifth / 5
        parts.append(
            f'<text x="{_x(step, last):.1f}" y="{_HEIGHT - _EDGE + 16}" text-anchor="middle">{step:.0f}</text>'
        )
    losses = [(line["step"], line["loss"] / largest) for line in log]
    parts.append(_polyline(losses, last, "#999"))
    legend = [("#999", f"loss (top: {largest:.1f})")]
    for name, (colour, title) in _LINES.items():
        points = [(line["step"], line[name]) for line in log if name in line]
        if points:
            parts.append(_polyline(points, last, colour))
            legend.append((colour, title))
    for index, (colour, title) in enumerate(legend):
        x = _EDGE + index * (_WIDTH - 2 * _EDGE) / len(legend)
        parts.append(f'<rect x="{x:.0f}" y="12" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{x + 14:.0f}" y="21">{title}</text>')
    return "\n".join((*parts, "</svg>", ""))


def _polyline(points: list[tuple[float, float]], last: float, colour: str) -> str:
    path = " ".join(f"{_x(step, last):.1f},{_y(share):.1f}" for step, share in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def _x(step: float, last: float) -> float:
    return _EDGE + (_WIDTH - 2 * _EDGE) * step / last


def _y(share: float) -> float:
    return _HEIGHT - _EDGE - (_HEIGHT - 2 * _EDGE) * share


def main() -> None:
    log, picture = Path(sys.argv[1]), Path(sys.argv[2])
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    picture.write_text(draw_curve(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
