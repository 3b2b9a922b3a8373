"""Counts of records that were read, kept and left out, with the reason for each record left out."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

PROBLEM_LIMIT = 20
"""The number of error messages that a tally keeps by default."""
SKIPPED = "skipped"
"""The reason under which bad records are counted: malformed ones, and ones that an encoder refuses."""


@dataclass
class Tally:
    """Counts of the records of a source, and the error messages of the first ones left out."""

    read: int = 0  # well-formed records that were read
    kept: int = 0  # records that became a sample
    left_out: Counter[str] = field(default_factory=Counter)  # number of records left out, by reason
    problems: list[str] = field(default_factory=list)  # "place: error" of the first records left out
    limit: int = PROBLEM_LIMIT  # number of problems that are kept

    @classmethod
    def by(cls, reasons: Iterable[str], limit: int = PROBLEM_LIMIT) -> "Tally":
        """An empty tally that lists each of `reasons`, and bad records, with a count of 0."""
        return cls(left_out=Counter(dict.fromkeys((*reasons, SKIPPED), 0)), limit=limit)

    @property
    def skipped(self) -> int:
        """Number of bad records that were left out."""
        return self.left_out[SKIPPED]

    def leave_out(self, reason: str, problem: str = "") -> None:
        """Counts one record left out for `reason`; keeps the message `problem` unless it is "" or the list is full."""
        self.left_out[reason] += 1
        if problem and len(self.problems) < self.limit:
            self.problems.append(problem)

    def __add__(self, other: "Tally") -> "Tally":
        """The sum of two tallies; the problems of the left one come first."""
        left_out = Counter(self.left_out)
        left_out.update(other.left_out)  # an addition of Counters would drop counts of 0
        problems = (self.problems + other.problems)[: self.limit]
        return Tally(self.read + other.read, self.kept + other.kept, left_out, problems, self.limit)

    def counts(self) -> dict[str, int]:
        """{"records": number read, "samples": number kept, and the number left out for each reason}."""
        return {"records": self.read, "samples": self.kept, **self.left_out}

    def __str__(self) -> str:
        """The counts of records read and left out, and the first problem, on one line."""
        found = ", ".join(f"{n:,} {name}" for name, n in {"records": self.read, **self.left_out}.items())
        return found + "".join(f" ({problem})" for problem in self.problems[:1])
