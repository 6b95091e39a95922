"""The Triton attention kernels against the reference on the same cache, and the writing of the cache against it.

Tolerance: float32 sums of a few hundred weights, which add up to 1, of normal numbers err by 1e-6. In half precision
the reference rounds keys and values that it unpacks, weights and results to that format, each by half a unit of a
number below 4: four of them.
"""

from types import SimpleNamespace

import pytest
import torch

from model.formats import BLOCK_TOKENS
from model.nn.attention.reference import reference_attention
from model.nn.kernels import Rotary
from tests.parity.test_attention import Sequences, stored_cache
from tests.support.gpu import devices, needs_cuda

pytest.importorskip("triton", reason="triton is not installed")

from model.gpu.attention import attend_one_token_rows, attend_rows
from model.gpu.pools import Pools, rotate_and_store, store
from model.nn.attention.triton import pools_of, triton_attention

TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 4 * 2.0**-8, torch.float16: 4 * 2.0**-11}
FORMATS = ["fp32", "bf16", "fp16", "int8", "fp8"]
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
formats = pytest.mark.parametrize("kv", FORMATS)


def both(sequences, kv, steps, *, num_kv_heads, size):
    """What the kernels and the reference give for each step, each with a cache of its own."""
    config = SimpleNamespace(num_layers=1, num_kv_heads=num_kv_heads, head_size=size)
    caches = [stored_cache(kv, config, sequences.device) for _ in range(2)]
    for parts in steps:
        ours = sequences.step(triton_attention, caches[0], parts, None)
        theirs = sequences.step(reference_attention, caches[1], parts, 4096)
        yield from ((part, one, other) for (part, one), (_, other) in zip(ours, theirs, strict=True))


def compare(sequences, kv, steps, *, num_kv_heads, size, dtype):
    compared = 0
    for part, ours, theirs in both(sequences, kv, steps, num_kv_heads=num_kv_heads, size=size):
        torch.testing.assert_close(
            ours, theirs, rtol=0, atol=TOLERANCE[dtype], msg=lambda text, at=part: f"{at}: {text}"
        )
        compared += 1
    assert compared == sum(map(len, steps))


MIXED_STEPS = [
    [(0, 0, 20), (1, 0, 16), (4, 0, 1)],
    [(0, 20, 39), (1, 16, 17), (2, 0, 32), (3, 0, 7)],
    [(3, 7, 49), (0, 39, 40), (2, 32, 33)],
]


@devices
@formats
@dtypes
def test_any_mix_of_prefill_chunks_and_decoding_rows(device, kv, dtype):
    sequences = Sequences([40, 17, 33, 50, 1], 1, 1, dtype=dtype, device=device)
    compare(sequences, kv, MIXED_STEPS, num_kv_heads=1, size=16, dtype=dtype)


@devices
@pytest.mark.parametrize(("size", "num_kv_heads"), [(16, 1), (32, 2), (40, 4), (64, 4), (80, 2), (128, 1), (256, 1)])
def test_head_sizes_and_shared_heads(device, size, num_kv_heads):
    sequences = Sequences([21, 18], 4, num_kv_heads, size=size, device=device)
    steps = [[(0, 0, 20), (1, 0, 1)], [(0, 20, 21), (1, 1, 18)]]
    compare(sequences, "int8", steps, num_kv_heads=num_kv_heads, size=size, dtype=torch.float32)


@devices
@pytest.mark.parametrize("kv", ["fp32", "int8"])
def test_rows_that_end_around_a_block_decode_together(device, kv):
    lengths = [2, 15, 16, 17, 31, 32, 33, 64, 65]
    sequences = Sequences(lengths, 1, 1, device=device)
    steps = [[(i, 0, length - 1) for i, length in enumerate(lengths)], [(i, n - 1, n) for i, n in enumerate(lengths)]]
    compare(sequences, kv, steps, num_kv_heads=1, size=16, dtype=torch.float32)


@devices
@pytest.mark.parametrize("num_new", [15, 16, 17, 32, 33, 65])
def test_chunks_around_a_tile_behind_a_prefix(device, num_new):
    """Tiles have 16 tokens, or 32 in float32; keys 32."""
    sequences = Sequences([num_new + 37, 40], 1, 1, device=device)
    steps = [[(0, 0, 37), (1, 0, 33)], [(0, 37, 37 + num_new), (1, 33, 40)]]
    compare(sequences, "int8", steps, num_kv_heads=1, size=16, dtype=torch.float32)


@devices
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_chunks_of_more_than_a_tile_in_half_precision(device, dtype):
    sequences = Sequences([170], 1, 1, dtype=dtype, device=device)
    compare(sequences, "int8", [[(0, 0, 70)], [(0, 70, 170)]], num_kv_heads=1, size=16, dtype=dtype)


