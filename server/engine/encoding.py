"""Which crops go through the vision tower in a step, and until when their pixels must stay."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Ordered

import msgspec

from model.step import CropCopy, CropRows, EncodeWork, StepBatch
from server.engine.channel import Crop
from server.engine.limits import StepLimits
from server.engine.sequence import Sequence
from server.engine.vision_cache import VisionCache

PixelReader = Callable[[int, int], memoryview]
"""(offset, number of bytes) -> that part of the arena, without a copy."""


class EncodePlanner:
    """Takes crops in order of arrival under a budget of tower blocks; the scheduler's half for pictures.

    Pixels lie in memory that the API process manages, and it needs them back early. A sequence may still read a
    crop's pixels from its arrival until the crop's first tower block has run, for this sequence or for another one
    that shows the same crop, provided that this sequence has its reference on the slot: before that the vectors can
    still be evicted. Where it has no slot for some of its crops, because they lie in cached tokens, it may read all
    of them until its end. An offset is released when the last sequence that may read it no longer can.

    Of pictures that were seen before, pixels are not sent at all. A sequence without them is admitted only with crops
    that need none: on the host, or past their first block, for whomever. A crop that is about to begin is waited for,
    and for any other one the pixels are asked for, of the whole request. Until they come the sequence holds nothing,
    not even pixels that were sent with it: who has a part of the arena must not wait for another part of it.
    """

    def __init__(self, limits: StepLimits, vision: VisionCache, read_pixels: PixelReader) -> None:
        self._limits = limits
        self._vision = vision
        self._read_pixels = read_pixels
        self._unread: dict[Sequence, list[int]] = {}
        """By live sequence: indices of its crops whose pixels it may still read."""
        self._num_readers: Counter[int] = Counter()
        """By arena offset: entries of `_unread` that stand for it."""
        self._released: list[int] = []
        self._awaiting: dict[Sequence, None] = {}
        """Sequences in the queue whose pixels have been asked for."""
        self._wanted: list[int] = []
        """Requests to be asked about."""

    @property
    def num_awaiting(self) -> int:
        """Sequences in the queue that cannot go on until pixels come."""
        return len(self._awaiting)

    def add(self, sequence: Sequence) -> None:
        """A new sequence: its pixels must stay. That its crops fit the vision cache alone was seen before."""
        assert len({crop.content_hash for crop in sequence.crops}) <= self._vision.num_slots
        self._keep_pixels(sequence, _with_pixels(sequence))

    def supply(self, waiting: Iterable[Sequence], offsets: Ordered[int]) -> None:
        """The pixels of all crops of a request, for those of its waiting sequences that may lack some."""
        for sequence in waiting:
            if sequence.crop_slots is None and len(_with_pixels(sequence)) < len(sequence.crops):
                self._set_offsets(sequence, offsets)
                self._awaiting.pop(sequence, None)
        self._released += [offset for offset in offsets if offset not in self._num_readers]

    def lacks_pixels(self, sequence: Sequence, num_cached: int) -> bool:
        """Whether a waiting sequence has to wait for pixels, `num_cached` of its tokens being computed.

        Where nobody is about to read the same pixels, they are asked for. After False, `acquire` may follow.
        """
        if sequence in self._awaiting:
            return True
        if sequence.crop_slots is not None:
            return False
        hashes = [crop.content_hash for crop in self._needed(sequence, num_cached) if crop.offset is None]
        lacking = [content_hash for content_hash in hashes if not self._vision.has_begun(content_hash)]
        if not all(map(self._vision.is_about_to_begin, lacking)):
            if sequence.request_id not in (other.request_id for other in self._awaiting):
                self._wanted.append(sequence.request_id)
            self._set_offsets(sequence, [None for _ in sequence.crops])
            self._awaiting[sequence] = None
        return bool(lacking)

    def acquire(self, sequence: Sequence, num_cached: int) -> bool:
        """Whether the sequence has the slots it needs to run when `num_cached` of its tokens are computed; takes them.

        A crop that lies in these tokens needs no slot. But after a preemption the blocks may be gone, and the prompt
        has to be computed again. So a sequence either has a slot for each crop to its end, or, with a crop that needs
        none, keeps all its pixels to its end. It never waits with some slots for others that it might need by then,
        which another one that waits could hold.
        """
        if sequence.crop_slots is None:
            needed = self._needed(sequence, num_cached)
            slots = self._vision.acquire([crop.content_hash for crop in needed])
            if slots is not None:
                sequence.crop_slots = (*(None for _ in range(len(sequence.crops) - len(needed))), *slots)
        return sequence.crop_slots is not None

    def needs_slots(self, sequence: Sequence, num_cached: int) -> bool:
        """Whether `acquire` would have to take slots for a waiting sequence."""
        return sequence.crop_slots is None and bool(self._needed(sequence, num_cached))

    def preempt(self, sequence: Sequence) -> None:
        """RUNNING -> WAITING: a sequence that has its pixels gives back its slots, and takes what it needs anew."""
        if _keeps_pixels(sequence):
            self._release_slots(sequence)

    def plan(self, running: Iterable[Sequence], now: float, *, decoding: bool) -> tuple[EncodeWork, ...]:
        """The encoding work of this step.

        Args:
            running: admitted sequences in order of arrival.
            now: seconds, for the sequences that are worked on for the first time.
            decoding: other sequences decode in this step, so that the smaller budget holds.
        """
        num_blocks = self._vision.num_vision_blocks
        budget = self._limits.max_step_vision_blocks if decoding else self._limits.max_idle_crops * num_blocks
        work: dict[int, EncodeWork] = {}
        for sequence, crop, slot in self._unencoded(running):
            if slot in work:  # another sequence shows the same crop
                continue
            first_block = self._vision.blocks_done(slot)
            last_block = min(first_block + budget, num_blocks)
            budget -= last_block - first_block
            work[slot] = EncodeWork(
                crop_slot=slot,
                width=crop.width,
                height=crop.height,
                first_block=first_block,
                last_block=last_block,
                pixels=self._pixels(crop) if first_block == 0 else b"",
            )
            sequence.encoding_begins(now)
            if budget == 0:
                break
        return tuple(work.values())

    def num_ready(self, sequence: Sequence, encode: Iterable[EncodeWork]) -> int:
        """Known tokens that can be computed in a step that begins with `encode`: up to the first missing crop."""
        finishing = {work.crop_slot for work in encode if work.last_block == self._vision.num_vision_blocks}
        missing = (crop.start for _, crop, slot in self._unencoded([sequence]) if slot not in finishing)
        return next(missing, sequence.num_known)

    def crop_rows(self, sequence: Sequence, start: int, end: int) -> tuple[CropRows, ...]:
        """What replaces token embeddings in the row of positions `start` up to, not including, `end`.

        With 64 queries a crop: a crop at 10 covers positions 10 to 73. In the row 50 to 99 its queries 40 to 63 take
        the first 24 places: CropRows(offset=0, first_query=40, num_queries=24).
        """
        if start >= len(sequence.prompt_ids):  # decode, the common case
            return ()
        assert sequence.crop_slots is not None
        rows = []
        for crop, slot in zip(sequence.crops, sequence.crop_slots, strict=True):
            first, last = max(start, crop.start), min(end, crop.start + self._limits.crop_queries)
            if first < last:
                assert slot is not None
                rows.append(CropRows(first - start, slot, first - crop.start, last - first))
        return tuple(rows)

    def update(self, encode: Iterable[EncodeWork]) -> None:
        """Books what a step has done."""
        for work in encode:
            self._vision.advance(work.crop_slot, work.last_block)
        for sequence, unread in list(self._unread.items()):
            if not _keeps_pixels(sequence):
                slots = _slots(sequence)
                self._keep_pixels(sequence, [index for index in unread if not self._vision.blocks_done(slots[index])])

    def fail(self, batch: StepBatch) -> set[int]:
        """A step has failed; the slots that it worked for. Whoever has one of them must be removed."""
        self._vision.undo(batch.copies)
        copied = {copy.crop_slot for copy in batch.copies if not copy.to_host}
        return copied | {work.crop_slot for work in batch.encode}

    def remove(self, sequence: Sequence) -> None:
        """A sequence has ended, at whatever stage: its pixels and slots are no longer needed."""
        self._keep_pixels(sequence, [])
        self._release_slots(sequence)
        self._awaiting.pop(sequence, None)

    def take_copies(self) -> tuple[CropCopy, ...]:
        """See `VisionCache.take_copies`."""
        return self._vision.take_copies()

    def take_wanted(self) -> list[int]:
        """Requests that wait for pixels since the last call; `supply` brings them."""
        wanted, self._wanted = self._wanted, []
        return wanted

    def take_released(self) -> list[int]:
        """Arena offsets that became free since the last call, each of them once."""
        released, self._released = self._released, []
        return released

    def check_invariants(self, live: Iterable[Sequence]) -> None:
        """Slots and pixels are held for live sequences alone, and released when nobody names them any more."""
        self._vision.check_invariants()
        live = set(live)
        slots = Counter(slot for sequence in live for slot in _slots(sequence))
        assert len(slots) == self._vision.num_referenced
        assert live >= self._unread.keys()
        assert all(self._unread.values())
        offsets = (sequence.crops[index].offset for sequence, unread in self._unread.items() for index in unread)
        assert self._num_readers == Counter(offsets)
        for sequence in live:
            self._check_sequence(sequence)

    def _check_sequence(self, sequence: Sequence) -> None:
        ends = [0, *(crop.start + self._limits.crop_queries for crop in sequence.crops)]
        starts = [*(crop.start for crop in sequence.crops), len(sequence.prompt_ids)]
        assert all(end <= start for end, start in zip(ends, starts, strict=True))
        unread = self._unread.get(sequence, [])
        if _keeps_pixels(sequence):
            assert unread == _with_pixels(sequence)
        if sequence in self._awaiting:
            assert sequence.crop_slots is None
            assert not unread
        if sequence.num_computed >= len(sequence.prompt_ids):  # relied on by _unencoded
            assert all(map(self._vision.is_encoded, _slots(sequence)))
        for crop, slot in zip(sequence.crops, sequence.crop_slots or (), strict=sequence.crop_slots is not None):
            assert slot is not None or crop.start + self._limits.crop_queries <= sequence.num_computed
        for index, slot in enumerate(sequence.crop_slots or ()):  # who has a slot can begin it
            assert slot is None or self._vision.blocks_done(slot) > 0 or index in unread

    def _needed(self, sequence: Sequence, num_cached: int) -> tuple[Crop, ...]:
        """The crops, always the last ones, of which some vectors go into tokens that are not computed."""
        return tuple(crop for crop in sequence.crops if crop.start + self._limits.crop_queries > num_cached)

    def _unencoded(self, sequences: Iterable[Sequence]) -> Iterator[tuple[Sequence, Crop, int]]:
        for sequence in sequences:
            # Once the prompt is computed every crop has been encoded, and crops that are referenced stay so.
            if sequence.num_computed < len(sequence.prompt_ids):
                assert sequence.crop_slots is not None
                for crop, slot in zip(sequence.crops, sequence.crop_slots, strict=True):
                    if slot is not None and not self._vision.is_encoded(slot):
                        yield sequence, crop, slot

    def _release_slots(self, sequence: Sequence) -> None:
        self._vision.release(_slots(sequence))
        sequence.crop_slots = None

    def _pixels(self, crop: Crop) -> memoryview:
        assert crop.offset is not None
        return self._read_pixels(crop.offset, crop.height * crop.width * 3)

    def _set_offsets(self, sequence: Sequence, offsets: Ordered[int | None]) -> None:
        """Other pixels, or none, in the place of those that the sequence has."""
        self._keep_pixels(sequence, [])
        sequence.crops = tuple(
            msgspec.structs.replace(crop, offset=offset) for crop, offset in zip(sequence.crops, offsets, strict=True)
        )
        self._keep_pixels(sequence, _with_pixels(sequence))

    def _keep_pixels(self, sequence: Sequence, kept: list[int]) -> None:
        """From now on the sequence may read the pixels of these crops, by index, and of no others."""
        before = self._unread.pop(sequence, [])
        if kept:
            self._unread[sequence] = kept
        self._num_readers.update(_offset(sequence, index) for index in set(kept).difference(before))
        for index in set(before).difference(kept):
            offset = _offset(sequence, index)
            self._num_readers[offset] -= 1
            if self._num_readers[offset] == 0:
                del self._num_readers[offset]
                self._released.append(offset)


def _offset(sequence: Sequence, index: int) -> int:
    offset = sequence.crops[index].offset
    assert offset is not None
    return offset


def _with_pixels(sequence: Sequence) -> list[int]:
    """Indices of the crops whose pixels were sent."""
    return [index for index, crop in enumerate(sequence.crops) if crop.offset is not None]


def _slots(sequence: Sequence) -> list[int]:
    """The slots that the sequence holds."""
    return [slot for slot in sequence.crop_slots or () if slot is not None]


def _keeps_pixels(sequence: Sequence) -> bool:
    """Whether the sequence may still have to encode any of its crops: it does not hold a slot for each."""
    return sequence.crop_slots is None or None in sequence.crop_slots
