"""Names of pictures and crops by content, and which pictures an engine has been given crops of. No torch, no pixels."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from model.slicing import SlicePlan

_HASH_BYTES = 16


def file_hash(data: bytes, cache_salt: bytes) -> bytes:
    """16 bytes over a picture's file as it was sent, apart for each salt."""
    digest = blake2b(_salt_hash(cache_salt), digest_size=_HASH_BYTES, person=b"file")
    digest.update(data)
    return digest.digest()


def crop_hash(pixels: npt.NDArray[np.uint8], cache_salt: bytes) -> bytes:
    """16 bytes over a crop's size and pixels, apart for each salt.

    Args:
        pixels: height x width x 3, contiguous.
        cache_salt: of the request; whoever has another one shares no crop with it.
    """
    height, width, _ = pixels.shape
    digest = blake2b(_salt_hash(cache_salt), digest_size=_HASH_BYTES, person=b"crop")
    digest.update(width.to_bytes(4, "big") + height.to_bytes(4, "big"))
    digest.update(pixels.data.cast("B"))
    return digest.digest()


def _salt_hash(cache_salt: bytes) -> bytes:
    """Of one length, so that no salt can pass for another one and the beginning of what follows."""
    return blake2b(cache_salt, digest_size=_HASH_BYTES, person=b"salt").digest()


class PictureIndex:
    """Content hashes of the crops that a file became, for the files that one engine has seen most recently.

    A picture is named by its file and its slice plan: the pixels of the crops are a function of these two, as long as
    the code is the same, and the index lives no longer than the engine. It promises nothing: that the engine still has
    the crops is for the engine to say.
    """

    def __init__(self, max_pictures: int) -> None:
        self._max_pictures = max_pictures
        self._crops: dict[tuple[bytes, SlicePlan], tuple[bytes, ...]] = {}
        """The picture that was not asked for for longest comes first."""

    def __len__(self) -> int:
        return len(self._crops)

    def find(self, name: bytes, plan: SlicePlan) -> tuple[bytes, ...] | None:
        """Hashes of the crops, in the order of the plan; None for a picture that is not known.

        Args:
            name: `file_hash` of the picture.
            plan: how it is cut.
        """
        hashes = self._crops.pop((name, plan), None)
        if hashes is not None:
            self._crops[name, plan] = hashes
        return hashes

    def add(self, name: bytes, plan: SlicePlan, hashes: Sequence[bytes]) -> None:
        """The picture has been cut into crops with these hashes."""
        assert len(hashes) == plan.num_crops
        self._crops.pop((name, plan), None)
        self._crops[name, plan] = tuple(hashes)
        while len(self._crops) > self._max_pictures:
            del self._crops[next(iter(self._crops))]

    def check_invariants(self) -> None:
        """Within its bound, and a hash for each crop."""
        assert len(self._crops) <= self._max_pictures
        assert all(len(hashes) == plan.num_crops for (_, plan), hashes in self._crops.items())
