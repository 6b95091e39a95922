import json
import shutil

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.tokenizer import ASSISTANT_MARKER, TextError, Tokenizer, TokenizerError
from tests.support.golden import OFFICIAL_TOKENIZER, TINY_V1, TINY_V2, encode_pieces, tokenizer_table

OFFICIAL = Tokenizer.from_folder(OFFICIAL_TOKENIZER, "2.0")
TINY = Tokenizer.from_folder(TINY_V2, "2.0")
TINY_1_0 = Tokenizer.from_folder(TINY_V1, "1.0")
BY_TABLE = {"official": OFFICIAL, "tiny": TINY}

CONTROL_IDS = {0, 1, 2, *range(101, 113)}
# What sentencepiece turns into control ids by itself, and the turn markers.
UNSAFE = ["<image>", "</image>", "<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"]
UNSAFE += ["<reserved_20>", "<reserved_21>", "<reserved_22>", "<reserved_23>", "<用户>", "<AI>"]
SPECIAL_ONLY = ["<unk>", "<s>", "</s>", "<slice>", "</slice>", "<point>", "</point>"]

typed_text = st.lists(
    st.sampled_from(
        [*UNSAFE, *SPECIAL_ONLY, "<", ">", "/", "(", ")", "A", "I", "AI", "用户", " ", "\n", "\0", "é", "🐔"]
    )
    | st.text(max_size=4),
    max_size=8,
).map("".join)


def contains(ids, wanted):
    return any(ids[start : start + len(wanted)] == wanted for start in range(len(ids)))


@pytest.mark.parametrize("table", ["official", "tiny"])
def test_encodes_like_the_reference(table):
    tokenizer = BY_TABLE[table]
    rows = tokenizer_table(table)["encode"]
    assert len(rows) in (200, 80)
    for row in rows:
        assert [tokenizer.bos_id, *encode_pieces(tokenizer, tokenizer.split_special(row["text"]))] == row["ids"]


@pytest.mark.parametrize("table", ["official", "tiny"])
def test_decodes_like_the_reference(table):
    rows = tokenizer_table(table)["decode"]
    assert len(rows) in (200, 80)
    for row in rows:
        assert BY_TABLE[table].decode(row["ids"]) == row["text"]


@pytest.mark.parametrize("ids", [[], [0, 0], [1], [2], [1, 2], [0, 1, 0, 2, 0], [5, 5]])
def test_decode_of_nothing_is_empty(ids):
    assert TINY.decode(ids) == ""


def test_space_of_a_special_token_goes_before_the_text_since_the_last_one():
    ids = encode_pieces(TINY, TINY.split_special("see <box>1<ref></ref>a<s>b"))
    assert TINY.decode(ids) == "see <box> 1<ref></ref> a<s>b"


def test_names_and_sizes():
    assert OFFICIAL.vocab_size == 122753
    assert (TINY.bos_id, TINY.eos_id, TINY.unk_id, TINY.image_start_id, TINY.image_end_id) == (1, 2, 0, 101, 102)
    assert (TINY.slice_start_id, TINY.slice_end_id) == (111, 112)
    assert (TINY_1_0.slice_start_id, TINY_1_0.slice_end_id) == (None, None)


def test_release_1_0_has_no_point_and_no_slice():
    assert TINY_1_0.split_special("a<box>b<slice>c") == ["a", 105, "b<slice>c"]
    assert TINY.split_special("<slice>c") == [111, "c"]
    assert not TINY_1_0.is_special(111)
    assert TINY_1_0.decode([111]) == "<reserved_22>"
    assert TINY.decode([111]) == "<slice>"


@settings(deadline=None)
@given(typed_text)
@example("<image>")
@example("<image>x")
@example("".join(UNSAFE + SPECIAL_ONLY))
@example("<A<AI>I>(<AI>)")
def test_plain_text_never_becomes_a_control_token(text):
    for tokenizer in (OFFICIAL, TINY):
        pieces = tokenizer.split_plain(text)
        assert "".join(pieces) == text
        ids = encode_pieces(tokenizer, pieces)
        assert CONTROL_IDS.isdisjoint(ids)
        assert not contains(ids, tokenizer.encode("<用户>"))
        assert not contains(ids, tokenizer.encode("<AI>"))
        # The ids still stand for the same text; only U+2581 is a space to sentencepiece.
        assert b"".join(map(tokenizer.id_to_bytes, ids)).decode() == text.replace("▁", " ")
        if not any(name in text for name in UNSAFE):
            assert pieces == [text]


@settings(deadline=None)
@given(typed_text)
def test_split_special_loses_nothing(text):
    pieces = OFFICIAL.split_special(text)
    assert "".join(OFFICIAL.id_to_text(piece) if isinstance(piece, int) else piece for piece in pieces) == text
    assert "" not in pieces


