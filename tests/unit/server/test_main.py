"""The command line: what is asked, what is refused, with which status."""

import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from server.__main__ import main
from server.hub import demo_folder
from server.version import VERSION

pytestmark = pytest.mark.usefixtures("restore_logging")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"minicpmv {VERSION}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["serve", "plan", "download", "selftest"]),
        (["serve", "--help"], ["--max-images", "--port"]),
        (["plan", "--help"], ["--device-memory", "--weights"]),
        (["selftest", "-h"], ["--model"]),
        (["download", "-h"], ["--model", "--revision", "--model-source"]),
    ],
)
def test_help(capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in words)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["--model", "x"],
        ["serve", "--colour", "red"],
        ["selftest", "--device", "abacus"],
        ["selftest", "--num-threads", "0"],
    ],
)
def test_wrong_command_line_shows_the_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: minicpmv" in capsys.readouterr().err


def test_wrong_settings_are_named_one_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "70000", "--weights", "int3"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert sorted(line.partition(":")[0] for line in lines) == ["port", "weights"]


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


def test_download_prints_the_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "--model", "demo"]) == 0
    assert capsys.readouterr().out == f"{demo_folder()}\n"


def test_download_of_what_does_not_exist_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "--model", "no/such/folder/here"]) == 1
    assert "no/such/folder/here" in capsys.readouterr().err


@pytest.fixture
def selftests(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stands for `model.runtime.selftest`, which loads torch; keeps what it was asked."""
    asked: list[dict[str, Any]] = []
    verdicts = {"cpu": True, "cuda": False}

    def run_selftest(folder: Path, **options: Any) -> bool:
        asked.append({"folder": folder, **options})
        if options["device"] not in verdicts:
            raise errors.RunnerStartError("no such device here")
        return verdicts[options["device"]]

    errors = ModuleType("model.runtime.errors")
    errors.RunnerStartError = type("RunnerStartError", (Exception,), {})  # type: ignore[attr-defined]
    selftest = ModuleType("model.runtime.selftest")
    selftest.run_selftest = run_selftest  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, errors.__name__, errors)
    monkeypatch.setitem(sys.modules, selftest.__name__, selftest)
    return asked


def test_selftest_passes_its_flags_on(selftests: list[dict[str, Any]]) -> None:
    assert main(["selftest", "--device", "cpu", "--weights", "bf16", "--num-threads", "2"]) == 0
    assert selftests == [{"folder": demo_folder(), "device": "cpu", "weights": "bf16", "num_threads": 2}]


def test_selftest_that_finds_a_difference_fails(selftests: list[dict[str, Any]]) -> None:
    assert main(["selftest", "--device", "cuda"]) == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["--device", "cuda:9"], "no such device"), (["--model", "no/such/folder/here"], "folder/here")],
)
def test_selftest_that_cannot_start_says_why(
    selftests: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], arguments: list[str], word: str
) -> None:
    assert main(["selftest", *arguments]) == 1
    assert word in capsys.readouterr().err


def test_interrupt_before_the_server_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("server.serve.resolve_model", interrupt)
    assert main(["serve", "--log-level", "error", "--port", "0"]) == 130
