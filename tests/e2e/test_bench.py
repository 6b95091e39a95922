"""`minicpmv bench` against the real server: what the client counted is what the server counted."""

import json
from pathlib import Path

import pytest

from server.__main__ import main
from tests.support.server_process import ServerProcess, wait_until

NAMES = {
    "num_requests": "requests_finished_total",
    "num_prompt_tokens": "request_prompt_tokens_sum",
    "num_completion_tokens": "generation_tokens_total",
    "num_pictures": "image_crops_count",
}


def counted(server: ServerProcess) -> dict[str, float]:
    return {name: server.metric(f"minicpmv_{metric}") for name, metric in NAMES.items()}


@pytest.mark.parametrize("load", [["--clients", "3"], ["--rate", "20"]], ids=["closed", "open"])
def test_the_clients_figures_are_the_servers(
    server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str], load: list[str]
) -> None:
    before = counted(server)
    arguments = ["--url", server.url, *load, "--requests", "8", "--warmup", "0", "--wait", "10s", "--timeout", "120s"]
    arguments += ["--prompt-words", "12-24", "--max-tokens", "6-12", "--ignore-eos"]
    arguments += ["--picture", "448x448:2,600x300", "--picture-share", "0.5", "--seed", "3"]
    assert main(["bench", *arguments, "--json", str(tmp_path / "result.json"), "--fail-on-error"]) == 0
    document = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    (result,) = document["results"]
    summary = result["summary"]
    assert (summary["num_requests"], summary["num_failed"], summary["tokens_from"]) == (8, 0, "usage")
    assert 0 < summary["num_pictures"] < 8
    assert document["targets"][0]["models"]["data"][0]["id"] == "tiny"

    def added() -> dict[str, float]:
        return {name: value - before[name] for name, value in counted(server).items()}

    expected = {name: summary[name] for name in NAMES}
    # The page of metrics is a moment old, and so is what the engine last told.
    wait_until(lambda: added() == expected, 10, f"the server to have counted {expected}")


def test_a_calibrated_prompt_has_the_tokens_that_were_asked_for(
    server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--url", server.url, "--prompt-tokens", "300", "--max-tokens", "2", "--requests", "6"]
    assert main(["bench", *arguments, "--seed", "4", "--json", str(tmp_path / "result.json")]) == 0
    document = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    # The tiny vocabulary cuts words into three pieces on average, some into one and some into six.
    assert document["calibration"]["tokens_per_word"] > 1
    assert document["results"][0]["summary"]["prompt_tokens"]["mean"] == pytest.approx(300, rel=0.15)
