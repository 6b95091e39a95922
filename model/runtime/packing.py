"""From the rows of a step to tensors: all new tokens one after the other, and where each one's data lies.

Packed order: rows that decode come first, longest context first, so that those attended together differ little in
length; then prefill chunks and rows with a draft in the batch's order. Example with blocks of 16 tokens and 64 queries
a crop:

    row 0: ids [1, 7, 0, 0], start 0, blocks [5], crop 3 from query 62 at offset 2
    row 1: id [9], start 20, blocks [2, 8]
    token_ids    9    1   7   0    0        row 1 decodes, so it comes first
    positions    20   0   1   2    3
    slots        132  80  81  82   83       block 8 * 16 + 4; block 5 * 16 + 0 ..
    image_tokens [3, 4], image_rows [254, 255]     3 * 64 + 62 ..
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.formats import BLOCK_TOKENS
from model.nn.attention.base import AttentionPlan, PagedRows, RowGroup
from model.step import SequenceRow


@dataclass(frozen=True, slots=True)
class PackedRows:
    """T packed tokens, I of which stand for a picture, R of which are followed by a draw."""

    token_ids: Tensor
    """[T], int64."""
    positions: Tensor
    """[T], int64."""
    image_tokens: Tensor
    """[I], int64: packed indices."""
    image_rows: Tensor
    """[I], int64: rows of the table of encoded crops, crop slot * num_queries + query."""
    drawn_tokens: Tensor
    """[R], int64: packed indices of the tokens that a draw follows, row by row in the batch's order."""
    plan: AttentionPlan


def pack_rows(
    rows: Sequence[SequenceRow], *, num_queries: int, max_group_keys: int | None, device: torch.device
) -> PackedRows:
    """The rows' tensors on the device.

    Args:
        num_queries: vectors of a crop.
        max_group_keys: keys gathered at a time for rows that decode; 0 attends to each row by itself. None makes no
            groups, for kernels that do not read them.
    """
    order = sorted(range(len(rows)), key=lambda i: (0, -rows[i].start) if _decodes(rows[i]) else (1, 0))
    packed = [rows[i] for i in order]
    ends = np.cumsum([len(row.token_ids) for row in packed])
    end_of_row = dict(zip(order, ends.tolist(), strict=True))
    positions = [np.arange(row.start, row.start + len(row.token_ids)) for row in packed]
    slots = [_slots(row, at) for row, at in zip(packed, positions, strict=True)]
    image_tokens, image_rows = _image_indices(packed, num_queries)

    def upload(values: Sequence[int] | np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Tensor:
        return torch.as_tensor(values, dtype=torch.int64).to(device)

    return PackedRows(
        token_ids=upload(np.concatenate([np.asarray(row.token_ids, dtype=np.int64) for row in packed])),
        positions=upload(np.concatenate(positions)),
        image_tokens=upload(image_tokens),
        image_rows=upload(image_rows),
        drawn_tokens=upload(
            [
                token
                for i, row in enumerate(rows)
                if row.draw is not None
                for token in range(end_of_row[i] - len(row.draw.uniforms), end_of_row[i])
            ]
        ),
        plan=AttentionPlan(
            slots=upload(np.concatenate(slots)),
            groups=() if max_group_keys is None else _groups(packed, max_group_keys, device),
            rows=_paged_rows(packed, ends.tolist(), device),
        ),
    )


def _decodes(row: SequenceRow) -> bool:
    return len(row.token_ids) == 1 and row.start > 0


def _num_keys(row: SequenceRow) -> int:
    return row.start + len(row.token_ids)


def _slots(
    row: SequenceRow, positions: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    blocks = np.asarray(row.block_table, dtype=np.int64)
    return blocks[positions // BLOCK_TOKENS] * BLOCK_TOKENS + positions % BLOCK_TOKENS


def _image_indices(packed: Sequence[SequenceRow], num_queries: int) -> tuple[list[int], list[int]]:
    tokens: list[int] = []
    table_rows: list[int] = []
    first_token = 0
    for row in packed:
        for crop in row.crops:
            token = first_token + crop.offset
            table_row = crop.crop_slot * num_queries + crop.first_query
            tokens += range(token, token + crop.num_queries)
            table_rows += range(table_row, table_row + crop.num_queries)
        first_token += len(row.token_ids)
    return tokens, table_rows


def _paged_rows(packed: Sequence[SequenceRow], ends: Sequence[int], device: torch.device) -> PagedRows:
    decoding = [row for row in packed if _decodes(row)]
    return PagedRows(
        block_table=torch.from_numpy(_block_table(packed)).int().to(device),
        first_tokens=torch.tensor([0, *ends], dtype=torch.int32).to(device),
        num_keys=torch.tensor([_num_keys(row) for row in packed], dtype=torch.int32).to(device),
        num_decoding=len(decoding),
        max_decoding_keys=max(map(_num_keys, decoding), default=0),
        max_new=max((len(row.token_ids) for row in packed[len(decoding) :]), default=0),
    )


def _block_table(rows: Sequence[SequenceRow]) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """[rows, blocks of the longest], padded with block 0."""
    counts = [-(-_num_keys(row) // BLOCK_TOKENS) for row in rows]
    table = np.zeros((len(rows), max(counts)), dtype=np.int64)
    for i, (row, count) in enumerate(zip(rows, counts, strict=True)):
        table[i, :count] = row.block_table[:count]
    return table


def _groups(packed: Sequence[SequenceRow], max_group_keys: int, device: torch.device) -> tuple[RowGroup, ...]:
    groups: list[RowGroup] = []
    first_token = first_row = 0
    while first_row < len(packed):
        num_rows = _group_size(packed[first_row:], max_group_keys)
        members = packed[first_row : first_row + num_rows]
        groups.append(_group(members, first_token, device))
        first_row += num_rows
        first_token += sum(len(row.token_ids) for row in members)
    return tuple(groups)


def _group_size(rows: Sequence[SequenceRow], max_group_keys: int) -> int:
    """How many of the first rows are attended together."""
    if not _decodes(rows[0]):
        return 1
    num_decoding = sum(_decodes(row) for row in rows)
    return max(1, min(num_decoding, max_group_keys // _num_keys(rows[0])))


def _group(members: Sequence[SequenceRow], first_token: int, device: torch.device) -> RowGroup:
    row = members[0]  # the longest
    num_new, num_keys = len(row.token_ids), _num_keys(row)
    block_ids = mask = padding = None
    if row.start > 0:
        block_ids = torch.from_numpy(_block_table(members).reshape(-1)).to(device)
        key_positions = torch.arange(num_keys, device=device)
        if num_new > 1:
            new_positions = torch.arange(row.start, num_keys, device=device)
            mask = (key_positions <= new_positions[:, None])[None, None]
        elif _num_keys(members[-1]) < num_keys:
            lengths = torch.tensor([_num_keys(member) for member in members], device=device)
            padding = (key_positions >= lengths[:, None])[:, :, None]
            mask = ~padding.view(len(members), 1, 1, num_keys)
    return RowGroup(
        first_token=first_token,
        num_rows=len(members),
        num_new=num_new,
        num_keys=num_keys,
        block_ids=block_ids,
        mask=mask,
        padding=padding,
    )
