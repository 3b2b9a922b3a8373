"""What a config is for people: its docstring, its arguments, how it is started, and every leaf with its meaning."""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from ..errors import UserError
from ..settings.config_files import load_phases, recorded_arguments
from ..settings.config_names import find_config, shipped_configs
from ..settings.leaf_names import did_you_mean_leaf, synonyms
from ..settings.meanings import ABSENT, Leaf, meaning_of_leaves


class Shipped(NamedTuple):
    """A config that is installed with the package."""

    name: str
    """Its name, such as sft/lora."""

    about: str
    """The first sentence of its docstring."""


class Section(NamedTuple):
    """A section of a config."""

    name: str
    """Its dotted name, such as "config.optim"."""

    leaves: int
    """The number of leaves in it and in the sections within it."""

    meaning: str
    """The first sentence of its meaning."""


@dataclass
class Listing:
    """A config as `camelid configs` shows it."""

    name: str
    """What `--config` takes."""

    file: str
    """The path of its file."""

    about: str
    """The docstring of its file; "" where it has none."""

    arguments: dict[str, Any] = field(default_factory=dict)
    """The arguments that its file takes, with their defaults."""

    command: str = ""
    """The command that starts it."""

    phases: list[str] = field(default_factory=list)
    """Names of its phases, in order; none for a config of one run."""

    leaves: dict[str, dict[str, Leaf]] = field(default_factory=dict)
    """Each leaf and section by its name, in each phase by the phase's name ("" for a config of one run)."""

    problem: str = ""
    """Why the leaves are not known, such as an argument that is missing; "" where they are."""


def shipped(folder: str = "") -> list[Shipped]:
    """The shipped configs in a folder of `configs/`; of all of them by default. Nothing of them is run."""
    found = []
    for name, path in shipped_configs().items():
        if not folder or name.startswith(f"{folder}/"):
            found.append(Shipped(name, first_sentence(docstring_of(path))))
    return found


def folders() -> list[str]:
    """The folders of the shipped configs."""
    return list(dict.fromkeys(name.partition("/")[0] for name in shipped_configs()))


def listing_of(name: str, overrides: Iterable[str] = ()) -> Listing:
    """A config, after overrides.

    Args:
      name: what `--config` takes.
      overrides: flags that change leaves.

    Raises:
      UserError: there is no such config, or an override is wrong. A file that cannot be run as it is, for example
        without its arguments, is listed without leaves, and `problem` says why.
    """
    found = find_config(name)
    listing = Listing(found.name, str(found.path), "" if found.path.suffix == ".json" else docstring_of(found.path))
    with recorded_arguments() as arguments:
        try:
            phases = load_phases(name, overrides)
        except UserError as error:
            if overrides:
                raise
            listing.problem = str(error)
    listing.arguments = arguments[0] if arguments else {}
    if not listing.problem:
        try:
            _add_leaves(listing, phases)
        except UserError as error:  # a recipe that does not exist
            listing.problem = str(error)
    return listing


def _add_leaves(listing: Listing, phases: Mapping[str, ConfigDict]) -> None:
    for phase, config in phases.items():
        kind, listing.command = _kind_of(config)
        for leaf in meaning_of_leaves(config, kind, _kinds):
            listing.leaves.setdefault(leaf.name, {})[phase] = leaf
    listing.command = listing.command.format(name=listing.name)
    listing.phases = [phase for phase in phases if phase]


def chosen_leaves(listing: Listing, pattern: str | None) -> dict[str, dict[str, Leaf]]:
    """The leaves of a listing that a pattern chooses, without sections; all with the sections before them for None.

    A regular expression chooses the leaves in whose names it is found, and a word of other projects the leaves that it
    means (`settings/leaf_names.py`). Where no name has it, those count in whose meanings it is found.

    Raises:
      UserError: the pattern chooses no leaf, and no argument of the config's file either.
    """
    if pattern is None:
        return listing.leaves
    rule = _rule(pattern)
    leaves = {name: by_phase for name, by_phase in listing.leaves.items() if not _first(by_phase).is_section}
    chosen = {name for name in leaves if rule.search(name) or rule.search(name.replace("_", " "))}
    meant = {f"config.{name}" for name in synonyms(pattern.removeprefix("config."), leaves)}
    if not chosen:
        in_words = _rule(pattern.replace("_", " "))
        meant |= {name for name, by_phase in leaves.items() if in_words.search(_first(by_phase).meaning)}
    found = {name: by_phase for name, by_phase in leaves.items() if name in chosen | meant}
    if not found and not chosen_arguments(listing, pattern):
        raise UserError(f"{pattern}: {listing.name} has no such leaf{did_you_mean_leaf(pattern, leaves)}")
    return found


