"""Servers that several tests share; each is a process of its own over a tiny checkpoint in float32."""

from collections.abc import Iterator

import pytest

from tests.support.golden import TINY_V1
from tests.support.server_process import ServerProcess

COMMON = (
    "--device",
    "cpu",
    "--num-threads",
    "1",
    "--weights",
    "fp32",
    "--kv-cache-memory",
    "64MiB",
    "--special-tokens-in-text",
)


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """Release 2.0, prompts prefilled at once."""
    running = ServerProcess(*COMMON, "--max-step-tokens", "4096")
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="session")
def chunked_server() -> Iterator[ServerProcess]:
    """Release 2.0 with small budgets: 16 sequences, chunks of 24 tokens, one block of the vision tower a step."""
    running = ServerProcess(
        *COMMON, "--max-step-tokens", "24", "--max-num-sequences", "16", "--max-step-vision-blocks", "1"
    )
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="session")
def server_v1() -> Iterator[ServerProcess]:
    """Release 1.0."""
    running = ServerProcess(*COMMON, model=TINY_V1)
    yield running
    assert running.stop() == 0
