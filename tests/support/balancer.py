"""Envoy in front of replicas, with the configuration of deploy/balancer but for its ports and one time limit."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.support.server_process import ROOT, wait_until

CONFIG = ROOT / "deploy" / "balancer" / "envoy.yaml"


def find_envoy() -> str | None:
    """The program that `ENVOY` names, or the one on the path."""
    return shutil.which(os.environ.get("ENVOY") or "envoy")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on. All are held until all are found, so that none is there twice."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def envoy_config(port: int, admin_port: int, replica_ports: Sequence[int]) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    resources = config["static_resources"]
    endpoints = resources["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"]
    places = [config["admin"], resources["listeners"][0], *(one["endpoint"] for one in endpoints)]
    for place, place_port in zip(places, (admin_port, port, *replica_ports), strict=True):
        place["address"]["socket_address"]["port_value"] = place_port
    # A machine that runs tests may leave a replica without a core for longer than one that serves.
    resources["clusters"][0]["health_checks"][0]["timeout"] = "60s"
    return config


class Envoy:
    """Runs until `stop`."""

    def __init__(self, program: str, folder: Path, replica_ports: Sequence[int]) -> None:
        port, self._admin_port = free_ports(2)
        self.url = f"http://127.0.0.1:{port}"
        self._replicas = [f"127.0.0.1:{replica_port}" for replica_port in replica_ports]
        file = folder / "envoy.yaml"
        file.write_text(yaml.safe_dump(envoy_config(port, self._admin_port, replica_ports)), encoding="utf-8")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        # One instance a machine is Envoy's default, by a number in shared memory.
        command = [program, "-c", str(file), "--concurrency", "1", "--disable-hot-restart", "--log-level", "warn"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        wait_until(lambda: len(self.healthy()) == len(replica_ports), 60, "Envoy to find its replicas")

    def healthy(self) -> set[str]:
        """Addresses of the replicas that get requests."""
        assert self.process.poll() is None, "Envoy has ended"
        try:
            status = httpx.get(f"http://127.0.0.1:{self._admin_port}/clusters", timeout=10).text
        except httpx.TransportError:
            return set()
        return {address for address in self._replicas if f"::{address}::health_flags::healthy\n" in status}

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)
        self._log.close()
