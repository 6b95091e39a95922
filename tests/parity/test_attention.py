"""Attention, torch's and the kernels', against the formula, written out for one token at a time."""

import math
import random
from types import SimpleNamespace

import pytest
import torch

from model.formats import BLOCK_TOKENS
from model.native.library import is_available, status
from model.nn.attention.base import LayerCache, Pool
from model.nn.attention.native import native_attention
from model.nn.attention.reference import reference_attention
from model.runtime.kv_cache import allocate_cache
from model.runtime.packing import pack_rows
from model.step import Draw, SequenceRow

HEAD_SIZE = 16
NUM_BLOCKS = 64
CPU = torch.device("cpu")

needs_kernels = pytest.mark.skipif(not is_available(), reason=status())


@pytest.fixture(params=[reference_attention, pytest.param(native_attention, marks=needs_kernels)])
def attend(request):
    return request.param


def empty_cache(num_kv_heads):
    """What was never written is not a number: it must not reach any result."""
    shape = (num_kv_heads, NUM_BLOCKS, BLOCK_TOKENS, HEAD_SIZE)
    return LayerCache(Pool(torch.full(shape, math.nan), None), Pool(torch.full(shape, math.nan), None))


class Sequences:
    """Random queries, keys and values of whole sequences, and the formula's answer for each token."""

    def __init__(self, lengths, num_heads, num_kv_heads, size=HEAD_SIZE, dtype=torch.float32, device=CPU):
        generator = torch.Generator().manual_seed(5)
        self.device = device
        self.q, self.k, self.v = (
            [torch.randn(length, heads, size, generator=generator).to(dtype).to(device) for length in lengths]
            for heads in (num_heads, num_kv_heads, num_kv_heads)
        )
        blocks = list(range(NUM_BLOCKS))
        random.Random(3).shuffle(blocks)
        self.tables = [[blocks.pop() for _ in range(0, length, BLOCK_TOKENS)] for length in lengths]
        self.share = num_heads // num_kv_heads

    def step(self, attend, cache, parts, max_group_keys):
        """Attention of the tokens [start, end) of each (sequence, start, end), as the sequences' own results."""
        rows = [SequenceRow(i, [0] * (end - start), start, self.tables[i], (), Draw((0.0,))) for i, start, end in parts]
        packed = pack_rows(rows, num_queries=64, max_group_keys=max_group_keys, device=self.device)
        lasts = packed.drawn_tokens.tolist()
        spans = [slice(last + 1 - (end - start), last + 1) for last, (_, start, end) in zip(lasts, parts, strict=True)]
        q, k, v = (x[0].new_empty(len(packed.token_ids), *x[0].shape[1:]) for x in (self.q, self.k, self.v))
        for span, (i, start, end) in zip(spans, parts, strict=True):
            q[span], k[span], v[span] = (x[i][start:end] for x in (self.q, self.k, self.v))
        mixed = attend(q, k, v, cache, packed.plan)
        return [(part, mixed[span]) for part, span in zip(parts, spans, strict=True)]

    def formula(self, i, position):
        """softmax(q k / sqrt(size)) v over the positions up to this one, head by head."""
        heads = []
        for head in range(self.q[i].shape[1]):
            keys = self.k[i][: position + 1, head // self.share]
            values = self.v[i][: position + 1, head // self.share]
            query = self.q[i][position, head]
            heads.append((keys @ query / math.sqrt(len(query))).softmax(0) @ values)
        return torch.stack(heads)

    def check(self, results):
        for (i, start, _), mixed in results:
            wanted = torch.stack([self.formula(i, start + t) for t in range(len(mixed))])
            torch.testing.assert_close(mixed, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("max_group_keys", [0, 60, 4096])
@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
def test_any_mix_of_prefill_chunks_and_decoding_rows(attend, max_group_keys, num_kv_heads):
    sequences = Sequences([40, 17, 33, 50, 1], num_heads=4, num_kv_heads=num_kv_heads)
    cache = empty_cache(num_kv_heads)
    for parts in (
        [(0, 0, 20), (1, 0, 16), (4, 0, 1)],
        [(0, 20, 39), (1, 16, 17), (2, 0, 32), (3, 0, 7)],
        [(3, 7, 49), (0, 39, 40), (2, 32, 33)],
        [(3, 49, 50)],
    ):
        sequences.check(sequences.step(attend, cache, parts, max_group_keys))


@pytest.mark.parametrize("max_group_keys", [0, 4096])
def test_short_and_long_contexts_decode_together(attend, max_group_keys):
    lengths = [2, 16, 17, 48, 50]
    sequences = Sequences(lengths, num_heads=2, num_kv_heads=2)
    cache = empty_cache(2)
    sequences.check(sequences.step(attend, cache, [(i, 0, n - 1) for i, n in enumerate(lengths)], max_group_keys))
    sequences.check(sequences.step(attend, cache, [(i, n - 1, n) for i, n in enumerate(lengths)], max_group_keys))


# ---- what the cache stores ----

# Keys and values are normal numbers here. int8: half a step of a row's largest, about 3; fp8: a sixteenth of each.
TOLERANCE = {"fp32": 1e-5, "bf16": 0.02, "fp16": 0.003, "int8": 0.03, "fp8": 0.15}
CONFIG = SimpleNamespace(num_layers=1, num_kv_heads=2, head_size=HEAD_SIZE)
PARTS = (
    [(0, 0, 20), (1, 0, 16), (4, 0, 1)],
    [(0, 20, 39), (1, 16, 17), (2, 0, 32), (3, 0, 7)],
    [(3, 7, 49), (0, 39, 40), (2, 32, 33)],
)


def stored_cache(kv, config=CONFIG, device=CPU):
    [cache] = allocate_cache(config, NUM_BLOCKS, kv, device).layers
    for pool in (cache.keys, cache.values):
        (pool.data.view(torch.uint8) if kv == "fp8" else pool.data).fill_(127)
        if pool.scales is not None:
            pool.scales.fill_(math.nan)
    return cache


@pytest.mark.parametrize("max_group_keys", [0, 4096])
@pytest.mark.parametrize("kv", TOLERANCE)
def test_formats_of_the_cache(attend, kv, max_group_keys):
    sequences = Sequences([40, 17, 33, 50, 1], num_heads=4, num_kv_heads=2)
    cache = stored_cache(kv)
    errors = [
        (mixed[t] - sequences.formula(i, start + t)).abs().max()
        for parts in PARTS
        for (i, start, _), mixed in sequences.step(attend, cache, parts, max_group_keys)
        for t in range(len(mixed))
    ]
    assert max(errors) < TOLERANCE[kv]
    # The bound is not idle: the next finer format would not stay so far below it.
    assert kv == "fp32" or max(errors) > TOLERANCE[kv] / 10


@pytest.mark.parametrize("kv", TOLERANCE)
def test_answer_does_not_depend_on_how_a_prompt_is_cut(attend, kv):
    """New tokens, too, are seen as they are stored: otherwise a preemption or a cached prefix would show."""
    sequences = Sequences([50], num_heads=4, num_kv_heads=2)
    [[_, whole]] = sequences.step(attend, stored_cache(kv), [(0, 0, 50)], 0)
    cache = stored_cache(kv)
    cut = [
        sequences.step(attend, cache, [(0, start, end)], 0)[0][1]
        for start, end in ((0, 7), (7, 32), (32, 49), (49, 50))
    ]
    torch.testing.assert_close(torch.cat(cut), whole, rtol=0, atol=1e-5)


def test_cache_of_another_format_than_the_computation(attend):
    sequences = Sequences([40], num_heads=2, num_kv_heads=2)
    sequences.q, sequences.k, sequences.v = (
        [x.bfloat16() for x in one] for one in (sequences.q, sequences.k, sequences.v)
    )
    [[_, mixed]] = sequences.step(attend, stored_cache("int8"), [(0, 0, 40)], 0)
    wanted = torch.stack([sequences.formula(0, t).float() for t in range(40)])
    assert (mixed - wanted).abs().max() < TOLERANCE["int8"] + TOLERANCE["bf16"]
