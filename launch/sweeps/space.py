"""The space of a sweep: which settings vary, and over which values.

    optim.lr=log(1e-4,1e-2)          a number between two ends, drawn uniformly on a logarithmic scale
    lora.dropout=uniform(0,0.2)      the same on a linear scale; uniform(0,0.2,0.05) in steps of 0.05
    model.n_layers=int(2,12)         a whole number; int(2,12,2) in steps of 2, int(8,512,log) on a logarithmic scale
    optim.kind={adamw,muon}          one of several values, written as in Python or as a plain word
    :rank={4,8}                      the argument `rank` of the config file, as in --config=sft/lora:rank=4

Settings are separated by spaces or lines. `seed={0,1,2}` is no dimension of the search: every point is run with each
seed, so that a metric's mean and its interval over seeds can be given.
"""

import ast
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UserError, did_you_mean
from ...settings.config_names import split_name

SEED = "seed"
"""The leaf whose values every point is run with."""

KINDS = ("log", "uniform", "int")
LITERALS = (bool, int, float, str, list, tuple, dict, type(None))
"""Types of values that are written as in Python."""

FORMS = "log(low,high), uniform(low,high), int(low,high) or {a,b,c}"

Point = Mapping[str, Any]
"""The value of each setting of a space, by its name."""


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Any, ...]
    """The values: Python literals, or words as strings."""

    def __str__(self) -> str:
        return f"{{{','.join(_literal(value) for value in self.values)}}}"

    def probes(self) -> tuple[Any, ...]:
        """Values that show whether all values are allowed: here all of them."""
        return self.values

    def suggest(self, trial: Any, name: str) -> Any:
        """The value that Optuna's trial has, or is given now."""
        keys = self._keys()
        return self.values[keys.index(trial.suggest_categorical(name, keys))]

    def stored(self, value: Any) -> Any:
        """A value as Optuna stores it."""
        return self._keys()[self.values.index(value)]

    def restored(self, stored: Any) -> Any:
        """The value that Optuna has stored."""
        return self.values[self._keys().index(stored)]

    def distribution(self) -> Any:
        """The distribution by which Optuna knows the setting."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self._keys())

    def _keys(self) -> list[Any]:
        """The values as scalars, which are all that Optuna stores."""
        scalar = all(isinstance(value, bool | int | float | str | None) for value in self.values)
        return list(self.values) if scalar else [_literal(value) for value in self.values]


@dataclass(frozen=True)
class Range:
    """A number between two ends, which are both included."""

    low: float
    """The smallest value."""

    high: float
    """The largest value."""

    log: bool = False
    """Whether the logarithm of the number is drawn uniformly."""

    step: float | None = None
    """Distance between neighbouring values; None: 1 for whole numbers, and none for others."""

    whole: bool = False
    """Whether it is a whole number."""

    def __str__(self) -> str:
        ends = f"{self.low!r},{self.high!r}"
        if self.whole:
            return f"int({ends}{',log' if self.log else f',{self.step}' if self.step else ''})"
        return f"log({ends})" if self.log else f"uniform({ends}{f',{self.step!r}' if self.step else ''})"

    def probes(self) -> tuple[float, ...]:
        """Values that show whether all values are allowed: both ends, and one between them that is not whole."""
        if self.whole or self.step:
            return self.low, self.high
        return self.low, self.high, self.low + 0.381966 * (self.high - self.low)

    def suggest(self, trial: Any, name: str) -> float:
        """The value that Optuna's trial has, or is given now."""
        if self.whole:
            return trial.suggest_int(name, self.low, self.high, step=self.step or 1, log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def stored(self, value: float) -> float:
        """A value as Optuna stores it."""
        return value

    def restored(self, stored: float) -> float:
        """The value that Optuna has stored."""
        return stored

    def distribution(self) -> Any:
        """The distribution by which Optuna knows the setting."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(self.low, self.high, log=self.log, step=self.step or 1)
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)


Values = Choice | Range


@dataclass(frozen=True)
class Space:
    """The settings that vary in a sweep."""

    settings: Mapping[str, Values]
    """The values of each setting, in the order given. A name that begins with a colon is an argument of the config
    file; others are leaves."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that every point is run with; empty where the space does not vary the seed by choices."""
        found = self.settings.get(SEED)
        return found.values if isinstance(found, Choice) else ()

    @property
    def searched(self) -> dict[str, Values]:
        """The settings that make a point: all but the seeds."""
        return {name: values for name, values in self.settings.items() if not (name == SEED and self.seeds)}

    @property
    def only_choices(self) -> bool:
        """Whether the space is a grid."""
        return all(isinstance(values, Choice) for values in self.settings.values())

    @property
    def grid_size(self) -> int:
        """Number of points of a space of choices, without their seeds."""
        return math.prod(len(values.values) for values in self.searched.values())

    def grid_point(self, number: int) -> dict[str, Any]:
        """A point of a space of choices by its number; the last setting changes fastest."""
        point = {}
        for name, values in reversed(self.searched.items()):
            number, at = divmod(number, len(values.values))
            point[name] = values.values[at]
        return {name: point[name] for name in self.searched}

    def probes(self) -> Iterator[dict[str, Any]]:
        """Points by which a config is checked: each setting at its ends or choices, the others at their first value."""
        first = {name: values.probes()[0] for name, values in self.settings.items()}
        yield first
        for name, values in self.settings.items():
            yield from (first | {name: value} for value in values.probes()[1:])

    def lines(self) -> list[str]:
        """The space in its normal form, a line for each setting."""
        return [f"{name}={values}" for name, values in self.settings.items()]

    def __str__(self) -> str:
        return " ".join(self.lines())


def read_space(texts: Sequence[str]) -> Space:
    """The space that `--space` describes.

    Args:
      texts: descriptions, or paths of files with descriptions, in which `#` begins a comment.

    Raises:
      UserError: a description cannot be read, or a setting is described twice.
    """
    settings: dict[str, Values] = {}
    for text in texts:
        for item in _items(_content(text)):
            name, equals, description = item.partition("=")
            name = name.strip().removeprefix("--").removeprefix("config.")
            if not equals or not re.fullmatch(r":?[\w.-]+", name):
                raise UserError(f"--space: {item!r} is no setting with its values: write NAME={FORMS}")
            if name in settings:
                raise UserError(f"--space: {name} is described twice")
            settings[name] = _values(name, description.strip())
    if not settings:
        raise UserError(f"--space is empty: give NAME={FORMS}")
    space = Space(settings)
    if not all(type(seed) is int and seed >= 0 for seed in space.seeds):
        raise UserError(f"--space: {SEED}={space.settings[SEED]}: seeds are whole numbers from 0 up")
    return space


def config_of(path: str, point: Point) -> tuple[str, list[str]]:
    """A config file with its arguments, and the flags, that make the config of a point.

    Args:
      path: the value of `--config`.
      point: values by names of settings.
    """
    arguments = [f"{name[1:]}={_escaped(value)}" for name, value in point.items() if name.startswith(":")]
    flags = [f"--config.{name}={written(value)}" for name, value in point.items() if not name.startswith(":")]
    separator = ":" if split_name(path)[1] is None else ","
    return (f"{path}{separator}{','.join(arguments)}" if arguments else path), flags


def written(value: Any) -> str:
    """A value as it is written in a flag: a string as it is, anything else as a Python literal."""
    return value if isinstance(value, str) else repr(value)


def shown(point: Point) -> str:
    """A point in a line, with numbers rounded for reading."""
    return " ".join(f"{name}={short(value)}" for name, value in point.items())


def short(value: Any) -> str:
    """A value for reading: floats in four digits."""
    return f"{value:.4g}" if isinstance(value, float) else written(value)


def _escaped(value: Any) -> str:
    return written(value).replace(",", "\\,")


def _content(text: str) -> str:
    if "=" in text:
        return text
    try:
        lines = Path(text).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UserError(f"--space={text}: neither NAME={FORMS}, nor a file that can be read ({said})") from None
    return "\n".join(map(_without_comment, lines))


def _without_comment(line: str) -> str:
    """A line without what follows a `#` at its beginning or after a space, outside of quotes."""
    quote = None
    for at, letter in enumerate(line):
        if quote is not None:
            quote = None if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter == "#" and not line[at - 1 : at].strip():
            return line[:at]
    return line


CLOSES = {"(": ")", "{": "}", "[": "]", "'": "'", '"': '"'}


def _items(text: str) -> list[str]:
    """The settings of a description, split at spaces outside of brackets and quotes. Quotes around a whole setting are
    removed."""
    items = [item for item in _split(text, None) if item]
    return [item[1:-1] if item[0] in "'\"" and item[-1] == item[0] else item for item in items]


def _split(text: str, separator: str | None) -> list[str]:
    """Splits at a separator (None: white space) outside of brackets and quotes."""
    parts, open_ = [""], []
    for letter in text:
        if open_ and letter == open_[-1]:
            open_.pop()
        elif letter in CLOSES and not (open_ and open_[-1] in "'\""):
            open_.append(CLOSES[letter])
        elif not open_ and letter in ")}]":
            raise UserError(f"--space: {text!r}: {letter} closes nothing; settings are separated by spaces")
        elif not open_ and (letter == separator if separator else letter.isspace()):
            parts.append("")
            continue
        parts[-1] += letter
    if open_:
        raise UserError(f"--space: {' '.join(parts[-1].split())!r} lacks a closing {open_[-1]}")
    return parts


def _values(name: str, text: str) -> Values:
    where = f"--space: {name}={text}"
    if text.startswith("{") and text.endswith("}"):
        return _choice(where, [item.strip() for item in _split(text[1:-1], ",")])
    if match := re.fullmatch(r"(\w*)\s*\((.*)\)", text, re.DOTALL):
        kind, ends = match[1] or "uniform", [item.strip() for item in match[2].split(",")]
        if kind not in ("log", "uniform", "int"):
            raise UserError(
                f"{where}: {kind} is none of log, uniform, int{did_you_mean(kind, ['log', 'uniform', 'int'])}"
            )
        return _range(where, kind, ends)
    quotes = "" if re.search(r"[({]", text) else f"; in quotes, '{name}={{a,b}}', or the shell expands the braces"
    raise UserError(f"{where}: this is no choice of values; give {FORMS}{quotes}")


def _choice(where: str, items: list[str]) -> Choice:
    if "" in items:
        raise UserError(f"{where}: a value is empty: write {{a,b,c}}, and '' for an empty string")
    values = tuple(map(_parsed, items))
    literals = [_literal(value) for value in values]
    twice = [value for value in literals if literals.count(value) > 1]
    if twice:
        raise UserError(f"{where}: {twice[0]} is there twice")
    if len({value: None for value in values if _hashable(value)}) < sum(map(_hashable, values)):
        raise UserError(f"{where}: two of the values are equal, such as 1 and 1.0")
    return Choice(values)


def _range(where: str, kind: str, ends: list[str]) -> Range:
    """The range of `kind(low, high, ...)`. Raises UserError for ends that make none."""
    more = ends[2:]
    log = kind == "log" or (kind == "int" and more == ["log"])
    numbers = [_parsed(end) for end in (ends[:2] if more == ["log"] else ends)]
    wanted = (2,) if log else (2, 3)
    if len(numbers) not in wanted or not all(_is_number(number) for number in numbers):
        forms = {"log": "log(low,high)", "uniform": "uniform(low,high) or uniform(low,high,step)"}
        raise UserError(f"{where}: write {forms.get(kind, 'int(low,high), int(low,high,step) or int(low,high,log)')}")
    low, high, step = [*numbers, None][:3]
    if kind == "int":
        if not all(float(number).is_integer() for number in numbers):
            raise UserError(f"{where}: the ends of int(low,high) are whole numbers")
        low, high, step = int(low), int(high), None if step is None else int(step)
    else:
        low, high, step = float(low), float(high), None if step is None else float(step)
    if low >= high:
        raise UserError(f"{where}: the first end has to be smaller than the second")
    if log and low <= 0:
        raise UserError(f"{where}: a logarithmic scale needs ends above 0")
    if step is not None and (step <= 0 or not math.isclose(round((high - low) / step) * step, high - low)):
        raise UserError(f"{where}: steps of {step} do not lead from {low} to {high}")
    return Range(low, high, log=log, step=step, whole=kind == "int")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _parsed(text: str) -> Any:
    """The value of a Python literal that a config may have; any other text as it is."""
    try:
        with warnings.catch_warnings():  # Python's, of words such as 1or2
            warnings.simplefilter("ignore")
            value = ast.literal_eval(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return text
    is_infinite = isinstance(value, float) and math.isinf(value)  # 1e400
    return value if isinstance(value, LITERALS) and not is_infinite else text


def _literal(value: Any) -> str:
    """A value as it is written in a space, so that it is read as the same value."""
    if isinstance(value, str) and re.fullmatch(r"[^\s,{}()\[\]'\"=#]+", value) and _parsed(value) is value:
        return value
    return repr(value)


def _hashable(value: Any) -> bool:
    return not isinstance(value, list | dict | set)
