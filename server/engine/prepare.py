"""GenerationRequest -> PreparedRequest: prompt ids, crops, seeds and limits. Pure CPU work, in worker threads.

In the order of cost, so that refusing is cheap: crops are planned from the sizes in the headers, the prompt is built
and held against the context, and only then is a pixel decoded; of a picture that the engine has seen, not even then.
"""

import asyncio
import hashlib
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from model.config import ModelConfig
from model.prompt import Prompt, Turn, build_prompt, build_raw_prompt
from model.slicing import SlicePlan, plan_slices
from model.tokenizer import TextError, Tokenizer
from server.engine.picture_workers import PictureWorkers, Pixels, WorkerLimits
from server.engine.pictures import PictureIndex, crop_hash, file_hash
from server.engine.room import EngineLimits, check_crops, check_min_tokens, max_tokens_of
from server.errors import ContextOverflow, InvalidImage, InvalidRequest
from server.notes import stage
from server.request import GenerationRequest, ImageInput, ImageUsage, RawPrompt, Usage

_Result = TypeVar("_Result")

_COUNTED_CONTEXTS = 4
"""A prompt that is only counted may be so many times the context; half a second of encoding."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What the pixels of a picture's crops are made of."""

    image: ImageInput
    slices: SlicePlan


@dataclass(frozen=True, slots=True)
class PreparedCrop:
    """One crop's pixels and where its vectors go in the prompt."""

    pixels: Pixels | None
    """None: the picture was not decoded, since this engine has been given its crops before."""
    width: int
    height: int
    start: int
    """Position in the prompt of the first of its query tokens."""
    content_hash: bytes
    """16 bytes over salt, size and pixels."""


@dataclass(frozen=True, slots=True)
class ImageWork:
    """What one picture cost before it went to the engine."""

    num_crops: int
    decode_s: float | None
    """None, like the next one, for a picture that was not decoded."""
    slice_s: float | None


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request that the engine can take as it is."""

    request: GenerationRequest
    usage: Usage
    prompt_ids: tuple[int, ...]
    crops: tuple[PreparedCrop, ...]
    """In order of their positions in the prompt."""
    seeds: tuple[int, ...]
    """One for each choice."""
    max_tokens: int
    """Ids to generate at most in each choice; fits the context."""
    image_work: tuple[ImageWork, ...]
    """One for each picture."""
    pictures: tuple[Picture, ...]
    """All of them, if any was not decoded: the engine may ask for the pixels. Else none: the files can be let go."""
    grammar: str | None = None
    """The request's constraint, checked, as the engine takes it."""
    forced_ids: tuple[tuple[int, ...], ...] = ()
    """Of the answers that are to be scored, the end id included, one for each choice."""


@dataclass(frozen=True, slots=True)
class PromptPlan:
    """A prompt and what it costs. No pixel was decoded for it."""

    prompt: Prompt
    usage: Usage
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    """A request of which everything is known but the pixels."""

    pictures: tuple[Picture, ...]
    names: tuple[bytes, ...]
    """Of the pictures, by content."""
    prompt: Prompt
    usage: Usage
    max_tokens: int
    forced_ids: tuple[tuple[int, ...], ...]


