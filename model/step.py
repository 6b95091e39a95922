"""What crosses between the scheduler and the model: integers, floats and bytes, never a tensor.

The scheduler fills a `StepBatch`, a `Runner` computes it and answers with a `StepOutput`. Nothing in this file
imports torch, so the whole engine can be driven by a fake runner.

Vocabulary
    known tokens     prompt ids plus the ids generated so far
    computed tokens  the prefix of the known tokens whose keys and values are in the KV cache
    crop             one picture that goes through the vision encoder on its own (overview or slice)
    draft            guesses at the ids that come next, computed in the same step as the last known token
    crop slot        index of `num_queries` rows in the device's table of encoded crops
    host slot        the same in a table in the host's memory, for crops that had to leave the device
    state slot       index of a running sequence's sampling state (ids seen, penalties) in the runner
    beam             one of several sequences that continue the same prompt and go on from each other's beginnings
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one sequence's next id is chosen from its logits. Greedy when `temperature` is 0.

    Order of work (MiniCPM-V's reference through transformers): bias, repetition penalty, then presence and frequency
    penalty, end ids held back, temperature, top-k, top-p, min-p, softmax, one draw. Penalties see generated ids only;
    the repetition penalty also sees the implicit start id. Neither ever sees the prompt.
    """

    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """In (0, 1]; 1 keeps everything."""
    top_k: int | None = None
    """None keeps everything; ties with the k-th score stay."""
    repetition_penalty: float = 1.0
    """> 0; 1 changes nothing."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    num_logprobs: int | None = None
    """None: no log-probabilities. n >= 0: that of the chosen id and the n best alternatives, of the raw logits."""
    min_p: float = 0.0
    """In [0, 1]: only ids at least this many times as probable as the most probable one are drawn; 0 keeps all."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(id, what is added to its score), each id once."""
    min_tokens: int = 0
    """Ids that are generated before one of `end_ids` may be."""
    end_ids: tuple[int, ...] = ()
    """Ids that end the answer. They matter only where there are `min_tokens`."""


@dataclass(frozen=True, slots=True)
class StateStart:
    """A sequence takes a state slot in this step; whatever the slot held before is forgotten."""

    state_slot: int
    sampling: SamplingParams
    generated_ids: tuple[int, ...]
    """Ids generated so far: empty for a new sequence, not for one that resumes after a preemption."""


@dataclass(frozen=True, slots=True)
class StateFork:
    """A beam goes on from the ids of one that may be another, and has chosen its next id.

    Its state becomes a copy of that in `source_slot` as it was before all forks of the step, and the id is added.
    """

    state_slot: int
    source_slot: int
    token_id: int


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """A KV block's keys and values, in all layers, come to lie in another block as well."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class CropCopy:
    """An encoded crop moves between the device and the host's memory, as it is, number by number."""

    crop_slot: int
    host_slot: int
    to_host: bool
    """From the crop slot into the host slot; else the other way. What lay in the target is overwritten."""


@dataclass(frozen=True, slots=True)
class EncodeWork:
    """Run blocks `first_block` up to, not including, `last_block` of the vision tower over one crop.

    A crop may take several steps, so that encoding never holds up decoding for longer than its share of a step.
    The runner keeps the crop's activations between the steps. When `last_block` equals the number of blocks the
    final norm and the resampler follow, and the result lies in `crop_slot`, ready for this same step's rows.
    """

    crop_slot: int
    width: int
    """Pixels, a multiple of the patch size."""
    height: int
    first_block: int
    last_block: int
    pixels: bytes | memoryview
    """uint8, height x width x 3 in RGB order, read before `run` returns. Empty when `first_block` is not 0."""


@dataclass(frozen=True, slots=True)
class CropRows:
    """Part of an encoded crop that takes the place of token embeddings in a row of the batch."""

    offset: int
    """Index into the row's `token_ids` of the first embedding replaced."""
    crop_slot: int
    first_query: int
    """First of the crop's query vectors used here; not 0 when a chunk begins inside the crop's span."""
    num_queries: int


