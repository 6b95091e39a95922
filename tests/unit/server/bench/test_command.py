"""The command as a whole, on the server that computes nothing."""

import json
import os
import signal
import socket
import threading

import pytest

from server.__main__ import main
from server.bench.dummy import DummyServer
from tests.support.scripted_server import ScriptedServer, json_answer, whole_stream


@pytest.fixture(scope="module")
def url():
    with DummyServer() as server:
        yield server.url


def test_a_run_prints_tables_and_writes_its_files(url, tmp_path, capsys):
    files = [tmp_path / "result.json", tmp_path / "plot.svg"]
    arguments = ["--url", url, "--prompt-words", "8", "--max-tokens", "5", "--clients", "2", "--requests", "6"]
    assert main(["bench", *arguments, "--json", str(files[0]), "--plot", str(files[1])]) == 0
    printed = capsys.readouterr()
    assert "Throughput" in printed.out
    assert printed.err == ""
    document = json.loads(files[0].read_text())
    (result,) = document["results"]
    assert (result["summary"]["num_requests"], result["summary"]["num_completion_tokens"]) == (6, 30)
    assert document["command"][:2] == ["minicpmv", "bench"]
    assert document["targets"][0]["models"]["data"][0]["id"] == "dummy"
    assert files[1].read_text().startswith("<svg")


def test_two_servers_are_compared(url, capsys):
    arguments = ["--target", f"a={url}", "--target", f"b={url}", "--prompt-words", "8", "--requests", "2"]
    assert main(["bench", *arguments, "--rounds", "2", "--max-tokens", "3"]) == 0
    assert "Times as fast as a" in capsys.readouterr().out


def test_status_1_when_a_server_cannot_be_measured(url, capsys):
    assert main(["bench", "--url", "http://127.0.0.1:1"]) == 1
    assert capsys.readouterr().err.startswith("minicpmv bench: server: cannot connect")
    # This one counts every prompt as a single token.
    assert main(["bench", "--url", url, "--prompt-tokens", "20"]) == 1
    assert "--prompt-words" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("num_refused", "flags", "status"),
    [(4, [], 1), (1, [], 0), (1, ["--fail-on-error"], 1), (0, ["--fail-on-error"], 0)],
)
def test_failures_are_shown_and_decide_the_status(capsys, num_refused, flags, status):
    async def script(asked, writer):
        posts = [one for one in server.asked if one.body]
        refused = len(posts) <= num_refused
        writer.write(json_answer({"error": {"message": "full"}}, "429 No") if refused else whole_stream(3))

    server = ScriptedServer(script)
    with server.on_a_thread() as url:
        arguments = ["--url", url, "--prompt-words", "8", "--requests", "4", "--warmup", "0"]
        assert main(["bench", *arguments, *flags]) == status
    assert ("429: full" in capsys.readouterr().out) == bool(num_refused)


def test_a_server_that_does_not_answer_is_named(capsys):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert main(["bench", "--url", url, "--timeout", "50ms"]) == 1
    assert "no answer from /v1/models within 0.05 s" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_named(url, tmp_path, capsys):
    arguments = ["--url", url, "--prompt-words", "8", "--requests", "1", "--max-tokens", "2"]
    assert main(["bench", *arguments, "--json", str(tmp_path / "no" / "folder.json")]) == 1
    printed = capsys.readouterr()
    assert "Throughput" in printed.out
    assert "folder.json" in printed.err


def test_an_interruption_shows_what_there_is(url, capsys):
    # As in a process of its own, whatever tests before this one have left.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupt = threading.Timer(1.5, os.kill, [os.getpid(), signal.SIGINT])
    interrupt.start()
    try:
        assert main(["bench", "--url", url, "--prompt-words", "8", "--max-tokens", "20", "--duration", "60s"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "Throughput" in capsys.readouterr().out


def test_self_test_prints_the_programs_own_cost(capsys):
    assert main(["bench", "--self-test", "--clients", "2"]) == 0
    assert "us of CPU for a token" in capsys.readouterr().out
