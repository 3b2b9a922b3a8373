"""The step `parse`: raw records of public data sets become records of `data/formats.py`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from ..data.formats import FORMATS, parse
from ..settings.leaves import OneOf
from .rows import Rejected, Row

FORMAT = "format"
"""Column with the format of the raw record, where the config names the format of its source."""


@dataclass(frozen=True)
class Parse:
    """Parses raw records; rejects what is malformed.

    Fields that a format does not know are kept in the record's "meta".
    """

    reasons: ClassVar = ("malformed",)

    format: Annotated[str, OneOf("auto", *FORMATS)] = "auto"
    """Format of the records whose source names none; "auto" detects it from the fields of each record."""

    def __call__(self, row: Row) -> Row | Rejected:
        try:
            return row.with_(parse(dict(row.record), row.columns.get(FORMAT, self.format)))
        except ValueError as problem:
            return Rejected("malformed", str(problem))
