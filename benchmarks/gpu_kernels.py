"""The Triton kernels against their roofline and against torch's own, at the full-size model's shapes.

    python -m benchmarks.gpu_kernels [--only WORD] [--rounds N]

Each line says how long a kernel takes at the least (its roofline: the larger of bytes over bandwidth and operations
over arithmetic, both measured on the card first, by torch's copy and product), how long it took, and how long torch's
way of the same takes. Times are medians of several, between CUDA events, with the second level cache overwritten before
each. Without a CUDA device the bytes and operations are printed, without times.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from model.formats import BLOCK_TOKENS, KvFormat
from model.gpu.support import is_available, status
from model.nn.attention.base import AttentionPlan, LayerCache, PagedRows
from model.nn.attention.reference import reference_attention
from model.nn.kernels import LanguageKernels, Rotary, TorchKernels
from model.nn.quant import TritonWeight
from model.runtime.kv_cache import allocate_cache

HEADS, SIZE, WIDTH, MLP = 36, 64, 2304, 5760
PRODUCTS = {"gate, up": (2 * MLP, WIDTH), "down": (WIDTH, MLP), "head": (122753, WIDTH)}
KV_BYTES: dict[KvFormat, float] = {"bf16": 2, "int8": 1 + 2 / SIZE, "fp8": 1}
DTYPE = torch.bfloat16
FLUSH_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel at one size."""

    name: str
    num_bytes: float
    """Read and written once each."""
    num_operations: float
    prepare: Callable[[torch.device], tuple[Callable[[], object], Callable[[], object]]]
    """Calls of the kernel and of torch's way."""


@dataclass(frozen=True, slots=True)
class Roofline:
    """What this card does at the most."""

    bytes_per_s: float
    operations_per_s: float

    def least_s(self, case: Case) -> float:
        return max(case.num_bytes / self.bytes_per_s, case.num_operations / self.operations_per_s)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the GPU kernels against their roofline.")
    parser.add_argument("--only", default="", help="only lines with this word")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    wanted = [case for case in cases() if options.only in case.name]
    device = torch.device("cuda:0")
    if not torch.cuda.is_available():
        print("No CUDA device: this is what would be timed.")
        for case in wanted:
            print(f"{case.name}: {case.num_bytes / 1e6:.1f} MB, {case.num_operations / 1e9:.2f} GFLOP")
        return
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, {status(device)}")
    if not is_available(device):
        return
    torch.manual_seed(0)
    roofline = measure_roofline(device, options.rounds)
    print(f"measured roof: {roofline.bytes_per_s / 1e9:.0f} GB/s, {roofline.operations_per_s / 1e12:.0f} TFLOP/s")
    with torch.inference_mode():
        for case in wanted:
            report(case, roofline, device, options.rounds)


def report(case: Case, roofline: Roofline, device: torch.device, rounds: int) -> None:
    calls = case.prepare(device)
    least_s, ours_s, torchs_s = roofline.least_s(case), *(median_s(call, device, rounds) for call in calls)
    print(
        f"{case.name}: roof {1e6 * least_s:.1f} us, kernel {1e6 * ours_s:.1f} us ({least_s / ours_s:.0%} of the roof), "
        f"torch {1e6 * torchs_s:.1f} us ({torchs_s / ours_s:.1f}x)",
        flush=True,
    )


