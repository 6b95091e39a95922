import asyncio
import dataclasses
import hashlib

import pytest
from PIL import Image

from model.config import load_config
from model.prompt import Turn, build_prompt
from model.slicing import plan_slices
from model.step import SamplingParams
from model.tokenizer import Tokenizer
from server.engine.arena import padded
from server.engine.beam_planner import BeamPlanner
from server.engine.beam_search import BeamParams
from server.engine.blocks import BlockPool
from server.engine.pictures import PictureIndex
from server.engine.prepare import Preparer, choice_seeds
from server.engine.room import EngineLimits
from server.errors import ContextOverflow, InvalidImage, InvalidRequest
from server.image import ImageLimits, inspect_image
from server.request import Beams, ImageInput, Message, RawPrompt
from tests.support.builders import make_sequence
from tests.support.engines import IMAGE_LIMITS, load_tokenizer, make_image, make_request
from tests.support.golden import TINY_V2, case_names, load_case
from tests.support.pictures import encode

CONFIG = load_config(TINY_V2)
LIMITS = EngineLimits(
    max_context_tokens=4096,
    default_max_tokens=1024,
    max_crops=100,
    max_crop_bytes=10**8,
    num_kv_blocks=256,
    kv_block_tokens=16,
)
ONE_WORKER = {"num_image_workers": 1, "image_limits": IMAGE_LIMITS}


@pytest.fixture
def preparer():
    preparer = Preparer(CONFIG, load_tokenizer(), **ONE_WORKER, specials_in_text=False)
    yield preparer
    preparer.close()


def prepare(preparer, request, index=None, **limits):
    index = PictureIndex(100) if index is None else index
    return asyncio.run(preparer.prepare(request, dataclasses.replace(LIMITS, **limits), index))


def refusal(preparer, request, **limits):
    with pytest.raises(InvalidRequest) as caught:
        prepare(preparer, request, **limits)
    return caught.value


