"""The size of rows, in tokens of a tokenizer or in characters."""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .rows import TOKENS, Row, texts_of


@dataclass(frozen=True)
class Measure:
    """Counts the tokens or the characters of rows."""

    path: str | None = None
    """Folder or file of a tokenizer; None: characters are counted."""

    @property
    def unit(self) -> str:
        """What is counted, "tokens" or "characters"."""
        return "characters" if self.path is None else "tokens"

    @functools.cached_property
    def tokenizer(self):
        """The tokenizer; None where characters are counted. Raises UserError if there is none at the path."""
        from ..data.tokenizer import Tokenizer

        return None if self.path is None else Tokenizer.load(self.path)

    def with_size(self, row: Row) -> Row:
        """The row with its size in the column tokens; the row itself where characters are counted."""
        return row if self.path is None else row.with_(**{TOKENS: self._tokens(row.record)})

    def _tokens(self, record: Any) -> int:
        # A raw record may have lone surrogates.
        texts = (text.encode(errors="replace").decode() for text in texts_of_any(record))
        return sum(len(self.tokenizer.encode(text)) for text in texts)

    def size(self, row: Row) -> int:
        """Tokens of the texts of a row that `with_size` gave, or characters of its texts."""
        return sum(map(len, texts_of_any(row.record))) if self.path is None else row.columns[TOKENS]


def text_of_any(record: Any) -> str:
    """All texts of a parsed record; of a raw record all its strings. One stands below the other."""
    return "\n".join(texts_of_any(record))


def texts_of_any(record: Any) -> list[str]:
    """The texts of a parsed record; of a raw record all its strings."""
    with contextlib.suppress(KeyError, TypeError, AttributeError):  # of a raw record, whose fields may be of any kind
        texts = texts_of(record)
        if all(isinstance(text, str) for text in texts):
            return texts
    return list(_strings(record))


def _strings(value: Any) -> Iterator[str]:
    """All strings in a JSON value, except names of fields."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(each)
