"""The interface of encoders, which turn records into training samples. There is one for each kind of training:

    text_encoder.TextEncoder          tokens and loss mask, for token caches
    pairs.PairEncoder                 two or more answers to one prompt
    labelled_answers.AnswerEncoder    one answer, labelled good or bad
    prompts.PromptEncoder             a prompt to answer

`encoded` applies an encoder to records and counts the records that are kept and left out.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from ..errors import DataError, UserError, bad_record
from .sources import Record, Source
from .tally import SKIPPED, Tally

S = TypeVar("S")


class LeftOut(Exception):
    """Raised by an encoder for a well-formed record that gives no sample.

    Attributes:
      reason: the name under which a tally counts the record. The tally lists the record only if `message` is not "".
    """

    def __init__(self, reason: str, message: str = ""):
        super().__init__(message)
        self.reason = reason


class Encoder(Protocol[S]):
    """Turns records into samples."""

    reasons: tuple[str, ...]  # every `LeftOut.reason` that `encode` may give
    empty_message: str  # the error for a source that gives no sample begins with it

    def encode(self, record: dict) -> S:
        """The sample of a record. Raises LeftOut if the record gives no sample, UserError if it is refused."""


def encoded(records: Iterable[Record], encode: Callable[[dict], S], tally: Tally, on_error: str) -> Iterator[S]:
    """The samples of records, in order.

    Args:
      records: the records.
      encode: the method of an `Encoder`.
      tally: counts every record as kept or left out.
      on_error: "raise", or "skip" to count refused records and go on.

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
    """The error for a split that gives no sample. It suggests another `heldout` if that is the cause.

    Args:
      encoder: the encoder of the samples.
      source: the source.
      split: "train", "heldout", or None for the whole source.
      tally: counts of the records of the split.
      reading: counts of the records of the whole source, from `sources.read`.
    """
    problem = f"{source.split_name(split)}: {encoder.empty_message}: {tally}"
    if reading.read and split == "heldout":
        return DataError(
            problem, "heldout=SHARE", "holds out a larger share; 0 holds out nothing, and there is no evaluation"
        )
    if reading.read and split == "train" and not tally.read:
        return DataError(problem, "heldout=SHARE", "holds out a smaller share; 0 holds out nothing")
    return UserError(problem)
