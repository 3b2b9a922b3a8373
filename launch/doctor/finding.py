"""What a check of `camelid doctor` found: one line each."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

STATUSES = ("ok", "warn", "fail")


class Finding(NamedTuple):
    """What was found out about one thing."""

    check: str
    """What was checked, in a word or two."""

    status: str
    """"ok"; "warn": runs work, but slower or less safely; "fail": runs do not work."""

    text: str
    """What was found, with figures and units."""

    advice: str = ""
    """What mends it."""

    host: str = ""
    """The host on which it was found, in a group of several processes."""

    def line(self) -> str:
        """The finding as a line of the report."""
        where = f"{self.host}: " if self.host else ""
        advice = f" -> {self.advice}" if self.advice else ""
        return f"{self.status:<5}{self.check:<15}{where}{self.text}{advice}"


Check = Callable[[], Iterable[Finding]]


def run_checks(checks: Sequence[tuple[str, Check]], doing: list[str]) -> Iterator[Finding]:
    """The findings of all checks. A check that raises an exception is a finding that failed.

    Args:
      checks: (name, function) of each.
      doing: doing[0] is set to the name of the check that runs, for a watchdog.
    """
    for name, check in checks:
        doing[0] = name
        begin = time.monotonic()
        try:
            yield from check()
        except Exception as error:
            text = " ".join(str(error).split())[:300] or type(error).__name__
            yield Finding(name, "fail", f"the check itself failed after {time.monotonic() - begin:.1f} s: {text}")


def size(count: float) -> str:
    """A number of bytes in words, such as "1.5 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
