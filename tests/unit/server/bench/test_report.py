"""The three forms of one result: JSON, tables and plot."""

import io
import json
import xml.etree.ElementTree as ElementTree  # of our own making

import pytest
from rich.console import Console

from server.bench.load import OpenLoop
from server.bench.objective import Objective
from server.bench.plot import log_range, log_ticks, plot_svg
from server.bench.prompts import Calibration
from server.bench.record import Usage
from server.bench.report import SCHEMA, Result, TargetInfo, report
from server.bench.surroundings import Surroundings, surroundings
from server.bench.tables import notes, print_tables
from tests.support.bench_records import make_failed, make_measurement, make_record


def make_result(*measurements, **changes):
    fields = {
        "command": ["minicpmv", "bench", "--clients", "2"],
        "options": {"clients": [2], "seed": 5},
        "surroundings": Surroundings("2026-01-02T03:04:05+00:00", "a computer", "3.12.1", {"minicpmv": "0.1.0"}),
        "targets": [
            TargetInfo("ours", "http://one", {"data": [{"id": "m"}]}),
            TargetInfo("theirs", "http://two", None),
        ],
        "calibration": Calibration(1.5, 2.0),
        "objective": Objective(ttft_s=1.0),
        "measurements": measurements,
        "is_interrupted": False,
    }
    return Result(**fields | changes)


RESULT = make_result(
    make_measurement(make_record(usage=Usage(10, 6, 5), num_pictures=1), make_failed("http 429", "429: [busy]")),
    make_measurement(make_record(0.0, (0.5, 0.75, 1.0)), target="theirs"),
    make_measurement(make_record(), round=1, wall_s=30.0),
    make_measurement(make_record(), target="theirs", round=1, wall_s=30.0),
)


def test_the_document_holds_everything():
    document = json.loads(json.dumps(report(RESULT)))
    assert (document["schema"], document["date"], document["interrupted"]) == (
        SCHEMA,
        "2026-01-02T03:04:05+00:00",
        False,
    )
    assert document["command"] == ["minicpmv", "bench", "--clients", "2"]
    assert document["options"]["seed"] == 5
    assert document["client"]["hardware"] == "a computer"
    assert document["targets"][0] == {"name": "ours", "url": "http://one", "models": {"data": [{"id": "m"}]}}
    assert document["calibration"] == {"tokens_per_word": 1.5, "overhead_tokens": 2.0}
    assert document["objective"] == {"ttft_s": 1.0, "itl_s": None, "e2e_s": None}
    pooled, theirs = document["results"]
    assert (pooled["target"], pooled["load"], theirs["target"]) == ("ours", {"clients": 2}, "theirs")
    assert pooled["summary"]["num_requests"] == 3
    assert pooled["summary"]["output_tokens_per_s"] == 9 / 40
    assert pooled["summary"]["failures"] == [{"kind": "http 429", "count": 1, "example": "429: [busy]"}]
    assert [(one["target"], one["round"]) for one in document["rounds"]] == [
        ("ours", 0), ("theirs", 0), ("ours", 1), ("theirs", 1),
    ]  # fmt: skip
    ttft = next(ratio for ratio in document["ratios"] if ratio["metric"] == "TTFT p50")
    assert (ttft["target"], ttft["baseline"], ttft["median"], ttft["num_rounds"]) == ("theirs", "ours", 1.5, 2)
    assert len(document["requests"]) == 5
    assert document["requests"][0] == {
        "load": {"clients": 2},
        "target": "ours",
        "round": 0,
        "due_s": 0.0,
        "sent_s": 0.0,
        "ended_s": 2.0,
        "ttft_s": 1.0,
        "token_gap_s": 0.2,
        "num_chunks": 3,
        "usage": {"prompt_tokens": 10, "completion_tokens": 6, "cached_tokens": 5},
        "finish_reason": "length",
        "num_pictures": 1,
        "num_reused_pictures": 0,
        "failure": None,
    }
    assert document["requests"][1]["failure"] == {"kind": "http 429", "message": "429: [busy]"}


