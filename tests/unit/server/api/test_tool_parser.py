"""Answers with calls, taken apart in whatever pieces they arrive."""

import json
import random

import pytest

from server.api.tool_parser import Arguments, CallBegins, ToolParser, Words
from server.api.tools import call_text

NASTY = json.dumps({"a": '}"{\\', "b": [{"c": "</tool_call>"}, []], "</tool_call>": {}, "é": "<tool_call>"})
ANSWERS = [
    ("", "", []),
    ("Just words.", "Just words.", []),
    ("  words with < and <tool and <tool_cal \n", "words with < and <tool and <tool_cal", []),
    (call_text("f", "{}"), "", [("f", "{}")]),
    ("Let me see.\n\n" + call_text("get_it-2", '{"a": 1}'), "Let me see.", [("get_it-2", '{"a": 1}')]),
    ("\n".join(call_text(name, NASTY) for name in "abc"), "", [(name, NASTY) for name in "abc"]),
]


def take(parser, texts):
    """Words, and the calls with their arguments, put together."""
    words, calls = "", []
    for text in [*texts, None]:
        for piece in parser.finish() if text is None else parser.feed(text):
            match piece:
                case Words(text=said):
                    assert not calls, "words after a call"
                    words += said
                case CallBegins(index=index, name=name):
                    assert index == len(calls)
                    calls.append((name, ""))
                case Arguments(index=index, text=more):
                    assert more
                    assert index == len(calls) - 1
                    calls[index] = (calls[index][0], calls[index][1] + more)
    return words, calls


@pytest.mark.parametrize(("answer", "words", "calls"), ANSWERS)
def test_it_is_the_same_in_any_pieces(answer, words, calls):
    for seed in range(20):
        cuts = random.Random(seed)
        texts, rest = [], answer
        while rest:
            size = cuts.choice([1, 2, 3, 7, 1000])
            texts.append(rest[:size])
            rest = rest[size:]
        parser = ToolParser()
        assert take(parser, texts) == (words, calls)
        assert parser.has_called == bool(calls)


def test_words_and_arguments_are_not_held_back():
    parser = ToolParser()
    assert parser.feed("Hello wor") == [Words("Hello wor")]
    assert parser.feed("ld <tool_") == [Words("ld")]
    assert parser.feed('call>{"name": "f", "argu') == []
    assert parser.feed('ments": {"a": "x') == [CallBegins(0, "f"), Arguments(0, '{"a": "x')]
    assert parser.feed("y") == [Arguments(0, "y")]


@pytest.mark.parametrize("length", range(0, 110, 3))
def test_a_cut_answer_gives_what_there_is(length):
    answer = call_text("f", '{"a": [1, 2]}') + "\n" + call_text("g", "{}")
    parser = ToolParser()
    words, calls = take(parser, [answer[:length]])
    assert '{"a": [1, 2]}'.startswith(calls[0][1] if calls else "")
    # What may be the beginning of a call is words when nothing follows.
    assert words == (answer[:length] if length < len("<tool_call>") else "")
    whole = len(call_text("f", '{"a": [1, 2]}'))
    assert parser.has_called == (whole <= length < whole + len("\n<tool_call>"))
