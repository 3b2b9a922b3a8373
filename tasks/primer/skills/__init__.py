"""The skills: one file each, with its phrasings, how its slots are drawn, and what answers are worth."""

from . import arithmetic, count, format, lookup, refuse, sort, translate

SKILLS = ("count", "sort", "arithmetic", "lookup", "translate", "format", "refuse")

_MODULES = (count, sort, arithmetic, lookup, translate, format, refuse)
INSTRUCTIONS = tuple(
    instruction for module in _MODULES for language in ("en", "zh") for instruction in module.instructions(language)
)
