"""Encoders: each turns a record into what one kind of training reads of it.

    text.TextEncoder            tokens and loss mask, for token caches
    pairs.PairEncoder           two or more answers to one prompt
    labelled.AnswerEncoder      one answer, called good or bad
    prompts.PromptEncoder       a prompt to answer

`encoded` takes records through an encoder and counts what becomes of them.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from ..errors import DataError, UserError, bad_record
from .sources import Record, Source
from .tally import SKIPPED, Tally

S = TypeVar("S")


class LeftOut(Exception):
    """Raised by an encoder for a sound record that it leaves out.

    `reason` is the name under which the record is counted. The record is listed only if there is a message.
    """

    def __init__(self, reason: str, message: str = ""):
        super().__init__(message)
        self.reason = reason


class Encoder(Protocol[S]):
    """Turns records into samples."""

    reasons: tuple[str, ...]  # the names under which sound records are left out
    nothing: str  # what an error says of a source of which no record is kept

    def encode(self, record: dict) -> S:
        """The sample of a record. LeftOut for a sound record without one, UserError for a record that is refused."""


def encoded(records: Iterable[Record], encode: Callable[[dict], S], tally: Tally, on_error: str) -> Iterator[S]:
    """The samples of `records`, in their order; `tally` counts what becomes of each record.

    Raises:
      DataError: `encode` refuses a record and `on_error` is "raise".
    """
    for record in records:
        tally.read += 1
        try:
            sample = encode(record)
        except LeftOut as left_out:
            tally.leave_out(left_out.reason, f"{record.where}: {left_out}" if str(left_out) else "")
        except UserError as error:
            problem = f"{record.where}: {error}"
            if on_error == "raise":
                raise bad_record(problem) from error
            tally.leave_out(SKIPPED, problem)
        else:
            tally.kept += 1
            yield sample


def nothing_left(encoder: Encoder, source: Source, split: str | None, tally: Tally, reading: Tally) -> UserError:
    """The error of a split without a sample; it says so where the share that is held out is why.

    Args:
      tally: of the records of the split.
      reading: of the records of the whole source, as `sources.read` counts them.
    """
    problem = f"{source.part(split)}: {encoder.nothing}: {tally}"
    if reading.read and split == "heldout":
        return DataError(problem, "heldout=SHARE", "holds out a larger share; with 0 nothing is measured")
    if reading.read and split == "train" and not tally.read:
        return DataError(problem, "heldout=SHARE", "holds out a smaller share, 0 nothing")
    return UserError(problem)
