"""The config of a run: loading it with overrides, knowing which of its leaves were read, lengths of time in any unit.

A config file holds `get_config()` or `get_config(arg)`, which returns an `ml_collections.ConfigDict`; overrides are
spelled as everywhere with ml_collections (`--config.optim.lr=1e-4`). A leaf that nothing reads does nothing, which is
never what its author meant: code reads the config through `Settings`, and `check_all_read` names the leaves left over.

A config may describe several runs, each from the end of the one before: `phases` is a list of (name, {leaf: value}), by
which each differs from the rest of the config, as in [("pretrain", {"optim.lr": 1e-4}), ("tune", {"recipe": "sft"})].
"""

import ast
import importlib.util
import re
import traceback
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags import config_path

from ..errors import UserError, did_you_mean


class Settings(Mapping):
    """A read-only view of a ConfigDict that remembers which leaves were read and which names were asked for in vain.

    Leaves are read by attribute, item, `get`, iteration over `items` and `values`, or `**`; sections are Settings too
    and remember in the same place. A missing name raises UserError with the nearest spelling there is.
    """

    def __init__(self, config: ml_collections.ConfigDict, path: str = "config", root: "Settings | None" = None):
        self._config = config
        self._path = path
        self._root = root or self
        self._read: dict[str, None] = {}  # dotted names in order; on the root, like those below
        self._missed: dict[str, None] = {}

    def dotted(self, name: str) -> str:
        """The full dotted name of an entry of this section."""
        return f"{self._path}.{name}"

    def get(self, name: str, default: Any = None) -> Any:
        if name in self:
            return self[name]
        self._root._missed[self.dotted(name)] = None
        return default

    def config(self) -> ml_collections.ConfigDict:
        """What this is a view of, for writing it down; reading it leaves no trace here."""
        return self._config

    def names_read(self) -> list[str]:
        """Dotted names of the leaves that were read, here or in any other section."""
        return list(self._root._read)

    def names_missed(self) -> list[str]:
        """Dotted names that were asked for and are not in the config."""
        return list(self._root._missed)

    def unread(self) -> list[str]:
        """Dotted names of the leaves of this section that nothing has read."""
        return [path for path in _leaves(self._config, self._path) if path not in self._root._read]

    def __getitem__(self, name: str) -> Any:
        path = self.dotted(name)
        if name not in self._config:
            there_are = f"; {self._path} has {', '.join(self._config)}"
            raise UserError(f"the config has no {path}{did_you_mean(name, self._config) or there_are}")
        value = self._config[name]
        if isinstance(value, ml_collections.ConfigDict):
            return Settings(value, path, self._root)
        self._root._read[path] = None
        return value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # asked for by copy, pickle and the like, which expect this error
            raise AttributeError(name)
        return self[name]

    def __contains__(self, name: object) -> bool:
        return name in self._config

    def __iter__(self) -> Iterator[str]:
        return iter(self._config)

    def __len__(self) -> int:
        return len(self._config)


def check_all_read(settings: Settings) -> None:
    """Raises UserError naming each leaf that nothing has read, with the nearest name that was asked for."""
    asked_for = settings.names_missed() + settings.names_read()
    problems = [f"nothing reads {path}{did_you_mean(path, asked_for)}" for path in settings.unread()]
    if problems:
        raise UserError("; ".join(problems))


class Seconds(float):
    """A length of time on the clock, as opposed to a number of steps."""


