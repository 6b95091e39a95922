from hypothesis import given
from hypothesis import strategies as st

from server.engine.ngrams import SIZES, NgramIndex


def index_of(*parts):
    """An index over these texts, with a gap between each and the next."""
    index = NgramIndex()
    for number, part in enumerate(parts):
        if number:
            index.add_gap()
        index.extend(part)
    index.check_invariants()
    return index


def looked_up(text, max_tokens):
    """The same by searching the whole text, in which None is a gap."""
    for size in SIZES:
        end = text[-size:]
        places = [place for place in range(size, len(text)) if text[place - size : place] == end]
        places = [place for place in places if text[place] is not None]
        if len(end) == size and None not in end and places:
            copied = []
            for place in range(places[-1], places[-1] + max_tokens):
                token_id = (text + copied)[place]
                if token_id is None:
                    break
                copied.append(token_id)
            return tuple(copied)
    return ()


def test_what_followed_the_same_ids_before():
    assert index_of([5, 6, 7, 8, 9, 1, 5, 6]).continuation(3) == (7, 8, 9)
    assert index_of([5, 6, 7, 8, 9, 1, 5, 6]).continuation(1) == (7,)
    assert index_of([5, 6, 7, 8, 9, 1, 5, 6]).continuation(0) == ()


def test_of_several_places_the_latest_counts():
    assert index_of([5, 6, 7, 5, 6, 8, 5, 6]).continuation(2) == (8, 5)


def test_of_several_lengths_the_longest_counts():
    # 5 6 was followed by 9 the last time, but 3 5 6 by 7, and 2 3 5 6 by 1.
    assert index_of([5, 6, 9, 4, 5, 6]).continuation(1) == (9,)
    assert index_of([3, 5, 6, 7, 5, 6, 9, 3, 5, 6]).continuation(1) == (7,)
    assert index_of([2, 3, 5, 6, 1, 3, 5, 6, 7, 5, 6, 9, 2, 3, 5, 6]).continuation(1) == (1,)


def test_one_id_alone_is_no_repetition():
    assert index_of([5, 6, 7, 1, 5]).continuation(4) == ()
    assert index_of([5]).continuation(4) == ()
    assert index_of([]).continuation(4) == ()


def test_a_text_that_goes_round_goes_on_going_round():
    assert index_of([1, 2, 3, 1, 2, 3, 1, 2]).continuation(8) == (3, 1, 2, 3, 1, 2, 3, 1)
    assert index_of([4, 4, 4]).continuation(5) == (4,) * 5


def test_nothing_goes_across_a_gap():
    assert index_of([1, 2, 3], [9, 1, 2]).continuation(4) == (3,)  # 3 was the last before the gap
    assert index_of([1, 2], [3, 9, 1, 2]).continuation(4) == ()  # 3 did not follow on 1 2
    assert index_of([1, 2, 3, 1], [2]).continuation(4) == ()  # 1 2 is not the end of the text
    assert index_of([1, 2, 3], []).continuation(4) == ()


@given(st.lists(st.lists(st.integers(0, 2), max_size=12), min_size=1, max_size=4), st.integers(0, 9))
def test_it_finds_what_a_search_of_the_whole_text_finds(parts, max_tokens):
    text = []
    for number, part in enumerate(parts):
        text += [None] * (number > 0) + part
    assert index_of(*parts).continuation(max_tokens) == looked_up(text, max_tokens)


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(0, 30))
def test_it_does_not_matter_in_how_many_parts_the_text_came(ids, cut):
    index = index_of(ids[:cut])
    index.extend(ids[cut:])
    assert index.continuation(5) == index_of(ids).continuation(5)
