"""Which blocks of prompts are kept on the device: found by their tokens, the least recently used replaced first."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np


class Prefixes:
    """The index of a number of blocks of C tokens each.

    A block is known by the hash of its tokens, of all before them and of the adapter that read them, since its keys and
    values depend on these. Blocks are copied when they are used, so that one may be replaced at any time.

    Args:
      blocks: number of blocks.
      size: C, the tokens of a block.
    """

    def __init__(self, blocks: int, size: int):
        self._size = size
        self._places: OrderedDict[bytes, int] = OrderedDict()  # the least recently used first
        self._free = list(reversed(range(blocks)))

    def __len__(self) -> int:
        return len(self._places)

    def find(self, tokens: Sequence[int], adapter: int = 0) -> list[int]:
        """The places of the blocks that `tokens`, read by an adapter, begin with, as many as are kept."""
        found = []
        for name in self._names(tokens, adapter):
            if name not in self._places:
                break
            found.append(name)
        self._touch(found)
        return [self._places[name] for name in found]

    def add(self, tokens: Sequence[int], adapter: int = 0) -> list[tuple[int, int]]:
        """Gives places to the whole blocks of `tokens` that have none.

        Returns:
          The number of each such block in `tokens`, and its place, whose old content is replaced.
        """
        names, new = list(self._names(tokens, adapter)), []
        self._touch(names)
        for number, name in enumerate(names):
            if name in self._places:
                continue
            if not self._free:
                oldest = next(iter(self._places), None)
                if oldest is None or oldest in names:  # there are fewer places than this prompt has blocks
                    break
                self._free.append(self._places.pop(oldest))
            self._places[name] = self._free.pop()
            new.append((number, self._places[name]))
        self._touch(names)
        return new

    def _touch(self, names: Sequence[bytes]) -> None:
        """Makes blocks the most recently used, each before those that need it: it outlives them."""
        for name in reversed(names):
            if name in self._places:
                self._places.move_to_end(name)

    def _names(self, tokens: Sequence[int], adapter: int) -> Iterator[bytes]:
        """The hash of each whole block of `tokens`, read by an adapter."""
        name, data = str(adapter).encode(), np.asarray(tokens, np.int32)
        for begin in range(0, len(data) - self._size + 1, self._size):
            name = hashlib.sha256(name + data[begin : begin + self._size].tobytes()).digest()
            yield name
