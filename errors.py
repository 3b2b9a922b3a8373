"""What a user can mend: one clear line instead of a traceback."""

import difflib
import reprlib
from collections.abc import Iterable

_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = 60


class UserError(ValueError):
    """A mistake in what the user gave: its one-line message says what, where, and how to mend it."""


class TooLong(UserError):
    """A prompt leaves no room for an answer in the model's context."""


class DataError(UserError):
    """A mistake that a setting of how data is read can mend.

    `setting` is written as a function's argument, such as "on_error=skip"; a command writes it as its own flag
    (`advice`). `effect` says what the setting does.
    """

    def __init__(self, problem: str, setting: str, effect: str):
        super().__init__(problem, setting, effect)  # all three, so that it travels between processes
        self.problem, self.setting, self.effect = problem, setting, effect

    def advice(self, prefix: str) -> str:
        """The message with the setting spelled for whoever gave it: `prefix` is "--" or "--config.data."."""
        return f"{self.problem} ({prefix}{self.setting} {self.effect})"

    def __str__(self) -> str:
        return self.advice("")


def bad_record(problem: str) -> DataError:
    """The error of a record that ends a reading with on_error=raise. problem: where it stands, and what is wrong."""
    return DataError(problem, "on_error=skip", "leaves such records out")


def check_choice(name: str, value: object, choices: Iterable) -> None:
    """Raises UserError unless the value of an argument is one of `choices`."""
    if value not in choices:
        near = did_you_mean(str(value), map(str, choices))
        raise UserError(f"{name} is {value!r}; it must be one of {', '.join(map(str, choices))}{near}")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The end of an error message: the nearest spelling among `names`, or "" where none is near."""
    nearest = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def shown(value: object) -> str:
    """The repr of a value on one line, with long strings and lists shortened, for an error message."""
    return " ".join(_shorten.repr(value).split())
