"""Plain text out of any sources, for training tokenizers."""

from collections.abc import Iterator, Sequence
from itertools import islice

from ..data.sources import Source, read
from ..data.tally import Tally
from ..errors import UserError


def texts(sources: Sequence[Source], max_records: int | None = None, tally: Tally | None = None) -> Iterator[str]:
    """The text of documents, and every message of conversations, of the training part of each source.

    Args:
      sources: where the texts come from.
      max_records: records that are read of each source; None reads all.
      tally: counts the records of all sources.

    Raises:
      UserError: a `max_records` below 1, or a bad record.
    """
    if max_records is not None and max_records < 1:
        raise UserError(f"max_records is {max_records}: give 1 or more")
    for source in sources:
        for record in islice(read(source, "train", tally), max_records):
            yield from record_texts(record)


def record_texts(record: dict) -> Iterator[str]:
    """The texts of one record of any kind."""
    if "text" in record:
        yield record["text"]
    for part in ("messages", "chosen", "rejected"):
        for message in record.get(part, ()):
            yield from (message[field] for field in ("content", "input", "reasoning_content") if message.get(field))
