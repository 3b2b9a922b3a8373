"""A run as a member of a program: its ordinary loop, which waits between steps for the other members."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .run import Run

Around = Callable[[int], contextlib.AbstractContextManager]
"""around(number of a member) -> a context around what is done for this member alone."""

COUNTED = ("data", "checkpoint", "evaluation")
"""Buckets of `goodput.Clock` with what members do one after the other, between two steps."""

LEAST = 1e-3
"""Seconds from which on the time that a member waited for others is counted to these buckets."""


class Member:
    """A run of a program. What ends it leaves the other members going.

    Args:
      number: its place among the members.
      run: the run.
      around: what is around its work.

    Attributes:
      loop: the run's loop, whose state and metrics a step replaces.
      batch: the batch of the next step.
      error: what ended the run before its end; None for a run that is complete, or goes on.
      going: whether the run has not ended.
    """

    def __init__(self, number: int, run: Run, around: Around):
        self.number, self.run = number, run
        self.loop, self.batch, self.error, self.going = None, None, None, True
        self.spent = dict.fromkeys(COUNTED, 0.0)
        self._waited = dict.fromkeys(COUNTED, 0.0)
        self._around, self._stack = around, contextlib.ExitStack()

    def begin(self, *arguments: Any, **settings: Any) -> None:
        """Enters the loop of the run. The arguments are those of `Run.loop`."""
        with self._alone():
            self._clock = self._stack.enter_context(self.run.recorded()).clock
            self.loop = self._stack.enter_context(self.run.loop(*arguments, **settings))
            self.loop.guard = contextlib.nullcontext  # contexts of several loops would not lie within each other
            self._batches = iter(self.loop)

    def advance(self) -> None:
        """Does what is due after a step, and takes the batch of the next one."""
        with self._alone():
            before = self._clock.seconds()
            self.batch = next(self._batches, None)
            after = self._clock.seconds()
            self.spent = {bucket: self.spent[bucket] + after[bucket] - before[bucket] for bucket in COUNTED}
            if self.batch is None:
                self._end(None)

    def wait(self, spent: dict[str, float]) -> None:
        """Counts the time that this member has waited for others, which is no training.

        spent: the seconds that all members have spent so far.
        """
        for bucket in COUNTED:
            waited = spent[bucket] - self.spent[bucket] - self._waited[bucket]
            if waited > LEAST:
                self._waited[bucket] += waited
                if self.batch is not None:  # not before its first step, nor after its last one
                    self.loop.waited(bucket, waited)

    def abandon(self, *error: Any) -> None:
        """Leaves the loop because of an error that is not this member's own, and that says what happened."""
        if self.going:
            self.going = False
            with contextlib.suppress(Exception):
                self._stack.__exit__(*error)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Around what is done for this member: an error ends this run, and no other."""
        with self._around(self.number):
            try:
                yield
            except Exception as error:
                self._end(error)

    def _end(self, error: Exception | None) -> None:
        self.going, self.batch = False, None
        try:
            with self._stack:
                if error is not None:
                    raise error
        except Exception as last:  # with words about what was saved
            self.error = last


def advance(members: Sequence[Member]) -> list[Member]:
    """Brings members to their next step, one after the other. Returns those that have one."""
    spent = {bucket: sum(member.spent[bucket] for member in members) for bucket in COUNTED}
    for member in members:
        if member.going:
            member.wait(spent)
            own = dict(member.spent)
            member.advance()
            spent = {bucket: spent[bucket] + member.spent[bucket] - own[bucket] for bucket in COUNTED}
    for member in members:
        member.wait(spent)
    return [member for member in members if member.going]
