"""Flags that change leaves of a config: `--config.optim.lr=1e-4`.

A leaf keeps its type: an int may stand for a float, lists and leaves that are None take Python literals, and `=None`
unsets a leaf. Flags count in their order. Three kinds of flags do more than set a leaf:

- A length of time has a leaf for each of its units, such as `total_steps` and `total_epochs`. A flag for one of them
  unsets the others.
- A section of sections, such as `config.evals` or `config.data.mixture`, may get an entry under a new name, and an
  entry leaves that it did not have; `=None` removes an entry, and empties the section. Whether somebody reads the new
  leaf is checked with all others (`settings/sections.py`).
- A leaf that the config's file leaves out is made where the class of a recipe of the user's own has it.
"""

import ast
import keyword
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path

from ..errors import UserError
from .functions import find, first_annotation, is_function
from .leaf_names import UNITS, did_you_mean_leaf
from .leaves import is_section
from .sections import to_config

FLAG = re.compile(r"--?(?:no)?config\.(?P<leaf>\w[\w-]*(\.\w[\w-]*)*)(?=$|[=\[])", re.DOTALL)
"""Matches the beginning of a flag that changes a leaf, up to its value."""


def override(config: ConfigDict, overrides: Iterable[str]) -> ConfigDict:
    """Changes the leaves of a config that flags name, and returns the config. The last flag of a leaf counts.

    Raises UserError for a flag whose leaf does not exist, and for a value of another type.
    """
    overrides = sorted(overrides, key=lambda item: not item.startswith("--config.recipe="))  # it says what leaves mean
    found = {item: match for item in overrides if (match := FLAG.match(item))}
    names = {item: match["leaf"] for item, match in found.items()}
    if wrong := next((item for item in overrides if item.startswith("--config.") and item not in found), None):
        raise UserError(f"{wrong} is no override: write --config.<name>=<value>; names have letters, digits and . _ -")
    lengths = {leaf: others for leaf in names.values() if (others := other_units(leaf, config))}
    there = {leaf for leaf in names.values() if _has(config, leaf)}
    last = {item.partition("=")[0]: at for at, item in enumerate(overrides)}
    waiting: list[str] = []
    for at, item in enumerate(overrides):
        leaf, unsets = names.get(item), item.endswith("=None")
        if unsets and last[item.partition("=")[0]] != at:
            continue
        if leaf is None or not (unsets or leaf == "recipe" or isinstance(_get(config, leaf), ConfigDict)):
            waiting.append(item)
            continue
        _set(waiting, names, config)  # before a flag that may remove what they are about
        waiting = []
        if not unsets:
            _set([item], names, config)
        elif _has(config, leaf) or leaf not in there:
            check_exists(leaf, config, item)
            _unset(leaf, config)
    _set(waiting, names, config)
    unset_other_units(lengths, names.values(), config)
    return config