def duration(
    section: Settings,
    name: str,
    *,
    steps_per_epoch: float | None = None,
    tokens_per_step: float | None = None,
    total_steps: int | None = None,
    seconds: bool = False,
    required: bool = True,
) -> int | Seconds | None:
    """A length of time given as one of `<name>_steps`, `_epochs`, `_tokens`, `_percent` (of total_steps) or `_seconds`.

    Returns steps, rounded, and at least 1 unless the length is 0; `Seconds` where those are allowed and given. An entry
    that is None counts as absent. With none given returns None, or raises UserError if one is `required`; so do two at
    once, a negative length, and a unit which this place cannot convert.
    """
    steps_per_unit = {
        "steps": 1,
        "epochs": steps_per_epoch,
        "tokens": tokens_per_step and 1 / tokens_per_step,
        "percent": total_steps and total_steps / 100,
        "seconds": 1 if seconds else None,
    }
    possible = [section.dotted(f"{name}_{unit}") for unit, steps in steps_per_unit.items() if steps]
    values = {unit: section.get(f"{name}_{unit}") for unit in steps_per_unit}
    given = {unit: value for unit, value in values.items() if value is not None}
    if len(given) > 1 or (required and not given):
        found = " and ".join(section.dotted(f"{name}_{unit}") for unit in given) or "none of them"
        raise UserError(f"set one of {', '.join(possible)}: the config sets {found}")
    if not given:
        return None
    [(unit, value)] = given.items()
    path = section.dotted(f"{name}_{unit}")
    if not steps_per_unit[unit]:
        raise UserError(f"{path}: {unit} have no meaning here; set one of {', '.join(possible)}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise UserError(f"{path} = {value!r}: a length of time is a number from 0 up")
    if unit == "steps" and value != int(value):
        raise UserError(f"{path} = {value!r}: steps are whole")
    if unit == "seconds":
        return Seconds(value)
    return max(1, round(value * steps_per_unit[unit])) if value else 0


def parse_arguments(arg: str | None, **defaults: Any) -> types.SimpleNamespace:
    """The arguments of a config file, `name.py:key=value,key=value`, as attributes.

    `defaults` names the keys there are; a value takes the type of its default (a default of None takes a string).
    A key without a value means True; `\\,` is a comma in a value. Raises UserError for unknown keys and for values of
    another type.
    """
    values = dict(defaults)
    for item in filter(None, split_escaped(arg or "", ",")):
        key, _, text = item.partition("=")
        if key not in defaults:
            raise UserError(f"unknown argument {key!r}{did_you_mean(key, defaults)}; there are {', '.join(defaults)}")
        values[key] = _convert(key, text if "=" in item else "True", defaults[key])
    return types.SimpleNamespace(**values)


def split_escaped(text: str, separator: str) -> list[str]:
    """The parts of a text between separators, but for those that a backslash stands before: they are its own."""
    parts = re.split(rf"(?<!\\){re.escape(separator)}", text)
    return [part.replace(f"\\{separator}", separator) for part in parts]


def load_config(path: str, overrides: Iterable[str] = ()) -> ml_collections.ConfigDict:
    """The config of `file.py` or `file.py:arguments` after overrides such as `--config.optim.lr=1e-4`.

    Types are those of the config file: an int is taken for a float, Python literals for lists and for leaves
    that are None, and `=None` unsets any leaf. Raises UserError for whatever is wrong with the file, its
    arguments or an override, and for a config of several phases.
    """
    phases = load_phases(path, overrides)
    if phases.keys() != {""}:
        raise UserError(f"{path}: has the phases {', '.join(phases)}; one run is wanted here")
    return phases[""]


def load_phases(path: str, overrides: Iterable[str] = ()) -> dict[str, ml_collections.ConfigDict]:
    """The config of each phase by name, in order; of a config without phases, its own under the name "".

    `--config.<leaf>=<value>` counts in all phases, whatever they say themselves, and `--config.phases.<name>.<leaf>` in
    the phase of that name, whatever else there is. Otherwise as `load_config`.
    """
    config = _run_config_file(path)
    file = path.partition(":")[0]
    phases = _phases_in(config, file)
    common, own = [], {name: [] for name in phases}
    for item in overrides:
        match = re.match(r"--(?:no)?config\.phases\.(\w+)\.", item)
        if match and match[1] not in phases:
            raise UserError(f"{item}: the config has no phase {match[1]}{did_you_mean(match[1], phases)}")
        if match:
            own[match[1]].append(item.replace(f"phases.{match[1]}.", "", 1))
        else:
            common.append(item)
    configs = {}
    for name, changes in phases.items():
        phase = config.copy_and_resolve_references().lock()
        for leaf, value in changes.items():
            _check_exists(leaf, phase, f"{file}: phase {name}")
            try:
                config_path.set_value(leaf, phase, value)
            except TypeError as error:
                raise UserError(f"{file}: phase {name}: {leaf}: {_one_line(error)}") from None
        configs[name] = _override(phase, common + own[name])
    return configs


def _phases_in(config: ml_collections.ConfigDict, file: str) -> dict[str, Mapping[str, Any]]:
    """Takes the phases out of a config: what each changes, by name."""
    listed = config.get("phases") or [("", {})]
    if "phases" in config:
        with config.unlocked():
            del config.phases
    try:
        phases = dict(listed)
    except (TypeError, ValueError):
        phases = {}
    if len(phases) < len(listed) or not all(isinstance(changes, Mapping) for changes in phases.values()):
        raise UserError(f"{file}: config.phases is a list of (name, {{leaf: value}}), each with a name of its own")
    for name in phases if phases.keys() != {""} else ():
        if not (isinstance(name, str) and re.fullmatch(r"\w+", name)):  # of a folder, and of overrides
            raise UserError(f"{file}: config.phases: the name {name!r} is not made of letters, digits and underscores")
    return phases


def _override(config: ml_collections.ConfigDict, overrides: list[str]) -> ml_collections.ConfigDict:
    for item in overrides:
        if match := re.match(r"--?(?:no)?config\.([\w.]+)", item):
            _check_exists(match[1], config, item)
    argv = ["camelid", *(item for item in overrides if not item.endswith("=None"))]
    flag_values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=flag_values, sys_argv=argv)
        stray = flag_values(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        stray = [f"--{error.flagname}"]
    except flags.IllegalFlagValueError as error:
        raise UserError(_explain_value(str(error), config)) from None
    except (flags.Error, LookupError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"overriding the config: {_one_line(error)}") from None
    if stray:
        raise UserError(f"{stray[0]} is no override: write --config.<name>=<value>")
    last = {item.partition("=")[0]: item for item in overrides}
    for flag, item in last.items():
        if item == f"{flag}=None":
            config_path.set_value(flag.lstrip("-").removeprefix("config."), config, None)
    return config


class _LiteralParser(flags.ArgumentParser):
    """Reads what ml_collections has no parser for: lists, and any value for a leaf that is None."""

    def parse(self, argument: Any) -> Any:
        if not isinstance(argument, str):
            return argument
        try:
            return ast.literal_eval(argument)
        except (SyntaxError, ValueError):
            return argument


for _type in (list, type(None)):
    config_flags.register_flag_parser_for_type(_type, _LiteralParser())


def _run_config_file(path: str) -> ml_collections.ConfigDict:
    file, *argument = path.split(":", 1)
    if not Path(file).is_file():
        siblings = [str(p) for p in Path(file).parent.glob("*.py") if p.name != "__init__.py"]
        raise UserError(f"{file}: no such config file{did_you_mean(file, siblings)}")
    spec = importlib.util.spec_from_file_location("config", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(*argument)
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == spec.origin]
        where = f"{file}:{lines[-1]}" if lines else file
        what = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"{where}: {what}{_one_line(error)}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"{file}: get_config() must return an ml_collections.ConfigDict, not {type(config).__name__}")
    return config.lock()


def _check_exists(leaf: str, config: ml_collections.ConfigDict, where: str) -> None:
    section, found = config, "config"
    for name in leaf.split("."):
        if not isinstance(section, ml_collections.ConfigDict):
            raise UserError(f"{where}: {found} is a value, not a section")
        if name not in section:
            path = f"config.{leaf}"
            raise UserError(f"{where}: there is no {path}{did_you_mean(path, _leaves(config, 'config'))}")
        section, found = section[name], f"{found}.{name}"


def _explain_value(message: str, config: ml_collections.ConfigDict) -> str:
    """Says which type a leaf has, where absl's message has only what Python's parsers complain of."""
    match = re.match(r"flag (--?config\.([^=]+)=.*?): ", message)
    if not match:
        return _one_line(message)
    value = config_path.get_value(match[2], config)
    if isinstance(value, ml_collections.ConfigDict):
        return f"{match[1]}: config.{match[2]} is a section; set its leaves, {', '.join(value)}"
    kind = config_path.get_type(match[2], config).__name__
    return f"{match[1]}: config.{match[2]} is of type {kind}, such as {value!r}"


def _convert(key: str, text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
    elif default is None or isinstance(default, str):
        return text
    else:
        try:
            return type(default)(text)
        except ValueError:
            pass
    raise UserError(f"argument {key}={text}: needs {type(default).__name__}, such as {default!r}")


def _leaves(config: ml_collections.ConfigDict, path: str) -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from _leaves(value, f"{path}.{name}")
        else:
            yield f"{path}.{name}"


def _one_line(message: object) -> str:
    return " ".join(str(message).split())