def median_s(call: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Of one call, after three that compile and warm up."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
    for _ in range(3):
        call()
    times_ms: list[float] = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        flush.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        times_ms.append(start.elapsed_time(end))
    return statistics.median(times_ms) / 1e3


def measure_roofline(device: torch.device, rounds: int) -> Roofline:
    source = torch.empty(1024**3, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    matrix = torch.randn(8192, 8192, device=device).to(DTYPE)
    copy_s = median_s(lambda: target.copy_(source), device, rounds)
    product_s = median_s(lambda: matrix @ matrix, device, rounds)
    return Roofline(2 * len(source) / copy_s, 2 * 8192**3 / product_s)


def cases() -> Iterator[Case]:
    for num_rows, num_keys in ((1, 256), (1, 828), (1, 2048), (8, 828), (32, 828)):
        for kv in KV_BYTES:
            yield attention(num_rows, 1, num_keys, kv)
    for num_new, num_keys in ((512, 512), (64, 828), (512, 2048)):
        for kv in KV_BYTES:
            yield attention(1, num_new, num_keys, kv)
    for name in PRODUCTS:
        for num_rows in (1, 8, 16, 64, 512):
            for kind in (torch.int8, torch.float8_e4m3fn):
                yield product(name, num_rows, kind)
    for num_rows in (1, 32, 512):
        yield from small_steps(num_rows)


def attention(num_rows: int, num_new: int, num_keys: int, kv: KvFormat) -> Case:
    """With the writing of the new tokens. Torch's way is its own kernel on keys in one piece, without any copying."""
    num_tokens = num_rows * num_new
    kv_bytes = 2 * HEADS * SIZE * KV_BYTES[kv] * num_rows * num_keys
    visible = num_new * (num_keys - (num_new - 1) / 2)

    def prepare(device: torch.device) -> tuple[Callable[[], object], Callable[[], object]]:
        kernels, [cache] = ours(), allocated(num_rows * -(-num_keys // BLOCK_TOKENS), kv, device)
        plan = make_plan(num_rows, num_new, num_keys, device)
        q, k, v = torch.randn(num_tokens, 3 * HEADS, SIZE, device=device).to(DTYPE).chunk(3, dim=1)
        angles = torch.randn(num_tokens, 1, SIZE // 2, device=device)
        rotary = Rotary(angles.cos(), angles.sin())
        queries = q.reshape(num_rows, num_new, HEADS, SIZE).transpose(1, 2)
        keys = torch.randn(num_rows, HEADS, num_keys, SIZE, device=device).to(DTYPE)
        mask = torch.ones(num_new, num_keys, device=device).tril(num_keys - num_new).bool()
        return (
            lambda: kernels.attend(q, k, v, rotary, cache, plan),
            lambda: torch.nn.functional.scaled_dot_product_attention(queries, keys, keys, attn_mask=mask),
        )

    return Case(
        f"attention in {kv}, {num_rows} x {num_new} tokens to {num_keys}",
        kv_bytes + num_tokens * HEADS * SIZE * 2 * 4,
        4 * HEADS * SIZE * visible * num_rows,
        prepare,
    )


def make_plan(num_rows: int, num_new: int, num_keys: int, device: torch.device) -> AttentionPlan:
    num_blocks = -(-num_keys // BLOCK_TOKENS)
    table = torch.randperm(num_rows * num_blocks).view(num_rows, num_blocks)
    positions = torch.arange(num_keys - num_new, num_keys)
    slots = table[:, positions // BLOCK_TOKENS] * BLOCK_TOKENS + positions % BLOCK_TOKENS
    decodes = num_new == 1
    rows = PagedRows(
        block_table=table.int().to(device),
        first_tokens=(torch.arange(num_rows + 1) * num_new).int().to(device),
        num_keys=torch.full((num_rows,), num_keys).int().to(device),
        num_decoding=num_rows if decodes else 0,
        max_decoding_keys=num_keys if decodes else 0,
        max_new=0 if decodes else num_new,
    )
    return AttentionPlan(slots=slots.flatten().to(device), groups=(), rows=rows)


def allocated(num_blocks: int, kv: KvFormat, device: torch.device) -> tuple[LayerCache, ...]:
    """One layer of the full-size model, with random numbers in it."""
    shape = SimpleNamespace(num_layers=1, num_kv_heads=HEADS, head_size=SIZE)
    caches = allocate_cache(shape, num_blocks, kv, device).layers  # type: ignore[arg-type]  # it reads these three alone
    for pool in (caches[0].keys, caches[0].values):
        slots = torch.arange(num_blocks * BLOCK_TOKENS, device=device)
        pool.write(slots, torch.randn(len(slots), HEADS, SIZE, device=device).to(DTYPE))
    return caches


def product(name: str, num_rows: int, kind: torch.dtype) -> Case:
    """Torch's way is its product with the weight in bfloat16, which takes twice the memory."""
    outputs, inputs = PRODUCTS[name]

    def prepare(device: torch.device) -> tuple[Callable[[], object], Callable[[], object]]:
        weight = TritonWeight(outputs, inputs, DTYPE, device, kind)
        plain = torch.randn(outputs, inputs, device=device).to(DTYPE)
        weight.fill(0, plain)
        x = torch.randn(num_rows, inputs, device=device).to(DTYPE)
        return lambda: weight.multiply(x), lambda: torch.nn.functional.linear(x, plain)

    return Case(
        f"product with {str(kind).removeprefix('torch.')} weights, {name}, {num_rows} rows",
        outputs * (inputs + 4) + 2 * num_rows * (inputs + outputs),
        2 * num_rows * outputs * inputs,
        prepare,
    )


def small_steps(num_rows: int) -> Iterator[Case]:
    def norm(device: torch.device) -> tuple[Callable[[], object], Callable[[], object]]:
        h, branch = torch.randn(2, num_rows, WIDTH, device=device).to(DTYPE)
        weight = torch.randn(WIDTH, device=device).to(DTYPE)
        kernels, plain = ours(), torchs()
        return (
            lambda: kernels.add_rms_norm(h, branch, 0.22, weight, 1e-5),
            lambda: plain.add_rms_norm(h, branch, 0.22, weight, 1e-5),
        )

    def silu(device: torch.device) -> tuple[Callable[[], object], Callable[[], object]]:
        gate_up = torch.randn(num_rows, 2 * MLP, device=device).to(DTYPE)
        kernels, plain = ours(), torchs()
        return lambda: kernels.silu_mul(gate_up), lambda: plain.silu_mul(gate_up)

    yield Case(f"sum and norm, {num_rows} rows", 4 * 2 * num_rows * WIDTH, 0, norm)
    yield Case(f"silu times up, {num_rows} rows", 3 * 2 * num_rows * MLP, 0, silu)


def ours() -> LanguageKernels:
    from model.nn.triton_kernels import TritonKernels  # needs triton

    return TritonKernels()


def torchs() -> LanguageKernels:
    return TorchKernels(reference_attention)


if __name__ == "__main__":
    main()
