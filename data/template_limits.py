"""What rendering a chat template may take: it is foreign code, and may neither run without end nor fill the memory.

Steps and characters do not depend on the machine, so that a record is refused everywhere or nowhere. Seconds are the
last resort, for what takes long in one step.
"""

import contextvars
import dataclasses
import datetime
import time

from ..errors import UserError

MOST_SOURCE = 1 << 17  # characters of a template's source; the longest in use have a quarter of that
MOST_STEPS = 1 << 20  # iterations; a call or a filter counts as eight
MOST_CHARACTERS = 1 << 27  # made on the way, those thrown away included
MOST_OUTPUT = 1 << 22  # characters beyond eight times what the messages, tools and documents say
MOST_SECONDS = 10.0
LONGEST = 1 << 24  # of one text or list that is asked for by a number
MOST_BITS = 1 << 16  # of a whole number


class LimitReached(UserError):
    """A template takes more than it may."""


@dataclasses.dataclass(slots=True)
class Budget:
    """What a rendering has taken so far.

    Attributes:
        steps: iterations, and calls and filters, which take longer.
        characters: of the texts it has made.
        blocks: generation blocks it has been through.
        began: when, by the monotonic clock.
        now: the date and time at which it first asked for them.
    """

    steps: int = 0
    characters: int = 0
    blocks: int = 0
    began: float = dataclasses.field(default_factory=time.monotonic)
    now: datetime.datetime | None = None

    def step(self, weight: int = 1) -> None:
        """Count a step."""
        self.steps += weight
        if self.steps > MOST_STEPS:
            raise LimitReached(f"it takes more than {MOST_STEPS:,} steps, as if it had no end")
        if self.steps & 60 == 0 and time.monotonic() - self.began > MOST_SECONDS:
            raise LimitReached(f"it takes more than {MOST_SECONDS:.0f} seconds, as if it had no end")

    def charge(self, characters: int) -> None:
        """Count characters that are about to be made, or have been."""
        self.characters += characters
        if self.characters > MOST_CHARACTERS:
            raise LimitReached(f"it makes more than {MOST_CHARACTERS:,} characters of text on the way")


_budget: contextvars.ContextVar[Budget] = contextvars.ContextVar("budget")
budget = _budget.get  # of the rendering that is going on


class limited:
    """Gives what is compiled or rendered inside a `with` a budget of its own."""

    def __enter__(self):
        self._token = _budget.set(Budget())

    def __exit__(self, *raised):
        _budget.reset(self._token)


def check_source(source: str) -> None:
    """Raises LimitReached for a source that takes long to compile."""
    if len(source) > MOST_SOURCE:
        raise LimitReached(f"its source has {len(source):,} characters, more than {MOST_SOURCE:,}")


def check_size(size: int) -> None:
    """Raises LimitReached for a text or a list of more than `LONGEST`."""
    if size > LONGEST:
        raise LimitReached(f"it asks for a text or a list of {size:,}, more than {LONGEST:,}")


def check_bits(bits: int) -> None:
    """Raises LimitReached for a whole number of more than `MOST_BITS`."""
    if bits > MOST_BITS:
        raise LimitReached(f"it computes a whole number of more than {MOST_BITS:,} bits")


def check_output(written: int, said: int) -> None:
    """Raises LimitReached where a template writes far more than it was given."""
    if written > 8 * said + MOST_OUTPUT:
        raise LimitReached(f"it writes {written:,} characters for {said:,} in the messages")
