"""The memory plan: figures of the official sizes, what `auto` takes, what is refused, and that it is kept."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.progress import Progress

from benchmarks.random_checkpoint import write_checkpoint
from model.config import parse_config
from model.formats import kv_token_bytes, num_parameters, weight_bytes
from model.runtime.device import DTYPES
from model.runtime.errors import DeviceError, NotEnoughMemory
from model.runtime.memory_choice import compare_formats, plan_memory
from model.runtime.memory_plan import GIB, MIB, Machine, Wishes, make_limits, plan_formats
from tests.support.golden import DATA, TINY_V1, TINY_V2
from tests.support.runners import load_model, make_runner

OFFICIAL = parse_config(json.loads((DATA / "config-official.json").read_text()))
SMALL = parse_config(json.loads((TINY_V2 / "config.json").read_text()))
BLOCK = 16 * 368_640  # bytes: 360 KiB a token in bf16, 16 tokens


def machine(total_bytes=8 * GIB, *, kind="cuda", half="bf16", fast_half=True, free_bytes=None):
    return Machine("a device", kind, total_bytes, total_bytes if free_bytes is None else free_bytes, half, fast_half)


def limits(config=OFFICIAL, kind="cuda", **changes):
    fields = {"max_context_tokens": None, "max_num_sequences": 32, "max_step_tokens": None, "num_crop_slots": 16}
    return make_limits(config, kind, **(fields | {"host_cache_bytes": 0, "pixel_buffer_bytes": 0} | changes))


def taken(device=None, config=OFFICIAL, **wishes):
    device = device or machine()
    return plan_memory(config, device, limits(config, device.kind), Wishes(**wishes))


def refusal(device=None, **wishes):
    with pytest.raises(NotEnoughMemory) as caught:
        taken(device, **wishes)
    return str(caught.value)


# ---- figures ----


def test_number_of_parameters_of_the_official_model():
    assert num_parameters(OFFICIAL) == 3_434_965_792


# Against estimates made before there was a plan, of a card of 8 GiB with 7.6 GiB of use.
@pytest.mark.parametrize(
    ("weights", "kv", "gigabytes", "kilotokens"),
    [
        ("bf16", "bf16", 6.87, 2.3),
        ("bf16", "int8", 6.87, 4.4),
        ("int8", "bf16", 3.47, 11.5),
        ("int8", "int8", 3.47, 22.3),
        ("int4", "bf16", 2.32, 14.6),
        ("int4", "int8", 2.32, 28.3),
    ],
)
def test_pairs_of_formats_on_a_card_of_8_gib(weights, kv, gigabytes, kilotokens):
    plan = plan_formats(OFFICIAL, machine(), limits(), Wishes(memory=8 * GIB), weights, kv)
    assert plan.weight_bytes / 1e9 == pytest.approx(gigabytes, abs=0.04)
    assert plan.num_kv_tokens / 1000 == pytest.approx(kilotokens, rel=0.06)
    assert plan.num_requests() == plan.num_kv_tokens // 960
    assert plan.total_bytes <= plan.budget_bytes == 8 * GIB
    assert plan.total_bytes > 8 * GIB - BLOCK


@pytest.mark.parametrize(
    ("kv", "on_cuda", "num_bytes"),
    [("bf16", True, 368_640), ("int8", True, 190_080), ("int8", False, 195_840), ("fp8", True, 184_320)],
)
def test_bytes_of_a_token(kv, on_cuda, num_bytes):
    assert kv_token_bytes(OFFICIAL.language, kv, on_cuda=on_cuda) == num_bytes


@pytest.mark.parametrize("folder", [TINY_V2, TINY_V1], ids=["2.0", "1.0"])
@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8", "int4", "fp8"])
def test_planned_weights_are_those_that_are_loaded(folder, weights):
    compute = weights if weights in DTYPES else "bf16"
    model = load_model(folder, compute=compute, weights=weights)
    loaded_bytes = sum(parameter.nbytes for parameter in model.parameters())
    assert weight_bytes(model.config, weights, compute, on_cuda=False) == loaded_bytes


# ---- what auto takes ----


def formats(plan):
    return plan.weights, plan.kv, plan.compute


@pytest.mark.parametrize(
    ("gib", "pair"),
    [(8, ("int8", "int8")), (10.4, ("int8", "bf16")), (12, ("bf16", "int8")), (14, ("bf16", "bf16"))],
)
def test_most_exact_pair_with_room_for_nineteen_requests(gib, pair):
    plan = taken(machine(int(gib * GIB)), num_requests=19)
    assert (plan.weights, plan.kv) == pair
    assert plan.num_requests() >= 19


def test_pair_that_holds_the_most_where_none_holds_the_wanted():
    plan = taken(machine(6 * GIB), num_requests=19)
    assert formats(plan) == ("int8", "int8", "bf16")
    assert 10 <= plan.num_requests() < 19


def test_what_is_asked_for_is_kept():
    assert formats(taken(weights="int4", num_requests=19)) == ("int4", "int8", "bf16")
    assert formats(taken(kv="fp8", num_requests=19)) == ("int8", "fp8", "bf16")
    assert formats(taken(machine(9 * GIB), weights="fp16", kv="fp32")) == ("fp16", "fp32", "fp16")


def test_card_without_bf16():
    turing = machine(half="fp16")
    assert formats(taken(turing, num_requests=1)) == ("fp16", "fp16", "fp16")
    with pytest.raises(DeviceError, match="does not compute in bf16; use --weights fp16"):
        taken(turing, weights="bf16")


def test_host_computes_small_models_in_float32_and_large_ones_in_bf16():
    host = machine(64 * GIB, kind="cpu")
    assert formats(taken(host, SMALL, num_requests=19)) == ("fp32", "fp32", "fp32")
    assert formats(taken(host, num_requests=19)) == ("bf16", "bf16", "bf16")
    assert formats(taken(host, memory=8 * GIB, num_requests=19)) == ("int8", "int8", "bf16")
    assert formats(taken(replace(host, fast_half=False), weights="int8")) == ("int8", "bf16", "fp32")


# ---- how much of it is KV cache ----


def test_wanted_size_is_rounded_down_to_blocks():
    assert taken(weights="int8", kv="bf16", kv_cache_bytes=100 * BLOCK + BLOCK - 1).num_kv_blocks == 100


def test_host_gives_a_quarter_of_what_is_left_and_at_most_four_gib():
    for total, expected in ((12 * GIB, None), (100 * GIB, 4 * GIB)):
        plan = taken(machine(total, kind="cpu"))
        expected = expected or (total - plan.fixed_bytes) // 4
        assert expected - BLOCK < plan.kv_bytes <= expected
        assert plan.budget_bytes == plan.total_bytes


def test_never_more_than_all_sequences_can_fill():
    few = limits(max_num_sequences=2, max_context_tokens=1001)
    assert plan_memory(OFFICIAL, machine(100 * GIB), few, Wishes()).num_kv_blocks == 2 * 63


def test_pictures_that_left_the_device_take_host_memory():
    crop_bytes = 64 * 2304 * 2
    for kind, memory, expected in (
        ("cuda", 8 * GIB, 512 * MIB),
        ("cpu", 32 * GIB, 512 * MIB),
        ("cpu", 6 * GIB, 384 * MIB),
    ):
        device, wishes = machine(64 * GIB, kind=kind), Wishes(memory=memory)
        without, default, fixed = (
            plan_memory(OFFICIAL, device, limits(kind=kind, host_cache_bytes=size), wishes)
            for size in (0, None, expected)
        )
        assert default == fixed
        assert (default.crop_bytes, default.num_host_slots) == (crop_bytes, expected // crop_bytes)
        assert without.num_host_slots == 0
        # Beside a GPU it is no part of what was promised.
        taken_bytes = default.num_host_slots * crop_bytes if kind == "cpu" else 0
        assert default.image_bytes - without.image_bytes == taken_bytes
        assert default.total_bytes <= memory


def test_share_of_the_device():
    assert taken(machine(10 * GIB), memory=0.8).budget_bytes == 8 * GIB


# ---- refusals ----


def test_too_little_names_the_parts_and_what_would_fit():
    text = refusal(weights="bf16", kv="bf16", memory=7 * GIB)
    assert "7.00 GiB on a device are too little: 7.6" in text
    assert "weights in bf16 6.40 GiB" in text
    assert "KV cache in bf16 0.35 GiB for 1024 tokens" in text
    assert text.endswith("; --weights int8 --kv bf16 would fit")


def test_what_would_fit_does_fit_and_a_little_less_does_not():
    text = refusal(memory=2 * GIB)
    least_mib = int(text.removesuffix("MiB").rpartition(" ")[2])
    assert "--weights int4 --kv int8" in text
    assert taken(weights="int4", kv="int8", memory=least_mib * MIB).num_kv_tokens == 1024
    refusal(weights="int4", kv="int8", memory=(least_mib - 1) * MIB)


def test_memory_that_is_not_free():
    text = refusal(machine(free_bytes=5 * GIB), memory=8 * GIB)
    assert "--memory 8.00 GiB is more than there is: 5.00 GiB of 8.00 GiB are free on a device" in text
    most_mib = int(text.removesuffix("MiB").rpartition(" ")[2])
    assert taken(machine(free_bytes=5 * GIB), memory=most_mib * MIB).total_bytes <= most_mib * MIB


def test_cache_too_small_for_one_picture_question():
    assert taken(kv="bf16", kv_cache_bytes=64 * BLOCK).num_kv_blocks == 64
    text = refusal(kv="bf16", kv_cache_bytes=64 * BLOCK - 1)
    assert "one sequence of 1024 tokens in bf16 takes 0.35 GiB" in text
    assert "the least is --kv-cache-memory 360MiB" in text


def test_cache_that_is_wanted_larger_than_what_is_left():
    text = refusal(weights="int8", kv="int8", kv_cache_bytes=5 * GIB)
    assert "KV cache in int8 5.00 GiB" in text
    assert "the smallest, --weights int4 --kv int8, needs 82" in text


def test_comparison_has_every_pair_and_marks_what_does_not_fit():
    plans = compare_formats(OFFICIAL, machine(), limits(), Wishes(memory=8 * GIB))
    useful = {(plan.weights, plan.kv) for plan in plans if plan.is_useful}
    assert len(plans) == 15
    assert useful == {(w, kv) for w in ("bf16", "fp8", "int8", "int4") for kv in ("bf16", "fp8", "int8")}
    [only] = compare_formats(OFFICIAL, machine(), limits(), Wishes(weights="int8", kv="fp8"))
    assert (only.weights, only.kv) == ("int8", "fp8")


# ---- kept ----


def test_runner_takes_what_was_planned():
    runner = make_runner(TINY_V2, wishes=Wishes(weights="int8", kv="int8"), max_num_sequences=2, max_context_tokens=320)
    info = runner.info
    assert (info.num_kv_blocks, info.weights, info.kv, info.dtype) == (2 * 20, "int8", "int8", "fp32")
    assert dict(info.memory)["weights in int8"] == info.weight_bytes
    assert dict(info.memory)["KV cache in int8"] == info.kv_bytes
    assert sum(size for _, size in info.memory) == info.memory_budget_bytes


LOAD = """
import sys
from pathlib import Path
from tests.support.runners import make_runner
from model.runtime.memory_plan import Wishes

def peak_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

before = peak_bytes()
info = make_runner(Path(sys.argv[1]), wishes=Wishes(weights=sys.argv[2], kv="int8", kv_cache_bytes=8 * 2**20)).info
print(peak_bytes() - before, info.weight_bytes, info.memory_budget_bytes, peak_bytes())
"""


@pytest.fixture(scope="module")
def large_checkpoint(tmp_path_factory):
    """Random weights of 450 MB in bf16, most of them in one table: a copy of it would show."""
    folder = tmp_path_factory.mktemp("large")
    config = json.loads((TINY_V2 / "config.json").read_text()) | {"vocab_size": 100_000, "hidden_size": 1024}
    with Progress(disable=True) as progress:
        write_checkpoint(config, TINY_V2, folder, seed=0, max_shard_bytes=10**9, progress=progress)
    return folder


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_no_moment_of_loading_takes_more_than_the_weights_and_a_piece(large_checkpoint, weights):
    result = subprocess.run(
        [sys.executable, "-c", LOAD, str(large_checkpoint), weights],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    grown_bytes, planned_bytes, budget_bytes, peak_bytes = map(int, result.stdout.split())
    assert grown_bytes < planned_bytes + 100 * MIB
    assert peak_bytes < budget_bytes
