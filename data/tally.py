"""Records counted: how many were read, how many were kept, which were left out, and why."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

LISTED = 20
"""Problems whose messages a tally keeps."""
SKIPPED = "skipped"
"""The reason for which a bad record is left out: one that is malformed, or that an encoder refuses."""


@dataclass
class Tally:
    """What became of the records of a source."""

    read: int = 0  # sound records that were read
    kept: int = 0  # records that became a sample
    left_out: Counter[str] = field(default_factory=Counter)  # records that were left out, by reason
    problems: list[str] = field(default_factory=list)  # place and fault of the first records that were left out
    most: int = LISTED  # problems that are kept

    @classmethod
    def by(cls, reasons: Iterable[str], most: int = LISTED) -> "Tally":
        """A tally that shows a count for each of `reasons` and for bad records, though it is 0."""
        return cls(left_out=Counter(dict.fromkeys((*reasons, SKIPPED), 0)), most=most)

    @property
    def skipped(self) -> int:
        """Bad records that were left out."""
        return self.left_out[SKIPPED]

    def leave_out(self, reason: str, problem: str = "") -> None:
        """Counts a record that is left out; lists `problem`, if it is not empty, among the first."""
        self.left_out[reason] += 1
        if problem and len(self.problems) < self.most:
            self.problems.append(problem)

    def __add__(self, other: "Tally") -> "Tally":
        """Both tallies together, the problems of the left one first."""
        left_out = Counter(self.left_out)
        left_out.update(other.left_out)  # an addition of Counters would drop counts of 0
        problems = (self.problems + other.problems)[: self.most]
        return Tally(self.read + other.read, self.kept + other.kept, left_out, problems, self.most)

    def counts(self) -> dict[str, int]:
        """Records read, samples made of them, and records left out by reason."""
        return {"records": self.read, "samples": self.kept, **self.left_out}

    def __str__(self) -> str:
        """Records read and left out, and the first problem, on one line."""
        found = ", ".join(f"{n:,} {name}" for name, n in {"records": self.read, **self.left_out}.items())
        return found + "".join(f" ({problem})" for problem in self.problems[:1])
