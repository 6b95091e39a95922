"""The command line: what is asked, what is refused, with which status."""

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.__main__ import main
from server.version import VERSION


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"minicpmv {VERSION}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["serve", "selftest"]),
        (["serve", "--help"], ["--max-images", "--port"]),
        (["selftest", "-h"], ["--model"]),
    ],
)
def test_help(capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in words)


@pytest.mark.parametrize("arguments", [[], ["fly"], ["--model", "x"], ["serve", "--colour", "red"]])
def test_wrong_command_line_shows_the_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: minicpmv" in capsys.readouterr().err


def test_wrong_settings_are_named_one_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "70000", "--dtype", "int3"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert sorted(line.partition(":")[0] for line in lines) == ["dtype", "port"]


def test_wrong_key_file_is_a_wrong_setting(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["serve", "--log-level", "error", "--api-key-file", str(tmp_path / "missing")]) == 2
    assert "api_key_file" in capsys.readouterr().err


def test_taken_port_stops_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--log-level", "error", "--port", str(port)]) == 1
    assert f"port {port}" in capsys.readouterr().err


def test_missing_model_stops_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--log-level", "error", "--port", "0", "--model", "no/such/folder/here"]) == 1
    assert "no/such/folder/here" in capsys.readouterr().err


def test_folder_that_is_no_checkpoint_stops_the_start(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["serve", "--log-level", "error", "--port", "0", "--model", str(tmp_path)]) == 1
    assert "config.json" in capsys.readouterr().err