def chosen_arguments(listing: Listing, pattern: str | None) -> dict[str, Any]:
    """The arguments of a config's file, with their defaults, in whose names a pattern is found; all for None."""
    if pattern is None:
        return listing.arguments
    return {name: value for name, value in listing.arguments.items() if _rule(pattern).search(name)}


def _rule(pattern: str) -> re.Pattern:
    try:
        return re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise UserError(f"{pattern}: is no regular expression: {error}") from None


def changed_leaves(listing: Listing) -> dict[str, dict[str, Leaf]]:
    """The leaves to which a config, or one of its phases, gives another value than the recipe's default."""
    return {
        name: by_phase
        for name, by_phase in listing.leaves.items()
        if any(leaf.is_changed for leaf in by_phase.values())
    }


def sections_in(listing: Listing) -> list[Section]:
    """The sections of a config that are in no other section, with "config" for the leaves of no section."""
    leaves = [name for name, by_phase in listing.leaves.items() if not _first(by_phase).is_section]
    alone = [name for name in leaves if name.count(".") == 1]
    found = [Section("config", len(alone), "Leaves of no section.")]
    for name, by_phase in listing.leaves.items():
        inside = sum(leaf.startswith(f"{name}.") for leaf in leaves)
        if name.count(".") == 1 and inside:
            found.append(Section(name, inside, first_sentence(_first(by_phase).meaning)))
    return found


def to_json(listing: Listing, pattern: str | None = None) -> dict[str, Any]:
    """A listing as JSON can hold it; values of leaves that are missing are left out."""
    leaves = []
    for name, by_phase in chosen_leaves(listing, pattern).items():
        for phase, leaf in by_phase.items():
            if not leaf.is_section:
                said = {"name": name} | ({"phase": phase} if phase else {})
                values = {"value": leaf.value, "default": leaf.default}
                said |= {key: plain(value) for key, value in values.items() if value is not ABSENT}
                leaves.append(said | {"changed": leaf.is_changed, "allowed": leaf.allowed, "meaning": leaf.meaning})
    head = {"name": listing.name, "file": listing.file, "about": listing.about, "arguments": listing.arguments}
    head |= {"command": listing.command, "phases": listing.phases}
    return head | ({"problem": listing.problem} if listing.problem else {"leaves": leaves})


def plain(value: Any) -> Any:
    """A value with dicts in place of ConfigDicts."""
    return value.to_dict() if isinstance(value, ConfigDict) else value


def docstring_of(path: Path) -> str:
    """The docstring of a Python file, without running it; "" where it has none."""
    try:
        return ast.get_docstring(ast.parse(Path(path).read_text(encoding="utf-8"))) or ""
    except (SyntaxError, ValueError):
        return ""


def first_sentence(text: str) -> str:
    """The first sentence of a docstring, on one line."""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return re.match(r".*?[.!?](?=\s|$)|.*", paragraph)[0]


def _kind_of(config: ConfigDict) -> tuple[type, str]:
    """The class that reads a config, and the command that starts it, with {name} for the config's name."""
    if "recipe" in config:
        from .recipes import recipe_of

        return recipe_of(config).config, "camelid train --config={name} --workdir=DIR"
    from ..curate.settings import CurateConfig
    from ..curate.teachers.instruct import Instruct

    if "languages" in config:
        return Instruct, "camelid curate instruct --config={name} --teacher=URL --output=DIR"
    if "steps" in config:
        return CurateConfig, "camelid curate run --config={name} --output=DIR"
    raise UserError("config.recipe is missing, and so are the steps of a config of the data engine")


def _kinds(path: str, name: str, section: Mapping[str, Any]) -> list[Any]:
    """What reads an entry of `config.evals`, or of `config.step` of the data engine; nothing where it names nobody."""
    use = section.get("use") or name
    try:
        if path == "config.evals":
            from ..evals.registry import find
            from ..train.evaluations import EvaluationSettings

            return [EvaluationSettings, find(use, path)]
        if path == "config.step":
            from ..curate.steps import find as find_step

            return [find_step(use, path)]
    except (UserError, KeyError):  # what does not exist is refused where it is used
        return []
    return []


def _first(by_phase: Mapping[str, Leaf]) -> Leaf:
    return next(iter(by_phase.values()))


def sections_of(leaves: Mapping[str, Mapping[str, Leaf]]) -> Iterator[tuple[str, Mapping[str, Leaf]]]:
    """Leaves by name with the leaf of each phase, without sections that have nothing of their own to show."""
    for name, by_phase in leaves.items():
        if not _first(by_phase).is_section or _first(by_phase).meaning:
            yield name, by_phase
