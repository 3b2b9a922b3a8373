"""Plain text out of any sources, for training tokenizers."""

from collections.abc import Iterator, Sequence
from itertools import islice

from ..data import sources
from ..data.files import MAX_RECORD_BYTES
from ..errors import UserError


def texts(
    names: Sequence[str],
    format: str = "auto",
    on_error: str = "raise",
    max_records: int | None = None,
    report: sources.Report | None = None,
    max_record_bytes: int = MAX_RECORD_BYTES,
) -> Iterator[str]:
    """The text of documents, and every message of conversations, of at most `max_records` records of each source.

    on_error, report, max_record_bytes: as `data.sources.read` takes them. UserError for a max_records below 1.
    """
    if max_records is not None and max_records < 1:
        raise UserError(f"max_records is {max_records}: give 1 or more")
    how = dict(format=format, on_error=on_error, report=report, max_record_bytes=max_record_bytes)
    for name in names:
        records = sources.read(name, split="train", **how)
        for record in islice(records, max_records):
            yield from record_texts(record)


def record_texts(record: dict) -> Iterator[str]:
    """The texts of one record of any kind."""
    if "text" in record:
        yield record["text"]
    for part in ("messages", "chosen", "rejected"):
        for message in record.get(part, ()):
            yield from (message[field] for field in ("content", "input", "reasoning_content") if message.get(field))
