"""The progress bar: on standard error, so that the tables can go into a file."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from server.bench.load import Extent, Load
from server.bench.record import CLOCK, Record

_REFRESHES_PER_S = 4
"""Drawing costs the loop its time."""


class ProgressBar:
    """Implements `server.bench.session.Observer`."""

    def __init__(self, extent: Extent, *, rounds: int) -> None:
        self._extent = extent
        self._rounds = rounds
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[seen]}"),
        )
        console = Console(stderr=True)
        self._progress = Progress(
            *columns,
            console=console,
            refresh_per_second=_REFRESHES_PER_S,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("connecting", total=None, seen="")

    def __enter__(self) -> "ProgressBar":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def on_begin(self, target: str, load: Load, round_: int | None) -> None:
        self._begun_s = CLOCK()
        self._num_ended = self._num_failed = self._num_tokens = 0
        phase = "warm-up" if round_ is None else f"round {round_ + 1} of {self._rounds}"
        total = None if round_ is None else self._extent.num_requests or self._extent.duration_s
        self._progress.reset(self._task, description=f"{target}, {load}, {phase}", total=total, seen="")

    def on_record(self, record: Record) -> None:
        elapsed_s = CLOCK() - self._begun_s
        self._num_ended += 1
        self._num_failed += record.failure is not None
        self._num_tokens += record.completion_tokens
        failed = f", {self._num_failed} failed" if self._num_failed else ""
        self._progress.update(
            self._task,
            completed=self._num_ended if self._extent.num_requests else elapsed_s,
            seen=f"{self._num_ended} requests{failed}, {self._num_tokens / elapsed_s:.1f} tokens/s",
        )
