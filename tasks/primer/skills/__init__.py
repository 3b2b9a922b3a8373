"""The skills. Each file holds the instructions of one skill: phrasings, values of slots, and scores of answers."""

from . import arithmetic, count, format, lookup, refuse, sort, translate

SKILLS = ("count", "sort", "arithmetic", "lookup", "translate", "format", "refuse")

_MODULES = (count, sort, arithmetic, lookup, translate, format, refuse)
INSTRUCTIONS = tuple(
    instruction for module in _MODULES for language in ("en", "zh") for instruction in module.instructions(language)
)