class Preparer:
    """Does the work for one served model. Close it to end its threads."""

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        *,
        num_image_workers: int,
        image_limits: WorkerLimits,
        specials_in_text: bool,
    ) -> None:
        """
        Args:
            num_image_workers: pictures decoded and cut at the same time, each in a process.
            image_limits: of one picture.
            specials_in_text: let control tokens typed in a message act as such.
        """
        self._config = config
        self._tokenizer = tokenizer
        self._specials_in_text = specials_in_text
        self._workers = PictureWorkers(num_image_workers, image_limits)
        # Each waits for one process.
        self._image_threads = ThreadPoolExecutor(num_image_workers, thread_name_prefix="image")
        self._longest_token_bytes = max(len(tokenizer.id_to_bytes(i)) for i in range(tokenizer.vocab_size))

    async def prepare(
        self, request: GenerationRequest, limits: EngineLimits, index: PictureIndex, grammar: str | None = None
    ) -> PreparedRequest:
        """Everything the engine needs of the request.

        Args:
            limits: of the engine.
            index: the pictures that the engine has seen; new ones are added.
            grammar: of the request's constraint.

        Raises:
            ContextOverflow: prompt and answer do not fit.
            InvalidImage: a picture cannot be decoded.
            InvalidRequest: a text cannot be encoded, or the pictures are more than the engine can hold.
        """
        # Not in the threads for pictures: a text must not wait until a storm of pictures is over.
        plan = await asyncio.to_thread(self._plan, request, limits)
        crops, work = await self._crops(plan, index, request.cache_salt)
        return PreparedRequest(
            request=request,
            usage=plan.usage,
            prompt_ids=plan.prompt.token_ids,
            crops=crops,
            seeds=choice_seeds(request.seed, request.num_choices),
            max_tokens=plan.max_tokens,
            image_work=work,
            pictures=plan.pictures if any(crop.pixels is None for crop in crops) else (),
            grammar=grammar,
            forced_ids=plan.forced_ids,
        )

    async def plan_prompt(self, request: GenerationRequest, limits: EngineLimits) -> PromptPlan:
        """The request's prompt, which may be longer than the context.

        Raises:
            ContextOverflow: the prompt is so much longer that building it is not worth while.
            InvalidRequest: a text cannot be encoded, or an id is not in the vocabulary.
        """
        return await asyncio.to_thread(self._plan_prompt, request, limits, _COUNTED_CONTEXTS)

    async def cut(self, pictures: Sequence[Picture]) -> tuple[list[Pixels], list[ImageWork]]:
        """The pixels of all crops of these pictures, in their order, and what each picture cost.

        Raises:
            InvalidImage: a picture cannot be decoded.
        """
        results = await self._in_threads([partial(_cut, self._workers, picture) for picture in pictures])
        return [pixels for crops, _ in results for pixels in crops], [work for _, work in results]

    def close(self) -> None:
        self._image_threads.shutdown(wait=False, cancel_futures=True)
        self._workers.close()

    def _plan(self, request: GenerationRequest, limits: EngineLimits) -> _Plan:
        plan = self._plan_prompt(request, limits)
        num_beams = 1 if request.beams is None else request.beams.num_beams
        forced_ids = tuple(self._answer_ids(answer) for answer in request.answers)
        asked = max(map(len, forced_ids)) if forced_ids else request.max_tokens
        param = "structured_outputs.choice" if forced_ids else "max_tokens"
        max_tokens = max_tokens_of(asked, plan.usage, limits, num_beams, param)
        check_min_tokens(request.sampling.min_tokens, max_tokens)
        check_crops([picture.slices for picture in plan.pictures], limits)
        names = tuple(file_hash(picture.image.data, request.cache_salt) for picture in plan.pictures)
        return _Plan(plan.pictures, names, plan.prompt, plan.usage, max_tokens, forced_ids)

    def _plan_prompt(self, request: GenerationRequest, limits: EngineLimits, num_contexts: int = 1) -> PromptPlan:
        if request.raw_prompt is not None:
            prompt = self._raw_prompt(request.raw_prompt, limits, num_contexts)
            return PromptPlan(prompt, _usage((), (), len(prompt.token_ids), 0), ())
        images = tuple(image for message in request.messages for image in message.images)
        turns = [
            Turn(message.role, message.text, tuple(map(self._plan_slices, message.images)))
            for message in request.messages
        ]
        plans = tuple(plan for turn in turns for plan in turn.images)
        self._check_lower_bound([turn.text for turn in turns], plans, limits, num_contexts)
        num_queries = self._config.resampler.num_queries
        try:
            prompt = build_prompt(
                turns,
                self._tokenizer,
                num_queries,
                specials_in_text=self._specials_in_text,
                opens_answer=request.opens_answer,
            )
        except TextError as err:
            raise InvalidRequest(str(err), param="messages") from err
        usage = _usage(images, plans, len(prompt.token_ids), num_queries)
        return PromptPlan(prompt, usage, tuple(map(Picture, images, plans)))

    def _raw_prompt(self, raw: RawPrompt, limits: EngineLimits, num_contexts: int) -> Prompt:
        if not isinstance(raw.content, str):
            # What is no id of the vocabulary would be read from beyond the embedding table.
            if min(raw.content) < 0 or max(raw.content) >= self._tokenizer.vocab_size:
                raise InvalidRequest(
                    f"the prompt has token ids outside the vocabulary, 0 to {self._tokenizer.vocab_size - 1}",
                    param="messages",
                )
            return Prompt(raw.content, ())
        self._check_lower_bound([raw.content], (), limits, num_contexts)
        try:
            return build_raw_prompt(
                raw.content, self._tokenizer, add_start=raw.add_start, specials_in_text=self._specials_in_text
            )
        except TextError as err:
            raise InvalidRequest(str(err), param="messages") from err

    def _answer_ids(self, answer: str) -> tuple[int, ...]:
        try:
            return (*self._tokenizer.encode_continuation(answer), self._tokenizer.eos_id)
        except TextError as err:
            raise InvalidRequest(str(err), param="structured_outputs.choice") from err

    def _plan_slices(self, image: ImageInput) -> SlicePlan:
        return plan_slices(image.width, image.height, self._config.slicing, image.max_slices)

    def _check_lower_bound(
        self, texts: Sequence[str], plans: Sequence[SlicePlan], limits: EngineLimits, num_contexts: int
    ) -> None:
        """Refuse what cannot fit before it is tokenized: 32 MB of text take half a minute and 2 GB to tokenize."""
        num_bytes = sum(len(text.encode(errors="replace")) for text in texts)
        num_crops = sum(plan.num_crops for plan in plans)
        image_tokens = num_crops * self._config.resampler.num_queries
        at_least = num_bytes // self._longest_token_bytes + image_tokens
        if at_least >= limits.max_context_tokens * num_contexts:
            raise ContextOverflow(
                f"the prompt has at least {at_least} tokens, of which {image_tokens} for images; "
                f"the context of the model is {limits.max_context_tokens} tokens",
                param="messages",
            )

    async def _crops(
        self, plan: _Plan, index: PictureIndex, cache_salt: bytes
    ) -> tuple[tuple[PreparedCrop, ...], tuple[ImageWork, ...]]:
        """The crops of all pictures; those that are not known are decoded, and known from now on."""
        known = [index.find(name, picture.slices) for name, picture in zip(plan.names, plan.pictures, strict=True)]
        new = [picture for picture, hashes in zip(plan.pictures, known, strict=True) if hashes is None]
        with stage("decode_images", num_images=len(new)) if new else nullcontext():
            cut = iter(
                await self._in_threads([partial(_cut_and_hash, self._workers, picture, cache_salt) for picture in new])
            )
        spans = iter(plan.prompt.crop_spans)
        crops: list[PreparedCrop] = []
        works = []
        for name, picture, hashes in zip(plan.names, plan.pictures, known, strict=True):
            pixels: Sequence[Pixels | None] = [None] * picture.slices.num_crops
            work = ImageWork(picture.slices.num_crops, None, None)
            if hashes is None:
                pixels, hashes, work = next(cut)
                index.add(name, picture.slices, hashes)
            sizes = picture.slices.crop_sizes
            crops += [
                PreparedCrop(crop_pixels, width, height, next(spans).start, content_hash)
                for crop_pixels, (width, height), content_hash in zip(pixels, sizes, hashes, strict=True)
            ]
            works.append(work)
        return tuple(crops), tuple(works)

    async def _in_threads(self, jobs: Sequence[Callable[[], _Result]]) -> list[_Result]:
        """What the jobs return, in their order."""
        loop = asyncio.get_running_loop()
        futures = [loop.run_in_executor(self._image_threads, job) for job in jobs]
        try:
            return await asyncio.gather(*futures)
        finally:
            for future in futures:
                future.cancel()  # when one failed, the others are not worth starting


