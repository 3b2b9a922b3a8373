"""Config files: their arguments, overrides on the command line, and phases.

A config file holds `get_config()` or `get_config(arg)`, which returns an `ml_collections.ConfigDict`. Overrides are
spelled as ml_collections spells them: `--config.optim.lr=1e-4`.

A config may describe several runs, each of which starts from the end of the run before. `phases` is then a list of
(name, {leaf: value}) with the leaves that differ from the rest of the config, such as
[("pretrain", {"optim.lr": 1e-4}), ("tune", {"recipe": "sft"})].
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


def parse_arguments(arg: str | None, **defaults: Any) -> types.SimpleNamespace:
    """The arguments of a config file, `name.py:key=value,key=value`, as attributes of a namespace.

    Args:
      arg: the text after the colon; None: no arguments. A key without a value is True; `\\,` is a comma in a value.
      defaults: the keys that the file knows. A value has the type of its default; where that is None, it is a string.

    Raises:
      UserError: an unknown key, or a value of another type.
    """
    values = dict(defaults)
    for item in filter(None, split_escaped(arg or "", ",")):
        key, _, text = item.partition("=")
        if key not in defaults:
            raise UserError(f"unknown argument {key!r}{did_you_mean(key, defaults)}; there are {', '.join(defaults)}")
        values[key] = _convert(key, text if "=" in item else "True", defaults[key])
    return types.SimpleNamespace(**values)


def split_escaped(text: str, separator: str) -> list[str]:
    """Splits a text at a separator. A separator after a backslash belongs to the text; the backslash is removed."""
    parts = re.split(rf"(?<!\\){re.escape(separator)}", text)
    return [part.replace(f"\\{separator}", separator) for part in parts]


def load_config(path: str, overrides: Iterable[str] = ()) -> ml_collections.ConfigDict:
    """The config of a file after overrides.

    Args:
      path: `file.py` or `file.py:arguments`.
      overrides: flags such as `--config.optim.lr=1e-4`. A leaf keeps its type: an int may stand for a float, lists and
        leaves that are None take Python literals, and `=None` unsets any leaf.

    Raises:
      UserError: the file, an argument or an override is wrong, or the config has several phases.
    """
    phases = load_phases(path, overrides)
    if phases.keys() != {""}:
        raise UserError(f"{path}: has the phases {', '.join(phases)}; one run is wanted here")
    return phases[""]


def load_phases(path: str, overrides: Iterable[str] = ()) -> dict[str, ml_collections.ConfigDict]:
    """The config of each phase by its name, in order. A config without phases has one, named "".

    `--config.<leaf>=<value>` overrides a leaf in all phases, also where a phase sets it;
    `--config.phases.<name>.<leaf>=<value>` overrides it in one phase. Arguments and errors are those of `load_config`.
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
                said = _explain_type(error) or f"{leaf}: {_one_line(error)}"
                raise UserError(f"{file}: phase {name}: {said}") from None
        configs[name] = _override(phase, common + own[name])
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
        raise UserError(f"overriding the config: {_explain_type(error) or _one_line(error)}") from None
    if stray:
        raise UserError(f"{stray[0]} is no override: write --config.<name>=<value>")
    last = {item.partition("=")[0]: item for item in overrides}
    for flag, item in last.items():
        if item == f"{flag}=None":
            config_path.set_value(flag.lstrip("-").removeprefix("config."), config, None)
    return config


class _LiteralParser(flags.ArgumentParser):
    """Parses lists, and any Python literal for a leaf that is None; ml_collections has no parser for them."""

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
        if isinstance(config, ml_collections.ConfigDict):
            config.copy_and_resolve_references()  # raises for a required placeholder without a value
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == spec.origin]
        where = f"{file}:{lines[-1]}" if lines else file
        if isinstance(error, ml_collections.config_dict.RequiredValueError):
            raise UserError(f"{file}: a required placeholder has no value: set it in get_config()") from None
        what = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"{where}: {_explain_type(error) or what + _one_line(error)}") from error
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
    """An error of absl's about a flag's value, with the type of the leaf in place of a parser's complaint."""
    match = re.match(r"flag (--?config\.([^=]+)=.*?): ", message)
    if not match:
        return _one_line(message)
    value = config_path.get_value(match[2], config)
    if isinstance(value, ml_collections.ConfigDict):
        return f"{match[1]}: config.{match[2]} is a section; set its leaves, {', '.join(value)}"
    kind = config_path.get_type(match[2], config).__name__
    return f"{match[1]}: config.{match[2]} is of type {kind}, such as {value!r}"


def _explain_type(error: BaseException) -> str:
    """What ml_collections says of a value of another type than the leaf's, in one sentence; "" for other errors."""
    words = r"Could not override field '(\w+)' \(reference\)\. (.*) is of .* casted to type <class '([\w.]+)'>"
    if not (match := re.search(words, _one_line(error))):
        return ""
    kinds = {"int": "a whole number", "float": "a number", "str": "a string", "bool": "True or False"}
    items = (item.strip(" \"'") for item in match[2].strip("[]()").split(","))
    items = (item if re.fullmatch(r"-?\d+(\.\d+)?", item) else f'"{item}"' for item in items)
    kinds["list"] = f"a list, as in '[{', '.join(items)}]'"
    return f"{match[1]} = {match[2]}: give {kinds.get(match[3], 'a section' if 'Dict' in match[3] else match[3])}"


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
