"""The compiled kernels against torch's own, at the full-size model's shapes, interleaved in one run.

    python -m benchmarks.native_kernels [--threads N] [--head]

Times are the best of several. With one thread they are its processor time, so a busy neighbour costs little; the
weights of one shape are several copies, more than caches hold. Printed are milliseconds, and in brackets how many times
faster than the better of torch's float32 and bfloat16.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from model.native import linear as native
from model.native.attention import Pools, paged_attention, store
from model.native.library import status

LINEAR_SHAPES = {"gate, up": (11520, 2304), "down": (2304, 5760)}
HEAD_SHAPE = {"head": (122753, 2304)}
COPIES = 3
ROUNDS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the compiled kernels against torch's own.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--head", action="store_true", help="also the head of the vocabulary: takes 2 GB")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"{status()}; torch {torch.__version__}, {options.threads} threads")
    for name, shape in (LINEAR_SHAPES | (HEAD_SHAPE if options.head else {})).items():
        weights = linear_weights(*shape, copies=1 if name == "head" else COPIES, num_threads=options.threads)
        for num_rows in (1, 4, 8, 16, 128):
            report(f"{name}, {num_rows} rows", linears(weights, num_rows, options.threads))
    for num_sequences, num_keys, num_new in ((1, 828, 1), (8, 828, 1), (1, 828, 64)):
        label = f"attention, {num_sequences} x {num_new} tokens to {num_keys}"
        report(label, attentions(num_sequences, num_keys, num_new, options.threads))


Cases = dict[str, list[Callable[[], object]]]


def report(label: str, cases: Cases) -> None:
    """One line of the best times of each case, all cases taking turns."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    best = dict.fromkeys(cases, float("inf"))
    for _ in range(ROUNDS):
        for name, calls in cases.items():
            for call in calls:
                start = clock()
                call()
                best[name] = min(best[name], clock() - start)
    torchs = min(time_s for name, time_s in best.items() if name.startswith("torch"))
    times = (
        f"{name} {1e3 * time_s:.2f}" + ("" if name.startswith("torch") else f" ({torchs / time_s:.1f}x)")
        for name, time_s in best.items()
    )
    print(f"{label}: {', '.join(times)}", flush=True)


def linear_weights(outputs: int, inputs: int, *, copies: int, num_threads: int) -> list[dict[str, torch.Tensor]]:
    weights = []
    for _ in range(copies):
        int8 = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
        group_scales = torch.ones(outputs, inputs // native.GROUP_INPUTS)
        int4, int4_scales = native.pack_int4(int8 >> 4, group_scales, num_threads=num_threads)
        weights.append(
            {
                "float32": int8.float(),
                "bfloat16": int8.bfloat16(),
                "int8": native.pack_int8(int8, num_threads=num_threads),
                "scales": torch.ones(outputs),
                "int4": int4,
                "int4_scales": int4_scales,
            }
        )
    return weights


def linears(weights: list[dict[str, torch.Tensor]], num_rows: int, num_threads: int) -> Cases:
    outputs, inputs = weights[0]["float32"].shape
    x = torch.randn(num_rows, inputs)
    half = x.bfloat16()

    def int4(w: dict[str, torch.Tensor]) -> torch.Tensor:
        return native.linear_w4a16(x, w["int4"], w["int4_scales"], outputs, num_threads=num_threads)

    cases: dict[str, Callable[[dict[str, torch.Tensor]], torch.Tensor]] = {
        "torch float32": lambda w: F.linear(x, w["float32"]),
        "torch bfloat16": lambda w: F.linear(half, w["bfloat16"]),
        "w8a8": lambda w: native.linear_w8a8(x, w["int8"], w["scales"], num_threads=num_threads),
        "w8a16": lambda w: native.linear_w8a16(x, w["int8"], w["scales"], num_threads=num_threads),
        "w4a16": int4,
        "bf16": lambda w: native.linear_bf16(half, w["bfloat16"], num_threads=num_threads),
    }
    if num_rows > 16:
        del cases["torch bfloat16"]  # seconds, on a processor without instructions for it
    return {name: [partial(call, w) for w in weights] for name, call in cases.items()}


def attentions(num_sequences: int, num_keys: int, num_new: int, num_threads: int) -> Cases:
    heads, size, block_tokens = 36, 64, 16
    num_blocks = -(-num_keys // block_tokens)
    table = torch.randperm(num_blocks * num_sequences).view(num_sequences, num_blocks)
    q = torch.randn(num_sequences * num_new, heads, size)
    k, v = torch.randn(2, num_sequences * num_blocks * block_tokens, heads, size)
    slots = torch.arange(len(k))
    first_tokens = (torch.arange(num_sequences + 1) * num_new).int()
    layout = (table.int(), first_tokens, torch.full((num_sequences,), num_keys).int())
    mask = torch.ones(num_new, num_keys).tril(num_keys - num_new).bool()
    cases: Cases = {}
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        shape = (heads, num_sequences * num_blocks, block_tokens, size)
        scales = [torch.empty(shape[:3]) if dtype == torch.int8 else None for _ in range(2)]
        pools = Pools(torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype), *scales)
        store(k, v, slots, pools, num_threads=num_threads)
        name = str(dtype).removeprefix("torch.")
        if dtype != torch.int8:
            rows = q.to(dtype).view(num_sequences, num_new, heads, size).transpose(1, 2)
            kept_k, kept_v = (gathered(pool, table, num_keys) for pool in (pools.keys, pools.values))
            cases[f"torch {name}, in one piece"] = [partial(attend, rows, kept_k, kept_v, mask)]
            cases[f"torch {name}, gathered"] = [partial(attend_gathered, rows, pools, table, mask)]
        cases[name] = [partial(attend_blocks, q, pools, layout, num_threads)]
    return cases


def attend_blocks(
    q: torch.Tensor, pools: Pools, layout: tuple[torch.Tensor, torch.Tensor, torch.Tensor], num_threads: int
) -> torch.Tensor:
    block_table, first_tokens, num_keys = layout
    return paged_attention(
        q, pools, block_table=block_table, first_tokens=first_tokens, num_keys=num_keys, num_threads=num_threads
    )


def gathered(pool: torch.Tensor, table: torch.Tensor, num_keys: int) -> torch.Tensor:
    """[sequences, heads, keys, size] of blocks."""
    picked = pool.index_select(1, table.flatten())
    return picked.view(len(pool), len(table), -1, pool.shape[3])[:, :, :num_keys].transpose(0, 1).contiguous()


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def attend_gathered(q: torch.Tensor, pools: Pools, table: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    k, v = (gathered(pool, table, mask.shape[1]) for pool in (pools.keys, pools.values))
    return attend(q, k, v, mask)


if __name__ == "__main__":
    main()
