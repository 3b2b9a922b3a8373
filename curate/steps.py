"""Every step by the name that configs give it, and steps made from a config.

A step of one's own is a class "package.module:Name" or "file.py:Name" like those of `curate/rows.py`.
"""

import importlib
from collections.abc import Mapping
from typing import Any

from ..errors import UserError, did_you_mean
from ..settings.functions import find_function
from ..settings.sections import read
from .rows import Step, WholeStep

STEPS = {
    # what a record is
    "parse": "parsing:Parse",
    "conversation": "conversations.repair:Conversation",
    "markdown": "conversations.markdown:Markdown",
    "residue": "conversations.residue:Residue",
    # what is kept of it
    "language": "conversations.language:Language",
    "length": "conversations.filters:Length",
    "identity": "conversations.filters:Identity",
    "refusals": "conversations.filters:Refusals",
    "personal_data": "personal_data.step:PersonalData",
    "split_long": "conversations.splitting:SplitLong",
    "heldout": "heldout:Heldout",
    "grounded": "documents.grounding:Grounded",
    # rules of quality
    "gopher": "quality.gopher:Gopher",
    "gopher_repetition": "quality.repetition:GopherRepetition",
    "c4": "quality.c4:C4",
    "fineweb": "quality.fineweb:FineWeb",
    # all rows together
    "exact_duplicates": "duplicates.exact:ExactDuplicates",
    "near_duplicates": "duplicates.near:NearDuplicates",
    "decontaminate": "duplicates.decontamination:Decontaminate",
}
"""Module of this folder and class of each step."""


def find(name: str, where: str = "config.steps") -> type:
    """The class of the step called `name`, or the class "package.module:Name" or "file.py:Name".

    Raises UserError, which begins with `where`, for an unknown name, a class that cannot be imported, and a package
    that is not installed.
    """
    if ":" in name:
        return find_function(name, where, "Step(**settings)")
    if name not in STEPS:
        raise UserError(f"{where}: there is no step {name!r}, only {', '.join(STEPS)}{did_you_mean(name, STEPS)}")
    module, _, attribute = STEPS[name].partition(":")
    try:
        return getattr(importlib.import_module(f".{module}", __package__), attribute)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(__package__.partition(".")[0]):
            raise
        raise UserError(f"{where}: {name} needs {error.name}: pip install 'camelid[curate]'") from None


def make(name: str, settings: Mapping[str, Any], where: str) -> Step | WholeStep:
    """The step called `name` with the settings of its section `where` in a config. Raises UserError as `read` does."""
    return read(settings, find(name, where), where)
