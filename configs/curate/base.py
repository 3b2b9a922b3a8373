"""The config of a run of the data engine with every default. A file beside this one starts here.

Every setting is described at its field: those of a run in `curate/settings.py`, those of a step at its class, which
`curate/steps.py` names.
"""

from typing import Any

from ml_collections import ConfigDict

from camelid.curate.settings import CurateConfig, sources_at
from camelid.curate.steps import STEPS, find
from camelid.settings.config_files import split_escaped
from camelid.settings.sections import to_config


def base(sources: str = "", **steps: dict[str, Any]) -> ConfigDict:
    """The default config.

    Args:
      sources: paths, globs or names of sources, joined by plus signs; `\\+` is a plus sign in a path.
      **steps: further sections of steps by name, each with `use`, the name of a step or a class "package.module:Name",
        and with the settings that differ from its defaults.
    """
    c = to_config(CurateConfig())
    c.sources = ConfigDict(sources_at(filter(None, split_escaped(sources, "+"))))
    c.step = ConfigDict({name: _defaults(find(name)) for name in STEPS})
    for name, settings in steps.items():
        c.step[name] = ConfigDict({**_defaults(find(settings["use"], f"config.step.{name}.use")), **settings})
    return c


def _defaults(step: type) -> dict[str, Any]:
    """Every setting of a step with its default. Tuples become lists, for which flags take any literal."""
    leaves = to_config(step()).to_dict()
    return {name: list(value) if isinstance(value, tuple) else value for name, value in leaves.items()}