@devices
@pytest.mark.parametrize(("kv", "num_splits"), [*((kv, 3) for kv in FORMATS), ("int8", 1), ("int8", 2), ("int8", 64)])
def test_splits_of_long_rows_beside_short_ones(device, kv, num_splits):
    """The second row has no key in most splits; 64 are more than there are tiles of 64 keys."""
    sequences = Sequences([600, 3, 257], 1, 1, size=64, device=device)
    config = SimpleNamespace(num_layers=1, num_kv_heads=1, head_size=64)
    cache = stored_cache(kv, config, device)
    q, rows = decoding_rows(sequences, cache)
    splits, whole = torch.empty_like(q), torch.empty_like(q)
    for out, number in ((splits, num_splits), (whole, 1)):
        attend_one_token_rows(q, pools_of(cache), **rows, num_rows=3, max_keys=600, out=out, num_splits=number)
    torch.testing.assert_close(splits, whole, rtol=0, atol=TOLERANCE[torch.float32])
    wanted = [step_of_reference(sequences, cache, i) for i in range(3)]
    torch.testing.assert_close(splits, torch.cat(wanted), rtol=0, atol=TOLERANCE[torch.float32])


def decoding_rows(sequences, cache):
    """The last query of each sequence, [rows, 1, size], with all its keys stored, and the table of the rows."""
    width = max(map(len, sequences.tables))
    # Past a row's last block stands one that does not exist.
    tables = [(table + [10**8] * width)[:width] for table in sequences.tables]
    for k, v, table in zip(sequences.k, sequences.v, sequences.tables, strict=True):
        cache.write(slots_of(table, len(k)).to(sequences.device), k, v)
    rows = {
        "block_table": torch.tensor(tables, dtype=torch.int32, device=sequences.device),
        "num_keys": torch.tensor([len(k) for k in sequences.k], dtype=torch.int32, device=sequences.device),
    }
    return torch.stack([q[-1] for q in sequences.q]), rows


