"""Which formats are planned for: the most exact that leave room for the requests that are wanted. No torch."""

from dataclasses import replace

from model.config import ModelConfig
from model.formats import KvFormat, WeightFormat, computes_in, kv_block_bytes
from model.runtime.errors import DeviceError, NotEnoughMemory
from model.runtime.memory_plan import (
    MIB,
    REQUEST_TOKENS,
    RUNTIME_BYTES,
    Limits,
    Machine,
    MemoryPlan,
    Wishes,
    budget_bytes,
    gib,
    is_small,
    plan_formats,
)


def plan_memory(config: ModelConfig, machine: Machine, limits: Limits, wishes: Wishes) -> MemoryPlan:
    """The plan that is followed.

    Of the pairs of formats that the wishes leave open, the most exact one that holds the wanted requests; where none
    does, the one that holds the most.

    Raises:
        NotEnoughMemory: nothing useful fits; with the numbers, and what would fit.
        DeviceError: the device does not compute in the wanted format.
    """
    _check_free(machine, wishes)
    if wishes.weights == "bf16" and machine.half != "bf16":
        raise DeviceError(f"{machine.name} does not compute in bf16; use --weights {machine.half}")
    plans = [plan_formats(config, machine, limits, wishes, *pair) for pair in _pairs(config, machine, wishes)]
    useful = [plan for plan in plans if plan.is_useful]
    if not useful:
        raise NotEnoughMemory(_refusal(config, machine, limits, wishes, plans[-1]))
    # Nobody has promised anything of a host's memory that was not given a size: exactness first.
    counts = machine.kind == "cuda" or wishes.memory is not None
    wanted = min(wishes.num_requests, limits.max_num_sequences) if counts else 1
    request_tokens = min(REQUEST_TOKENS, limits.max_context_tokens)
    enough = [plan for plan in useful if plan.num_requests(request_tokens) >= wanted]
    return enough[0] if enough else max(useful, key=lambda plan: plan.num_kv_blocks)


def compare_formats(config: ModelConfig, machine: Machine, limits: Limits, wishes: Wishes) -> list[MemoryPlan]:
    """A plan for every pair of formats that the wishes leave open, the largest weights first.

    Raises:
        NotEnoughMemory: the memory that is wanted is not there.
    """
    _check_free(machine, wishes)
    weights: tuple[WeightFormat, ...] = ("fp32", machine.half, "fp8", "int8", "int4")
    kvs: tuple[KvFormat, ...] = (machine.half, "fp8", "int8")
    return [
        plan_formats(config, machine, limits, wishes, weight, kv)
        for weight in (weights if wishes.weights == "auto" else (wishes.weights,))
        for kv in (kvs if wishes.kv == "auto" else (wishes.kv,))
    ]


def _check_free(machine: Machine, wishes: Wishes) -> None:
    if wishes.memory is None:
        return
    # Part of the runtime is there when this is asked, so it does not have to be free.
    most = min(machine.free_bytes + RUNTIME_BYTES[machine.kind], machine.total_bytes)
    if (wanted := budget_bytes(machine, wishes)) > most:
        raise NotEnoughMemory(
            f"--memory {gib(wanted)} is more than there is: {gib(machine.free_bytes)} of {gib(machine.total_bytes)} "
            f"are free on {machine.name}; the most is --memory {most // MIB}MiB"
        )


def _pairs(config: ModelConfig, machine: Machine, wishes: Wishes) -> list[tuple[WeightFormat, KvFormat]]:
    """What to try, the most exact first. Four bits and fp8 are never chosen, only asked for."""
    if wishes.weights != "auto":
        options: list[WeightFormat] = [wishes.weights]
    elif is_small(config, machine):
        options = ["fp32", machine.half, "int8"]
    else:
        options = [machine.half, "int8"]
    pairs: list[tuple[WeightFormat, KvFormat]] = []
    for weights in options:
        # Keys and values of packed weights are not worth more than 16 bits.
        exact = computes_in(weights) or machine.half
        kvs: tuple[KvFormat, ...] = (exact, "int8") if wishes.kv == "auto" else (wishes.kv,)
        pairs += [(weights, kv) for kv in kvs]
    return pairs


def _refusal(config: ModelConfig, machine: Machine, limits: Limits, wishes: Wishes, plan: MemoryPlan) -> str:
    """Why a plan is of no use, with the numbers, and what would be."""
    needed = _smallest_use(config, machine, limits, wishes, plan)
    parts = ", ".join(f"{name} {gib(num_bytes)}" for name, num_bytes in needed.rows() if num_bytes)
    if wishes.kv_cache_bytes is not None and wishes.kv_cache_bytes < needed.kv_bytes:
        return (
            f"--kv-cache-memory {gib(wishes.kv_cache_bytes)} is too little: one sequence of {needed.num_kv_tokens} "
            f"tokens in {plan.kv} takes {gib(needed.kv_bytes)}; the least is --kv-cache-memory "
            f"{-(-needed.kv_bytes // MIB)}MiB"
        )
    text = (
        f"{gib(budget_bytes(machine, wishes))} on {machine.name} are too little: {gib(needed.total_bytes)} are needed "
        f"({parts} for {needed.num_kv_tokens} tokens)"
    )
    return f"{text}; {_advice(config, machine, limits, wishes)}"


def _advice(config: ModelConfig, machine: Machine, limits: Limits, wishes: Wishes) -> str:
    """The most exact setting that fits; the memory that the smallest needs when none does."""
    pairs: tuple[tuple[WeightFormat, KvFormat], ...] = (
        (machine.half, machine.half),
        (machine.half, "int8"),
        ("int8", machine.half),
        ("int8", "int8"),
        ("int4", "int8"),
    )
    plans = [plan_formats(config, machine, limits, wishes, *pair) for pair in pairs]
    for plan in plans:
        if plan.is_useful:
            return f"--weights {plan.weights} --kv {plan.kv} would fit"
    smallest = _smallest_use(config, machine, limits, wishes, plans[-1])
    return f"the smallest, --weights int4 --kv int8, needs {-(-smallest.total_bytes // MIB)}MiB"


def _smallest_use(
    config: ModelConfig, machine: Machine, limits: Limits, wishes: Wishes, plan: MemoryPlan
) -> MemoryPlan:
    """The same formats with the KV cache that was asked for, or with the least that is of use."""
    free = replace(wishes, memory=1 << 60)
    if wishes.kv_cache_bytes is not None:
        asked = plan_formats(config, machine, limits, free, plan.weights, plan.kv)
        if asked.is_useful:
            return asked
    one_block = kv_block_bytes(config.language, plan.kv, on_cuda=machine.kind == "cuda")
    free = replace(free, kv_cache_bytes=plan.least_kv_blocks * one_block)
    return plan_formats(config, machine, limits, free, plan.weights, plan.kv)
