"""The progress of a batch on standard error, where that is a terminal."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from server.batch.asking import Outcome


class ProgressBar:
    def __init__(self, num_requests: int, num_done: int) -> None:
        """`num_done`: by an earlier run."""
        console = Console(stderr=True)
        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[seen]}"),
            console=console,
            refresh_per_second=4,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("batch", total=num_requests, completed=num_done, seen="")
        self._began_s = time.monotonic()
        self._num_failed = 0
        self._num_tokens = 0

    def __enter__(self) -> "ProgressBar":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def on_outcome(self, outcome: Outcome) -> None:
        self._num_failed += not outcome.is_success
        self._num_tokens += _num_tokens(outcome)
        rate = self._num_tokens / max(time.monotonic() - self._began_s, 0.001)
        failed = f", {self._num_failed} failed" if self._num_failed else ""
        self._progress.update(self._task, advance=1, seen=f"{rate:.1f} tokens/s{failed}")


def _num_tokens(outcome: Outcome) -> int:
    """Of the answer, by its usage: `completion_tokens`, or `output_tokens` of a response."""
    body = outcome.response["body"] if outcome.response is not None else None
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return 0
    count = usage.get("completion_tokens", usage.get("output_tokens", 0))
    return count if isinstance(count, int) else 0
