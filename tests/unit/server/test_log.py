"""Each line is one record, with its request's id, in both forms."""

import asyncio
import json
import logging
import warnings
from collections.abc import Iterator

import pytest

from server.log import configure_logging, request_id_var, tell, with_fields

pytestmark = pytest.mark.usefixtures("restore_logging")


@pytest.fixture
def request_id() -> Iterator[str]:
    token = request_id_var.set("req-1")
    yield "req-1"
    request_id_var.reset(token)


logger = logging.getLogger("server.test")


def test_text_line(capsys: pytest.CaptureFixture[str], request_id: str) -> None:
    configure_logging("info", "text")
    logger.info("done in %d steps", 3, extra=with_fields({"total_s": 0.5, "absent": None}))
    time, rest = capsys.readouterr().err.split(" ", 1)
    assert time.endswith("Z")
    assert rest == "INFO server.test [req-1] done in 3 steps total_s=0.5\n"


def test_text_line_outside_a_request(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "text")
    logger.warning("hot")
    assert capsys.readouterr().err.split(" ", 1)[1] == "WARNING server.test hot\n"


def test_message_cannot_forge_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "text")
    logger.info("path %s", "/x\r\n2026 ERROR forged")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_json_line(capsys: pytest.CaptureFixture[str], request_id: str) -> None:
    configure_logging("debug", "json")
    logger.debug('a "quoted"\nmessage', extra=with_fields({"total_s": 0.5, "level": "not this one"}))
    line = json.loads(capsys.readouterr().err)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "debug",
        "logger": "server.test",
        "request_id": "req-1",
        "message": 'a "quoted"\nmessage',
        "total_s": 0.5,
    }


@pytest.mark.parametrize("form", ["text", "json"])
def test_traceback_is_kept(capsys: pytest.CaptureFixture[str], form: str) -> None:
    configure_logging("info", form)  # type: ignore[arg-type]
    try:
        raise ValueError("the cause")
    except ValueError:
        logger.exception("failed")
    printed = capsys.readouterr().err
    assert "the cause" in printed
    assert "Traceback" in printed


def test_level_is_a_threshold(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("error", "text")
    logger.warning("unheard")
    assert capsys.readouterr().err == ""


def test_configuring_twice_writes_once(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "text")
    configure_logging("info", "text")
    logger.info("once")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_threads_and_tasks_of_a_request_inherit_its_id(request_id: str) -> None:
    async def look() -> tuple[str | None, str | None]:
        return await asyncio.create_task(asyncio.sleep(0, request_id_var.get())), await asyncio.to_thread(
            request_id_var.get
        )

    assert asyncio.run(look()) == (request_id, request_id)


def test_the_library_that_logs_headers_is_silent_at_any_level() -> None:
    configure_logging("debug", "text")
    assert not logging.getLogger("httpcore2.http11").isEnabledFor(logging.INFO)


def test_warnings_of_libraries_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        configure_logging("info", "json")
        warnings.warn("old news", UserWarning, stacklevel=1)
    line = json.loads(capsys.readouterr().err)
    assert (line["logger"], line["level"]) == ("py.warnings", "warning")
    assert "old news" in line["message"]


def test_what_people_are_told_is_a_line_where_lines_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "text")
    tell("ready\nto go")
    tell("broken", is_error=True)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("ready\nto go\n", "broken\n")
    configure_logging("info", "json")
    tell("ready\nto go")
    tell("broken", is_error=True)
    printed = capsys.readouterr()
    assert printed.out == ""
    told = [json.loads(line) for line in printed.err.splitlines()]
    assert [(line["level"], line["message"]) for line in told] == [("info", "ready\nto go"), ("error", "broken")]
