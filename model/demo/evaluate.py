"""Examines the demo through the HTTP server, and prints its marks.

    minicpmv serve &
    python -m model.demo.evaluate --url http://127.0.0.1:8000 --pictures 100 --json marks.json

With `--card` the marks also go to `demonstration.json` in a checkpoint's folder, from where the server tells them.
"""

import argparse
import base64
import json
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import track
from rich.table import Table

from model.config import load_config
from model.demo.exam import READING, TARGETS, Item, Mark, mark, read_exam, write_exam
from model.demo.fonts import DEFAULT_FOLDER, find_fonts
from model.demo.phrases import Language

_MAX_TOKENS = 160
_TIMEOUT_S = 120.0
_LANGUAGES: tuple[Language, ...] = ("en", "zh")

_NOTE = "A small demonstration model that was trained on drawn pictures, not MiniCPM-V."
_SKILLS = (
    "read a few lines of printed text",
    "name shapes and colors",
    "count up to six",
    "say where things are",
    "describe a drawn scene",
)

Marks = Mapping[tuple[str, Language], Mark]


def ask(client: httpx.Client, folder: Path, item: Item, model: str) -> str:
    """The server's greedy answer. Raises httpx.HTTPStatusError when it refuses."""
    content: list[dict[str, Any]] = [{"type": "text", "text": item.question}]
    if item.picture is not None:
        encoded = base64.b64encode((folder / item.picture).read_bytes()).decode()
        content.append({"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{encoded}"}})
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": _MAX_TOKENS,
    }
    reply = client.post("/v1/chat/completions", json=body)
    reply.raise_for_status()
    answer: str = reply.json()["choices"][0]["message"]["content"]
    return answer


def examine(url: str, folder: Path, items: list[Item], clients: int, model: str = "demo") -> list[tuple[Item, str]]:
    """Every item with its answer, in order, asked by `clients` at once."""
    with httpx.Client(base_url=url, timeout=_TIMEOUT_S) as client, ThreadPoolExecutor(clients) as pool:
        answers = pool.map(lambda item: ask(client, folder, item, model), items)
        return list(zip(items, track(answers, "asking", total=len(items)), strict=True))


def table(marks: Marks) -> Table:
    """Subjects by language: share of answers right, or of characters wrong, and what was aimed at."""
    result = Table("subject", "English", "Chinese", "aim", title="right answers; for reading, characters wrong")
    for subject in dict.fromkeys(subject for subject, _ in marks):
        aim = TARGETS.get(subject)
        sign = "<=" if subject in READING else ">="
        result.add_row(
            subject,
            *(f"{_share(subject, marks[subject, language]):.1%}" for language in _LANGUAGES),
            "" if aim is None else f"{sign} {aim:.0%}",
        )
    return result


@contextmanager
def _exam(arguments: argparse.Namespace) -> Iterator[Path]:
    """The folder given, or one that is drawn for this once."""
    if arguments.exam is not None:
        yield arguments.exam
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slicing = load_config(arguments.checkpoint).slicing
        write_exam(folder, arguments.pictures, find_fonts(arguments.fonts, held_out=True), slicing)
        yield folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--pictures", type=int, default=100, help="of each subject")
    parser.add_argument("--exam", type=Path, help="folder of an examination that was drawn before")
    parser.add_argument(
        "--checkpoint", type=Path, default=Path("model/demo/checkpoint"), help="for how it cuts pictures"
    )
    parser.add_argument("--fonts", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--json", type=Path, help="file for the marks and every answer")
    parser.add_argument("--card", type=Path, help="folder of the checkpoint whose demonstration.json is written")
    arguments = parser.parse_args()
    with _exam(arguments) as folder:
        answered = examine(arguments.url, folder, read_exam(folder), arguments.clients)
    marks = mark(answered)
    Console().print(table(marks))
    if arguments.json is not None:
        _write(arguments.json, _report(marks, answered))
    if arguments.card is not None:
        _write(arguments.card / "demonstration.json", _card(marks))


def _report(marks: Marks, answered: list[tuple[Item, str]]) -> dict[str, Any]:
    subjects = [
        {"subject": subject, "language": language, "asked": m.asked, "right": m.right, "edits": m.edits}
        | {"characters": m.characters}
        for (subject, language), m in marks.items()
    ]
    answers = [
        {"subject": i.subject, "question": i.question, "wanted": i.answer, "given": given, "picture": i.picture}
        for i, given in answered
    ]
    return {"marks": subjects, "answers": answers}


def _card(marks: Marks) -> dict[str, Any]:
    """What the server says of the demo: see `server.demonstration`."""
    rows = []
    for subject in dict.fromkeys(subject for subject, _ in marks):
        english, chinese = (_share(subject, marks[subject, language]) for language in _LANGUAGES)
        measure = "wrong characters" if subject in READING else "right answers"
        rows.append({"subject": subject, "measure": measure, "english": english, "chinese": chinese})
    return {"note": _NOTE, "skills": _SKILLS, "accuracy": rows}


def _share(subject: str, result: Mark) -> float:
    return round(result.character_error_rate if subject in READING else result.share_right, 4)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
