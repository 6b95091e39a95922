"""The result as tables for a terminal."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from server.bench.compare import Ratio
from server.bench.duration import format_seconds
from server.bench.load import Load
from server.bench.report import Result
from server.bench.summary import Distribution, Summary

_LATENCIES = (("TTFT", "ttft_s"), ("ITL", "itl_s"), ("TPOT", "token_gap_s"), ("E2E", "end_to_end_s"))
_MAX_LAG_S = 0.01

Row = tuple[Load, str, Summary]


def print_tables(result: Result, console: Console) -> None:
    """Prints requests, throughput, latencies, ratios and failures, and what has to be known to read them."""
    rows = result.rows()
    console.print(_requests(rows))
    console.print(_throughput(rows, has_objective=result.objective is not None))
    if any(summary.end_to_end_s for _, _, summary in rows):
        console.print(_latencies(rows))
    if found := result.ratios():
        console.print(_ratios(found))
    if any(summary.failures for _, _, summary in rows):
        console.print(_failures(rows))
    for note in notes(result, rows):
        console.print(note, style="dim", highlight=False, markup=False)


def notes(result: Result, rows: Sequence[Row]) -> list[str]:
    """One sentence for each thing that qualifies the figures."""
    found = []
    if result.objective is not None:
        found.append(f"good: requests with {result.objective}.")
    for load, target, summary in rows:
        where = f"{target}, {load}: "
        if summary.tokens_from != "usage":
            found.append(f"{where}no usage from the server; each chunk was counted as one token.")
        elif summary.tokens_per_chunk is not None and abs(summary.tokens_per_chunk - 1) > 0.005:
            found.append(f"{where}{summary.tokens_per_chunk:.2f} tokens a chunk by usage; ITL is between chunks.")
        if summary.num_late:
            found.append(
                f"{where}{summary.num_late} requests waited for this program to make them, not for the server."
            )
        if summary.send_lag_s is not None and summary.send_lag_s.p99 > _MAX_LAG_S:
            lag = format_seconds(summary.send_lag_s.p99)
            found.append(f"{where}1 % of the requests left {lag} or more after they were due: this program was busy.")
        if summary.num_cut:
            found.append(f"{where}{summary.num_cut} requests were cut off and are in no figure.")
    return found


def _requests(rows: Sequence[Row]) -> Table:
    table = _table(
        "Requests", "server", "load", right=("sent", "failed", "prompt tok", "cached", "answer tok", "pictures")
    )
    for load, target, summary in rows:
        cached = summary.num_cached_tokens / summary.num_prompt_tokens if summary.num_prompt_tokens else 0
        pictures = f"{summary.num_pictures} ({summary.num_reused_pictures} again)" if summary.num_pictures else "0"
        counts = (str(summary.num_requests), str(summary.num_failed), _mean(summary.prompt_tokens), f"{cached:.0%}")
        table.add_row(target, str(load), *counts, _mean(summary.completion_tokens), pictures)
    return table


def _throughput(rows: Sequence[Row], *, has_objective: bool) -> Table:
    columns = ["out tok/s", "all tok/s", "requests/s", "pictures/s"] + ["good/s", "good"] * has_objective
    table = _table("Throughput", "server", "load", right=columns)
    for load, target, summary in rows:
        rates = [
            summary.output_tokens_per_s,
            summary.total_tokens_per_s,
            summary.requests_per_s,
            summary.pictures_per_s,
        ]
        cells = [_number(rate) for rate in rates]
        if summary.goodput_per_s is not None:
            cells += [_number(summary.goodput_per_s), f"{summary.good_share or 0:.0%}"]
        table.add_row(target, str(load), *cells)
    return table


def _latencies(rows: Sequence[Row]) -> Table:
    table = _table("Latency", "server", "load", "", right=("mean", "p50", "p90", "p95", "p99", "max"))
    for load, target, summary in rows:
        for name, field in _LATENCIES:
            values: Distribution | None = getattr(summary, field)
            if values is not None:
                figures = (values.mean, values.p50, values.p90, values.p95, values.p99, values.max)
                table.add_row(target, str(load), name, *map(format_seconds, figures))
        table.add_section()
    return table


def _ratios(found: Sequence[Ratio]) -> Table:
    title = f"Times as fast as {found[0].baseline}"
    table = _table(title, "server", "load", "", right=("median", "lowest", "highest", "rounds"))
    for ratio in found:
        figures = (f"{value:.2f} x" for value in (ratio.median, ratio.min, ratio.max))
        table.add_row(ratio.target, str(ratio.load), ratio.metric, *figures, str(ratio.num_rounds))
    return table


def _failures(rows: Sequence[Row]) -> Table:
    table = _table("Failures", "server", "load", "failure", right=["count"])
    table.add_column("the first one said", overflow="fold")
    for load, target, summary in rows:
        for failure in summary.failures:
            table.add_row(target, str(load), failure.kind, str(failure.count), escape(failure.example))
    return table


def _table(title: str, *left: str, right: Sequence[str]) -> Table:
    """Narrow enough for 80 columns: figures that are cut help nobody."""
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False
    )
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _mean(values: Distribution | None) -> str:
    return "-" if values is None else f"{values.mean:.0f}"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
