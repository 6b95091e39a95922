import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from model.slicing import SlicePlan
from server.engine.pictures import PictureIndex, crop_hash, file_hash

PLAN, OTHER_PLAN = SlicePlan((448, 448)), SlicePlan((224, 448))


def pixels(height=2, width=3):
    return np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)


def test_hashes_are_of_content_shape_and_salt():
    hashes = [
        crop_hash(pixels(), b""),
        crop_hash(pixels(3, 2), b""),
        crop_hash(pixels() + 1, b""),
        crop_hash(pixels(), b"a"),
        file_hash(b"", b""),
        file_hash(b"a", b""),
        file_hash(b"", b"a"),
    ]
    assert len(set(hashes)) == len(hashes)
    assert all(len(content_hash) == 16 for content_hash in hashes)
    assert crop_hash(pixels(), b"a") == crop_hash(pixels(), b"a")
    assert file_hash(b"data", b"a") == file_hash(b"data", b"a")


def test_a_picture_is_found_under_its_plan_alone():
    index = PictureIndex(4)
    index.add(b"file", PLAN, [b"crop"])
    assert index.find(b"file", PLAN) == (b"crop",)
    assert index.find(b"file", OTHER_PLAN) is None
    assert index.find(b"other", PLAN) is None


def test_the_picture_not_asked_for_longest_is_forgotten():
    index = PictureIndex(2)
    for name in (b"1", b"2"):
        index.add(name, PLAN, [name])
    assert index.find(b"1", PLAN) == (b"1",)
    index.add(b"3", PLAN, [b"3"])
    assert [index.find(name, PLAN) is not None for name in (b"1", b"2", b"3")] == [True, False, True]


@settings(deadline=None)
@given(st.integers(0, 3), st.lists(st.tuples(st.sampled_from(["add", "find"]), st.integers(0, 5)), max_size=50))
def test_any_order_of_work_keeps_the_bound_and_the_newest(max_pictures, work):
    index = PictureIndex(max_pictures)
    used: list[int] = []
    for name, number in work:
        if name == "add":
            index.add(bytes([number]), PLAN, [bytes([number])])
            used = [*(other for other in used if other != number), number]
        else:
            is_known = number in used[len(used) - min(max_pictures, len(used)) :]
            assert index.find(bytes([number]), PLAN) == ((bytes([number]),) if is_known else None)
            if is_known:
                used = [*(other for other in used if other != number), number]
        index.check_invariants()
        assert len(index) == min(max_pictures, len(used))
