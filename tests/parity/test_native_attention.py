"""Paged attention and the writing of its pools against the formula in float64, at every level of this processor."""

import math
import random

import pytest
import torch

from model.native.attention import Pools, paged_attention, store
from model.native.library import is_available, library, status
from model.nn.quant import quantize_int8

pytestmark = pytest.mark.skipif(not is_available(), reason=status())
levels = pytest.mark.parametrize("level", library().levels if is_available() else ())
kinds = pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.int8], ids=str)

BLOCK_TOKENS = 16


def empty_pools(kind, num_heads, num_blocks, size):
    """What was never written is not a number, or in int8 the largest one at a scale that is not: it must not show."""
    shape = (num_heads, num_blocks, BLOCK_TOKENS, size)
    if kind == torch.int8:
        return Pools(
            *(torch.full(shape, 127, dtype=torch.int8) for _ in range(2)),
            *(torch.full(shape[:3], math.nan) for _ in range(2)),
        )
    return Pools(*(torch.full(shape, math.nan, dtype=kind) for _ in range(2)))


class Sequences:
    """Whole sequences with their keys and values in shuffled blocks of the pools."""

    def __init__(self, lengths, kind, *, num_heads, num_kv_heads, size=64):
        generator = torch.Generator().manual_seed(5)
        self.lengths = lengths
        self.q, self.k, self.v = (
            [torch.randn(length, heads, size, generator=generator) for length in lengths]
            for heads in (num_heads, num_kv_heads, num_kv_heads)
        )
        blocks = list(range(sum(-(-length // BLOCK_TOKENS) for length in lengths) + 3))
        self.pools = empty_pools(kind, num_kv_heads, len(blocks), size)
        random.Random(3).shuffle(blocks)
        self.tables = [[blocks.pop() for _ in range(0, length, BLOCK_TOKENS)] for length in lengths]
        for k, v, table in zip(self.k, self.v, self.tables, strict=True):
            slots = torch.tensor([table[t // BLOCK_TOKENS] * BLOCK_TOKENS + t % BLOCK_TOKENS for t in range(len(k))])
            store(k, v, slots, self.pools, num_threads=2)

    def attend(self, parts, *, level=None, num_threads=2, dtype=torch.float32):
        """Attention of the last tokens [start, end) of each (sequence, start, end)."""
        width = max(len(table) for table in self.tables)
        # Past a sequence's last block stands a block that does not exist.
        tables = [(self.tables[i] + [10**9] * width)[:width] for i, _, _ in parts]
        results = paged_attention(
            torch.cat([self.q[i][start:end] for i, start, end in parts]).to(dtype),
            self.pools,
            block_table=torch.tensor(tables, dtype=torch.int32),
            first_tokens=torch.tensor([0, *(end - start for _, start, end in parts)]).cumsum(0).int(),
            num_keys=torch.tensor([end for _, _, end in parts], dtype=torch.int32),
            num_threads=num_threads,
            level=level,
        )
        return results.split([end - start for _, start, end in parts])

    def cells(self, i, which):
        """The stored keys or values of a sequence, [tokens, heads, size], as float64."""
        pool, scales = (
            (self.pools.keys, self.pools.key_scales) if which == "k" else (self.pools.values, self.pools.value_scales)
        )
        numbers = pool.double() if scales is None else pool.double() * scales.double().unsqueeze(-1)
        return numbers[:, self.tables[i]].flatten(1, 2)[:, : self.lengths[i]].transpose(0, 1)

    def formula(self, i, start, end):
        """softmax(q k / sqrt(size)) v of what is stored."""
        share = self.q[i].shape[1] // self.k[i].shape[1]
        k, v = (self.cells(i, which)[:end].repeat_interleave(share, 1) for which in "kv")
        scores = torch.einsum("tnh,lnh->ntl", self.q[i][start:end].double(), k) / math.sqrt(k.shape[2])
        visible = torch.arange(end) <= torch.arange(start, end)[:, None]
        return torch.einsum("ntl,lnh->tnh", scores.masked_fill(~visible, -math.inf).softmax(-1), v)


# Below, at and above a block, a chunk of 512 keys and two of them.
LENGTHS = [1, 16, 17, 511, 512, 513, 1030]


@levels
@kinds
@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
def test_decoding_of_sequences_of_any_length(level, kind, num_kv_heads):
    sequences = Sequences(LENGTHS, kind, num_heads=4, num_kv_heads=num_kv_heads)
    parts = [(i, length - 1, length) for i, length in enumerate(LENGTHS)]
    for part, result in zip(parts, sequences.attend(parts, level=level), strict=True):
        # Scores reach 5 in size and their float32 sums err by some 1e-6 of that; the weights sum to 1.
        torch.testing.assert_close(result.double(), sequences.formula(*part), rtol=0, atol=2e-5)


@levels
@kinds
@pytest.mark.parametrize("size", [64, 16, 80, 128])
def test_chunks_of_new_tokens_see_what_comes_before_them(level, kind, size):
    lengths = [40, 530, 7]
    sequences = Sequences(lengths, kind, num_heads=2, num_kv_heads=2, size=size)
    parts = [(0, 0, 40), (1, 505, 530), (2, 3, 7)]
    for part, result in zip(parts, sequences.attend(parts, level=level), strict=True):
        torch.testing.assert_close(result.double(), sequences.formula(*part), rtol=0, atol=2e-5)


@levels
@kinds
def test_a_token_depends_neither_on_the_batch_nor_on_threads_nor_on_the_chunk(level, kind):
    sequences = Sequences([30, 540, 17], kind, num_heads=4, num_kv_heads=2)
    parts = [(0, 0, 30), (1, 500, 540), (2, 16, 17)]
    together = sequences.attend(parts, level=level)
    for result, other in zip(together, sequences.attend(parts, level=level, num_threads=1), strict=True):
        assert torch.equal(result, other)
    for part, result in zip(parts, together, strict=True):
        assert torch.equal(sequences.attend([part], level=level)[0], result)
    for token in (500, 511, 512, 539):
        assert torch.equal(sequences.attend([(1, token, token + 1)], level=level)[0][0], together[1][token - 500])


@levels
def test_bfloat16_queries(level):
    sequences = Sequences([50], torch.bfloat16, num_heads=2, num_kv_heads=2)
    sequences.q = [q.bfloat16() for q in sequences.q]
    (result,) = sequences.attend([(0, 40, 50)], level=level, dtype=torch.bfloat16)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.double(), sequences.formula(0, 40, 50), rtol=2.0**-8, atol=2e-5)


@levels
@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_stored(level, kind, dtype):
    pools = empty_pools(kind, 3, 4, 48)
    # Heads as they come from one product of queries, keys and values: each token dense, but not the next to it.
    tokens = torch.randn(5, 9, 48, generator=torch.Generator().manual_seed(0)).to(dtype)
    k, v = tokens[:, 3:6], tokens[:, 6:]
    slots = torch.tensor([63, 0, 17, 16, 40])
    store(k, v, slots, pools, num_threads=2, level=level)
    for pool, scales, new in ((pools.keys, pools.key_scales, k), (pools.values, pools.value_scales, v)):
        stored = pool.flatten(1, 2)[:, slots].transpose(0, 1)
        untouched = pool.flatten(1, 2)[:, [1, 15, 18, 62]]
        if scales is None:
            assert torch.equal(stored, new.to(kind))
            assert untouched.isnan().all()
            continue
        integers, wanted_scales = quantize_int8(new)
        assert torch.equal(stored, integers)
        assert torch.equal(scales.flatten(1, 2)[:, slots].T, wanted_scales)
        assert (untouched == 127).all()


def test_tensors_that_do_not_fit_are_refused():
    pools = empty_pools(torch.float32, 2, 4, 32)
    k = torch.zeros(1, 2, 32)
    with pytest.raises(ValueError, match="are not"):
        store(k[:, :1], k, torch.tensor([0]), pools, num_threads=1)
    with pytest.raises(ValueError, match="int8 pools have scales"):
        store(k, k, torch.tensor([0]), Pools(pools.keys, pools.values, torch.zeros(2, 4, 16)), num_threads=1)
    with pytest.raises(ValueError, match="no pool"):
        store(k, k, torch.tensor([0]), Pools(pools.keys[..., :8], pools.values[..., :8]), num_threads=1)
    table = {"first_tokens": torch.tensor([0, 1]).int(), "num_keys": torch.tensor([1]).int()}
    block_table = torch.zeros(1, 1, dtype=torch.int32)
    with pytest.raises(ValueError, match="do not fit"):
        paged_attention(torch.zeros(1, 3, 32), pools, block_table=block_table, **table, num_threads=1)
    with pytest.raises(ValueError, match="block_table"):
        paged_attention(torch.zeros(1, 2, 32), pools, block_table=torch.zeros(1, 1), **table, num_threads=1)