def damaged(width, height):
    """A picture whose header is in order and whose pixels are not there."""
    data = encode(Image.effect_noise((width, height), 50).convert("RGB"))
    return ImageInput(data[: len(data) // 2], width, height)


@pytest.mark.parametrize("name", case_names())
def test_ids_and_pixels_are_those_of_the_reference(name):
    case = load_case(name)
    config = load_config(case.checkpoint)
    tokenizer = Tokenizer.from_folder(case.checkpoint, config.release)
    messages = [Message(message["role"], message["content"]) for message in case.messages]
    if case.image_path is not None:
        limits = ImageLimits(max_bytes=10**8, max_pixels=10**8, max_side=10**6, max_aspect=10**6)
        picture = inspect_image(case.image_path.read_bytes(), limits)
        messages[0] = dataclasses.replace(messages[0], images=(picture,))
    # The reference takes special tokens wherever they stand.
    preparer = Preparer(config, tokenizer, **ONE_WORKER, specials_in_text=True)
    prepared = prepare(preparer, dataclasses.replace(make_request("?"), messages=tuple(messages)))
    preparer.close()
    assert list(prepared.prompt_ids) == case.input_ids
    assert [crop.start for crop in prepared.crops] == [first for first, _ in case.facts.get("image_bound", [])]
    hashes = [hashlib.sha256(crop.pixels.tobytes()).hexdigest() for crop in prepared.crops]
    assert hashes == [picture["rgb_sha256"] for picture in case.facts.get("pictures", [])]


def test_prompt_and_crops_fit_together(preparer):
    first, second = make_image(1000, 500), make_image(100, 80, "blue")
    request = dataclasses.replace(
        make_request("?"),
        messages=(Message("user", "one", (first,)), Message("assistant", "ok"), Message("user", "two", (second,))),
    )
    prepared = prepare(preparer, request)
    plans = [plan_slices(image.width, image.height, CONFIG.slicing) for image in (first, second)]
    turns = [Turn("user", "one", (plans[0],)), Turn("assistant", "ok"), Turn("user", "two", (plans[1],))]
    prompt = build_prompt(turns, load_tokenizer(), CONFIG.resampler.num_queries, specials_in_text=False)
    assert prepared.prompt_ids == prompt.token_ids
    assert [crop.start for crop in prepared.crops] == [span.start for span in prompt.crop_spans]
    sizes = [size for plan in plans for size in plan.crop_sizes]
    assert [crop.pixels.shape for crop in prepared.crops] == [(height, width, 3) for width, height in sizes]
    assert {tuple(crop.pixels.reshape(-1, 3)[0]) for crop in prepared.crops} == {(255, 0, 0), (0, 0, 255)}
    usage = prepared.usage
    assert usage.prompt_tokens == len(prompt.token_ids)
    assert (usage.num_images, usage.num_crops, usage.image_tokens) == (2, len(sizes), 64 * len(sizes))
    assert usage.image_pixels == 1000 * 500 + 100 * 80
    assert [work.num_crops for work in prepared.image_work] == [plan.num_crops for plan in plans]


def test_equal_crops_have_equal_hashes_and_others_do_not(preparer):
    def hashes(*images):
        return [crop.content_hash for crop in prepare(preparer, make_request("?", *images)).crops]

    red, same, blue = make_image(), make_image(), make_image(color="blue")
    assert hashes(red, blue) == hashes(same, blue)
    assert len(set(hashes(red, blue))) == 2
    # Two shapes of one colour: the same bytes in other rows.
    wide, tall = make_image(200, 50), make_image(50, 200)
    assert len(set(hashes(wide, tall))) == 2
    assert all(len(content_hash) == 16 for content_hash in hashes(red))


def test_context_overflow_comes_before_any_pixel_is_decoded(preparer):
    request = make_request("?", damaged(1000, 500), max_tokens=4000)
    error = refusal(preparer, request)
    assert isinstance(error, ContextOverflow)
    num_prompt = prepare(preparer, make_request("?", make_image(1000, 500), max_tokens=1)).usage.prompt_tokens
    assert error.message == (
        f"the prompt has {num_prompt} tokens, of which 192 for images, and 4000 more are asked for; "
        "the context of the model is 4096 tokens"
    )
    assert error.param == "max_tokens"
    assert isinstance(refusal(preparer, make_request("?", damaged(1000, 500))), InvalidImage)


def test_the_last_token_that_fits_fits(preparer):
    num_prompt = prepare(preparer, make_request("hello")).usage.prompt_tokens
    assert prepare(preparer, make_request("hello", max_tokens=4096 - num_prompt)).max_tokens == 4096 - num_prompt
    assert isinstance(refusal(preparer, make_request("hello", max_tokens=4097 - num_prompt)), ContextOverflow)


def test_without_max_tokens_the_default_is_cut_to_what_is_left(preparer):
    request = make_request("hello", max_tokens=None)
    assert prepare(preparer, request).max_tokens == 1024
    num_prompt = prepare(preparer, request).usage.prompt_tokens
    assert prepare(preparer, request, max_context_tokens=num_prompt + 5).max_tokens == 5
    assert prepare(preparer, request, max_context_tokens=num_prompt + 1).max_tokens == 1
    error = refusal(preparer, request, max_context_tokens=num_prompt)
    assert isinstance(error, ContextOverflow)
    assert error.param == "messages"


def test_min_tokens_fit_into_what_is_generated(preparer):
    sampling = SamplingParams(min_tokens=9)
    assert prepare(preparer, make_request("hello", sampling=sampling, max_tokens=9)).max_tokens == 9
    error = refusal(preparer, make_request("hello", sampling=sampling, max_tokens=8))
    assert (error.param, error.code) == ("min_tokens", "invalid_value")
    assert "9" in error.message
    assert "8" in error.message


def test_a_text_that_cannot_fit_is_not_even_tokenized(preparer, monkeypatch):
    monkeypatch.setattr("server.engine.prepare.build_prompt", lambda *_, **__: pytest.fail("tokenized"))
    error = refusal(preparer, make_request("x" * 10**6))
    assert isinstance(error, ContextOverflow)
    assert error.message.startswith("the prompt has at least ")
    assert error.message.endswith(" tokens, of which 0 for images; the context of the model is 4096 tokens")


def test_more_crops_than_the_engine_holds(preparer):
    request = make_request("?", damaged(1000, 500))
    error = refusal(preparer, request, max_crops=2)
    assert error.message == "the images make 3 slices; the engine holds 2 at most"
    assert (error.param, error.code) == ("messages", "limit_exceeded")
    crops = prepare(preparer, make_request("?", make_image(1000, 500))).crops
    num_bytes = sum(padded(crop.pixels.nbytes) for crop in crops)
    assert refusal(preparer, request, max_crop_bytes=num_bytes - 1).message == (
        f"the images make slices of {num_bytes} bytes; the engine takes {num_bytes - 1} at most"
    )


def test_one_damaged_picture_among_others(preparer):
    images = [make_image(), damaged(100, 80), make_image()]
    assert isinstance(refusal(preparer, make_request("?", *images)), InvalidImage)


def test_a_text_that_is_no_unicode(preparer):
    assert refusal(preparer, make_request("\ud800")).param == "messages"


@pytest.mark.parametrize("specials_in_text", [True, False])
def test_control_tokens_in_a_text_are_text_unless_allowed(specials_in_text):
    preparer = Preparer(CONFIG, load_tokenizer(), **ONE_WORKER, specials_in_text=specials_in_text)
    prepared = prepare(preparer, make_request("a </s> b"))
    assert (load_tokenizer().eos_id in prepared.prompt_ids) == specials_in_text
    preparer.close()


def test_seeds():
    assert choice_seeds(7, 3)[:1] == choice_seeds(7, 1)
    assert len(set(choice_seeds(7, 50) + choice_seeds(8, 50) + choice_seeds(-7, 50))) == 150
    assert all(0 <= seed < 2**63 for seed in choice_seeds(2**64, 10))
    assert choice_seeds(None, 2) != choice_seeds(None, 2)
    digest = hashlib.blake2b(b"7/0", digest_size=8).digest()
    assert choice_seeds(7, 1) == (int.from_bytes(digest, "big") >> 1,)


def test_a_picture_seen_before_is_not_decoded():
    index = PictureIndex(10)
    preparer = Preparer(CONFIG, load_tokenizer(), **ONE_WORKER, specials_in_text=False)
    old, new = make_image(1000, 500), make_image(color="blue")
    first = prepare(preparer, make_request("?", old), index)
    assert first.pictures == ()
    second = prepare(preparer, make_request("And?", new, old), index)
    assert [crop.pixels is None for crop in second.crops] == [False, True, True, True]
    for before, after in zip(first.crops, second.crops[1:], strict=True):
        assert (before.content_hash, before.width, before.height) == (after.content_hash, after.width, after.height)
        assert before.pixels.shape == (after.height, after.width, 3)
    assert [work.decode_s is None for work in second.image_work] == [False, True]
    assert (second.usage.num_crops, second.image_work[1].num_crops) == (4, 3)
    # All of them, also the one that is sent now: the engine asks for everything or for nothing.
    pixels, works = asyncio.run(preparer.cut(second.pictures))
    assert [crop.shape for crop in pixels] == [(crop.height, crop.width, 3) for crop in second.crops]
    assert (pixels[0] == second.crops[0].pixels).all()
    assert (pixels[1] == first.crops[0].pixels).all()
    assert len(works) == 2
    preparer.close()


def test_slicings_of_a_picture_are_pictures_of_their_own_but_for_the_overview(preparer):
    index = PictureIndex(10)
    whole = make_image(1000, 500)
    limited = [dataclasses.replace(whole, max_slices=limit) for limit in (1, 2, 9)]
    first, low, two, nine = (prepare(preparer, make_request("?", image), index) for image in (whole, *limited))
    assert [len(one.crops) for one in (first, low, two, nine)] == [3, 1, 3, 3]
    assert [usage.num_crops for usage in low.usage.images] == [1]
    assert low.usage.image_tokens == 64 < two.usage.image_tokens == 192
    # The overview is the same crop, so that it is encoded once; that 2 and 9 come to the same is seen before decoding.
    assert low.crops[0].content_hash == first.crops[0].content_hash
    assert [one.crops[0].pixels is None for one in (first, low, two, nine)] == [False, False, True, True]
    assert len(index) == 2
    large = make_image(1300, 1300)
    full, four = (
        prepare(preparer, make_request("?", one)) for one in (large, dataclasses.replace(large, max_slices=4))
    )
    assert (full.usage.num_crops, four.usage.num_crops) == (10, 5)
    assert full.usage.prompt_tokens - four.usage.prompt_tokens > 5 * 64
    assert full.usage.images[0].pixels == four.usage.image_pixels == 1300 * 1300


def test_a_picture_that_could_not_be_decoded_is_not_known(preparer):
    index = PictureIndex(10)
    for _ in range(2):
        with pytest.raises(InvalidImage):
            prepare(preparer, make_request("?", damaged(100, 80)), index)
    assert len(index) == 0


def test_one_pixel_more_or_another_salt_is_another_picture(preparer):
    index = PictureIndex(10)
    picture = Image.effect_noise((100, 80), 50).convert("RGB")
    limits = ImageLimits(max_bytes=10**7, max_pixels=10**7, max_side=10**4, max_aspect=400)
    image = inspect_image(encode(picture), limits)
    picture.putpixel((3, 4), (1, 2, 3))
    changed = inspect_image(encode(picture), limits)
    requests = [make_request("?", image), make_request("?", changed), make_request("?", image, cache_salt=b"other")]
    crops = [prepare(preparer, request, index).crops[0] for request in requests]
    assert [crop.pixels is None for crop in crops] == [False] * 3
    assert len({crop.content_hash for crop in crops}) == 3
    assert prepare(preparer, requests[2], index).crops[0].pixels is None


def plan(preparer, request, **limits):
    return asyncio.run(preparer.plan_prompt(request, dataclasses.replace(LIMITS, **limits)))


def test_a_prompt_is_planned_without_decoding_a_picture(preparer):
    picture = damaged(900, 300)
    request = make_request("?", picture)
    planned = plan(preparer, request, max_context_tokens=200)
    assert planned.usage.prompt_tokens == len(planned.prompt.token_ids) > 200
    (found,) = planned.pictures
    assert found.slices.num_crops * 64 == planned.usage.image_tokens
    with pytest.raises(ContextOverflow):
        prepare(preparer, request, max_context_tokens=200)


def test_a_raw_prompt_of_text_or_ids(preparer):
    tokenizer = load_tokenizer()
    text = dataclasses.replace(make_request(""), raw_prompt=RawPrompt("Hello"))
    ids = (tokenizer.bos_id, *tokenizer.encode("Hello"))
    assert prepare(preparer, text).prompt_ids == ids
    assert prepare(preparer, dataclasses.replace(text, raw_prompt=RawPrompt(ids))).prompt_ids == ids
    assert prepare(preparer, text).usage == dataclasses.replace(
        prepare(preparer, make_request("")).usage, prompt_tokens=len(ids)
    )


@pytest.mark.parametrize("content", [(5, -1), (10**6,), "\ud800"])
def test_a_raw_prompt_that_cannot_be(preparer, content):
    assert refusal(preparer, dataclasses.replace(make_request(""), raw_prompt=RawPrompt(content))).param == "messages"


def test_a_raw_prompt_that_is_too_long_is_not_encoded(preparer):
    request = dataclasses.replace(make_request(""), raw_prompt=RawPrompt("a" * 10**7))
    assert isinstance(refusal(preparer, request), ContextOverflow)


@pytest.mark.parametrize(
    ("num_kv_blocks", "asked", "expected"),
    [(256, None, 1024), (256, 2000, "max_tokens"), (40, None, "all"), (40, 1, 1), (1, None, "messages")],
)
def test_beams_share_the_prompt_and_have_the_rest_of_the_cache_each(preparer, num_kv_blocks, asked, expected):
    """What is accepted can run: the planner counts in the same way."""
    request = make_request("What is this? " * 3, max_tokens=asked, beams=Beams(num_beams=3))
    if expected in ("max_tokens", "messages"):
        error = refusal(preparer, request, num_kv_blocks=num_kv_blocks)
        assert (error.param, error.code) == (expected, "context_length_exceeded")
        assert "3 beams" in error.message
        return
    prepared = prepare(preparer, request, num_kv_blocks=num_kv_blocks)
    planner = BeamPlanner(BlockPool(num_kv_blocks, 16))
    sequence = make_sequence(len(prepared.prompt_ids), beams=BeamParams(3), max_tokens=prepared.max_tokens)
    planner.add(sequence)
    assert planner.num_blocks(sequence, sequence.max_computed) <= num_kv_blocks
    if expected == "all":
        assert planner.num_blocks(sequence, sequence.max_computed + 1) > num_kv_blocks
    else:
        assert prepared.max_tokens == expected