def slots_of(table, num_tokens):
    return torch.tensor([table[t // BLOCK_TOKENS] * BLOCK_TOKENS + t % BLOCK_TOKENS for t in range(num_tokens)])


def step_of_reference(sequences, cache, i):
    length = len(sequences.q[i])
    [[_, mixed]] = sequences.step(reference_attention, cache, [(i, length - 1, length)], 0)
    return mixed


@devices
def test_a_step_without_new_tokens_in_most_rows_writes_only_its_own(device):
    """The rows that decode and the others share one result, and neither kernel writes the other's part."""
    sequences = Sequences([33, 20], 1, 1, device=device)
    cache = stored_cache("fp32", SimpleNamespace(num_layers=1, num_kv_heads=1, head_size=16), device)
    q, rows = decoding_rows(sequences, cache)
    out = torch.full_like(q, 7.0)
    attend_one_token_rows(q, pools_of(cache), **rows, num_rows=1, max_keys=33, out=out)
    assert (out[1] == 7).all()
    out = torch.full_like(q, 7.0)
    first_tokens = torch.arange(3, dtype=torch.int32, device=device)
    attend_rows(q, pools_of(cache), **rows, first_tokens=first_tokens, first_row=1, max_new=1, out=out)
    assert (out[0] == 7).all()
    torch.testing.assert_close(out[1:], step_of_reference(sequences, cache, 1), rtol=0, atol=5e-6)


# ---- what is written ----

ONE_STEP = {"fp32": 1e-6, "bf16": 2.0**-7, "fp16": 2.0**-10, "int8": 0.04, "fp8": 2.0**-3}
"""Relative to a number, or in int8 absolute at heads of numbers up to 5: what a last bit before the rounding can do."""


@devices
@formats
@dtypes
@pytest.mark.parametrize(("size", "num_heads"), [(16, 5), (40, 8)])
def test_what_is_stored_and_turned(device, kv, dtype, size, num_heads):
    """As Rotary and the pool's own write do it: bit by bit, but for the last one, as a GPU joins products and sums."""
    generator = torch.Generator().manual_seed(3)
    num_kv_heads = 5
    config = SimpleNamespace(num_layers=1, num_kv_heads=num_kv_heads, head_size=size)
    # Heads as they come from one product of queries, keys and values: the tokens are not dense.
    heads = torch.randn(4, num_heads + 2 * num_kv_heads, size, generator=generator).to(dtype).to(device)
    heads[1, num_heads:] = 0
    heads[2, num_heads:, 3] *= 100  # beyond float8's largest, in the keys of some heads
    heads[3, num_heads:] *= 1e-3  # float8's smallest steps
    q, k, v = heads.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    angles = torch.randn(4, 1, size // 2, generator=generator).to(device)
    rotary = Rotary(angles.cos(), angles.sin())
    slots = torch.tensor([63, 0, 17, 16], device=device)
    ours, theirs = (stored_cache(kv, config, device) for _ in range(2))
    rotated = rotate_and_store(q, k, v, rotary, slots, pools_of(ours))
    theirs.write(slots, rotary.rotate(k), v)
    exact = {"rtol": 0, "atol": 0} if device.type == "cpu" else {"rtol": torch.finfo(dtype).eps, "atol": 1e-6}
    torch.testing.assert_close(rotated, rotary.rotate(q), **exact)
    blocks = torch.arange(64, device=device)
    written = torch.zeros(1024, dtype=torch.bool, device=device)
    written[slots] = True
    for one, other in ((ours.keys, theirs.keys), (ours.values, theirs.values)):
        one_bytes, other_bytes = one.data.view(torch.uint8), other.data.view(torch.uint8)
        untouched = (one_bytes == other_bytes).flatten(1, 2)[:, ~written]
        assert untouched.all()
        if device.type == "cpu":
            assert torch.equal(one_bytes, other_bytes)
            continue
        numbers, wanted = (pool.read(blocks, torch.float32)[:, written] for pool in (one, other))
        bound = ONE_STEP[kv] * (100 if kv == "int8" else wanted.abs()) + 2.0**-9
        assert ((numbers - wanted).abs() <= bound).all()
        assert (numbers != wanted).float().mean() < 0.02


@devices
@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.float32], ids=str)
def test_scales_are_stored_before_numbers_are_rounded_by_them(device, scale_dtype):
    data = torch.full((2, 1, 2, BLOCK_TOKENS, 16), 99, dtype=torch.int8, device=device)
    scales = torch.full((2, 1, 2, BLOCK_TOKENS), 9, dtype=scale_dtype, device=device)
    k = torch.linspace(-1, 1, 16, device=device).view(1, 1, 16) * 0.3
    store(k, k, torch.tensor([20], device=device), Pools.of(data[0], data[1], scales[0], scales[1]))
    stored_scale = (torch.tensor(0.3, device=device) / 127).to(scale_dtype)
    assert scales[0, 0, 1, 4] == scales[1, 0, 1, 4] == stored_scale
    steps = (k[0, 0] / stored_scale.float()).round().clamp(-127, 127)
    assert torch.equal(data[0, 0, 1, 4].float(), steps)
    assert torch.equal(data[1, 0, 1, 4].float(), steps)


@devices
@pytest.mark.parametrize("kv", ["int8", "fp8", "bf16"])
def test_not_a_number_stays_none(device, kv):
    """In a key or value it must reach the answer, where somebody sees it, and not become a plausible number."""
    sequences = Sequences([3], 2, 2, device=device)
    sequences.v[0][1, 0, 5] = float("nan")
    cache = stored_cache(kv, SimpleNamespace(num_layers=1, num_kv_heads=2, head_size=16), device)
    [[_, mixed]] = sequences.step(triton_attention, cache, [(0, 0, 3)], None)
    assert mixed[2, 0, 5].isnan()
    assert not mixed[:, 1].isnan().any()


def test_tensors_that_do_not_fit_are_refused():
    data = torch.zeros(2, 1, 2, BLOCK_TOKENS, 16)
    with pytest.raises(ValueError, match="int8 pools have scales"):
        Pools.of(data[0].to(torch.int8), data[1].to(torch.int8), None, None)
    with pytest.raises(ValueError, match="int8 pools have scales"):
        Pools.of(data[0], data[1], data[0, ..., 0], data[1, ..., 0])
    with pytest.raises(ValueError, match="even size up to 256"):
        Pools.of(data[0, ..., :15], data[1, ..., :15], None, None)
    with pytest.raises(ValueError, match="one shape"):
        Pools.of(data[0], data[1, :, :1], None, None)


@pytest.mark.gpu
@needs_cuda
def test_offsets_beyond_two_to_the_31():
    """A pool of 2.1 GB: 32-bit offsets would wrap around."""
    device = torch.device("cuda:0")
    num_blocks = 2**31 // (BLOCK_TOKENS * 256) + 16
    data = torch.zeros(1, num_blocks, BLOCK_TOKENS, 256, dtype=torch.int8, device=device)
    scales = torch.zeros(1, num_blocks, BLOCK_TOKENS, dtype=torch.float16, device=device)
    pools = Pools.of(data, data, scales, scales)
    x = torch.randn(20, 1, 256, device=device)
    slots = torch.arange(20, device=device) + (num_blocks - 2) * BLOCK_TOKENS
    store(x, x, slots, pools)
    rows = {
        "block_table": torch.tensor([[num_blocks - 2, num_blocks - 1]], dtype=torch.int32, device=device),
        "num_keys": torch.tensor([20], dtype=torch.int32, device=device),
    }
    weights = (x[:, 0] @ x[-1, 0] / 16).softmax(0)
    out = torch.empty_like(x[-1:])
    attend_one_token_rows(x[-1:], pools, **rows, num_rows=1, max_keys=20, out=out)
    assert (out[0, 0] - weights @ x[:, 0]).abs().max() < 0.05
    first_tokens = torch.tensor([0, 1], dtype=torch.int32, device=device)
    attend_rows(x[-1:], pools, **rows, first_tokens=first_tokens, first_row=0, max_new=1, out=out)
    assert (out[0, 0] - weights @ x[:, 0]).abs().max() < 0.05
