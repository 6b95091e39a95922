"""What the memory goes to: a plan that is made before anything is loaded, and kept.

Weights, caches and a step's needs follow from sizes; what they leave of the budget is KV cache. No torch:
`minicpmv plan` makes the same plan for machines that are not there, from config.json alone. Which formats are planned
for is chosen in `model.runtime.memory_choice`.
"""

from dataclasses import dataclass, replace
from typing import Literal

from model.config import ModelConfig
from model.formats import (
    BLOCK_TOKENS,
    COMPUTE_BYTES,
    ComputeFormat,
    KvFormat,
    WeightFormat,
    computes_in,
    kv_block_bytes,
    num_parameters,
    weight_bytes,
)

Kind = Literal["cuda", "cpu"]

GIB = 1024**3
MIB = 1024**2

REQUEST_TOKENS = 700 + 256
"""What concurrency is counted in: a question about a large picture, and its answer."""

RUNTIME_BYTES: dict[Kind, int] = {"cuda": 410 * MIB, "cpu": 400 * MIB}
"""CUDA's context with the kernels of torch, and what its allocator cannot use; Python, torch and its libraries."""
# Launch parameters and private pools of the graphs of decode steps.
_GRAPH_BYTES = {"cuda": 100 * 10**6, "cpu": 0}
# Pieces of a weight on their way to a product: see `model.nn.linear`.
_SCRATCH_BYTES = 2 * 16 * MIB

# On a host the cache shares the memory with everything else that runs there, unless a size is given.
_MAX_HOST_SHARE = 0.25
_MAX_HOST_BYTES = 4 * GIB
# For encoded pictures that left the device: the crops of some 180 large ones. On a host, where they take from the KV
# cache, at most the share that this is of 8 GiB.
_HOST_CACHE_BYTES = 512 * MIB
_MAX_HOST_CACHE_SHARE = 1 / 16
# The largest picture block (671 tokens) with a question and an answer: with less, the server would be of no use.
_MIN_CONTEXT_TOKENS = 1024
# A model up to this size runs in float32 on a CPU when nothing is said: exact, and no slower there.
_MAX_FLOAT32_BYTES = 1_000_000_000

# Crops of one size that share a pass: a few fill a GPU; on a CPU the activations of two no longer fit into the caches.
_CROPS_PER_PASS = {"cuda": 4, "cpu": 1}
# On a GPU sequences decode in few calls, padded to the longest; on a CPU the padding costs more than the calls.
_GROUP_KEYS = {"cuda": 8192, "cpu": 0}
# Enough rows to keep the processor busy, while decoding waits for no more of them than that. On a CPU products of 128
# rows run at nine tenths of the speed of 512.
_STEP_TOKENS = {"cuda": 1024, "cpu": 128}
# Two sequences with the longest draft of the settings' default.
_MIN_STEP_DRAWS = 16

WeightSetting = Literal["auto", "fp32", "bf16", "fp16", "int8", "int4", "fp8"]
KvSetting = Literal["auto", "fp32", "bf16", "fp16", "int8", "fp8"]


