"""config.json: the resolved config of a run, which `--config=WORKDIR/config.json` gives back."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

CONFIG = "config.json"

Leaf = tuple[str, Any]


def to_json(config: ConfigDict) -> str:
    """A config as nested JSON."""
    return as_text(json.loads(config.to_json()))


def phases_to_json(phases: Mapping[str, ConfigDict]) -> str:
    """The configs of several phases as one: the leaves of all, and the leaves that differ under "phases".

        {leaf: value of the first phase, ..., "phases": [[name, {dotted leaf: value}], ...]}

    A leaf that only some phases have, such as one of an evaluation of their own, is named by those alone.
    """
    nested = {name: json.loads(config.to_json()) for name, config in phases.items()}
    leaves = {name: dict(_leaves(config)) for name, config in nested.items()}
    first = next(iter(leaves.values()))
    same = [leaf for leaf in first if all(leaf in each for each in leaves.values())]
    changed = {leaf for leaf in same if any(each[leaf] != first[leaf] for each in leaves.values())}
    own = lambda each: {leaf: x for leaf, x in each.items() if leaf in changed or leaf not in same}  # noqa: E731
    whole = _nested({leaf: first[leaf] for leaf in same})
    whole["phases"] = [[name, own(each)] for name, each in leaves.items()]
    return as_text(whole)


def as_text(content: Any) -> str:
    """Content as readable JSON. Paths whose bytes are no UTF-8 are written with escapes, and are read back the same."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(content, indent=2)
    return text


def _leaves(section: Mapping[str, Any], path: str = "") -> Iterator[Leaf]:
    """The leaves of a config by their dotted names; a section without leaves is one itself."""
    for name, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for leaf, value in leaves.items():
        *sections, last = leaf.split(".")
        within = whole
        for section in sections:
            within = within.setdefault(section, {})
        within[last] = value
    return whole
