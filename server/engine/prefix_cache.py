"""Which KV blocks hold the beginning of a sequence, so that what was computed once is not computed again.

Keys and values at a position depend on everything before it, so a block is named by a chain: the hash of the block
before it, its own token ids, and the crops whose vectors stand in it. With 16 tokens a block and 64 vectors a crop, a
crop at position 20 is in the hashes of blocks 1 to 5, at offset 4 of the first, and through the chain in all later
ones: equal placeholders for another picture have other hashes. The first block's parent is the hash of the tenant's
salt. docs/decisions/prefix-cache.md gives the reasons.
"""

from array import array
from collections.abc import Set as AbstractSet
from hashlib import blake2b
from itertools import islice

from server.engine.blocks import BlockPool
from server.engine.sequence import Sequence

_HASH_BYTES = 16


class PrefixCache:
    """Names full blocks, and finds those that a sequence can start with."""

    def __init__(self, blocks: BlockPool, *, crop_queries: int, is_enabled: bool) -> None:
        """
        Args:
            blocks: the pool, which keeps the blocks and their hashes.
            crop_queries: positions in the prompt that a crop's vectors take.
            is_enabled: where not, nothing is named and so nothing is ever found.
        """
        self.num_queries = 0
        """Prompt tokens of the sequences that were admitted, since the start; each sequence's once."""
        self.num_hits = 0
        """Of these, the ones that were found here."""
        self._blocks = blocks
        self._crop_queries = crop_queries
        self._is_enabled = is_enabled

    def find(self, sequence: Sequence) -> list[int]:
        """The longest chain of blocks with the first tokens of a waiting sequence.

        At least one known token is left to compute, since the next id is drawn from its scores.
        """
        if not self._is_enabled:
            return []
        self._extend_hashes(sequence, sequence.num_known)
        return self._blocks.find(islice(sequence.block_hashes, self._num_usable(sequence)))

    def coming(self, sequence: Sequence, num_ready: int) -> list[bytes]:
        """Hashes of the blocks that a running sequence computes next, for others to wait for.

        A prompt is held up where a crop is not encoded yet. Blocks that end before that crop are not counted: who
        needs them alone would wait for a picture that is none of its own. Later ones hold the crop, so that whoever
        needs them waits for it in any case.

        Args:
            num_ready: position of the first crop that is not encoded yet; `num_known` where all are.
        """
        first = sequence.num_computed if num_ready == sequence.num_known else max(sequence.num_computed, num_ready)
        return sequence.block_hashes[first // self._blocks.block_tokens :]

    def is_coming(self, sequence: Sequence, num_found: int, coming: AbstractSet[bytes]) -> bool:
        """Whether more blocks than the `num_found` that are here can be found soon, `coming` being computed now."""
        return not coming.isdisjoint(islice(sequence.block_hashes, num_found, self._num_usable(sequence)))

    def record(self, sequence: Sequence, num_cached: int) -> None:
        """Counts a sequence that is admitted for the first time, with that many tokens computed already."""
        if self._is_enabled:
            self.num_queries += len(sequence.prompt_ids)
            self.num_hits += num_cached

    def publish(self, sequence: Sequence, start: int) -> None:
        """Makes known the blocks that are full since a step computed the tokens from `start` on."""
        size = self._blocks.block_tokens
        if not self._is_enabled or start // size == sequence.num_computed // size:
            return
        self._extend_hashes(sequence, sequence.num_computed)
        for index in range(start // size, sequence.num_computed // size):
            self._blocks.set_hash(sequence.block_table[index], sequence.block_hashes[index])

    def _num_usable(self, sequence: Sequence) -> int:
        return (sequence.num_known - 1) // self._blocks.block_tokens

    def _extend_hashes(self, sequence: Sequence, num_tokens: int) -> None:
        """Hashes for all full blocks of the first `num_tokens` known tokens."""
        hashes, size = sequence.block_hashes, self._blocks.block_tokens
        parent = hashes[-1] if hashes else _salt_hash(sequence.cache_salt)
        for start in range(len(hashes) * size, num_tokens // size * size, size):
            parent = self._hash(sequence, parent, start)
            hashes.append(parent)

    def _hash(self, sequence: Sequence, parent: bytes, start: int) -> bytes:
        end = start + self._blocks.block_tokens
        digest = blake2b(parent, digest_size=_HASH_BYTES)
        digest.update(array("i", sequence.ids(start, end)))
        for crop in sequence.crops:
            if crop.start < end and start < crop.start + self._crop_queries:
                digest.update((crop.start - start).to_bytes(4, "big", signed=True) + crop.content_hash)
        return digest.digest()


def _salt_hash(cache_salt: bytes) -> bytes:
    """Set apart from hashes of blocks: else a salt made of a block's content would make a beginning of a middle."""
    return blake2b(cache_salt, digest_size=_HASH_BYTES, person=b"salt").digest()
