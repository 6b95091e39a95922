"""Write docs/metrics.md from server/metrics.py.

python -m scripts.metrics_table
"""

from pathlib import Path

from server.metrics import Metrics

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"

HEAD = """# Metrics

<!-- Written by `make docs` from server/metrics.py: change it there. -->

What `/metrics` has, besides `process_*` of the API process. Times are in seconds. How to read and poll the page:
[observability](observability.md).

| name | kind | labels | meaning |
|---|---|---|---|
"""


def page() -> str:
    """The whole text of docs/metrics.md."""
    rows = [
        f"| `{one.name}` | {one.kind} | {', '.join(f'`{label}`' for label in one.labels)} | {one.text} |\n"
        for one in Metrics(version="").catalogue
    ]
    return HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
