"""How a request decodes: by draws or beam search, with whose defaults, and which of its fields do not go together."""

from dataclasses import replace
from typing import Any

from server.api.protocol import ChatCompletionRequest
from server.api.wire import INVALID_VALUE, LIMIT_EXCEEDED, UNSUPPORTED_PARAMETER, UNSUPPORTED_VALUE
from server.errors import InvalidRequest
from server.request import Beams, ModelInfo, Sampling
from server.sampling_defaults import VENDOR_BEAM_PENALTY, VENDOR_BEAMS, beam_sampling, sampling_defaults
from server.settings import Settings


def check_decoding(wire: ChatCompletionRequest, settings: Settings) -> None:
    """Everything about the choice that can be wrong.

    Raises:
        InvalidRequest: fields that contradict each other, or more beams than are allowed.
    """
    _check_agreement(wire)
    if not _searches(wire):
        _check_draws(wire)
        return
    _check_search(wire)
    limit = min(settings.max_beams, settings.max_num_sequences)
    num_beams = _num_beams(wire)
    if num_beams > limit:
        name = next(iter(_widths(wire)), "decoding" if wire.use_beam_search is None else "use_beam_search")
        raise _refusal(name, f"takes {num_beams} beams; the limit is {limit}", LIMIT_EXCEEDED)
    if (wire.n or 1) > num_beams:
        raise _refusal("n", f"must not exceed the number of beams, {num_beams}", INVALID_VALUE)


def decoding_of(wire: ChatCompletionRequest, model: ModelInfo) -> tuple[Sampling, Beams | None]:
    """What the engine is told. `check_decoding` has found nothing wrong.

    A single beam is what the reference takes it for: greedy, with the penalty of its beams.
    """
    given = _given(wire)
    if not _searches(wire):
        base = model.default_sampling
        if wire.decoding == "vendor_sampling":
            base, _ = sampling_defaults(model.release, "vendor")
        return replace(base, **given), None
    penalty = VENDOR_BEAM_PENALTY if wire.decoding == "vendor_beams" else model.default_beam_penalty
    # What would be drawn from plays no part, and has been seen to be off.
    drawn = {"temperature", "top_p", "top_k", "min_p"}
    kept = {name: value for name, value in given.items() if name not in drawn}
    sampling = replace(beam_sampling(penalty), **kept)
    num_beams = _num_beams(wire)
    if num_beams == 1:
        return sampling, None
    return sampling, Beams(
        num_beams=num_beams,
        length_penalty=1.0 if wire.length_penalty is None else wire.length_penalty,
        early_stopping=False if wire.early_stopping is None else wire.early_stopping,
    )


def _given(wire: ChatCompletionRequest) -> dict[str, Any]:
    """The sampling fields that the request names; all others keep their defaults."""
    given: dict[str, Any] = {
        "temperature": wire.temperature,
        "top_p": wire.top_p,
        "repetition_penalty": wire.repetition_penalty,
        "presence_penalty": wire.presence_penalty,
        "frequency_penalty": wire.frequency_penalty,
        "min_p": wire.min_p,
        "min_tokens": wire.min_tokens,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if wire.top_k is not None:
        given["top_k"] = wire.top_k if wire.top_k > 0 else None
    if wire.logit_bias:
        given["logit_bias"] = tuple(sorted(wire.logit_bias.items()))
    if wire.logprobs:
        given["num_logprobs"] = wire.top_logprobs or 0
    return given


def _widths(wire: ChatCompletionRequest) -> dict[str, int]:
    """The number of beams under each name that it was given."""
    widths = {"num_beams": wire.num_beams, "beam_width": wire.beam_width}
    if wire.use_beam_search:
        widths["best_of"] = wire.best_of
    return {name: width for name, width in widths.items() if width is not None}


def _searches(wire: ChatCompletionRequest) -> bool:
    if wire.use_beam_search is not None:
        return wire.use_beam_search
    return wire.decoding == "vendor_beams" or max(_widths(wire).values(), default=1) > 1


def _num_beams(wire: ChatCompletionRequest) -> int:
    """Of a request that searches: the vendor's three where it does not say, or as many as it wants results."""
    return next(iter(_widths(wire).values()), max(VENDOR_BEAMS, wire.n or 1))


def _check_agreement(wire: ChatCompletionRequest) -> None:
    widths = _widths(wire)
    first = next(iter(widths), None)
    for name, width in widths.items():
        if first is not None and width != widths[first]:
            raise _refusal(name, f"and {first} differ; give one of them", INVALID_VALUE)
        if width > 1 and wire.use_beam_search is False:
            raise _refusal(name, "asks for the beam search that use_beam_search turns off", INVALID_VALUE)
        if width > 1 and wire.decoding == "vendor_sampling":
            raise _refusal(name, "asks for beam search, and decoding for sampling", INVALID_VALUE)
    if (wire.use_beam_search, wire.decoding) in ((True, "vendor_sampling"), (False, "vendor_beams")):
        raise _refusal("use_beam_search", f"contradicts decoding, which is {wire.decoding}", INVALID_VALUE)


def _check_draws(wire: ChatCompletionRequest) -> None:
    if wire.best_of is not None and wire.best_of != (wire.n or 1):
        raise _refusal(
            "best_of", "is supported by this server only with use_beam_search, or equal to n", UNSUPPORTED_PARAMETER
        )
    if wire.length_penalty not in (None, 1.0):
        raise _refusal("length_penalty", "is allowed only with use_beam_search", INVALID_VALUE)
    if wire.early_stopping:
        raise _refusal("early_stopping", "is allowed only with use_beam_search", INVALID_VALUE)


def _check_search(wire: ChatCompletionRequest) -> None:
    """What asks for draws does not go with a search, which makes none; the values that switch it off do."""
    for name, value, off in (
        ("temperature", wire.temperature, "0"),
        ("min_p", wire.min_p, "0"),
        ("top_k", max(wire.top_k or 0, 0), "0 or -1"),
        ("top_p", 1 - (1 if wire.top_p is None else wire.top_p), "1"),
    ):
        if value:
            raise _refusal(name, f"other than {off} cannot be combined with beam search", UNSUPPORTED_VALUE)
    for name, is_asked in (
        ("logprobs", bool(wire.logprobs)),
        # All beams would need a grammar's state of their own, and a search that is cut short has no results yet.
        ("response_format", wire.response_format is not None and wire.response_format.type != "text"),
        ("structured_outputs", wire.structured_outputs is not None),
        ("tools", bool(wire.tools)),
        ("max_time", wire.max_time is not None),
        ("repetition_detection", wire.repetition_detection is not None),
    ):
        if is_asked:
            raise _refusal(name, "is not supported by this server with beam search", UNSUPPORTED_PARAMETER)


def _refusal(param: str, reason: str, code: str) -> InvalidRequest:
    return InvalidRequest(f"{param} {reason}", param=param, code=code)