@dataclass(frozen=True, slots=True)
class Draw:
    """This row reaches its last known token: choose the next id, and another one after each guess that it meets.

    Where there are several points, all but one of the row's last `len(uniforms)` ids are a draft. Known [.., 8] and
    draft [5, 6] make the ids [8, 5, 6] and three draws. The first is made after 8. When it takes 5, the second after
    8, 5 counts too, and when that takes 6, the third does. Nothing after a wrong guess counts.
    """

    uniforms: tuple[float, ...]
    """At least one, in [0, 1): the points of the cumulative distributions that are taken. Unused by greedy."""
    num_best: int | None = None
    """Of a beam, which has no draft: no id is drawn, but the so many best ones are told with their log-probabilities,
    the penalties applied to these. Whether one of them is chosen is known in the next step (`StateFork`)."""
    masks: tuple[bytes, ...] = ()
    """Empty where any id may be drawn. Else, for each point, a bit for each id of the vocabulary, the lowest bit of the
    first byte for id 0, filled up to `mask_bytes`: 1 for the ids that may be drawn there, at least one."""

    @property
    def num_drafted(self) -> int:
        return len(self.uniforms) - 1


def mask_bytes(vocab_size: int) -> int:
    """Bytes of one of a draw's masks: whole words of 32 bits."""
    return (vocab_size + 31) // 32 * 4


@dataclass(frozen=True, slots=True)
class SequenceRow:
    """Known tokens of one sequence that become computed in this step: a prefill chunk, or one token in decode.

    In decode a draft may follow. Its tokens become known, and computed, as far as the draws meet them; what it leaves
    in the KV cache beyond that is computed anew at the same positions before anybody reads it.
    """

    state_slot: int
    token_ids: Sequence[int]
    """Ids at positions `start` .. `start + len(token_ids) - 1`."""
    start: int
    """Number of tokens computed before this step."""
    block_table: Sequence[int]
    """KV block ids in order of position; covers at least `start + len(token_ids)` positions."""
    crops: tuple[CropRows, ...]
    draw: Draw | None
    """None for a chunk that does not reach the last known token."""


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One step of work. Copies and states come first, then encoding, one forward pass over all rows, and the draws."""

    starts: tuple[StateStart, ...]
    encode: tuple[EncodeWork, ...]
    rows: tuple[SequenceRow, ...]
    copies: tuple[CropCopy, ...] = ()
    """In this order: a later one may read what an earlier one wrote, or overwrite what it read."""
    block_copies: tuple[BlockCopy, ...] = ()
    """No target is a source, too, or a target twice."""
    forks: tuple[StateFork, ...] = ()
    """After the starts."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """The id chosen for one row, with log-probabilities (natural logarithm) when they were asked for.

    Of a beam's row: one of its best ids, with its log-probability after the penalties.
    """

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]
    """(id, log-probability), best first."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """Answers in the order of the batch's rows."""

    sampled: tuple[tuple[Sampled, ...], ...]
    """One entry a row: nothing where it had no `draw`, else one id and as many more as its draft was right. Of a beam
    its best ids, best first."""
    encode_s: float
    """Seconds spent in the vision encoder during this step."""


@dataclass(frozen=True, slots=True)
class RunnerInfo:
    """Sizes that the runner settled on when it was built; the scheduler plans with them."""

    num_kv_blocks: int
    kv_block_tokens: int
    num_crop_slots: int
    num_host_slots: int
    crop_bytes: int
    """Of one encoded crop, on the device and on the host."""
    num_state_slots: int
    max_step_draws: int
    """Draws of all rows of a step at most."""
    num_vision_blocks: int
    vocab_size: int
    device: str
    dtype: str
    """What is computed in: fp32, bf16 or fp16."""
    weights: str
    """The format of the weights, and below that of the KV cache, as the settings call it."""
    kv: str
    weight_bytes: int
    kv_bytes: int
    memory_budget_bytes: int
    """What all of it together is to take at the most."""
    memory: tuple[tuple[str, int], ...]
    """The plan: names of the parts, and their bytes."""
    load_s: float


class Runner(Protocol):
    """Computes steps. Implementations: `model.runtime.runner.TorchRunner`, and a fake one in the tests."""

    @property
    def info(self) -> RunnerInfo: ...

    def run(self, batch: StepBatch) -> StepOutput: ...