def choice_seeds(seed: int | None, num_choices: int) -> tuple[int, ...]:
    """A seed of 63 bits for each choice: a hash of the request's seed and the choice's index.

    So choices differ, choice 0 does not depend on how many others there are, and the random streams of neighbouring
    seeds and choices have nothing to do with each other. Without a seed a fresh one is drawn.
    """
    if seed is None:
        seed = secrets.randbits(63)
    digests = (hashlib.blake2b(f"{seed}/{choice}".encode(), digest_size=8) for choice in range(num_choices))
    return tuple(int.from_bytes(digest.digest(), "big") >> 1 for digest in digests)


def _usage(images: Sequence[ImageInput], plans: Sequence[SlicePlan], num_prompt_tokens: int, num_queries: int) -> Usage:
    num_crops = sum(plan.num_crops for plan in plans)
    return Usage(
        prompt_tokens=num_prompt_tokens,
        image_tokens=num_crops * num_queries,
        num_images=len(images),
        num_crops=num_crops,
        image_pixels=sum(image.width * image.height for image in images),
        images=tuple(
            ImageUsage(plan.num_crops * num_queries, plan.num_crops, image.width * image.height)
            for image, plan in zip(images, plans, strict=True)
        ),
    )


def _cut(workers: PictureWorkers, picture: Picture) -> tuple[list[Pixels], ImageWork]:
    try:
        done = workers.cut(picture.image, picture.slices)
    except InvalidImage as err:
        raise err.at(picture.image.param) from err
    return done.crops, ImageWork(len(done.crops), done.decode_s, done.slice_s)


def _cut_and_hash(
    workers: PictureWorkers, picture: Picture, cache_salt: bytes
) -> tuple[list[Pixels], tuple[bytes, ...], ImageWork]:
    crops, work = _cut(workers, picture)
    return crops, tuple(crop_hash(pixels, cache_salt) for pixels in crops), work
