"""A server inside a memory that was promised, in 8-bit weights and KV cache."""

import re

from tests.support.server_process import ServerProcess

BUDGET_BYTES = 1024 * 2**20


def metric(page: str, name: str) -> float:
    found = re.search(rf"^minicpmv_{name} (\S+)$", page, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


def test_promise_is_kept_while_answering() -> None:
    formats = ("--weights", "int8", "--kv", "int8", "--memory", "1GiB")
    running = ServerProcess("--device", "cpu", "--num-threads", "1", *formats)
    answer = running.client().chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "How are you?"}], max_tokens=8
    )
    page = running.get("/metrics").text
    output = running.output()
    assert running.stop() == 0
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
    assert metric(page, "memory_budget_bytes") == BUDGET_BYTES
    assert 0 < metric(page, "memory_peak_bytes") < BUDGET_BYTES
    assert "weights in int8" in output
    assert "KV cache in int8" in output
