import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.tokenizer import Tokenizer
from server.engine.detokenizer import Detokenizer, TextDelta
from tests.support.golden import TINY_V1, TINY_V2, case_names, encode_pieces, load_case, tokenizer_table

TINY = Tokenizer.from_folder(TINY_V2, "2.0")
TINY_1_0 = Tokenizer.from_folder(TINY_V1, "1.0")
UNK, BOS, EOS, REF = 0, 1, 2, 103
X = TINY.encode("x")
BYTES = TINY.encode("é🐔")

plain_ids = st.sampled_from([*TINY.encode("ab  \n.é"), *BYTES]) | st.integers(113, TINY.vocab_size - 1)
special_ids = st.sampled_from([UNK, BOS, EOS, 102, REF, 111])
all_ids = st.lists(plain_ids | special_ids, max_size=24)
chunk_sizes = st.lists(st.integers(0, 5), min_size=1, max_size=8)


def encode(text):
    """Ids of a text in which special names are special tokens."""
    return encode_pieces(TINY, TINY.split_special(text))


def run(ids, stop=(), sizes=(1,), tokenizer=TINY, **options):
    """The deltas of `ids`, fed in groups whose sizes are taken in turn, and `finish` last."""
    detokenizer = Detokenizer(tokenizer, stop, **options)
    deltas = []
    start = 0
    sizes = [*sizes, 1]
    while start < len(ids):
        size = sizes[len(deltas) % len(sizes)]
        deltas.append(detokenizer.feed(ids[start : start + size]))
        start += size
    return [*deltas, detokenizer.finish()]


def joined(deltas):
    return "".join(delta.text for delta in deltas)


def texts(ids, stop=()):
    return [delta.text for delta in run(ids, stop)]


def unstripped(ids):
    """The answer as it would stand if the ids ended here, trailing white space included."""
    kept = [token_id for token_id in ids if token_id != UNK]
    if kept[-1:] == [EOS]:
        kept.pop()
    return TINY.decode(kept + X)[:-1]  # the x keeps the white space before it from being stripped


def stopped_text(ids, stop):
    """The text before the first stop string, None without one: by decoding everything again after each id."""
    kept = [token_id for token_id in ids if token_id != UNK]
    for end in range(1, len(kept) + 1):
        if end < len(kept) and TINY.is_byte(kept[end - 1]) and TINY.is_byte(kept[end]):
            continue  # inside a run of bytes it is open what they will be
        text = unstripped(kept[:end])
        starts = [text.index(string) for string in stop if string in text]
        under_way = [
            start
            for start in range(len(text))
            if any(len(string) > len(text) - start and string.startswith(text[start:]) for string in stop)
        ]
        if starts and (end == len(kept) or min(starts) <= min(under_way, default=len(text))):
            return text[: min(starts)].rstrip()
    return None


@settings(deadline=None, max_examples=200)
@given(ids=all_ids, sizes=chunk_sizes)
@example(ids=[UNK, BOS, UNK, BYTES[0], UNK, BYTES[1], EOS, UNK], sizes=[1])
@example(ids=[BOS, BOS, *X, REF, *X, EOS, *X, EOS, EOS], sizes=[1])
def test_deltas_add_up_to_the_reference_text(ids, sizes):
    deltas = run(ids, sizes=sizes)
    assert joined(deltas) == TINY.decode(ids)
    assert sum(delta.num_ids for delta in deltas) == len(ids)
    assert not any(delta.stopped for delta in deltas)


@settings(deadline=None, max_examples=200)
@given(ids=all_ids, sizes=chunk_sizes, data=st.data())
def test_text_ends_before_the_first_stop_string(ids, sizes, data):
    text = unstripped(ids) or " "
    cuts = st.tuples(st.integers(0, len(text) - 1), st.integers(1, 6))
    inside = cuts.map(lambda cut: text[cut[0] : cut[0] + cut[1]])
    stop = data.draw(st.lists(inside | st.text("ab \n<>", min_size=1, max_size=3), min_size=1, max_size=4))

    deltas = run(ids, stop, sizes)
    expected = stopped_text(ids, stop)
    assert joined(deltas) == (TINY.decode(ids) if expected is None else expected)
    assert deltas[-1].stopped == (expected is not None)
    assert not any(string in joined(deltas) for string in stop)
    # What is counted does not depend on the grouping either.
    assert sum(delta.num_ids for delta in deltas) == sum(delta.num_ids for delta in run(ids, stop, [len(ids) or 1]))


@settings(deadline=None, max_examples=100)
@given(ids=all_ids, sizes=chunk_sizes, skip=st.booleans())
@example(ids=[BYTES[0], REF, BYTES[1], UNK, *X, EOS], sizes=[1], skip=True)
@example(ids=[BOS, UNK, *X, EOS], sizes=[1], skip=False)
def test_deltas_add_up_with_all_special_tokens_or_none(ids, sizes, skip):
    deltas = run(ids, sizes=sizes, skip_special_tokens=skip)
    assert joined(deltas) == TINY.decode(ids, skip_special_tokens=skip)
    assert sum(delta.num_ids for delta in deltas) == len(ids)


