"""The step `heldout`: which rows are kept apart from training."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from ..data.sources import hash_fraction
from ..errors import UserError
from ..settings.leaves import OneOf, Share
from .rows import HELDOUT, SPLIT, TRAIN, Row, fraction_of


@dataclass(frozen=True)
class Heldout:
    """Writes the column split, "train" or "heldout", by a hash. It rejects nothing.

    A row stays on its side when other rows come or go. Related rows are on one side: with by="prompt" those that begin
    with the same user turn, or have the same text; with by="origin" those that were divided from one record.
    """

    reasons: ClassVar = ()

    share: Share = 0.01
    """Share of prompts, texts or records that is held out."""

    by: Annotated[str, OneOf("prompt", "origin")] = "prompt"
    """What is hashed: the first user turn or the text, as `data/` does it, or the id of the record that was read."""

    def __call__(self, row: Row) -> Row:
        origin, *parts = row.id.split("-")
        if self.by == "prompt" and parts:
            raise UserError(
                "an earlier step divided the row, so its first user turn is not that of the other parts: put heldout "
                "before that step in config.steps, or set by=origin"
            )
        fraction = fraction_of(origin, SPLIT) if self.by == "origin" else hash_fraction(dict(row.record))
        return row.with_(**{SPLIT: HELDOUT if fraction < self.share else TRAIN})
