"""Where a config is: the name of a shipped one, a Python file, or the config.json of a run, with its arguments."""

import functools
import re
from pathlib import Path
from typing import NamedTuple

from etils import epath

from ..errors import UserError, did_you_mean

SHIPPED = Path(__file__).parents[1] / "configs"
"""The folder of the configs that are installed with the package."""


class ConfigFile(NamedTuple):
    """The file of a config, and what was given with its name."""

    path: epath.Path
    """A Python file, or a .json file."""

    argument: str | None
    """What stands after the colon; None without a colon."""

    name: str
    """What people call it: `sft/lora` for a shipped one, else the path as it was given."""

    is_shipped: bool
    """Whether it is installed with the package."""


def split_name(name: str) -> tuple[str, str | None]:
    """File and argument of `file:argument`. The colon of a URL such as gs://bucket/config.json belongs to the file."""
    file, argument = re.fullmatch(r"(.*?)(?::(?!//)(.*))?", name, re.DOTALL).groups()
    return file, argument


def find_config(name: str) -> ConfigFile:
    """The file of a config.

    Args:
      name: a path that exists, or the name of a shipped config in one of the forms sft/lora, sft/lora.py and
        configs/sft/lora.py; in each case with `:key=value,...` after it for arguments.

    Raises:
      UserError: there is no such file; the message has the nearest name.
    """
    file, argument = split_name(name)
    if not file.strip():
        raise UserError("the name of the config is empty: `camelid configs` lists the shipped ones")
    shipped = shipped_configs()
    try:
        path = epath.Path(file).expanduser()
        is_there = path.exists() and not path.is_dir()
    except ImportError as error:  # of a package for object stores
        raise UserError(f"{file}: {error}") from None
    except KeyError:  # a scheme that etils does not know
        raise UserError(f"{file}: give a path, a gs:// or s3:// address, or the name of a shipped config") from None
    if is_there and path.suffix not in (".py", ".json"):
        raise UserError(f"{file}: a config is a Python file, whose name ends in .py, or the config.json of a run")
    if is_there:
        known = next((each for each, there in shipped.items() if Path(path).resolve() == there), None)
        return ConfigFile(path, argument, known or file, known is not None)
    if path.is_dir() and (path / "config.json").is_file():
        raise UserError(f"{file} is a folder; its config is {path / 'config.json'}")
    short = file.removeprefix("./").removeprefix("configs/").removesuffix(".py")
    if short in shipped:
        return ConfigFile(epath.Path(shipped[short]), argument, short, True)
    if path.is_dir():
        raise UserError(f"{file} is a folder, not a config file; `camelid configs` lists the shipped configs")
    siblings = [str(each) for each in path.parent.glob("*.py") if each.name != "__init__.py" and each.exists()]
    near = did_you_mean(file, siblings) or did_you_mean(short, shipped)
    raise UserError(f"{file}: no such config file{near or '; `camelid configs` lists the shipped configs'}")


@functools.cache
def shipped_configs() -> dict[str, Path]:
    """The shipped configs by name, in order: {"sft/lora": path}. Files without `get_config` are parts of others."""
    found = {}
    for path in sorted(SHIPPED.resolve().glob("*/*.py")):
        if "def get_config(" in path.read_text(encoding="utf-8"):
            found[path.relative_to(SHIPPED.resolve()).with_suffix("").as_posix()] = path
    return found
