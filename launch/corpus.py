"""Plain text out of any sources, for training tokenizers."""

from collections.abc import Iterator, Sequence
from itertools import islice

from ..data import sources


def texts(
    names: Sequence[str],
    format: str = "auto",
    on_error: str = "raise",
    max_records: int | None = None,
    report: sources.Report | None = None,
) -> Iterator[str]:
    """The text of documents, and every message of conversations, of at most `max_records` records of each source.

    on_error, report: as `data.sources.read` takes them.
    """
    for name in names:
        records = sources.read(name, format=format, on_error=on_error, report=report, split="train")
        for record in islice(records, max_records):
            yield from record_texts(record)


def record_texts(record: dict) -> Iterator[str]:
    """The texts of one record of any kind."""
    if "text" in record:
        yield record["text"]
    for part in ("messages", "chosen", "rejected"):
        for message in record.get(part, ()):
            yield message["content"]
            if message.get("input"):
                yield message["input"]
