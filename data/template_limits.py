"""Limits on rendering a chat template, which is foreign code: it may neither run without end nor fill the memory.

Steps and characters do not depend on the machine, so a record is refused on every machine or on none. The limit in
seconds is the last resort, for a single step that takes long.
"""

import contextvars
import dataclasses
import datetime
import time

from ..errors import UserError

MOST_SOURCE = 1 << 17  # characters in a template's source; the longest in use have a quarter of that
MOST_STEPS = 1 << 20  # iterations of loops; a call or a filter counts as eight
MOST_CHARACTERS = 1 << 27  # characters in all texts that are made, including intermediate ones
MOST_OUTPUT = 1 << 22  # characters of output beyond eight times those in messages, tools and documents
MOST_SECONDS = 10.0
LONGEST = 1 << 24  # length of one text or list whose length is given by a number
MOST_BITS = 1 << 16  # bits in an integer


class LimitReached(UserError):
    """A template exceeds one of the limits."""


@dataclasses.dataclass(slots=True)
class Budget:
    """What compiling or rendering a template has used so far.

    Attributes:
        steps: iterations of loops, with calls and filters as several.
        characters: characters in all texts that were made.
        blocks: generation blocks that were written.
        began: start time in seconds of the monotonic clock.
        now: the date and time given to the template when it first asked; later calls get the same.
    """

    steps: int = 0
    characters: int = 0
    blocks: int = 0
    began: float = dataclasses.field(default_factory=time.monotonic)
    now: datetime.datetime | None = None

    def step(self, weight: int = 1) -> None:
        """Counts `weight` steps. Raises LimitReached beyond MOST_STEPS or MOST_SECONDS."""
        self.steps += weight
        if self.steps > MOST_STEPS:
            raise LimitReached(f"it takes more than {MOST_STEPS:,} steps: shorten its loops or the conversation")
        if self.steps & 60 == 0 and time.monotonic() - self.began > MOST_SECONDS:
            raise LimitReached(f"it takes more than {MOST_SECONDS:.0f} seconds: shorten its loops or the conversation")

    def charge(self, characters: int) -> None:
        """Counts characters of a text that is made. Raises LimitReached beyond MOST_CHARACTERS."""
        self.characters += characters
        if self.characters > MOST_CHARACTERS:
            raise LimitReached(
                f"it makes more than {MOST_CHARACTERS:,} characters of text: shorten its loops or the conversation"
            )


_budget: contextvars.ContextVar[Budget] = contextvars.ContextVar("budget")
budget = _budget.get  # budget(): that of the current `limited` block


class limited:
    """Context manager that gives the templates compiled or rendered inside it a new budget."""

    def __enter__(self):
        self._token = _budget.set(Budget())

    def __exit__(self, *raised):
        _budget.reset(self._token)


def check_source(source: str) -> None:
    """Raises LimitReached for a source of more than MOST_SOURCE characters, which would take long to compile."""
    if len(source) > MOST_SOURCE:
        raise LimitReached(f"its source has {len(source):,} characters, more than {MOST_SOURCE:,}")


def check_size(size: int) -> None:
    """Raises LimitReached for a text or list of more than LONGEST items."""
    if size > LONGEST:
        raise LimitReached(f"it asks for a text or a list of length {size:,}; the limit is {LONGEST:,}")


def check_bits(bits: int) -> None:
    """Raises LimitReached for an integer of more than MOST_BITS bits."""
    if bits > MOST_BITS:
        raise LimitReached(f"it computes an integer of more than {MOST_BITS:,} bits")


def check_output(written: int, said: int) -> None:
    """Raises LimitReached if a template writes too many characters (`written`) for `said` characters of its input."""
    if written > 8 * said + MOST_OUTPUT:
        raise LimitReached(f"it writes {written:,} characters for {said:,} in messages, tools and documents")
