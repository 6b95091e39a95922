"""Which blocks of the KV cache are free, and which of them can be found again by what they hold.

Only ids live here; the memory they name belongs to the runner.
"""

from collections.abc import Iterable


class BlockPool:
    """Hands out ids of KV blocks, each of which holds the keys and values of `block_tokens` tokens.

    Where a block can be, region by region:
        empty       unreferenced, its content worthless
        referenced  in the block tables of live sequences; one that several share has a reference from each
        cached      unreferenced, but its hash is known: whoever asks for that hash takes it up again

    New blocks come from the empty ones, last in, first out, so that a lightly loaded server stays within the same few
    blocks for as long as it can; then from the cached ones, least recently used first. Only full blocks have a hash,
    and a full block is never written again: sharing one needs no copy. The beams of one sequence share a last, partly
    filled block, too, until they write into it (server.engine.beam_planner).
    """

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._num_references = [0] * num_blocks
        self._empty = list(range(num_blocks))[::-1]
        self._cached: dict[int, None] = {}
        """In order of their last use, the longest unused first (a dict keeps the order of insertion)."""
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can hand out: empty and cached ones."""
        return len(self._empty) + len(self._cached)

    @property
    def num_used(self) -> int:
        """Referenced blocks, each counted once."""
        return self.num_blocks - self.num_free

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens: with 16 in a block, 1 to 16 tokens take one and 17 take two."""
        return -(-num_tokens // self.block_tokens)

    def allocate(self, count: int) -> list[int]:
        """`count` block ids, each with one reference. The caller has seen that `num_free` suffices."""
        assert count <= self.num_free
        return [self._take() for _ in range(count)]

    def find(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks with these hashes, up to the first that is not here. They may be evicted until referenced."""
        found = []
        for block_hash in hashes:
            block_id = self._block_of.get(block_hash)
            if block_id is None:
                break
            found.append(block_id)
        return found

    def num_referenced(self, block_ids: Iterable[int]) -> int:
        """How many of these live sequences hold already, so that sharing them costs no free block."""
        return sum(self._num_references[block_id] > 0 for block_id in block_ids)

    def share(self, block_ids: Iterable[int]) -> None:
        """One more reference to each of these blocks, which `find` has just named."""
        for block_id in block_ids:
            if self._num_references[block_id] == 0:
                del self._cached[block_id]
            self._num_references[block_id] += 1

    def is_shared(self, block_id: int) -> bool:
        """Whether several tables name the block, so that nobody may write into it."""
        return self._num_references[block_id] > 1

    def set_hash(self, block_id: int, block_hash: bytes) -> None:
        """A referenced block is full: from here on it is found by this hash.

        Where another block has the hash already (two sequences generated the same ids), this one stays without:
        tables name blocks by id, so equal blocks cannot be merged once both are in use.
        """
        assert self._num_references[block_id] > 0
        assert block_id not in self._hash_of
        if block_hash not in self._block_of:
            self._block_of[block_hash] = block_id
            self._hash_of[block_id] = block_hash

    def free(self, block_ids: list[int]) -> None:
        """Gives back one reference to each block of a table.

        From the end, so that the last blocks are evicted first: a chain is found by its beginning.
        """
        for block_id in reversed(block_ids):
            assert self._num_references[block_id] > 0
            self._num_references[block_id] -= 1
            if self._num_references[block_id] > 0:
                continue
            if block_id in self._hash_of:
                self._cached[block_id] = None
            else:
                self._empty.append(block_id)

    def references(self) -> list[int]:
        """The number of references to each block, by id."""
        return list(self._num_references)

    def check_invariants(self) -> None:
        """Each block is empty, referenced or cached, never two of these, and hashes name the right blocks."""
        referenced = [block_id for block_id, count in enumerate(self._num_references) if count]
        assert min(self._num_references, default=0) >= 0
        assert sorted([*self._empty, *referenced, *self._cached]) == list(range(self.num_blocks))
        assert self._block_of == {block_hash: block_id for block_id, block_hash in self._hash_of.items()}
        assert self._cached.keys() <= self._hash_of.keys()
        assert self._hash_of.keys().isdisjoint(self._empty)

    def _take(self) -> int:
        if self._empty:
            block_id = self._empty.pop()
        else:
            block_id = next(iter(self._cached))
            del self._cached[block_id]
            del self._block_of[self._hash_of.pop(block_id)]
        self._num_references[block_id] = 1
        return block_id
