"""Whether a request fits: its prompt and answer into the context and the KV cache, its crops into the engine."""

from collections.abc import Sequence
from dataclasses import dataclass

from model.slicing import SlicePlan
from server.engine.arena import padded
from server.errors import ContextOverflow, InvalidRequest
from server.request import Usage


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What a single request may take, by the engine that runs now."""

    max_context_tokens: int
    default_max_tokens: int
    max_crops: int
    max_crop_bytes: int
    """Pixels of all crops of a request, each rounded up as the arena does."""
    num_kv_blocks: int
    kv_block_tokens: int


def max_tokens_of(asked: int | None, usage: Usage, limits: EngineLimits, num_beams: int, param: str) -> int:
    """Ids to generate: what was asked for, or the default cut to what there is room for. Raises ContextOverflow."""
    if num_beams == 1:
        return _by_context(asked, usage, limits, param)
    room = _room_of_beams(num_beams, usage.prompt_tokens, limits)
    max_tokens = _by_context(asked, usage, limits, param)
    if asked is None:
        max_tokens = min(max_tokens, max(room, 1))
    if max_tokens > room:
        raise ContextOverflow(
            f"the prompt has {usage.prompt_tokens} tokens, and {max_tokens} more are asked for with {num_beams} beams; "
            f"the KV cache has room for {max(room, 0)} more of each beam",
            param="messages" if asked is None or room < 1 else "max_tokens",
        )
    return max_tokens


def _room_of_beams(num_beams: int, num_prompt: int, limits: EngineLimits) -> int:
    """Ids that each beam can generate. They share the full blocks of the prompt; the last id is never computed.

    With 10 blocks of 16: after 40 prompt tokens 2 beams share 2 blocks and have 4 each, in which 6 * 16 - 40 generated
    ids are computed.
    """
    num_shared = num_prompt // limits.kv_block_tokens
    num_own = (limits.num_kv_blocks - num_shared) // num_beams
    return (num_shared + num_own) * limits.kv_block_tokens - num_prompt + 1


def _by_context(asked: int | None, usage: Usage, limits: EngineLimits, param: str) -> int:
    """By the context alone. Raises ContextOverflow."""
    left = limits.max_context_tokens - usage.prompt_tokens
    max_tokens = min(limits.default_max_tokens, max(left, 1)) if asked is None else asked
    if max_tokens > left:
        raise ContextOverflow(
            f"the prompt has {usage.prompt_tokens} tokens, of which {usage.image_tokens} for images, and "
            f"{max_tokens} more are asked for; the context of the model is {limits.max_context_tokens} tokens",
            param="messages" if asked is None or left < 1 else param,
        )
    return max_tokens


def check_min_tokens(min_tokens: int, max_tokens: int) -> None:
    """Raises InvalidRequest."""
    if min_tokens > max_tokens:
        raise InvalidRequest(
            f"min_tokens is {min_tokens}, but no more than {max_tokens} tokens are generated", param="min_tokens"
        )


def check_crops(plans: Sequence[SlicePlan], limits: EngineLimits) -> None:
    """Raises InvalidRequest where the engine could never hold all crops of a request at once."""
    sizes = [size for plan in plans for size in plan.crop_sizes]
    if len(sizes) > limits.max_crops:
        raise InvalidRequest(
            f"the images make {len(sizes)} slices; the engine holds {limits.max_crops} at most",
            param="messages",
            code="limit_exceeded",
        )
    num_bytes = sum(padded(width * height * 3) for width, height in sizes)
    if num_bytes > limits.max_crop_bytes:
        raise InvalidRequest(
            f"the images make slices of {num_bytes} bytes; the engine takes {limits.max_crop_bytes} at most",
            param="messages",
            code="limit_exceeded",
        )
