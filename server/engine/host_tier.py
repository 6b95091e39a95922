"""Which encoded crops lie in the host's memory, by content. Only slot numbers live here."""


class HostTier:
    """Places for crops that had to leave the device's slots; the one that left longest ago goes first.

    Where a slot can be:
        free   holds nothing
        used   holds a crop that can be found
        taken  its crop goes back to the device; it is given out again after `free`
    """

    def __init__(self, num_slots: int) -> None:
        """`num_slots` may be 0: then nothing is kept, looked up or counted."""
        self.num_slots = num_slots
        self.num_queries = 0
        """Crops that were looked up, since the start."""
        self.num_hits = 0
        """Of these, the ones that were here."""
        self.num_evictions = 0
        """Crops that made room for others, or for which there was no room."""
        self._slot_of: dict[bytes, int] = {}
        """In order of arrival. A crop that is used again leaves, so the first one is the one unused for longest."""
        self._free = list(range(num_slots))[::-1]
        self._taken: set[int] = set()

    @property
    def num_used(self) -> int:
        return len(self._slot_of)

    def __contains__(self, content_hash: bytes) -> bool:
        return content_hash in self._slot_of

    def store(self, content_hash: bytes) -> int | None:
        """A slot for a crop that leaves the device; None where all are taken or there are none."""
        assert content_hash not in self._slot_of
        if self.num_slots == 0:
            return None
        if not self._free:
            self.num_evictions += 1
            if not self._slot_of:
                return None
            self._free.append(self._slot_of.pop(next(iter(self._slot_of))))
        slot = self._free.pop()
        self._slot_of[content_hash] = slot
        return slot

    def take(self, content_hash: bytes) -> int | None:
        """The slot of a crop that goes back to the device, or None. It keeps what it holds until `free`."""
        if self.num_slots == 0:
            return None
        self.num_queries += 1
        slot = self._slot_of.pop(content_hash, None)
        if slot is not None:
            self.num_hits += 1
            self._taken.add(slot)
        return slot

    def free(self, slot: int) -> None:
        """A slot that was taken may be given out again."""
        self._taken.remove(slot)
        self._free.append(slot)

    def discard(self, slot: int) -> None:
        """Forgets the crop in `slot`, if it holds one."""
        for content_hash, used in self._slot_of.items():
            if used == slot:
                del self._slot_of[content_hash]
                self._free.append(slot)
                return

    def check_invariants(self) -> None:
        """Every slot is free, used or taken."""
        assert sorted([*self._free, *self._slot_of.values(), *self._taken]) == list(range(self.num_slots))
        assert 0 <= self.num_hits <= self.num_queries
