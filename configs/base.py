"""The config of a supervised run with every default. An experiment's file starts here and changes what it is about.

Every setting is described at its field; `train/run_config.py` names the file of each section. A length of time is set
in one of its units: `_steps`, `_epochs` (passes over the whole mixture), `_tokens` or `_percent` (of the run).

`c.phases`, a list of (name, {leaf: value}), makes several runs of a config (`settings/config_files.py`).
"""

from ml_collections import ConfigDict

from camelid.settings.config_files import split_escaped
from camelid.settings.sections import to_config
from camelid.train.run_config import SupervisedConfig


def joined(sources: str, name: str = "source") -> dict:
    """A mixture of the sources that plus signs join, called name0, name1, ..., of weight 1 each; `\\+` is a plus sign
    in a source."""
    return {
        f"{name}{i}": {"source": source, "format": "auto", "weight": 1.0, "columns": None}
        for i, source in enumerate(split_escaped(sources, "+"))
    }


def base() -> ConfigDict:
    return to_config(SupervisedConfig())