def test_an_open_loop_is_told_by_its_rate():
    document = report(
        make_result(make_measurement(make_record(), load=OpenLoop(2.5)), calibration=None, objective=None)
    )
    assert document["results"][0]["load"] == {"rate_per_s": 2.5}
    assert document["calibration"] is document["objective"] is None


def printed(result, width=80):
    console = Console(file=io.StringIO(), width=width)
    print_tables(result, console)
    return console.file.getvalue()


def test_the_tables_fit_a_terminal_and_show_the_figures():
    text = printed(RESULT)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for words in ("Requests", "Throughput", "Latency", "Times as fast as ours", "Failures", "429: [busy]", "1.50 x"):
        assert words in text
    (row,) = [line.split() for line in text.splitlines() if "ours" in line and "TTFT" in line]
    assert row == ["ours", "2", "clients", "TTFT", *(["1", "s"] * 6)]


def test_tables_without_pictures_objective_or_success():
    text = printed(make_result(make_measurement(make_failed()), objective=None, targets=RESULT.targets[:1]))
    assert "Failures" in text
    assert "Latency" not in text
    assert "good" not in text
    assert "Times as fast" not in text


@pytest.mark.parametrize(
    ("measurement", "words"),
    [
        (make_measurement(make_record(usage=None)), "each chunk was counted as one token"),
        (make_measurement(make_record(usage=Usage(1, 6, 0))), "2.00 tokens a chunk"),
        (make_measurement(make_record(), num_late=4), "4 requests waited for this program"),
        (make_measurement(make_record(sent_s=0.5)), "left 500 ms or more after they were due"),
        (make_measurement(make_record(), num_cut=2), "2 requests were cut off"),
    ],
)
def test_what_qualifies_the_figures_is_said(measurement, words):
    result = make_result(measurement, objective=None)
    (note,) = notes(result, result.rows())
    assert note.startswith("ours, 2 clients: ")
    assert words in note


def test_nothing_is_said_of_plain_figures():
    result = make_result(make_measurement(make_record()), objective=None)
    assert notes(result, result.rows()) == []


def test_the_plot_is_svg_with_a_line_for_each_server_in_each_panel():
    targets = [TargetInfo("ours", "", None), TargetInfo("<theirs>", "", None)]
    measured = [make_measurement(make_record(), target=target.name) for target in targets]
    root = ElementTree.fromstring(plot_svg(make_result(*measured, targets=targets)))  # noqa: S314 - our own
    space = "{http://www.w3.org/2000/svg}"
    texts = [element.text for element in root.iter(f"{space}text")]
    assert {"TTFT", "ITL (between chunks)", "end to end", "ours, 2 clients", "<theirs>, 2 clients"} <= set(texts)
    lines = list(root.iter(f"{space}polyline"))
    assert len(lines) == 6
    assert len({line.get("stroke") for line in lines}) == 2
    width, height = float(root.get("width")), float(root.get("height"))
    points = [tuple(map(float, point.split(","))) for line in lines for point in line.get("points").split()]
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)


def test_the_plot_of_failures_alone_has_no_lines():
    assert "polyline" not in plot_svg(make_result(make_measurement(make_failed())))


def test_axes_end_at_round_numbers_around_the_values():
    assert log_range([[0.03, 0.4], [0.011, 0.2]]) == (0.01, 0.5)
    assert log_range([[1.0, 1.0]]) == (1.0, 2.0)
    assert log_range([[0.0, 0.3]])[0] == 1e-4
    assert log_ticks(0.1, 1.0) == [0.1, 0.2, 0.5, 1.0]
    assert log_ticks(0.001, 10.0) == [0.001, 0.01, 0.1, 1.0, 10.0]


def test_surroundings_are_told():
    where = surroundings()
    assert where.date.endswith("+00:00")
    assert "usable cores" in where.hardware
    assert where.versions["httptools"]
