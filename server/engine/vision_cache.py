"""Which crops have a place in the device's table of encoded crops, by content. Only slot numbers live here."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from model.step import CropCopy
from server.engine.host_tier import HostTier


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

    A crop that is evicted goes to the host's memory (`host`) and is copied back when it is asked for again: it is here
    or there, never in both. The copies of a step are collected until `take_copies`; they are made in their order and
    before all other work, so a crop that is copied back counts as encoded at once. `undo` is for a step that failed.

    A crop whose last user leaves before it is encoded is forgotten rather than kept to be resumed: half a crop
    serves nobody, and its activations would stay in the runner for a picture that may never come again. Free slots
    are last in, first out, so that the next crop to be encoded takes that slot, and with it the runner's buffer.
    """

    def __init__(self, num_slots: int, num_vision_blocks: int, host: HostTier) -> None:
        self.num_slots = num_slots
        self.num_vision_blocks = num_vision_blocks
        self.host = host
        self.num_queries = 0
        """Crops that sequences asked for, since the start."""
        self.num_hits = 0
        """Of these, the ones that had a slot already."""
        self.num_evictions = 0
        """Encoded crops that had to leave their slot."""
        self._entries: dict[int, _Entry] = {}
        self._slot_of: dict[bytes, int] = {}
        self._free = list(range(num_slots))[::-1]
        self._unreferenced: dict[int, None] = {}
        """Slots in order of their last use, the longest unused first (a dict keeps the order of insertion)."""
        self._copies: list[CropCopy] = []

    @property
    def num_referenced(self) -> int:
        """Slots that live sequences need now."""
        return len(self._entries) - len(self._unreferenced)

    @property
    def num_used(self) -> int:
        """Slots that are not free."""
        return len(self._entries)

    def has_begun(self, content_hash: bytes) -> bool:
        """Whether `acquire` gets the crop without its pixels: it is on the host, or a first block has read them."""
        slot = self._slot_of.get(content_hash)
        return content_hash in self.host if slot is None else self._entries[slot].blocks_done > 0

    def is_about_to_begin(self, content_hash: bytes) -> bool:
        """Whether a sequence that has the crop's pixels holds its slot, and no block has read them yet."""
        slot = self._slot_of.get(content_hash)
        return slot is not None and self._entries[slot].blocks_done == 0

    def acquire(self, hashes: Sequence[bytes]) -> tuple[int, ...] | None:
        """The slot of each crop, referenced until `release`, or None, and nothing changed, when there are too few.

        All or nothing, because two sequences that each hold half of what they need would wait for each other for
        ever, and because a try that fails must not evict anything.
        """
        crops = dict.fromkeys(hashes)
        found = [content_hash for content_hash in crops if content_hash in self._slot_of]
        missing = [content_hash for content_hash in crops if content_hash not in self._slot_of]
        found_unreferenced = sum(self._slot_of[content_hash] in self._unreferenced for content_hash in found)
        if len(missing) > len(self._free) + len(self._unreferenced) - found_unreferenced:
            return None
        self.num_queries += len(hashes)
        self.num_hits += len(hashes) - len(missing)
        for content_hash in found:  # first, so that no eviction below takes one of them
            self._unreferenced.pop(self._slot_of[content_hash], None)
        self._copy_back(missing)
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

    def take_copies(self) -> tuple[CropCopy, ...]:
        """What the next step has to copy before all other work, in this order."""
        copies, self._copies = tuple(self._copies), []
        return copies

    def undo(self, copies: Iterable[CropCopy]) -> None:
        """The step with these copies failed: nobody knows which of them were made.

        Who has a slot that was copied into must release it; it counts as not encoded, and so it is forgotten then.
        """
        for copy in copies:
            if copy.to_host:
                self.host.discard(copy.host_slot)
            else:
                self._entries[copy.crop_slot].blocks_done = 0

    def check_invariants(self) -> None:
        """Slots are free, referenced or unreferenced, never two of these, and hashes name the right slots."""
        self.host.check_invariants()
        assert not any(content_hash in self.host for content_hash in self._slot_of)
        assert sorted([*self._free, *self._entries]) == list(range(self.num_slots))
        assert self._slot_of == {entry.content_hash: slot for slot, entry in self._entries.items()}
        for slot, entry in self._entries.items():
            assert (slot in self._unreferenced) == (entry.num_references == 0)
            assert entry.num_references > 0 or self.is_encoded(slot)
        assert self._unreferenced.keys() <= self._entries.keys()
        assert 0 <= self.num_hits <= self.num_queries

    def _copy_back(self, missing: Iterable[bytes]) -> None:
        """Slots for those of the crops that lie in the host's memory."""
        # All are taken out before a slot is emptied: what leaves the device must not push one of them out. A host slot
        # is free again once its copy has its place in the order, so that no earlier copy overwrites it.
        host_slots = {content_hash: self.host.take(content_hash) for content_hash in missing}
        for content_hash, host_slot in host_slots.items():
            if host_slot is not None:
                slot = self._place(content_hash)
                self._entries[slot].blocks_done = self.num_vision_blocks
                self._copies.append(CropCopy(slot, host_slot, to_host=False))
                self.host.free(host_slot)

    def _reference(self, content_hash: bytes) -> int:
        slot = self._slot_of.get(content_hash)
        if slot is None:
            slot = self._place(content_hash)
        self._entries[slot].num_references += 1
        return slot

    def _place(self, content_hash: bytes) -> int:
        """A slot for a crop that has none, at the cost of the one unused for longest if need be."""
        if not self._free:
            self._evict(next(iter(self._unreferenced)))
        slot = self._free.pop()
        self._entries[slot] = _Entry(content_hash)
        self._slot_of[content_hash] = slot
        return slot

    def _evict(self, slot: int) -> None:
        self.num_evictions += 1
        host_slot = self.host.store(self._entries[slot].content_hash)
        if host_slot is not None:
            self._copies.append(CropCopy(slot, host_slot, to_host=True))
        self._forget(slot)

    def _forget(self, slot: int) -> None:
        del self._slot_of[self._entries.pop(slot).content_hash]
        self._unreferenced.pop(slot, None)
        self._free.append(slot)