@settings(deadline=None, max_examples=100)
@given(ids=all_ids, sizes=chunk_sizes, data=st.data())
def test_text_ends_with_the_stop_string_where_it_is_to_be_included(ids, sizes, data):
    text = unstripped(ids) or " "
    start = data.draw(st.integers(0, len(text) - 1))
    stop = [text[start : start + data.draw(st.integers(1, 6))], "never said"]
    before, after = run(ids, stop, sizes), run(ids, stop, sizes, include_stop=True)
    assert before[-1].stopped == after[-1].stopped
    if after[-1].stopped:
        assert joined(after) == stopped_text(ids, stop) + joined(after)[len(stopped_text(ids, stop)) :]
        assert joined(after).endswith(stop[0])
        assert joined(after).count(stop[0]) == 1
    else:
        assert joined(after) == joined(before)


@settings(deadline=None)
@given(
    ids=st.lists(st.integers(113, TINY.vocab_size - 1).filter(lambda token_id: not TINY.is_byte(token_id))),
    data=st.data(),
)
def test_ids_that_begin_before_the_stop_string_are_counted(ids, data):
    text = unstripped(ids)
    start = data.draw(st.integers(0, len(text)))
    stop = text[start : start + 3] or "absent"
    num_ids = sum(delta.num_ids for delta in run(ids, [stop]))
    if stop in text:
        begins = [len(unstripped(ids[:index])) for index in range(len(ids))]
        assert num_ids == sum(begin < text.index(stop) for begin in begins)
    else:
        assert num_ids == len(ids)


@pytest.mark.parametrize("table", ["encode", "decode"])
def test_every_text_of_the_reference_table(table):
    for row in tokenizer_table("tiny")[table]:
        assert joined(run(row["ids"])) == TINY.decode(row["ids"])


@pytest.mark.parametrize("name", case_names())
def test_texts_of_golden_case(name):
    case = load_case(name)
    for mode in ("greedy", "greedy_rp105", "beam3_rp120"):
        answer = case.facts[mode]
        assert (
            joined(run(answer["ids"], tokenizer=Tokenizer.from_folder(case.checkpoint, case.release))) == answer["text"]
        )


def test_text_flows_and_white_space_waits_for_what_follows():
    assert texts(encode("  a\n\nb. ")) == ["", "a", "", "", "\n\nb", ".", "", ""]


def test_character_comes_when_its_last_byte_does():
    deltas = run(BYTES[:2] + BYTES[2:])
    assert [(delta.text, delta.num_ids) for delta in deltas] == [
        ("", 0),
        ("é", 2),
        ("", 0),
        ("", 0),
        ("", 0),
        ("🐔", 4),
        ("", 0),
    ]


def test_bytes_that_are_no_character_come_when_that_is_certain():
    assert texts([BYTES[0], *X]) == ["", "\ufffdx", ""]
    assert texts([BYTES[2], BYTES[3], BYTES[0]]) == ["", "", "\ufffd\ufffd", "\ufffd"]


def test_text_after_a_special_token_waits_for_the_next_one():
    ids = [*X, REF, *X, *X, REF, *X]
    assert texts(ids) == ["x", "<ref>", "", "", " xx<ref>", "", "x"]


def test_end_token_inside_the_answer_is_text():
    assert texts([*X, EOS]) == ["x", "", ""]
    assert texts([*X, EOS, *X]) == ["x", "", "</s>", "x"]


def test_release_1_0_streams_what_is_not_special_there():
    assert [delta.text for delta in run([111, 103, 112], tokenizer=TINY_1_0)] == [
        "<reserved_22>",
        "<ref>",
        "",
        "<reserved_23>",
    ]


def test_stop_string_across_tokens_is_never_shown():
    detokenizer = Detokenizer(TINY, ["stop"])
    assert detokenizer.feed(TINY.encode("a s")) == TextDelta("a", 2, stopped=False)
    assert detokenizer.feed(TINY.encode("t")) == TextDelta("", 0, stopped=False)
    assert detokenizer.feed(TINY.encode("o")) == TextDelta("", 0, stopped=False)
    assert detokenizer.feed(TINY.encode("p") + X) == TextDelta("", 0, stopped=True)
    assert detokenizer.feed(X) == TextDelta("", 0, stopped=True)
    assert detokenizer.finish() == TextDelta("", 0, stopped=True)


def test_what_only_looked_like_a_stop_string_is_shown():
    assert texts(TINY.encode("ab"), ["abc"]) == ["", "", "ab"]
    assert "".join(texts(TINY.encode("ababac"), ["abac"])) == "ab"
    assert "".join(texts(TINY.encode("ababad"), ["abac"])) == "ababad"