def _set(given: list[str], names: Mapping[str, str], config: ConfigDict) -> None:
    """Changes leaves as flags with values say. names: the leaf of each flag that names one."""
    if not given:
        return
    for item in given:
        if item in names:
            check_exists(names[item], config, item, opens=True)
    argv = ["camelid", *(_quoted(item, FLAG.match(item)) if item in names else item for item in given)]
    flag_values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=flag_values, sys_argv=argv)
        stray = flag_values(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        stray = [f"--{error.flagname}"]
    except flags.IllegalFlagValueError as error:
        raise UserError(_explain_value(str(error), config)) from None
    except (flags.Error, LookupError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"overriding the config: {explain_type(error) or one_line(error)}") from None
    if stray:
        raise UserError(f"{stray[0]} is no override: write --config.<name>=<value>")


def change(config: ConfigDict, changes: Mapping[str, Any], where: str, *, anew: bool = False) -> None:
    """Sets leaves of a config by their dotted names, each with its type; a length in one unit unsets the others.

    anew: whether leaves and sections that the config does not have are made anywhere in it, and not only where flags
    make them.

    Raises UserError, which begins with `where`, for a leaf that does not exist, and for a value of another type.
    """
    lengths = {leaf: others for leaf in changes if (others := other_units(leaf, config))}
    for leaf, value in changes.items():
        check_exists(leaf, config, where, opens=True, anew=anew)
        try:
            config_path.set_value(_path(leaf), config, value)
        except TypeError as error:
            raise UserError(f"{where}: {explain_type(error) or f'{leaf}: {one_line(error)}'}") from None
    unset_other_units(lengths, changes, config)


def other_units(leaf: str, config: ConfigDict) -> list[str]:
    """The leaves that give the length of `leaf` in other units, by their dotted names.

    None where the name does not end in a unit, and none where two of the leaves are set, so that the config's own
    mistake stays.
    """
    path, _, name = leaf.rpartition(".")
    stem, _, unit = name.rpartition("_")
    section = _get(config, path)
    if not stem or unit not in UNITS or not isinstance(section, ConfigDict) or name not in section:
        return []
    group = [f"{stem}_{each}" for each in UNITS if f"{stem}_{each}" in section]
    if sum(section[each] is not None for each in group) > 1:
        return []
    return [f"{path}.{each}".lstrip(".") for each in group if each != name]


def unset_other_units(lengths: Mapping[str, list[str]], given: Iterable[str], config: ConfigDict) -> None:
    """Unsets the other units of the lengths that are set now, but not those that are given too.

    lengths: the other leaves of each leaf, as `other_units` found them before the change.
    """
    given = set(given)
    for leaf, others in lengths.items():
        if _get(config, leaf) is not None:
            for other in others:
                if other not in given:
                    config_path.set_value(_path(other), config, None)


def check_exists(leaf: str, config: ConfigDict, where: str, *, opens: bool = False, anew: bool = False) -> None:
    """Raises UserError if a config has no such leaf.

    opens: whether a leaf that is missing within a section of sections, or within what is None, is made; it is None.
    anew: whether this holds in all sections.

    A leaf that is missing and that the class of a recipe of the user's own has is made with its default.
    """
    *sections, last = leaf.split(".")
    section, found, within = config, "config", anew
    for name in (*sections, last):
        if section is None and opens:
            section, within = ConfigDict(), True
            with config.unlocked():
                config_path.set_value(_path(found.removeprefix("config.")), config, section)
        if not isinstance(section, ConfigDict):
            raise UserError(f"{where}: {found} is a value, not a section")
        within = within or (section is not config and _is_open(section))
        if name not in section:
            is_made = opens and within
            defaults = ConfigDict() if is_made else _defaults_of(config)
            own = f"{found}.{name}".removeprefix("config.")
            if not is_made and not _has(defaults, own):
                near = did_you_mean_leaf(f"config.{leaf}", [*names_in(config), *names_in(defaults)])
                raise UserError(f"{where}: there is no config.{leaf}{near}")
            if hasattr(section, name):  # a method of ConfigDict
                raise UserError(f"{where}: {found}.{name}: the name {name} is taken; choose another one")
            with config.unlocked():
                section[name] = _get(defaults, own)
        section, found = section[name], f"{found}.{name}"


def _is_open(section: ConfigDict) -> bool:
    """Whether a section may be one of sections whose names the user chooses: it has no leaf of its own."""
    return all(isinstance(value, ConfigDict) for value in section.values())


def _defaults_of(config: ConfigDict) -> ConfigDict:
    """The leaves that the class of the user's own recipe has, with their defaults; empty for other recipes."""
    recipe = config.get("recipe")
    if not (isinstance(recipe, str) and is_function(recipe)):
        return ConfigDict()
    try:
        kind = next(iter(get_args(first_annotation(find(recipe, "config.recipe"), recipe))), None)
        return to_config(kind()) if is_section(kind) else ConfigDict()
    except Exception:  # of the user's code; what is wrong with it is told where the config is read
        return ConfigDict()


def _unset(leaf: str, config: ConfigDict) -> None:
    """Sets a leaf to None; empties a section of sections, and removes an entry of one."""
    path, _, name = leaf.rpartition(".")
    section = _get(config, path)
    value = section[name]
    is_entry = bool(path) and _is_open(section)
    with config.unlocked():
        if isinstance(value, ConfigDict) and _is_open(value) and (value or not is_entry):
            for entry in list(value):
                del value[entry]
        elif isinstance(value, ConfigDict) and is_entry:
            del section[name]
        else:
            config_path.set_value(_path(leaf), config, None)


def _path(leaf: str) -> str:
    """A dotted name as ml_collections reads it: a part that is no name in Python stands in brackets."""
    is_name = {part: part.isidentifier() and not keyword.iskeyword(part) for part in leaf.split(".")}
    parts = (f".{part}" if is_name[part] else f"[{part!r}]" for part in leaf.split("."))
    return "".join(parts).removeprefix(".")


def _quoted(item: str, match: re.Match) -> str:
    """A flag with the name of its leaf as ml_collections reads it."""
    return f"{item[: match.start('leaf')]}{_path(match['leaf'])}{item[match.end('leaf') :]}"


def _has(config: ConfigDict, leaf: str) -> bool:
    """Whether a config has a leaf or section of a dotted name."""
    path, _, name = leaf.rpartition(".")
    section = _get(config, path)
    return isinstance(section, ConfigDict) and name in section


def _get(config: ConfigDict, leaf: str) -> Any:
    """What stands under a dotted name, None where nothing does; the config itself for ""."""
    found = config
    for name in leaf.split(".") if leaf else ():
        if not isinstance(found, ConfigDict) or name not in found:
            return None
        found = found[name]
    return found


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


def _explain_value(message: str, config: ConfigDict) -> str:
    """An error of absl's about a flag's value, with the type of the leaf in place of a parser's complaint."""
    match = re.match(r"flag (--?config\.([^=]+)=.*?): ", message)
    if not match:
        return one_line(message)
    value = config_path.get_value(match[2], config)
    if isinstance(value, ConfigDict):
        return f"{match[1]}: config.{match[2]} is a section; set its leaves, {', '.join(value)}"
    kind = config_path.get_type(match[2], config).__name__
    return f"{match[1]}: config.{match[2]} is of type {kind}, such as {value!r}"


def explain_type(error: BaseException) -> str:
    """What ml_collections says of a value of another type than the leaf's, in one sentence; "" for other errors."""
    words = r"Could not override field '(\w+)' \(reference\)\. (.*) is of .* casted to type <class '([\w.]+)'>"
    if not (match := re.search(words, one_line(error))):
        return ""
    kinds = {"int": "a whole number", "float": "a number", "str": "a string", "bool": "True or False"}
    items = (item.strip(" \"'") for item in match[2].strip("[]()").split(","))
    items = (item if re.fullmatch(r"-?\d+(\.\d+)?", item) else f'"{item}"' for item in items)
    kinds["list"] = f"a list, as in '[{', '.join(items)}]'"
    return f"{match[1]} = {match[2]}: give {kinds.get(match[3], 'a section' if 'Dict' in match[3] else match[3])}"


def one_line(message: object) -> str:
    """A message without its line breaks."""
    return " ".join(str(message).split())


def names_in(config: ConfigDict, path: str = "config") -> Iterator[str]:
    """The dotted names of all leaves and sections of a config."""
    for name, value in config.items():
        yield f"{path}.{name}"
        if isinstance(value, ConfigDict):
            yield from names_in(value, f"{path}.{name}")
