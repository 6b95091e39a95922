"""Shared memory for pixels on their way from the API process to the engine.

One anonymous file (memfd) is mapped by both processes. The API process alone decides who has which bytes: `Arena`
hands out ranges, a message names their offsets, and the engine answers with the offsets it has finished with.
memfd is not counted against /dev/shm, which containers keep at 64 MiB, has no name that could be left behind, and
disappears with its last process.
"""

import asyncio
import mmap
import os
import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_ALIGNMENT = 64
"""Bytes of a cache line: ranges begin on one."""


class ArenaClosed(Exception):
    """The engine that the arena belonged to is gone."""


def create_shared_memory(num_bytes: int) -> int:
    """A file descriptor of `num_bytes` of zeroed memory without a name. The caller closes it."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("minicpmv-arena", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as unlinked:
            descriptor = os.dup(unlinked.fileno())
    os.ftruncate(descriptor, num_bytes)
    return descriptor


class RangeAllocator:
    """Gives out ranges of [0, num_bytes) by first fit; integers only.

    Free ranges are kept in order of offset, and neighbours are merged at once, so the list stays short: at most one
    entry more than there are ranges given out.
    """

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes // _ALIGNMENT * _ALIGNMENT
        self._free: list[tuple[int, int]] = [(0, self.num_bytes)]
        """(first byte, byte after the last)"""
        self._given: dict[int, int] = {}
        """offset -> size, rounded up to the alignment"""

    @property
    def num_free_bytes(self) -> int:
        return sum(end - start for start, end in self._free)

    def allocate(self, sizes: Sequence[int]) -> list[int] | None:
        """Offsets of one range for each size, or None, and nothing taken, when not all of them fit now."""
        offsets: list[int] = []
        for size in sizes:
            offset = self._allocate_one(padded(size))
            if offset is None:
                for taken in offsets:
                    self.free(taken)
                return None
            offsets.append(offset)
        return offsets

    def free(self, offset: int) -> None:
        """Take a range back.

        Raises:
            KeyError: no range that is given out begins there.
        """
        start, end = offset, offset + self._given.pop(offset)
        index = next((i for i, (begin, _) in enumerate(self._free) if begin > start), len(self._free))
        if index < len(self._free) and self._free[index][0] == end:
            end = self._free.pop(index)[1]
        if index > 0 and self._free[index - 1][1] == start:
            index -= 1
            start = self._free.pop(index)[0]
        self._free.insert(index, (start, end))

    def check_invariants(self) -> None:
        """Free and given ranges tile the whole, and no two free ranges touch."""
        ranges = sorted([*self._free, *((offset, offset + size) for offset, size in self._given.items())])
        assert self._free == sorted(self._free)
        assert all(end % _ALIGNMENT == 0 and start < end for start, end in ranges)
        ends = [0, *(end for _, end in ranges)]
        assert ends == [*(start for start, _ in ranges), self.num_bytes]
        assert all(left[1] < right[0] for left, right in pairwise(self._free))

    def _allocate_one(self, size: int) -> int | None:
        for index, (start, end) in enumerate(self._free):
            if end - start >= size:
                self._free[index : index + 1] = [(start + size, end)] if end - start > size else []
                self._given[start] = size
                return start
        return None


def padded(size: int) -> int:
    """Bytes that a range of `size` takes in the arena."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT


@dataclass(eq=False, slots=True)
class _Waiter:
    sizes: Sequence[int]
    granted: asyncio.Future[list[int]]


class Arena:
    """The API process's side: ranges with a queue in front. For one event loop's thread."""

    def __init__(self, descriptor: int, num_bytes: int) -> None:
        self._map = mmap.mmap(descriptor, num_bytes)
        self._allocator = RangeAllocator(num_bytes)
        self._waiters: deque[_Waiter] = deque()
        self._is_closed = False

    @property
    def num_free_bytes(self) -> int:
        return self._allocator.num_free_bytes

    async def allocate(self, sizes: Sequence[int]) -> list[int]:
        """Offsets of one range for each size, all at once and first come, first served.

        All at once, because two requests that each hold half of what they need would wait for each other for ever;
        in order, because small requests would otherwise overtake a large one without end.

        Raises:
            ArenaClosed: also while waiting.
            ValueError: the sizes would not fit an empty arena.
        """
        if sum(map(padded, sizes)) > self._allocator.num_bytes:
            raise ValueError(f"{sum(sizes)} bytes never fit an arena of {self._allocator.num_bytes}")
        if self._is_closed:
            raise ArenaClosed
        if not self._waiters and (offsets := self._allocator.allocate(sizes)) is not None:
            return offsets
        waiter = _Waiter(sizes, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            return await waiter.granted
        except asyncio.CancelledError:
            self._leave(waiter)
            raise

    def write(self, offset: int, data: memoryview) -> None:
        """Copy bytes into a range that was allocated; may be called from any thread."""
        self._map[offset : offset + data.nbytes] = data

    def free(self, offsets: Sequence[int]) -> None:
        """Take ranges back and serve those who wait."""
        for offset in offsets:
            self._allocator.free(offset)
        self._serve()

    def close(self) -> None:
        """Everybody who waits, now or later, gets ArenaClosed. The memory goes with the last reference."""
        self._is_closed = True
        while self._waiters:
            granted = self._waiters.popleft().granted
            if not granted.done():
                granted.set_exception(ArenaClosed())

    def check_invariants(self) -> None:
        """The ranges are sound, and the first in the queue waits only because it does not fit."""
        self._allocator.check_invariants()
        waiting = [waiter for waiter in self._waiters if not waiter.granted.done()]
        assert not waiting or self._allocator.allocate(waiting[0].sizes) is None

    def _serve(self) -> None:
        while self._waiters:
            waiter = self._waiters[0]
            if not waiter.granted.cancelled():  # a cancelled one removes itself when its task runs next
                offsets = self._allocator.allocate(waiter.sizes)
                if offsets is None:
                    return
                waiter.granted.set_result(offsets)
            self._waiters.popleft()

    def _leave(self, waiter: _Waiter) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            self._serve()  # it may have stood in the way of smaller ones
        elif not waiter.granted.cancelled() and waiter.granted.exception() is None:
            # Cancelled between the grant and the moment it would have seen it.
            self.free(waiter.granted.result())


class ArenaView:
    """The engine's side: bytes by offset. It reads only."""

    def __init__(self, descriptor: int, num_bytes: int) -> None:
        self._bytes = memoryview(mmap.mmap(descriptor, num_bytes, prot=mmap.PROT_READ))

    def view(self, offset: int, size: int) -> memoryview:
        """`size` bytes at `offset`, without a copy; valid until the offset is reported as released."""
        return self._bytes[offset : offset + size]
