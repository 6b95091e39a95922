"""Which crops have a place in the device's table of encoded crops, by content. Only slot numbers live here."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class _Entry:
    content_hash: bytes
    blocks_done: int = 0
    """Blocks of the vision tower that have run; all of them: the crop's vectors lie in the slot."""
    num_references: int = 0
    """How often live sequences name this crop; a sequence that shows it twice counts twice."""


class VisionCache:
    """One slot a crop, found by content hash and shared by every sequence that shows the same crop.

    Where a slot can be, region by region:
        free          holds nothing
        referenced    live sequences need it: being encoded, waiting to be, or encoded
        unreferenced  encoded and kept for the next sequence that shows the crop; evicted least recently used first

    A crop whose last user leaves before it is encoded is forgotten rather than kept to be resumed: half a crop
    serves nobody, and its activations would stay in the runner for a picture that may never come again. Free slots
    are last in, first out, so that the next crop to be encoded takes that slot, and with it the runner's buffer.
    """

    def __init__(self, num_slots: int, num_vision_blocks: int) -> None:
        self.num_slots = num_slots
        self.num_vision_blocks = num_vision_blocks
        self.num_queries = 0
        """Crops that sequences asked for, since the start."""
        self.num_hits = 0
        """Of these, the ones that needed no encoding of their own."""
        self._entries: dict[int, _Entry] = {}
        self._slot_of: dict[bytes, int] = {}
        self._free = list(range(num_slots))[::-1]
        self._unreferenced: dict[int, None] = {}
        """Slots in order of their last use, the longest unused first (a dict keeps the order of insertion)."""

    @property
    def num_referenced(self) -> int:
        """Slots that live sequences need now."""
        return len(self._entries) - len(self._unreferenced)

    def acquire(self, hashes: Sequence[bytes]) -> tuple[int, ...] | None:
        """The slot of each crop, referenced until `release`, or None, and nothing changed, when there are too few.

        All or nothing, because two sequences that each hold half of what they need would wait for each other for
        ever, and because a try that fails must not evict anything.
        """
        found = {content_hash for content_hash in hashes if content_hash in self._slot_of}
        num_missing = len(set(hashes)) - len(found)
        found_unreferenced = sum(self._slot_of[content_hash] in self._unreferenced for content_hash in found)
        if num_missing > len(self._free) + len(self._unreferenced) - found_unreferenced:
            return None
        self.num_queries += len(hashes)
        self.num_hits += len(hashes) - num_missing
        for content_hash in found:  # first, so that no eviction below takes one of them
            self._unreferenced.pop(self._slot_of[content_hash], None)
        return tuple(self._reference(content_hash) for content_hash in hashes)

    def release(self, slots: Iterable[int]) -> None:
        """Gives references back, one for each slot named."""
        for slot in slots:
            entry = self._entries[slot]
            entry.num_references -= 1
            assert entry.num_references >= 0
            if entry.num_references == 0 and entry.blocks_done == self.num_vision_blocks:
                self._unreferenced[slot] = None
            elif entry.num_references == 0:
                self._forget(slot)

    def blocks_done(self, slot: int) -> int:
        """Blocks of the vision tower that have run over the crop in `slot`."""
        return self._entries[slot].blocks_done

    def is_encoded(self, slot: int) -> bool:
        return self._entries[slot].blocks_done == self.num_vision_blocks

    def advance(self, slot: int, blocks_done: int) -> None:
        """Books that the tower's first `blocks_done` blocks have now run over the crop in `slot`."""
        entry = self._entries[slot]
        assert entry.blocks_done < blocks_done <= self.num_vision_blocks
        entry.blocks_done = blocks_done

    def check_invariants(self) -> None:
        """Slots are free, referenced or unreferenced, never two of these, and hashes name the right slots."""
        assert sorted([*self._free, *self._entries]) == list(range(self.num_slots))
        assert self._slot_of == {entry.content_hash: slot for slot, entry in self._entries.items()}
        for slot, entry in self._entries.items():
            assert (slot in self._unreferenced) == (entry.num_references == 0)
            assert entry.num_references > 0 or self.is_encoded(slot)
        assert self._unreferenced.keys() <= self._entries.keys()
        assert 0 <= self.num_hits <= self.num_queries

    def _reference(self, content_hash: bytes) -> int:
        slot = self._slot_of.get(content_hash)
        if slot is None:
            if not self._free:
                self._forget(next(iter(self._unreferenced)))
            slot = self._free.pop()
            self._entries[slot] = _Entry(content_hash)
            self._slot_of[content_hash] = slot
        self._entries[slot].num_references += 1
        return slot

    def _forget(self, slot: int) -> None:
        del self._slot_of[self._entries.pop(slot).content_hash]
        self._unreferenced.pop(slot, None)
        self._free.append(slot)
