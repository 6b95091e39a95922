"""`minicpmv plan`: what fits into which memory, from config.json alone. Needs neither a GPU nor weights."""

import sys

from pydantic import Field
from rich.console import Console
from rich.table import Table

from model.config import ConfigError, ModelConfig, load_config
from model.runtime.errors import RunnerStartError
from model.runtime.memory_choice import compare_formats, plan_memory
from model.runtime.memory_plan import (
    GIB,
    MIB,
    REQUEST_TOKENS,
    Kind,
    Limits,
    Machine,
    MemoryPlan,
    Wishes,
    gib,
    make_limits,
    num_blocks,
)
from server.hub import ModelError, resolve_config
from server.settings import Bytes, Settings

_DEFAULT_DEVICE_BYTES = 8 * GIB


class PlanSettings(Settings):
    """What `minicpmv serve` would do with the same settings on a device of a given size."""

    device_memory: Bytes | None = Field(
        None, ge=2**20, description="of the device that is planned for; default: memory, or 8GiB; auto is a GPU here"
    )


def run_plan(settings: PlanSettings) -> int:
    """Prints the tables; returns the exit status, 1 where nothing fits or the model cannot be found."""
    console = Console()
    try:
        config = load_config(resolve_config(settings.model, settings.revision, settings.model_source))
        machine, limits, wishes = _asked(settings, config)
        plans = compare_formats(config, machine, limits, wishes)
        memory = "what is free" if wishes.memory is None else gib(plans[0].budget_bytes)
        console.print(f"\n{machine.name} of {gib(machine.total_bytes)}, --memory: {memory}", highlight=False)
        console.print(_comparison(plans))
        taken = plan_memory(config, machine, limits, wishes)
    except (ModelError, ConfigError, RunnerStartError) as err:
        print(f"minicpmv: {err}", file=sys.stderr)
        return 1
    per_request = taken.kv_bytes // taken.num_kv_blocks * num_blocks(REQUEST_TOKENS)
    console.print(
        f"\ntaken: --weights {taken.weights} --kv {taken.kv}, computing in {taken.compute}; a request of "
        f"{REQUEST_TOKENS} tokens takes {per_request / MIB:.0f} MiB of KV cache",
        highlight=False,
    )
    console.print(_parts(taken))
    return 0


def _asked(settings: PlanSettings, config: ModelConfig) -> tuple[Machine, Limits, Wishes]:
    kind: Kind = "cpu" if settings.device == "cpu" else "cuda"
    given = settings.memory if isinstance(settings.memory, int) else _DEFAULT_DEVICE_BYTES
    device_bytes = settings.device_memory or given
    machine = Machine(
        name="a CPU" if kind == "cpu" else "a GPU",
        kind=kind,
        total_bytes=device_bytes,
        free_bytes=device_bytes,
        half="bf16",
        fast_half=True,
    )
    limits = make_limits(
        config,
        kind,
        max_context_tokens=settings.max_context_tokens,
        max_num_sequences=settings.max_num_sequences,
        max_step_tokens=settings.max_step_tokens,
        num_crop_slots=settings.image_cache_crops,
        host_cache_bytes=settings.image_cache_memory,
        pixel_buffer_bytes=settings.image_buffer_memory,
    )
    wishes = Wishes(
        weights=settings.weights,
        kv=settings.kv,
        memory=settings.memory,
        kv_cache_bytes=settings.kv_cache_memory,
        num_requests=settings.wanted_requests,
    )
    return machine, limits, wishes


def _comparison(plans: list[MemoryPlan]) -> Table:
    table = Table("weights", "KV")
    for heading in ("weights GiB", "all but KV GiB", "KV GiB", "KV tokens", f"requests of {REQUEST_TOKENS}"):
        table.add_column(heading, justify="right")
    for plan in plans:
        figures = [f"{size / GIB:.2f}" for size in (plan.weight_bytes, plan.fixed_bytes)]
        if plan.is_useful:
            figures += [f"{plan.kv_bytes / GIB:.2f}", f"{plan.num_kv_tokens:,}", f"{plan.num_requests():,}"]
        else:
            figures += ["does not fit", "", ""]
        table.add_row(plan.weights, plan.kv, *figures)
    return table


def _parts(plan: MemoryPlan) -> Table:
    table = Table("part")
    table.add_column("GiB", justify="right")
    for name, num_bytes in plan.rows():
        table.add_row(name, f"{num_bytes / GIB:.2f}")
    table.add_section()
    table.add_row("together", f"{plan.total_bytes / GIB:.2f}")
    return table
