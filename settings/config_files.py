"""Config files: their arguments, overrides on the command line, and phases.

A config file holds `get_config()` or `get_config(arg)`, which returns an `ml_collections.ConfigDict`. A .json file
holds the leaves themselves (`settings/config_json.py`). Overrides are spelled as ml_collections spells them:
`--config.optim.lr=1e-4` (`settings/overrides.py`).

A config may describe several runs, each of which starts from the end of the run before. `phases` is then a list of
(name, {leaf: value}) with the leaves that differ from the rest of the config, such as
[("pretrain", {"optim.lr": 1e-4}), ("tune", {"recipe": "sft"})].
"""

import contextlib
import importlib
import os
import re
import traceback
import types
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import ml_collections

from ..errors import UserError, did_you_mean
from . import files
from .config_json import read_json
from .config_names import ConfigFile, find_config
from .overrides import change, explain_type, one_line, override

PACKAGE = __name__.partition(".")[0]


def parse_arguments(arg: str | None, **defaults: Any) -> types.SimpleNamespace:
    """The arguments of a config file, `name.py:key=value,key=value`, as attributes of a namespace.

    Args:
      arg: the text after the colon; None: no arguments. A key without a value is True; `\\,` is a comma in a value.
      defaults: the keys that the file knows. A value has the type of its default; where that is None, it is a string.

    Raises:
      UserError: an unknown key, or a value of another type.
    """
    if (recorded := _RECORDED.get()) is not None:
        recorded.append(dict(defaults))
    values = dict(defaults)
    for item in filter(None, split_escaped(arg or "", ",")):
        key, _, text = item.partition("=")
        if key not in defaults:
            raise UserError(
                f"unknown argument {key!r}{did_you_mean(key, defaults)}; there are {', '.join(defaults)}; "
                "any other leaf is a flag, such as --config.data.batch_size"
            )
        values[key] = _convert(key, text if "=" in item else "True", defaults[key])
    return types.SimpleNamespace(**values)


_RECORDED: ContextVar[list[dict[str, Any]] | None] = ContextVar("recorded", default=None)


@contextlib.contextmanager
def recorded_arguments() -> Iterator[list[dict[str, Any]]]:
    """Yields a list that gets the defaults of each call of `parse_arguments`, by which a listing knows the arguments
    of a config file."""
    token = _RECORDED.set(found := [])
    try:
        yield found
    finally:
        _RECORDED.reset(token)


def split_escaped(text: str, separator: str) -> list[str]:
    """Splits a text at a separator. A separator after a backslash belongs to the text; the backslash is removed."""
    parts = re.split(rf"(?<!\\){re.escape(separator)}", text)
    return [part.replace(f"\\{separator}", separator) for part in parts]


def load_config(name: str, overrides: Iterable[str] = ()) -> ml_collections.ConfigDict:
    """The config of a file after overrides.

    Args:
      name: a path or the name of a shipped config, with arguments or without (`config_names.find_config`).
      overrides: flags such as `--config.optim.lr=1e-4` (`settings/overrides.py`).

    Raises:
      UserError: the file, an argument or an override is wrong, or the config has several phases.
    """
    phases = load_phases(name, overrides)
    if phases.keys() != {""}:
        raise UserError(f"{name}: has the phases {', '.join(phases)}; one run is wanted here")
    return phases[""]


def load_phases(name: str, overrides: Iterable[str] = ()) -> dict[str, ml_collections.ConfigDict]:
    """The config of each phase by its name, in order. A config without phases has one, named "".

    `--config.<leaf>=<value>` overrides a leaf in all phases, also where a phase sets it;
    `--config.phases.<name>.<leaf>=<value>` overrides it in one phase. Arguments and errors are those of `load_config`.
    """
    found = find_config(name)
    config = _load(found)
    file = os.fspath(found.path)
    phases = _phases_in(config, file)
    common, own = [], {phase: [] for phase in phases}
    for item in overrides:
        match = re.match(r"--(?:no)?config\.phases\.(\w+)\.", item)
        if match and match[1] not in phases:
            raise UserError(f"{item}: the config has no phase {match[1]}{did_you_mean(match[1], phases)}")
        if match:
            own[match[1]].append(item.replace(f"phases.{match[1]}.", "", 1))
        else:
            common.append(item)
    configs = {}
    for phase, changes in phases.items():
        configs[phase] = config.copy_and_resolve_references().lock()
        change(configs[phase], changes, f"{file}: phase {phase}", anew=found.path.suffix == ".json")
        for given in (common, own[phase]):
            override(configs[phase], given)
    return configs


def _phases_in(config: ml_collections.ConfigDict, file: str) -> dict[str, Mapping[str, Any]]:
    """Takes the phases out of a config. Returns the leaves that each changes, by name."""
    listed = config.get("phases") or [("", {})]
    if "phases" in config:
        with config.unlocked():
            del config.phases
    try:
        phases = dict(listed)
        holds = len(phases) == len(listed) and all(
            isinstance(changes, Mapping) and all(isinstance(leaf, str) for leaf in changes)
            for changes in phases.values()
        )
    except (TypeError, ValueError):
        holds = False
    if not holds:
        raise UserError(f"{file}: config.phases is a list of (name, {{leaf: value}}), each with a name of its own")
    for name in phases if phases.keys() != {""} else ():
        if not (isinstance(name, str) and re.fullmatch(r"\w+", name)):  # of a folder, and of overrides
            raise UserError(f"{file}: config.phases: the name {name!r} is not made of letters, digits and underscores")
    return phases


def _load(found: ConfigFile) -> ml_collections.ConfigDict:
    """The config of a file, locked. What the file names may lie in the current folder and in the file's own."""
    files.make_importable(os.getcwd())
    file = os.fspath(found.path)
    if found.path.suffix == ".json":
        if found.argument is not None:
            raise UserError(f"{file}:{found.argument}: a .json file has no arguments; change leaves by --config.<leaf>")
        return read_json(found.path)
    module: ModuleType | None = None
    try:
        module = load_module(found)
        config = module.get_config(*([] if found.argument is None else [found.argument]))
        if isinstance(config, ml_collections.ConfigDict):
            config.copy_and_resolve_references()  # raises for a required placeholder without a value
    except (Exception, SystemExit) as error:
        if module is not None and not callable(getattr(module, "get_config", None)):
            raise UserError(f"{file}: has no function get_config(), which returns the config") from None
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if _is_of(frame, found)]
        where = f"{file}:{lines[-1]}" if lines else file
        if isinstance(error, ml_collections.config_dict.RequiredValueError):
            raise UserError(f"{file}: a required placeholder has no value: set it in get_config()") from None
        if isinstance(error, TypeError) and found.argument is not None and module is not None and not lines:
            raise UserError(f"{file}: its get_config() takes no arguments: leave out :{found.argument}") from None
        what = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"{where}: {explain_type(error) or what + one_line(error)}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"{file}: get_config() must return an ml_collections.ConfigDict, not {type(config).__name__}")
    return config.lock()


def load_module(found: ConfigFile) -> ModuleType:
    """The module of a config's Python file; a file of the user's runs anew. Whatever it raises is passed on."""
    if found.is_shipped:
        return importlib.import_module(f"{PACKAGE}.configs.{found.name.replace('/', '.')}")
    return files.load_file(found.path, anew=True)


def _is_of(frame: traceback.FrameSummary, found: ConfigFile) -> bool:
    return os.path.realpath(frame.filename) == os.path.realpath(found.path)


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
