"""One server for the tests that need no settings of their own, its engine new for each test; and a gate."""

from collections.abc import Iterator

import pytest

from tests.support.api_server import ApiServer, serve
from tests.support.fake_engine import Gate
from tests.support.server_process import wait_until


@pytest.fixture(scope="session")
def shared_server() -> Iterator[ApiServer]:
    with serve() as running:
        yield running


@pytest.fixture
def server(shared_server: ApiServer) -> Iterator[ApiServer]:
    shared_server.engine.reset()
    yield shared_server
    wait_until(lambda: shared_server.admission.num_held == 0, 10, "all requests to leave")
    assert shared_server.engine.num_streams_open == 0


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open()