def test_stop_string_inside_one_token():
    token = max(
        (i for i in range(113, TINY.vocab_size) if TINY.id_to_text(i).isalpha()), key=lambda i: len(TINY.id_to_text(i))
    )
    text = TINY.id_to_text(token)
    deltas = run([*X, token], [text[2:4]])
    assert deltas[1] == TextDelta(text[:2], 1, stopped=True)


def test_earliest_beginning_wins_over_earliest_end():
    assert joined(run(TINY.encode("xabcx"), ["b", "abc"])) == "x"
    assert joined(run(TINY.encode("xabx"), ["b", "abc"])) == "xa"
    # The longer one was under way when the answer ended.
    assert joined(run(TINY.encode("xab"), ["b", "abc"])) == "xa"


def test_white_space_can_stop_the_answer():
    deltas = run(TINY.encode("\na \n\nb"), ["\n"])
    assert joined(deltas) == "a"
    assert deltas[3].stopped


def test_stop_string_in_held_text_ends_the_answer_at_once():
    detokenizer = Detokenizer(TINY, ["\n"])
    detokenizer.feed([REF, *X])
    assert detokenizer.feed(TINY.encode("\n")) == TextDelta("x", 1, stopped=True)


def test_stop_string_with_the_space_that_a_special_token_brings():
    assert joined(run([*X, REF, *X, REF, *X], [" x"])) == "x<ref>"
    assert joined(run([*X, REF, *X, *X, REF, *X], ["> xx<"])) == "x<ref"


def test_ids_are_counted_where_the_inserted_space_puts_them():
    # x<ref> aa<ref>: the second a begins at 8, where the stop string does.
    assert sum(delta.num_ids for delta in run([*X, REF, *TINY.encode("a"), *TINY.encode("a"), REF], ["a<"])) == 3
    # x<ref> x<ref>: the stop string begins inside the first <ref>, which begins before it.
    assert sum(delta.num_ids for delta in run([*X, REF, *X, REF], ["ref> x"])) == 2


def test_bytes_before_a_special_token_can_complete_a_stop_string():
    assert joined(run([REF, *X, BYTES[0], REF, *X], ["<ref>x\ufffd"])) == ""


@settings(deadline=None, max_examples=50)
@given(ids=st.lists(plain_ids, max_size=12), sizes=chunk_sizes)
def test_what_goes_on_with_a_text_keeps_its_white_space(ids, sizes):
    deltas = run(ids, sizes=sizes, strips=False)
    assert joined(deltas) == TINY.decode([*X, *ids, *X])[1:-1]
    assert sum(delta.num_ids for delta in deltas) == len(ids)


def test_an_included_stop_string_keeps_its_white_space():
    assert joined(run(TINY.encode("a.  b. \nc"), [". \n"], include_stop=True)) == "a.  b. \n"
    assert joined(run(TINY.encode("a  b"), [" "], include_stop=True)) == "a "


def test_of_stop_strings_that_begin_alike_the_shortest_is_included():
    assert joined(run(TINY.encode("xabcd"), ["abcd", "ab", "abc"], include_stop=True)) == "xab"
    # The one that begins first was under way when the other was complete.
    assert joined(run(TINY.encode("xabcx"), ["b", "abc"], include_stop=True)) == "xabc"


@pytest.mark.parametrize(
    ("min_tokens", "expected"),
    [(0, ""), (1, ""), (2, "ab"), (3, "ab"), (4, "abab"), (5, "abab"), (6, "ababab"), (7, "ababab")],
)
def test_stop_strings_of_the_first_ids_do_not_count(min_tokens, expected):
    ids = [token_id for char in "ababab" for token_id in TINY.encode("x" + char)[-1:]]
    assert TINY.decode(ids) == "ababab"
    for sizes in ([1], [2], [6]):
        assert joined(run(ids, ["ab"], sizes, min_tokens=min_tokens)) == expected


def test_min_tokens_are_counted_through_special_tokens():
    ids = [REF, *X, REF, *X, REF]
    # "<ref> x<ref> x<ref>": the space before an x comes when the text after it is known.
    assert joined(run(ids, ["<ref>"], min_tokens=1)) == "<ref> x"
    assert joined(run(ids, ["<ref>"], min_tokens=3)) == "<ref> x<ref> x"
    assert joined(run(ids, ["x<"], min_tokens=3)) == "<ref> x<ref>"
    assert joined(run(ids, ["x<"], min_tokens=5)) == "<ref> x<ref> x<ref>"


def test_empty_stop_string_is_a_mistake_of_ours():
    with pytest.raises(AssertionError):
        Detokenizer(TINY, [""])


def test_white_space_of_what_goes_on_with_a_text_is_kept_up_to_a_stop_string():
    ids = TINY.encode(" a b \n")
    for stop, expected in (((), " a b \n"), (("b",), " a ")):
        detokenizer = Detokenizer(TINY, stop, strips=False)
        deltas = [detokenizer.feed([token_id]) for token_id in ids]
        text = "".join(delta.text for delta in deltas)
        if not deltas[-1].stopped:
            text += detokenizer.finish().text
        assert text == expected
