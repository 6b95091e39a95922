"""A bounded memory of values that are costly to make again."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The `max_entries` values asked for last, by key."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value kept for `key`; `make()`'s, kept from now on, when there is none."""
        if key not in self._values:
            self._values[key] = make()
            if len(self._values) > self._max_entries:
                self._values.popitem(last=False)
        self._values.move_to_end(key)
        return self._values[key]
