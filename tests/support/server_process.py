"""A real server in a process of its own, for end-to-end tests: `python -m server serve` and what one asks of it."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import httpx
import openai

from tests.support.golden import TINY_V2

ROOT = Path(__file__).resolve().parents[2]
READY_TIMEOUT_S = 120.0


class ServerProcess:
    """Starts the server on a free port and waits until it is ready, unless told otherwise."""

    def __init__(
        self,
        *arguments: str,
        model: Path = TINY_V2,
        wait: bool = True,
        port: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        command = [sys.executable, "-m", "server", "serve", "--port", str(port), "--model", str(model)]
        command += ["--served-model-name", "tiny", *arguments]
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MINICPMV_", "OTEL_"))}
        inherited |= environment or {}
        self._clients: list[openai.OpenAI] = []
        self._is_told_to_end = False
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=inherited, stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT
        )
        self.url = self._wait_for(r"listens on (http://[\d.]+:\d+)")
        if wait:
            self.wait_ready()

    def output(self) -> str:
        """Everything the server has printed so far."""
        # pread leaves the offset alone, which the server's own writes share.
        descriptor = self._log.fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode()

    def client(self, api_key: str = "unused") -> openai.OpenAI:
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, timeout=120)
        self._clients.append(client)
        return client

    def get(self, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        return httpx.get(self.url + path, headers=headers, timeout=30)

    def is_ready(self) -> bool:
        try:
            return self.get("/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def wait_ready(self) -> None:
        wait_until(lambda: self.is_ready() or self.process.poll() is not None, READY_TIMEOUT_S, "readiness")
        if self.process.poll() is not None:
            raise AssertionError(f"the server exited with {self.process.returncode}:\n{self.output()}")

    def metric(self, name: str) -> float:
        """The sum of a metric's samples over its labels."""
        pattern = re.compile(rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)$", re.MULTILINE)
        values = [float(value) for value in pattern.findall(self.get("/metrics").text)]
        if not values:
            raise AssertionError(f"/metrics has no {name}")
        return sum(values)

    def engine_pids(self) -> Sequence[int]:
        """Process ids of the engine (one, unless it is being replaced)."""
        return child_pids(self.process.pid, "server.engine.worker")

    def terminate(self) -> None:
        self._is_told_to_end = True
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """Ends the server and returns its exit status."""
        for client in self._clients:
            client.close()
        # Once: a second signal may find a server that has put its handlers down already, and kills it.
        if self.process.poll() is None and not self._is_told_to_end:
            self.terminate()
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self._log.close()

    def _wait_for(self, pattern: str) -> str:
        found: re.Match[str] | None = None

        def look() -> bool:
            nonlocal found
            found = re.search(pattern, self.output())
            return found is not None or self.process.poll() is not None

        wait_until(look, READY_TIMEOUT_S, f"{pattern} in the output")
        if found is None:
            raise AssertionError(f"the server exited with {self.process.returncode}:\n{self.output()}")
        return found[1]


def child_pids(parent: int, module: str) -> list[int]:
    """Process ids of the children of a process that run this module."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            its_parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        if its_parent == parent and module.encode() in command:
            found.append(int(entry.name))
    return found


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Polls `condition` until it holds; fails the test when `timeout_s` seconds have passed."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s in vain for {what}")
        time.sleep(0.02)
