import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.config import SlicingConfig, load_config
from model.slicing import SlicePlan, cut, num_block_tokens, plan_slices
from tests.support.golden import TINY_V1, TINY_V2, case_names, load_case, slicing_rows

OFFICIAL = SlicingConfig(enabled=True, scale_resolution=448, patch_size=14, max_slices=9, image_size=448)
SQUARE = load_config(TINY_V1).slicing


def sha256(array) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


def test_tiny_checkpoint_slices_as_the_official_one():
    assert load_config(TINY_V2).slicing == OFFICIAL


def test_every_row_of_the_reference_table():
    rows = slicing_rows()
    assert len(rows) == 3000
    for row in rows:
        plan = plan_slices(row["width"], row["height"], OFFICIAL)
        found = {
            "width": row["width"],
            "height": row["height"],
            "columns": plan.grid[0] if plan.grid else 0,
            "rows": plan.grid[1] if plan.grid else 0,
            "source_width": plan.source_size[0],
            "source_height": plan.source_size[1],
            "slice_width": plan.slice_size[0] if plan.slice_size else 0,
            "slice_height": plan.slice_size[1] if plan.slice_size else 0,
            "prompt_tokens": num_block_tokens(plan, num_queries=64) + 1,
        }
        assert found == row


@pytest.mark.parametrize("name", case_names(with_image=True))
def test_pixels_of_golden_case(name):
    case = load_case(name)
    image = case.open_image()
    assert hashlib.sha256(image.tobytes()).hexdigest() == case.facts["rgb_sha256"]

    plan = plan_slices(*image.size, load_config(case.checkpoint).slicing)
    crops = cut(image, plan)

    assert [list(size) for size in plan.crop_sizes] == [picture["size"] for picture in case.facts["pictures"]]
    assert len(crops) == plan.num_crops
    for crop, picture in zip(crops, case.facts["pictures"], strict=True):
        assert crop.dtype == np.uint8
        assert crop.flags["C_CONTIGUOUS"]
        assert sha256(crop) == picture["rgb_sha256"]
        normalised = (crop.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
        assert sha256(np.ascontiguousarray(normalised.transpose(2, 0, 1))) == picture["tensor_sha256"]


@pytest.mark.parametrize("name", case_names("2.0", with_image=True))
def test_plan_of_golden_case(name):
    facts = load_case(name).facts
    expected = facts["slicing"]
    plan = plan_slices(*facts["file"]["size"], OFFICIAL)
    assert plan.source_size == tuple(expected["source_size"])
    assert plan.grid == (expected["grid"] and tuple(expected["grid"]))
    assert plan.refine_size == (expected["refine_size"] and tuple(expected["refine_size"]))
    assert plan.slice_size == (expected["slice_size"] and tuple(expected["slice_size"]))
    assert list(plan.boxes) == [tuple(box) for box in expected["boxes"]]


@settings(deadline=None)
@given(width=st.integers(1, 20_000), height=st.integers(1, 20_000), max_slices=st.integers(1, 12))
def test_crops_cover_the_picture_within_the_limits(width, height, max_slices):
    plan = plan_slices(width, height, OFFICIAL, max_slices)
    assert all(side % OFFICIAL.patch_size == 0 for size in plan.crop_sizes for side in size)
    assert len(plan.boxes) <= max_slices
    assert plan.num_crops == 1 + len(plan.boxes)
    if plan.grid is not None:
        cell_area = math.prod(plan.slice_size)
        assert sum((right - left) * (bottom - top) for left, top, right, bottom in plan.boxes) == (
            cell_area * len(plan.boxes)
        )
        assert plan.boxes[0][:2] == (0, 0)
        assert plan.boxes[-1][2:] == plan.refine_size


def test_max_slices_bounds_the_crops():
    assert plan_slices(1344, 1344, OFFICIAL).grid == (3, 3)
    assert plan_slices(1344, 1344, OFFICIAL, max_slices=4).grid == (2, 2)
    assert plan_slices(1344, 1344, OFFICIAL, max_slices=1) == SlicePlan((448, 448))


def test_release_1_0_squeezes_everything_to_one_square():
    plan = plan_slices(1600, 200, SQUARE, max_slices=9)
    assert plan == SlicePlan((448, 448))
    assert plan.crop_sizes == ((448, 448),)
    assert num_block_tokens(plan, num_queries=64) == 66


def test_side_that_truncates_to_nothing_becomes_one_patch():
    assert plan_slices(200_705, 1, OFFICIAL).source_size == (14, 14)


@pytest.mark.parametrize(("width", "height", "max_slices"), [(0, 5, None), (5, 0, None), (5, 5, 0)])
def test_impossible_sizes_are_refused(width, height, max_slices):
    with pytest.raises(ValueError, match="cannot slice a picture of"):
        plan_slices(width, height, OFFICIAL, max_slices)


def test_only_rgb_is_cut():
    with pytest.raises(ValueError, match="must be RGB to be cut, not L"):
        cut(Image.new("L", (20, 20)), plan_slices(20, 20, OFFICIAL))
