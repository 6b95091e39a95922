"""The vendor's figures, from its own `chat` functions, against OpenAI's."""

from model.step import SamplingParams
from server.sampling_defaults import sampling_defaults


def test_vendor_of_2_0() -> None:
    expected = SamplingParams(temperature=0.7, top_p=0.8, top_k=100, repetition_penalty=1.05)
    assert sampling_defaults("2.0", "vendor") == (expected, 1024)


def test_vendor_of_1_0_has_no_penalty() -> None:
    expected = SamplingParams(temperature=0.6, top_p=0.8, top_k=100, repetition_penalty=1.0)
    assert sampling_defaults("1.0", "vendor") == (expected, 2048)


def test_openai_samples_from_everything() -> None:
    expected = SamplingParams(temperature=1.0, top_p=1.0, top_k=None, repetition_penalty=1.0)
    assert sampling_defaults("2.0", "openai") == (expected, 1024)
    assert sampling_defaults("1.0", "openai") == (expected, 2048)
