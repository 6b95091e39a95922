"""Which blocks of the KV cache are free. Only ids live here; the memory they name belongs to the runner."""


class BlockPool:
    """Hands out ids of KV blocks, each of which holds the keys and values of `block_tokens` tokens.

    The free list is last in, first out: a lightly loaded server then stays within the same few blocks, whose memory
    is in the caches and, on a CPU, already touched, so that the process grows only as far as its peak load needs.
    """

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._free = list(range(num_blocks))[::-1]
        self._is_free = bytearray(b"\x01" * num_blocks)
        """By id, the same as membership of `_free`: finds a block that is freed twice where it happens."""

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_blocks - len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens: with 16 in a block, 1 to 16 tokens take one and 17 take two."""
        return -(-num_tokens // self.block_tokens)

    def allocate(self, count: int) -> list[int]:
        """`count` block ids. The caller has seen that `num_free` suffices."""
        assert count <= len(self._free)
        taken = [self._free.pop() for _ in range(count)]
        for block_id in taken:
            self._is_free[block_id] = 0
        return taken

    def free(self, block_ids: list[int]) -> None:
        """Takes blocks back; their content is worthless from here on."""
        for block_id in block_ids:
            assert not self._is_free[block_id]
            self._is_free[block_id] = 1
        self._free += block_ids

    def check_invariants(self) -> None:
        """Each id is at most once in the free list, and the flags agree with it."""
        assert len(set(self._free)) == len(self._free)
        assert {block_id for block_id, free in enumerate(self._is_free) if free} == set(self._free)