@dataclass(frozen=True, slots=True)
class Machine:
    """A device, as far as the plan depends on it."""

    name: str
    kind: Kind
    total_bytes: int
    """Of the device; of the host, what the control groups allow."""
    free_bytes: int
    half: ComputeFormat
    """The 16-bit format that is computed in."""
    fast_half: bool
    """Whether there are instructions for products in it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the scheduler keeps to; the sizes of what a step needs follow from them."""

    max_context_tokens: int
    max_num_sequences: int
    max_step_tokens: int
    num_crop_slots: int
    host_cache_bytes: int | None
    """Host memory for encoded crops that had to leave their slots: on a host the same memory as all the rest, beside a
    GPU none that the plan counts. None: by budget."""
    pixel_buffer_bytes: int
    """Memory shared with the API process, on a host the same memory as all the rest."""
    max_crops_per_pass: int
    """Crops of one size that go through the tower together."""
    max_group_keys: int
    """Keys gathered at a time when several sequences decode in one call; 0 where each decodes by itself."""

    @property
    def max_step_draws(self) -> int:
        """Ids drawn in a step: one for each sequence, or several for each where few decode and have drafts."""
        return max(self.max_num_sequences, _MIN_STEP_DRAWS)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the operator has said."""

    weights: WeightSetting = "auto"
    kv: KvSetting = "auto"
    memory: int | float | None = None
    """A whole number of bytes; a float is a share of the device. None: what is free."""
    kv_cache_bytes: int | None = None
    """None: what the rest leaves of the budget."""
    num_requests: int = 1
    """Requests of REQUEST_TOKENS that `auto` makes room for."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What is stored in which format, and what takes how many bytes."""

    machine: str
    weights: WeightFormat
    kv: KvFormat
    compute: ComputeFormat
    """Of activations, and of the weights that are not packed."""
    budget_bytes: int
    """The promise: what the operator gave, or the sum of what is planned."""
    runtime_bytes: int
    weight_bytes: int
    workspace_bytes: int
    """For a time in each step, and the sampling states."""
    encoder_bytes: int
    """For a time in each pass of the vision tower, and its tables of positions."""
    graph_bytes: int
    image_bytes: int
    """Encoded crops that are kept in slots; on a host also those that had to leave them, and the pixels that wait."""
    crop_bytes: int
    """Of one encoded crop."""
    num_host_slots: int
    """Encoded crops that the host's memory is to hold."""
    kv_bytes: int
    num_kv_blocks: int
    least_kv_blocks: int
    """What one sequence of a useful length takes."""

    @property
    def fixed_bytes(self) -> int:
        """All but the KV cache."""
        return (
            self.runtime_bytes
            + self.weight_bytes
            + self.workspace_bytes
            + self.encoder_bytes
            + self.graph_bytes
            + self.image_bytes
        )

    @property
    def total_bytes(self) -> int:
        return self.fixed_bytes + self.kv_bytes

    @property
    def is_useful(self) -> bool:
        """Whether one sequence of some length fits at all."""
        return self.num_kv_blocks >= self.least_kv_blocks

    @property
    def num_kv_tokens(self) -> int:
        return self.num_kv_blocks * BLOCK_TOKENS

    def num_requests(self, num_tokens: int = REQUEST_TOKENS) -> int:
        """Requests of so many tokens whose keys and values fit at the same time."""
        return self.num_kv_blocks // num_blocks(num_tokens)

    def rows(self) -> tuple[tuple[str, int], ...]:
        """What each part is called and how many bytes it takes, in the order of the table."""
        return (
            ("runtime", self.runtime_bytes),
            (f"weights in {self.weights}", self.weight_bytes),
            ("workspace", self.workspace_bytes),
            ("encoder", self.encoder_bytes),
            ("graphs", self.graph_bytes),
            ("pictures", self.image_bytes),
            (f"KV cache in {self.kv}", self.kv_bytes),
        )


def make_limits(
    config: ModelConfig,
    kind: Kind,
    *,
    max_context_tokens: int | None,
    max_num_sequences: int,
    max_step_tokens: int | None,
    num_crop_slots: int,
    host_cache_bytes: int | None,
    pixel_buffer_bytes: int,
) -> Limits:
    """The limits for a kind of device; None takes the model's own context, or what is usual for the device."""
    return Limits(
        max_context_tokens=min(max_context_tokens or config.max_context_tokens, config.max_context_tokens),
        max_num_sequences=max_num_sequences,
        max_step_tokens=max_step_tokens or default_step_tokens(kind, max_num_sequences),
        num_crop_slots=num_crop_slots,
        host_cache_bytes=host_cache_bytes,
        pixel_buffer_bytes=pixel_buffer_bytes,
        max_crops_per_pass=_CROPS_PER_PASS[kind],
        max_group_keys=_GROUP_KEYS[kind],
    )


def default_step_tokens(kind: Kind, max_num_sequences: int) -> int:
    """A step's tokens unless set: every sequence can decode in it."""
    return max(_STEP_TOKENS[kind], max_num_sequences)


def is_small(config: ModelConfig, machine: Machine) -> bool:
    """Whether the model is computed in float32 unless the operator says otherwise."""
    return machine.kind == "cpu" and 4 * num_parameters(config) < _MAX_FLOAT32_BYTES


def _compute_format(config: ModelConfig, machine: Machine, weights: WeightFormat) -> ComputeFormat:
    named = computes_in(weights)
    if named is not None:
        return named
    # Packed weights are unpacked for the product anyway: into what the processor is fast in.
    return machine.half if machine.fast_half and not is_small(config, machine) else "fp32"


