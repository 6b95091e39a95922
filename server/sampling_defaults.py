"""What a request that says nothing of sampling gets, by the model's release and the operator's choice."""

from typing import Literal

from model.step import SamplingParams

Release = Literal["1.0", "2.0"]

# The vendor's `chat` with sampling on, as it is by default (docs/decisions/sampling-defaults.md).
_VENDOR: dict[Release, tuple[SamplingParams, int]] = {
    "2.0": (SamplingParams(temperature=0.7, top_p=0.8, top_k=100, repetition_penalty=1.05), 1024),
    "1.0": (SamplingParams(temperature=0.6, top_p=0.8, top_k=100), 2048),
}
VENDOR_BEAMS = 3
"""Of its `chat` with sampling off."""
VENDOR_BEAM_PENALTY = 1.2
"""The repetition penalty of that mode, of both releases."""
_OPENAI_SAMPLING = SamplingParams(temperature=1.0)


def sampling_defaults(release: Release, whose: Literal["vendor", "openai"]) -> tuple[SamplingParams, int]:
    """The sampling, and how many ids are generated at most.

    OpenAI has no limit of its own short of the context; the vendor's stays, so that one request without a limit
    cannot hold its place for the whole context.
    """
    sampling, max_tokens = _VENDOR[release]
    return (sampling if whose == "vendor" else _OPENAI_SAMPLING), max_tokens


def beam_sampling(repetition_penalty: float) -> SamplingParams:
    """Of a request that searches: nothing is drawn, and a single beam is greedy."""
    return SamplingParams(repetition_penalty=repetition_penalty)


def default_beam_penalty(whose: Literal["vendor", "openai"]) -> float:
    """The repetition penalty of a request that searches with beams and names none."""
    return VENDOR_BEAM_PENALTY if whose == "vendor" else 1.0
