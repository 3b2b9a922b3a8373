"""The config of a supervised run with every default. An experiment's file starts here and changes what it is about.

Every setting is described at its field: `train/run_config.py` has the sections that all recipes share.

Lengths of time come in units, one of which is set: `_steps`, `_epochs` (of the whole mixture), `_tokens`, `_percent`
(of the total). `phases`, a list of (name, {"optim.lr": 1e-4, ...}), describes several runs, each of which starts from
the end of the run before; it names what each changes.
"""

from ml_collections import ConfigDict

from camelid.settings.config_files import split_escaped
from camelid.settings.sections import to_config
from camelid.train.run_config import SupervisedConfig


def joined(sources: str, name: str = "source") -> dict:
    """A mixture of the sources that plus signs join, called name0, name1, ..., of weight 1 each; `\\+` is a plus sign
    in a source."""
    return {
        f"{name}{i}": {"source": source, "format": "auto", "weight": 1.0}
        for i, source in enumerate(split_escaped(sources, "+"))
    }


def base() -> ConfigDict:
    c = to_config(SupervisedConfig())
    c.phases = None
    return c
