"""Which kernels a device gets, and a whole runner on the GPU's kernels, in the interpreter."""

from unittest import mock

import pytest
import torch

from model.gpu import support
from model.nn.kernels import TorchKernels
from model.nn.quant import ChannelWeight, TritonWeight
from model.runtime.loading import kernels_line
from model.runtime.memory_plan import Wishes
from model.step import SamplingParams
from tests.support.driver import Conversation, run
from tests.support.golden import TINY_V2, load_case
from tests.support.gpu import as_if_on_a_gpu, needs_interpreter
from tests.support.kernels import only
from tests.support.runners import KV_CACHE_BYTES, make_runner

GPU = torch.device("cuda:0")


@pytest.fixture
def card():
    """A card of compute capability 8.0 with all that the kernels need; a test takes something away."""
    support.reason_against.cache_clear()
    with (
        mock.patch.object(torch.version, "cuda", "13.0"),
        mock.patch.object(torch.cuda, "get_device_capability", return_value=(8, 0)) as capability,
        mock.patch.object(support, "find_spec", return_value=object()) as find_spec,
        mock.patch.object(support, "_failed_trial", return_value=None) as failed_trial,
    ):
        yield mock.Mock(capability=capability, find_spec=find_spec, failed_trial=failed_trial)
    support.reason_against.cache_clear()


def test_a_card_that_runs_them(card):
    assert support.is_available(GPU)
    card.failed_trial.assert_called_once_with(GPU)
    assert not support.is_available(torch.device("cpu"))


def test_turing_is_told_what_is_used_instead(card):
    card.capability.return_value = (7, 5)
    assert not support.is_available(GPU)
    assert kernels_line(GPU) == (
        "GPU kernels: none, torch's own are used instead: cuda:0 has compute capability 7.5, they need 8.0"
    )


def test_without_triton(card):
    card.find_spec.return_value = None
    assert kernels_line(GPU).endswith("instead: triton is not installed")


def test_without_a_compiler(card):
    card.failed_trial.return_value = "Triton cannot run a kernel (Failed to find C compiler)"
    assert kernels_line(GPU).endswith("instead: Triton cannot run a kernel (Failed to find C compiler)")


def small_runner(weights, kv):
    return make_runner(TINY_V2, wishes=Wishes(weights=weights, kv=kv, kv_cache_bytes=KV_CACHE_BYTES))


@pytest.fixture(scope="module")
def case():
    return load_case("special_tokens_in_text")


@pytest.mark.parametrize("weights", [pytest.param("fp32", marks=needs_interpreter)])
def test_golden_ids_in_chunks_then_token_by_token(case, weights):
    from model.nn.triton_kernels import TritonKernels

    with as_if_on_a_gpu():
        runner = small_runner(weights, "fp32")
    language = runner.model.language
    assert isinstance(language.kernels, TritonKernels)
    assert language.layers[0].attention.kernels is language.norm.kernels is language.kernels
    wanted = case.facts["greedy"]["ids"][:3]  # a step takes seconds in the interpreter
    two = [Conversation(case.input_ids, (), len(wanted), chunk_tokens=size) for size in (19, 4096)]
    assert [[one.token_id for one in drawn] for drawn in run(runner, two)] == [wanted, wanted]


@pytest.mark.parametrize("packing", [pytest.param("int8", marks=needs_interpreter)])
def test_eight_bits_everywhere_as_torch_computes_them(case, packing):
    """Float32 sums of equal numbers in another order; see tests/parity/test_networks.py for the bound."""
    conversation = Conversation(case.input_ids, (), 2, SamplingParams(num_logprobs=1))
    drawn = {}
    for name, kind, kernels in (
        ("ours", TritonWeight, as_if_on_a_gpu()),
        ("torch", ChannelWeight, only(kernels=False)),
    ):
        with kernels:
            runner = small_runner(packing, packing)
            assert type(runner.model.language.layers[0].mlp.down.weight) is kind
            [drawn[name]] = run(runner, [conversation])
    assert isinstance(runner.model.language.kernels, TorchKernels)
    assert [one.token_id for one in drawn["ours"]] == [one.token_id for one in drawn["torch"]]
    logprobs = [[one.logprob for one in drawn[name]] for name in ("ours", "torch")]
    assert logprobs[0] == pytest.approx(logprobs[1], abs=2e-4)