def plan_formats(
    config: ModelConfig,
    machine: Machine,
    limits: Limits,
    wishes: Wishes,
    weights: WeightFormat,
    kv: KvFormat,
) -> MemoryPlan:
    """The plan for one pair of formats, whatever `wishes` say of them; it may be of no use."""
    compute = _compute_format(config, machine, weights)
    item_bytes = COMPUTE_BYTES[compute]
    crop_bytes = config.resampler.num_queries * config.resampler.hidden_size * item_bytes
    num_host_slots = _host_cache_bytes(machine, limits, wishes) // crop_bytes
    unpacks = machine.kind == "cpu" or computes_in(weights) is None
    one_block = kv_block_bytes(config.language, kv, on_cuda=machine.kind == "cuda")
    plan = MemoryPlan(
        machine=machine.name,
        weights=weights,
        kv=kv,
        compute=compute,
        budget_bytes=budget_bytes(machine, wishes),
        runtime_bytes=RUNTIME_BYTES[machine.kind],
        weight_bytes=weight_bytes(config, weights, compute, on_cuda=machine.kind == "cuda"),
        workspace_bytes=_workspace_bytes(config, limits, item_bytes, one_block) + (_SCRATCH_BYTES if unpacks else 0),
        encoder_bytes=_encoder_bytes(config, limits, item_bytes),
        graph_bytes=_GRAPH_BYTES[machine.kind],
        image_bytes=_image_bytes(machine, limits, num_host_slots, crop_bytes),
        crop_bytes=crop_bytes,
        num_host_slots=num_host_slots,
        kv_bytes=0,
        num_kv_blocks=0,
        least_kv_blocks=num_blocks(min(limits.max_context_tokens, _MIN_CONTEXT_TOKENS)),
    )
    most = limits.max_num_sequences * num_blocks(limits.max_context_tokens)
    blocks = min(_kv_budget_bytes(plan, machine, wishes, one_block) // one_block, most)
    plan = replace(plan, kv_bytes=blocks * one_block, num_kv_blocks=blocks)
    return plan if wishes.memory is not None else replace(plan, budget_bytes=plan.total_bytes)


def budget_bytes(machine: Machine, wishes: Wishes) -> int:
    """What all of it may take together."""
    match wishes.memory:
        case None:
            return machine.free_bytes
        case float():
            return int(wishes.memory * machine.total_bytes)
        case _:
            return wishes.memory


def _kv_budget_bytes(plan: MemoryPlan, machine: Machine, wishes: Wishes, one_block: int) -> int:
    left_bytes = max(0, plan.budget_bytes - plan.fixed_bytes)
    if wishes.kv_cache_bytes is not None:
        return wishes.kv_cache_bytes if wishes.kv_cache_bytes <= left_bytes else 0
    if wishes.memory is None and machine.kind == "cpu":
        share = min(int(_MAX_HOST_SHARE * left_bytes), _MAX_HOST_BYTES)
        return min(left_bytes, max(share, plan.least_kv_blocks * one_block))
    return left_bytes


def _host_cache_bytes(machine: Machine, limits: Limits, wishes: Wishes) -> int:
    if limits.host_cache_bytes is not None:
        return limits.host_cache_bytes
    if machine.kind == "cuda":
        return _HOST_CACHE_BYTES
    return min(_HOST_CACHE_BYTES, int(_MAX_HOST_CACHE_SHARE * budget_bytes(machine, wishes)))


def _image_bytes(machine: Machine, limits: Limits, num_host_slots: int, crop_bytes: int) -> int:
    on_host = num_host_slots * crop_bytes + limits.pixel_buffer_bytes
    return limits.num_crop_slots * crop_bytes + (on_host if machine.kind == "cpu" else 0)


def _workspace_bytes(config: ModelConfig, limits: Limits, item_bytes: int, block_bytes: int) -> int:
    """A step's forward pass or its draws, which do not overlap, and the states that draws keep."""
    language = config.language
    heads = (language.num_heads + 2 * language.num_kv_heads) * language.head_size
    # Residual stream, norms, fused q, k, v with their rotated copies in float32, gate, up and their product.
    token_bytes = (4 * language.hidden_size + 2 * heads + 3 * language.mlp_size) * item_bytes + 4 * heads
    # Gathered keys and values of the sequences that decode together, or of the longest one in a prefill chunk, as they
    # are stored and as they are computed with.
    num_keys = max(limits.max_group_keys, limits.max_context_tokens)
    computed_bytes = 2 * language.num_kv_heads * language.head_size * item_bytes
    stored_bytes = block_bytes // (BLOCK_TOKENS * language.num_layers)
    key_bytes = computed_bytes + max(computed_bytes, stored_bytes)
    # Scores in both formats, their copies after penalty and temperature, the sorted copy, its order and sums.
    score_bytes = 10 * 4 * language.vocab_size
    state_bytes = 2 * language.vocab_size
    forward_bytes = limits.max_step_tokens * token_bytes + num_keys * key_bytes
    return max(forward_bytes, limits.max_step_draws * score_bytes) + limits.max_num_sequences * state_bytes


def _encoder_bytes(config: ModelConfig, limits: Limits, item_bytes: int) -> int:
    """One pass of the tower and the resampler."""
    vision, width = config.vision, config.language.hidden_size
    patches = (config.slicing.image_size // vision.patch_size) ** 2
    # Residual stream, norm, and the wider of the tower's inner layer and the resampler's keys and values.
    patch_bytes = (2 * vision.hidden_size + max(2 * vision.mlp_size, 5 * width)) * item_bytes
    return limits.max_crops_per_pass * patches * patch_bytes


def num_blocks(num_tokens: int) -> int:
    """KV blocks that so many tokens take."""
    return -(-num_tokens // BLOCK_TOKENS)


def gib(num_bytes: int) -> str:
    """For messages and tables."""
    return f"{num_bytes / GIB:.2f} GiB"
