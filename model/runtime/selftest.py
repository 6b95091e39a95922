"""Compares the networks that serve with the oracle, stage by stage, on one checkpoint.

Both compute the same drawn pictures and questions: `model.nn` through the runner, as in the engine, and
`model.runtime.oracle` through transformers. They are held in memory one after the other; what is kept of the first
are its activations, on the host. The table that comes out reads from the pixels to the generated ids, so that the
first stage that fails is where the mistake is.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from model.config import ModelConfig, load_config
from model.formats import BLOCK_TOKENS, ComputeFormat, kv_block_bytes
from model.prompt import Turn, build_prompt
from model.runtime.device import DTYPES, choose_device
from model.runtime.memory_plan import Wishes
from model.runtime.oracle import Oracle, Picture, Record
from model.runtime.runner import TorchRunner, build_runner
from model.runtime.trace import StageResult, Trace, recorded_stages
from model.slicing import cut, plan_slices
from model.step import CropRows, Draw, EncodeWork, SamplingParams, SequenceRow, StateStart, StepBatch
from model.tokenizer import Tokenizer

# Of a stage's largest value. Two correct implementations differ by the order of their sums: at full depth by at most
# 1.3e-6 in float32, 5.5e-3 in float16 and 3.7e-2 in bfloat16. The smallest known mistake, the tanh form of GELU, makes
# 7e-5 and more: float32 is the judge, half precision shows gross mistakes only.
_TOLERANCE: dict[ComputeFormat, float] = {"fp32": 2e-5, "fp16": 2e-2, "bf16": 1.5e-1}

_QUESTIONS = (
    # (width, height) of the picture, question. Enlarged; split into a grid; a strip of a few patches' width.
    ((200, 150), "What is in the image?"),
    ((640, 480), "请用一句话描述这张图片的内容。"),
    ((60, 900), "Count the lines from top to bottom, 然后说出它们的颜色。"),
)


@dataclass(frozen=True, slots=True)
class _Question:
    token_ids: tuple[int, ...]
    pictures: tuple[Picture, ...]


def run_selftest(
    folder: Path,
    *,
    device: str = "auto",
    weights: ComputeFormat = "fp32",
    num_threads: int | None = None,
    max_tokens: int = 16,
) -> bool:
    """Whether the two agree on the checkpoint; prints the table.

    Args:
        folder: an official checkpoint.
        device: "auto", "cpu", "cuda" or "cuda:N".
        weights: format of the weights and of all that is computed; only float32 shows small mistakes.
        num_threads: threads for torch on a CPU; None takes the cores that this process may use.
        max_tokens: ids generated for each question.

    Raises:
        ConfigError, TokenizerError, RunnerStartError: the checkpoint, the device or the memory does not do.
    """
    console = Console()
    with console.status("starting") as status:
        results = compare(
            folder, device=device, weights=weights, num_threads=num_threads, max_tokens=max_tokens, tell=status.update
        )
    console.print(_table(results, title=f"{folder.resolve().name}, {weights}: this program against transformers"))
    failed = [result.stage for result in results if not result.passed]
    if failed:
        console.print(f"{len(failed)} of {len(results)} stages differ; the first is: {failed[0]}")
    else:
        console.print(f"all {len(results)} stages agree")
    return not failed


def compare(
    folder: Path,
    *,
    device: str,
    weights: ComputeFormat,
    num_threads: int | None,
    max_tokens: int,
    tell: Callable[[str], None],
) -> list[StageResult]:
    """The differences stage by stage, the generated ids last; see `run_selftest`.

    Args:
        tell: is given what is being done, in words.
    """
    config = load_config(folder)
    questions = _questions(config, Tokenizer.from_folder(folder, config.release))
    trace = Trace()
    tell("loading the networks")
    runner = _build(folder, config, questions, device, weights, num_threads, max_tokens)
    ours = []
    for number, question in enumerate(questions, start=1):
        tell(f"computing question {number} of {len(questions)}")
        ours.append(_generate(runner, question, max_tokens, trace.record))
    # The oracle needs as much memory as the weights take.
    del runner
    gc.collect()
    torch.cuda.empty_cache()

    tell("loading the oracle")
    oracle = Oracle.load(folder, device=choose_device(device), dtype=DTYPES[weights])
    num_wrong = 0
    for number, (question, ids) in enumerate(zip(questions, ours, strict=True), start=1):
        tell(f"the oracle computes question {number} of {len(questions)}")
        theirs = oracle.generate(question.token_ids, question.pictures, max_tokens, trace.compare)
        num_wrong += sum(a != b for a, b in zip_longest(ids, theirs))
    # In half precision two scores may be too close to tell apart, and one other id changes all that follow.
    exact = weights == "fp32"
    return [
        *trace.results(_TOLERANCE[weights]),
        StageResult("generated ids", num_wrong, tolerance=0 if exact else None),
    ]


def _table(results: list[StageResult], *, title: str) -> Table:
    table = Table("stage", title=title)
    for heading in ("largest difference", "tolerance", "verdict"):
        table.add_column(heading, justify="right")
    for result in results:
        difference, tolerance = (
            f"{x:.1e}" if isinstance(x, float) else str(x) for x in (result.difference, result.tolerance)
        )
        if result.tolerance is None:
            table.add_row(result.stage, difference, "none", "not judged")
        else:
            table.add_row(result.stage, difference, tolerance, "[green]agrees" if result.passed else "[red]DIFFERS")
    return table


def _questions(config: ModelConfig, tokenizer: Tokenizer) -> list[_Question]:
    questions = []
    for size, text in _QUESTIONS:
        image = _draw(*size)
        plan = plan_slices(*size, config.slicing)
        prompt = build_prompt(
            [Turn("user", text, (plan,))], tokenizer, config.resampler.num_queries, specials_in_text=False
        )
        crops = zip(cut(image, plan), prompt.crop_spans, strict=True)
        questions.append(_Question(prompt.token_ids, tuple(Picture(pixels, span.start) for pixels, span in crops)))
    return questions


def _draw(width: int, height: int) -> Image.Image:
    """Sharp edges, smooth colours and writing."""
    gradients = (Image.linear_gradient("L"), Image.radial_gradient("L"), Image.linear_gradient("L").rotate(90))
    image = Image.merge("RGB", gradients).resize((width, height))
    pen = ImageDraw.Draw(image)
    size = max(10, min(width, height) // 10)
    font = ImageFont.load_default(size)
    for number, top in enumerate(range(size, height - size, 2 * size), start=1):
        pen.text((size, top), f"{number}. line of {width} x {height}", fill="black", font=font)
    pen.ellipse((width // 2, height // 2, width - 5, height - 5), outline="red", width=3)
    return image


def _build(
    folder: Path,
    config: ModelConfig,
    questions: list[_Question],
    device: str,
    weights: ComputeFormat,
    num_threads: int | None,
    max_tokens: int,
) -> TorchRunner:
    """A runner with a cache for one question at a time."""
    num_tokens = max(len(question.token_ids) for question in questions) + max_tokens
    num_blocks = -(-num_tokens // BLOCK_TOKENS)
    # 16 and 32 bits have no scales, so the device does not matter.
    cache_bytes = num_blocks * kv_block_bytes(config.language, weights, on_cuda=False)
    return build_runner(
        folder,
        device=device,
        num_threads=num_threads,
        wishes=Wishes(weights=weights, kv=weights, kv_cache_bytes=cache_bytes),
        max_context_tokens=num_tokens,
        max_num_sequences=1,
        max_step_tokens=num_tokens,
        num_crop_slots=max(len(question.pictures) for question in questions),
        host_cache_bytes=0,
        pixel_buffer_bytes=0,
        progress=lambda _done, _total: None,
    )


def _generate(runner: TorchRunner, question: _Question, max_tokens: int, record: Record) -> list[int]:
    """Greedy ids, as `Oracle.generate`, with the same stages recorded."""
    # The runner shows its networks to nobody; this is the one place that has to look inside.
    info, model = runner.info, runner.model
    num_prompt = len(question.token_ids)
    encode, crops = [], []
    for slot, picture in enumerate(question.pictures):
        height, width, _ = picture.pixels.shape
        encode.append(EncodeWork(slot, width, height, 0, info.num_vision_blocks, picture.pixels.tobytes()))
        crops.append(CropRows(picture.offset, slot, first_query=0, num_queries=model.config.resampler.num_queries))
    # From the last block down: nothing may depend on blocks lying side by side.
    blocks = range(-(-(num_prompt + max_tokens) // info.kv_block_tokens) - 1, -1, -1)

    def step(row: SequenceRow, starts: tuple[StateStart, ...] = (), works: tuple[EncodeWork, ...] = ()) -> int:
        [[sampled]] = runner.run(StepBatch(starts, works, (row,))).sampled
        return sampled.token_id

    prompt_row = SequenceRow(0, question.token_ids, 0, blocks, tuple(crops), Draw((0.0,)))
    with recorded_stages(model, record):
        ids = [step(prompt_row, (StateStart(0, SamplingParams(), ()),), tuple(encode))]
    while len(ids) < max_tokens and ids[-1] != model.config.eos_id:
        ids.append(step(SequenceRow(0, ids[-1:], num_prompt + len(ids) - 1, blocks, (), Draw((0.0,)))))
    return ids
