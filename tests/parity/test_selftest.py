"""The self-test agrees on sound checkpoints, and finds the stage where something was broken."""

import weakref

import pytest
import torch
from torch.nn import functional as F

import model.nn.vision
from model.runtime import selftest
from model.runtime.oracle import Oracle
from model.runtime.runner import TorchRunner
from model.runtime.selftest import compare, run_selftest
from model.runtime.trace import StageResult, Trace
from server.hub import demo_folder
from tests.support.golden import TINY_V1, TINY_V2


def compare_on_cpu(folder, *, weights="fp32", max_tokens=2):
    return compare(
        folder, device="cpu", weights=weights, num_threads=2, max_tokens=max_tokens, tell=lambda _doing: None
    )


def first_failure(results):
    return next((result.stage for result in results if not result.passed), None)


def disturb_runner(monkeypatch, disturb):
    """Let `disturb` change the networks before they compute; the oracle reads the files and is left alone."""
    build = selftest.build_runner

    def build_disturbed(*arguments, **options) -> TorchRunner:
        runner = build(*arguments, **options)
        disturb(runner.model)
        return runner

    monkeypatch.setattr(selftest, "build_runner", build_disturbed)


@pytest.mark.parametrize(("folder", "num_blocks"), [(TINY_V2, 3), (TINY_V1, 2)], ids=["2.0", "1.0"])
def test_stages_run_from_pixels_to_ids_and_agree(folder, num_blocks):
    results = compare_on_cpu(folder, max_tokens=8)

    assert [result.stage for result in results] == [
        "pixels",
        "patch embedding",
        *(f"vision block {index}" for index in range(num_blocks)),
        "vision norm",
        "resampler",
        "prompt embeddings",
        *(f"language layer {index}" for index in range(3)),
        "language norm",
        "logits",
        "generated ids",
    ]
    assert first_failure(results) is None
    assert results[-1] == StageResult("generated ids", 0, tolerance=0)


def test_half_precision_is_held_to_its_own_tolerance_and_ids_are_not_judged():
    results = compare_on_cpu(TINY_V1, weights="bf16")

    assert first_failure(results) is None
    assert results[-1].tolerance is None
    # Rounded to eight bits, the two cannot agree to what float32 is held to.
    assert any(result.difference > 1e-3 for result in results)


def test_one_wrong_number_shows_from_its_layer_on(monkeypatch):
    def disturb(networks):
        networks.language.get_parameter("layers.1.mlp.down.weight")[3, 5] += 0.5

    disturb_runner(monkeypatch, disturb)
    results = {result.stage: result for result in compare_on_cpu(demo_folder())}

    assert results["language layer 0"].passed
    assert not results["language layer 1"].passed
    assert not results["logits"].passed


def test_tanh_form_of_gelu_shows_in_the_first_block(monkeypatch):
    class TanhGelu:
        def __getattr__(self, name):
            return getattr(F, name)

        def gelu(self, x):
            return F.gelu(x, approximate="tanh")

    monkeypatch.setattr(model.nn.vision, "F", TanhGelu())

    results = compare_on_cpu(TINY_V2)

    assert first_failure(results) == "vision block 0"
    assert not {result.stage: result for result in results}["logits"].passed


def test_networks_are_gone_before_the_oracle_takes_its_memory(monkeypatch):
    networks = []
    disturb_runner(monkeypatch, lambda model: networks.append(weakref.ref(model)))
    load = Oracle.load
    alive = []

    def load_watched(*arguments, **options):
        alive.append(networks[0]())
        return load(*arguments, **options)

    monkeypatch.setattr(Oracle, "load", load_watched)
    compare_on_cpu(demo_folder(), max_tokens=1)

    assert alive == [None]


def test_report_of_a_sound_checkpoint(capfd):
    assert run_selftest(demo_folder(), device="cpu", num_threads=2, max_tokens=2) is True

    printed = capfd.readouterr()
    assert "all 18 stages agree" in printed.out
    assert "DIFFERS" not in printed.out
    assert printed.err == ""


def test_report_names_the_first_stage_that_differs(monkeypatch, capfd):
    results = [
        StageResult("pixels", 1e-9, tolerance=1e-5),
        StageResult("resampler", 0.5, tolerance=1e-5),
        StageResult("logits", float("nan"), tolerance=1e-5),
        StageResult("generated ids", 7, tolerance=None),
    ]
    monkeypatch.setattr(selftest, "compare", lambda *_arguments, **_options: results)

    assert run_selftest(demo_folder()) is False

    printed = capfd.readouterr().out
    assert "2 of 4 stages differ; the first is: resampler" in printed
    assert printed.count("DIFFERS") == 2
    assert "not judged" in printed


@pytest.mark.parametrize(
    ("recorded", "compared", "expected"),
    [
        ([[1.0, 2.0], [4.0]], [[1.0, 2.5], [4.0]], 0.5),
        ([[1.0]], [[float("nan")]], float("nan")),
        ([[1.0, 2.0]], [[1.0]], float("inf")),
        ([], [[1.0]], float("inf")),
        ([[1.0], [1.0]], [[1.0]], float("inf")),
    ],
    ids=["largest", "not a number", "other shape", "never recorded", "recorded more often"],
)
def test_trace_measures_in_order_and_misses_nothing(recorded, compared, expected):
    trace = Trace()
    for values in recorded:
        trace.record("stage", torch.tensor(values))
    for values in compared:
        trace.compare("stage", torch.tensor(values))

    [result] = trace.results(tolerance=0.1)

    assert result.difference == pytest.approx(expected, nan_ok=True)
    # A tenth of 4.0 is less than 0.5: no case here may pass.
    assert not result.passed
