"""Start the server with the bundled demo, put it under a short mixed load, stop it: `make bench-smoke`.

The status is 0 when every request succeeded. The figures are those of a very small model: they show that everything
works together, and nothing about the speed of a real one.
"""

import signal
import socket
import subprocess
import sys

_READY_S = 60
_STOP_S = 30
_LOADS = (
    ["--clients", "4", "--duration", "8s"],
    ["--rate", "2", "--duration", "6s"],
)
_REQUESTS = (
    *["--prompt-tokens", "64-256", "--max-tokens", "16-48", "--ignore-eos"],
    *["--picture", "448x448:3,900x600:1", "--picture-share", "0.5", "--picture-reuse", "0.3"],
    *["--objective", "ttft=2s,itl=200ms", "--timeout", "60s", "--fail-on-error"],
)


def main() -> int:
    # So that whoever ends this program ends the server too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    port = _free_port()
    program = [sys.executable, "-m", "server"]
    server = subprocess.Popen([*program, "serve", "--port", str(port), "--log-level", "warning"])
    bench = [*program, "bench", "--url", f"http://127.0.0.1:{port}", "--wait", f"{_READY_S}s", *_REQUESTS]
    try:
        passes = all(subprocess.run([*bench, *load], check=False).returncode == 0 for load in _LOADS)
    finally:
        server.terminate()
        stops = server.wait(_STOP_S) == 0
    return 0 if passes and stops else 1


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
