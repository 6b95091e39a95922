"""Which ids a grammar lets follow, and what a choice makes of them."""

import json

import pytest
from llguidance import LLMatcher

from model.step import mask_bytes
from server.engine.grammar import GrammarError
from tests.support.vocabularies import EOS, LETTERS, allowed, ids_in, say, small_vocabulary, tiny_vocabulary

TEXTS = (b"abcab", b"abc", b"cabc", b"bab")


def regex(pattern):
    return LLMatcher.grammar_from_regex(pattern)


def one_of(texts=TEXTS):
    return small_vocabulary().compile(regex("|".join(text.decode() for text in texts)))


def schema(**words):
    return LLMatcher.grammar_from_json_schema(words)


def test_masks_are_what_trying_each_id_finds():
    grammar = one_of()
    paths = [([], b"")]
    num_seen = 0
    while paths:
        ids, said = paths.pop()
        matcher = grammar.matcher()
        list(say(matcher, ids))
        if matcher.is_complete:
            assert allowed(TEXTS, said) == {EOS}
            continue
        num_seen += 1
        expected = allowed(TEXTS, said)
        if len({LETTERS[token_id][:1] for token_id in expected}) > 1:
            assert ids_in(matcher.masks[0]) == expected
        else:
            # One way for the text to go on: of the ids that spell it, those of the tokenizer's own spelling.
            assert set() < ids_in(matcher.masks[0]) <= expected
        paths += [([*ids, i], said + LETTERS[i]) for i in ids_in(matcher.masks[0]) - {EOS}]
    assert num_seen > 10


def test_every_mask_has_the_vocabulary_s_size():
    [mask] = one_of().matcher().masks
    assert len(mask) == mask_bytes(len(LETTERS)) == 4
    [mask] = small_vocabulary().compile(regex("(?s:.*)")).matcher().masks
    assert ids_in(mask) == set(range(2, len(LETTERS)))


def test_a_choice_is_complete_when_only_the_end_can_follow():
    matcher = one_of().matcher()
    matcher.advance(6)
    assert not matcher.is_complete
    matcher.advance(5)
    assert not matcher.is_complete  # "abc" may go on to "abcab"
    assert ids_in(matcher.masks[0]) == allowed(TEXTS, b"abc") == {EOS, 3, 6, 9}
    matcher.advance(6)
    assert matcher.is_complete
    assert not matcher.has_failed


def test_an_id_that_the_mask_does_not_have_is_a_failure():
    matcher = one_of().matcher()
    matcher.advance(7)
    assert matcher.has_failed
    assert matcher.masks == ()


def test_choices_of_one_grammar_know_nothing_of_each_other():
    grammar = one_of()
    one, other = grammar.matcher(), grammar.matcher()
    one.advance(6)
    assert ids_in(other.masks[0]) == allowed(TEXTS, b"")
    twin = one.fork()
    one.advance(5)
    assert ids_in(one.masks[0]) == allowed(TEXTS, b"abc")
    assert ids_in(twin.masks[0]) <= allowed(TEXTS, b"ab")


def test_a_draft_is_followed_as_far_as_it_can_be_drawn():
    matcher = one_of().matcher()
    before = matcher.masks
    assert matcher.follow([6, 5, 3, 3]) == (6, 5, 3)
    alone = grammar_masks(6, 5, 3)
    assert [ids_in(mask) for mask in matcher.masks] == alone
    assert alone[0] == allowed(TEXTS, b"")
    assert alone[2] == allowed(TEXTS, b"abc")
    # A draft is a guess: the choice stands where it stood, and draws what it draws.
    assert matcher.follow([7]) == ()
    assert matcher.masks == before
    matcher.advance(6)
    matcher.advance(5)
    assert ids_in(matcher.masks[0]) == allowed(TEXTS, b"abc")


def grammar_masks(*ids):
    """Of a choice that draws them one by one, the last one's for what follows."""
    matcher = one_of().matcher()
    return [*say(matcher, ids), ids_in(matcher.masks[0])]


def test_a_draft_ends_before_the_end():
    matcher = one_of().matcher()
    assert matcher.follow([6, 5, EOS, 3]) == (6, 5)
    assert matcher.follow([6, 5, 6]) == (6, 5)  # after the last nothing is drawn any more


def test_what_has_to_come_is_foreseen():
    tokenizer, vocabulary = tiny_vocabulary()
    matcher = vocabulary.compile('start: "a" "{\\"colour\\": " ("1" | "2")').matcher()
    forced = matcher.forced(100)
    text = b"".join(tokenizer.id_to_bytes(token_id) for token_id in forced)
    assert b'a{"colour": '.startswith(text)
    assert len(text) > 6
    assert matcher.forced(2) == forced[:2]
    assert matcher.follow(forced) == forced
    for token_id in forced:
        assert ids_in(matcher.masks[0]) >= {token_id}
        matcher.advance(token_id)


def test_special_ids_are_never_drawn():
    tokenizer, vocabulary = tiny_vocabulary()
    anything = ids_in(vocabulary.compile(regex("(?s:.*)")).matcher().masks[0])
    assert anything & tokenizer.special_ids == {tokenizer.eos_id}
    # Also where a grammar asks for them.
    with pytest.raises(GrammarError):
        vocabulary.compile(f"start: <[{tokenizer.image_start_id}]>")
    with pytest.raises(GrammarError):
        vocabulary.compile("start: <image>")


def test_texts_are_spelled_with_any_ids():
    tokenizer, vocabulary = tiny_vocabulary()
    texts = ["é 木", "木"]
    grammar = vocabulary.compile(regex("|".join(texts)))
    for text in texts:
        for ids in (tokenizer.encode_continuation(text), spell(tokenizer, text.encode())):
            matcher = grammar.matcher()
            for token_id in ids:
                assert not matcher.is_complete
                matcher.advance(token_id)
            assert matcher.is_complete


def spell(tokenizer, data):
    """Byte by byte."""
    of_byte = {tokenizer.id_to_bytes(i): i for i in range(tokenizer.vocab_size) if tokenizer.is_byte(i)}
    return [of_byte[bytes([byte])] for byte in data]


@pytest.mark.parametrize(
    "grammar", ["start: nothing", "start: /(/", "", regex("(?=a)b"), schema(type="frob"), json.dumps({"grammars": []})]
)
def test_what_is_no_grammar(grammar):
    with pytest.raises(GrammarError):
        small_vocabulary().compile(grammar)


def test_what_no_id_can_spell():
    with pytest.raises(GrammarError):
        small_vocabulary().compile(regex("x"))


def test_a_grammar_that_becomes_too_complex_on_the_way():
    tokenizer, vocabulary = tiny_vocabulary()
    many = schema(type="object", properties={f"p{i}": {"type": "string"} for i in range(600)})
    matcher = vocabulary.compile(many).matcher()
    for token_id in spell(tokenizer, b'{"'):
        assert not matcher.has_failed
        matcher.advance(token_id)
        if matcher.has_failed:
            break
    assert matcher.has_failed
    assert matcher.masks == ()
