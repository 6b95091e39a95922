"""Continuations through the runner, id for id, however the work is cut into steps and whoever shares them."""

import pytest
import torch

from model.native.library import is_fast, status
from model.nn.attention.native import native_attention
from model.nn.attention.reference import reference_attention
from model.nn.quant import PanelWeight
from model.runtime.checkpoint import list_checkpoint
from model.step import Draw, SamplingParams, SequenceRow, StateStart, StepBatch
from tests.support.driver import GREEDY, Conversation, golden_crops, run
from tests.support.golden import TINY_V1, TINY_V2, case_names, load_case
from tests.support.kernels import with_and_without
from tests.support.runners import tiny_runner

PENALISED = SamplingParams(repetition_penalty=1.05)
MODES = {"greedy": GREEDY, "greedy_rp105": PENALISED}


def conversation(name, mode="greedy", **how):
    case = load_case(name)
    return Conversation(case.input_ids, golden_crops(case), len(expected(name, mode)), MODES[mode], **how)


def expected(name, mode="greedy"):
    return load_case(name).facts[mode]["ids"]


def ids_of(sampled):
    return [[one.token_id for one in sequence] for sequence in sampled]


@with_and_without
@pytest.mark.parametrize("name", case_names())
def test_alone_and_at_once(name, kernels):
    runner = tiny_runner(load_case(name).checkpoint, kernels=kernels)
    assert ids_of(run(runner, [conversation(name)])) == [expected(name)]


@with_and_without
@pytest.mark.parametrize("name", case_names())
def test_penalised_encoded_block_by_block_and_computed_in_chunks(name, kernels):
    runner = tiny_runner(load_case(name).checkpoint, kernels=kernels)
    # 7 cuts every crop's span of 64 vectors, and neither divides a KV block.
    how = {"chunk_tokens": 7, "blocks_per_step": 1}
    assert ids_of(run(runner, [conversation(name, "greedy_rp105", **how)])) == [expected(name, "greedy_rp105")]


@with_and_without
@pytest.mark.parametrize("checkpoint", [TINY_V2, TINY_V1], ids=["2.0", "1.0"])
def test_all_together_joining_one_after_the_other(checkpoint, kernels):
    """Prefill chunks, decoding rows, crops under way and two kinds of sampling share every step."""
    names = [name for name in case_names() if load_case(name).checkpoint == checkpoint]
    conversations, wanted = [], []
    for index, name in enumerate(names):
        mode = ("greedy", "greedy_rp105")[index % 2]
        how = {"start_step": 2 * index, "chunk_tokens": (64, 7, 150)[index % 3], "blocks_per_step": 1 + index % 3}
        conversations.append(conversation(name, mode, **how))
        wanted.append(expected(name, mode))
    assert ids_of(run(tiny_runner(checkpoint, kernels=kernels), conversations)) == wanted


@pytest.mark.skipif(not is_fast(), reason=status())
@pytest.mark.parametrize("kernels", [True, False])
def test_kernels_are_used_where_there_are_any(kernels):
    language = tiny_runner(TINY_V2, weights="int8", kv="int8", kernels=kernels).model.language
    layer = language.layers[0]
    assert language.kernels.attention is (native_attention if kernels else reference_attention)
    assert layer.attention.kernels is layer.mlp.kernels is layer.mlp_norm.kernels is language.kernels
    assert isinstance(layer.mlp.down.weight, PanelWeight) == kernels


def test_resumed_after_a_preemption():
    """The ids generated before count for the penalty, and are computed again like a prompt."""
    name = "text_only_en"
    wanted = expected(name, "greedy_rp105")
    before = conversation(name, "greedy_rp105")
    after = Conversation(before.prompt_ids, (), len(wanted) - 9, PENALISED, generated_ids=tuple(wanted[:9]))
    assert ids_of(run(tiny_runner(TINY_V2), [after])) == [wanted[9:]]


def test_log_probabilities_of_the_raw_scores():
    name = "small_rgb"
    case = load_case(name)
    params = SamplingParams(repetition_penalty=1.05, num_logprobs=5)
    one = Conversation(case.input_ids, golden_crops(case), 1, params)
    [[sampled]] = run(tiny_runner(TINY_V2), [one])
    golden = torch.from_numpy(case.tensors["logits_last"]).log_softmax(-1)
    values, ids = golden.topk(5)
    assert [token_id for token_id, _ in sampled.top] == ids.tolist()
    assert [value for _, value in sampled.top] == pytest.approx(values.tolist(), abs=2e-4)
    assert sampled.logprob == pytest.approx(golden[sampled.token_id].item(), abs=2e-4)


def test_same_points_same_ids_alone_and_among_others():
    params = SamplingParams(temperature=0.7, top_p=0.8, top_k=100, repetition_penalty=1.05)
    points = [(17 * step % 101) / 101 for step in range(24)]
    case = load_case("small_rgb")
    sampling = Conversation(case.input_ids, golden_crops(case), 24, params, points)
    others = [conversation(name, chunk_tokens=33) for name in ("text_only_en", "wide_4to1", "one_pixel_wide")]
    runner = tiny_runner(TINY_V2)
    [alone] = run(runner, [sampling])
    among = run(runner, [*others, sampling])
    assert among[-1] == alone
    assert len({one.token_id for one in alone}) > 1


def test_sequence_that_takes_a_used_state_slot_inherits_nothing():
    runner = tiny_runner(TINY_V2)
    prompt = load_case("text_only_en").input_ids
    forbidding = SamplingParams(presence_penalty=100.0)
    first = run(runner, [Conversation(prompt, (), 24, forbidding)])[0]
    assert len({one.token_id for one in first}) == 24
    assert run(runner, [Conversation(prompt, (), 24, forbidding)])[0] == first


@pytest.mark.parametrize(
    "row",
    [
        SequenceRow(0, (1, 2), 15, (0,), (), None),  # the second token has no block
        SequenceRow(0, (1,), 0, (4_000_000,), (), None),
        SequenceRow(0, (1499,), 0, (0,), (), None),
        SequenceRow(99, (1,), 0, (0,), (), None),
        SequenceRow(0, (), 0, (0,), (), None),
        SequenceRow(0, (1, 2), 0, (0,), (), Draw((0.0,) * 3)),  # more draws than tokens
        SequenceRow(0, (1, 2), 0, (0,), (), Draw(())),
        SequenceRow(0, (1,) * 40, 0, (0, 1, 2), (), Draw((0.0,) * 40)),  # more than the plan has memory for
    ],
)
def test_row_that_points_outside_is_stopped_before_it_touches_anything(row):
    with pytest.raises(AssertionError):
        tiny_runner(TINY_V2).run(StepBatch(starts=(StateStart(0, GREEDY, ()),), encode=(), rows=(row,)))


def test_info_describes_what_was_built():
    info = tiny_runner(TINY_V2).info
    assert (info.num_state_slots, info.max_step_draws) == (16, 16)
    assert (info.device, info.dtype, info.num_vision_blocks) == ("cpu", "fp32", 3)
    # 64 MiB, the size asked for: 2 x 3 layers x 4 heads x 64 numbers x 4 bytes x 16 tokens a block.
    assert info.num_kv_blocks == 64 * 2**20 // (2 * 3 * 4 * 64 * 4 * 16)
    assert info.kv_bytes == info.num_kv_blocks * 2 * 3 * 4 * 64 * 4 * 16
    # Stored in bfloat16, held in float32.
    assert info.weight_bytes == 2 * sum(tensor.num_bytes for tensor in list_checkpoint(TINY_V2).values())