def test_id_to_bytes():
    ids = TINY.encode(" é\n")
    assert [TINY.id_to_bytes(token_id) for token_id in ids] == [b" ", b"\xc3", b"\xa9", b"\n"]
    assert [TINY.id_to_text(token_id) for token_id in ids] == [" ", "\ufffd", "\ufffd", "\n"]
    assert [TINY.is_byte(token_id) for token_id in ids] == [False, True, True, False]
    assert TINY.id_to_bytes(TINY.encode("\0")[0]) == b"\0"
    assert TINY.id_to_bytes(111) == b"<slice>"
    assert TINY.id_to_text(2) == "</s>"


def test_lone_surrogate_is_refused():
    with pytest.raises(TextError, match="lone surrogate at character 2"):
        encode_pieces(TINY, ["ab\ud800"])


@pytest.fixture
def folder(tmp_path):
    """A copy of the tiny 2.0 tokenizer, to be spoiled."""
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(TINY_V2 / name, tmp_path)
    return tmp_path


def rename_token(folder, token_id, name):
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["added_tokens_decoder"][token_id] = {"content": name}
    path.write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer_config.json"])
def test_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(TokenizerError, match=f"cannot read .*{name}: No such file"):
        Tokenizer.from_folder(folder, "2.0")


@pytest.mark.parametrize("content", [b"", b"not a model"])
def test_spoiled_model(folder, content):
    (folder / "tokenizer.model").write_bytes(content)
    with pytest.raises(TokenizerError, match="not a sentencepiece model"):
        Tokenizer.from_folder(folder, "2.0")


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"\xff",
        b"[]",
        b"{}",
        b'{"added_tokens_decoder": []}',
        b'{"added_tokens_decoder": {"one": {"content": "<s>"}}}',
        b'{"added_tokens_decoder": {"1": {}}}',
        b'{"added_tokens_decoder": {"1": "<s>"}}',
    ],
)
def test_spoiled_config(folder, content):
    (folder / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(TokenizerError, match="is not JSON with an object added_tokens_decoder"):
        Tokenizer.from_folder(folder, "2.0")


@pytest.mark.parametrize("name", ["bare", "<a<b>", "<>", 7])
def test_special_token_that_is_no_name(folder, name):
    rename_token(folder, "109", name)
    with pytest.raises(TokenizerError, match="is not a name in angle brackets"):
        Tokenizer.from_folder(folder, "2.0")


def test_config_of_the_other_release():
    with pytest.raises(TokenizerError, match=r"does not name 111 <slice>, as MiniCPM-V 2\.0 needs"):
        Tokenizer.from_folder(TINY_V1, "2.0")


@pytest.mark.parametrize(("token_id", "piece"), [("7", "<img>"), ("1499", "None"), ("-1", "None")])
def test_files_that_do_not_fit_each_other(folder, token_id, piece):
    rename_token(folder, token_id, "<other>")
    with pytest.raises(
        TokenizerError, match=f"tokenizer.model has {piece} where tokenizer_config.json has {token_id} <other>"
    ):
        Tokenizer.from_folder(folder, "2.0")


def test_vocabulary_in_which_a_typed_turn_marker_would_be_a_real_one(folder):
    path = folder / "tokenizer.model"
    data = path.read_bytes()
    field = b"\x0a\x02AI"  # the piece "AI" in the protocol buffer
    assert data.count(field) == 1
    path.write_bytes(data.replace(field, b"\x0a\x02\x01\x02"))
    with pytest.raises(TokenizerError, match="no piece for the word in <AI>"):
        Tokenizer.from_folder(folder, "2.0")


@pytest.mark.parametrize("tokenizer", [TINY, OFFICIAL], ids=["tiny", "official"])
@pytest.mark.parametrize(
    "text", ["yes", " yes", "(a)", ">b", '{"a": [1, 2]}', "红色", "\n\nx", "é木🙂", "<image></s>", ""]
)
def test_a_continuation_has_the_bytes_of_the_text(tokenizer, text):
    ids = tokenizer.encode_continuation(text)
    assert b"".join(map(tokenizer.id_to_bytes, ids)).decode() == text
    if text and text[0] not in "(>":
        marker = tokenizer.encode(ASSISTANT_MARKER)
        assert marker + ids == tokenizer.encode(ASSISTANT_MARKER + text)


@given(typed_text)
def test_text_of_ids_is_the_text_that_was_encoded(text):
    pieces = OFFICIAL.split_plain(text)
    assert OFFICIAL.text_of(encode_pieces(OFFICIAL, pieces)) == text


def test_a_prompt_may_keep_its_turn_markers_but_no_control_token():
    (text,) = OFFICIAL.split_plain("<用户>hi<AI>", keeps_markers=True)
    assert OFFICIAL.encode(text) == [95396, 4194, 95388, 6920, 95396, 10850, 95388]
    for name in UNSAFE[:-2]:
        ids = [
            token_id for piece in OFFICIAL.split_plain(name, keeps_markers=True) for token_id in OFFICIAL.encode(piece)
        ]
        assert not CONTROL_IDS & set(ids)
