"""Checks that what a config reads is there: its tokenizer, models, sources of data, and files of evaluations.

Nothing is downloaded, and no weights are read. Addresses such as gs://bucket/run are left to the run itself.
"""

import dataclasses
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import ml_collections
from etils import epath

from .. import tasks
from ..checkpoints import reading
from ..data import files, hub, sources
from ..data.tokenizer import Tokenizer
from ..errors import UserError
from ..settings.leaves import Path, fields_of, members_of
from ..train.evaluations import Evaluator, chosen
from .recipes import read_config


class Missing(NamedTuple):
    """An input of a config that is not here."""

    path: str
    """The path, as the config has it."""

    problem: str
    """The leaf, its value and what is wrong, in one line."""

    certain: bool
    """False if the run may find it nevertheless: a name that the Hugging Face Hub may know."""


def missing_inputs(
    phases: Mapping[str, ml_collections.ConfigDict],
    evaluators: Mapping[str, Evaluator],
    workdir: epath.PathLike,
    leave_out: Collection[str] = (),
) -> list[Missing]:
    """The inputs of all phases that are not here.

    What an earlier phase makes is left out: `init_from` of each phase but the first, and paths in the work directory.

    Args:
      phases: the checked config of each phase.
      evaluators: the evaluations that `config.evals` may name.
      workdir: the work directory of the run.
      leave_out: names of leaves that are not looked at, such as those that a sweep sets.
    """
    found: dict[str, Missing] = {}
    made = os.path.join(os.path.abspath(os.path.expanduser(workdir)), "")
    for number, (name, config) in enumerate(phases.items()):
        settings = read_config(config)
        leaves = [*_paths_in(settings, "config"), *_paths_of_evaluations(settings.evals, evaluators)]
        for where, value, check in leaves:
            own = number > 0 and (where == "config.init_from" or os.path.abspath(value).startswith(made))
            if own or "://" in value or value in found or where.removeprefix("config.") in leave_out:
                continue
            phase = f"phase {name}: " if name else ""
            try:
                problem, certain = check(value)
            except (UserError, OSError) as error:
                problem, certain = str(error).removeprefix(f"{value}: "), True
            if problem:
                found[value] = Missing(value, f"{phase}{where} = {value!r}: {problem}", certain)
    return list(found.values())


def _paths_in(section: Any, where: str) -> Iterator[tuple[str, str, "Check"]]:
    """(dotted name, path, check) of each input in a section and in those below it."""
    kinds = fields_of(type(section))
    for field in dataclasses.fields(section):
        value, name = getattr(section, field.name), f"{where}.{field.name}"
        if isinstance(value, str) and field.name in CHECKS and Path in members_of(kinds[field.name]):
            yield name, value, CHECKS[field.name]
        below = value.items() if isinstance(value, Mapping) else [(None, value)]
        for key, part in below:
            if dataclasses.is_dataclass(part):
                yield from _paths_in(part, name if key is None else f"{name}.{key}")


def _paths_of_evaluations(sections: Mapping, evaluators: Mapping[str, Evaluator]) -> Iterator[tuple[str, str, "Check"]]:
    """(dotted name, path, check) of each input of the evaluations of `config.evals`."""
    for each in chosen(sections, evaluators):
        kinds = fields_of(each.evaluator)
        for name, value in each.settings.items():
            if isinstance(value, str) and name in CHECKS and Path in members_of(kinds[name]):
                yield f"config.evals.{each.name}.{name}", value, CHECKS[name]


def _check_tokenizer(path: str) -> tuple[str, bool]:
    if (on_hub := _on_hub(path)) is not None:
        return on_hub
    Tokenizer.load(path)
    return "", True


def _check_model(path: str) -> tuple[str, bool]:
    if (on_hub := _on_hub(path)) is not None:
        return on_hub
    named = reading.run_and_step(path)
    there = epath.Path(path if named is None else named[0]).expanduser().exists()
    return "" if there else "no such checkpoint or run directory", True


def _check_source(location: str) -> tuple[str, bool]:
    source = sources.Source(location)
    if source.scheme in tasks.NAMES:
        sources.read(source)  # raises at once where the task has no such records
    elif source.scheme != "tfds":  # which the run may prepare
        sources.parts_of(source)
    return "", True


def _check_file(path: str) -> tuple[str, bool]:
    if not epath.Path(path).expanduser().exists():
        files.find_files(path)  # a glob
    return "", True


def _on_hub(path: str) -> tuple[str, bool] | None:
    """What a check says of the name of a model on the Hub; None for a path. Raises UserError for an impossible name."""
    if hub.name_of(path) is None:
        return None
    if hub.PREFIX.match(path):
        return "", True
    return f"there is no folder {path.partition('/')[0]} here; the run will ask the Hugging Face Hub for it", False


Check = Callable[[str], tuple[str, bool]]
"""check(path) -> (what is wrong or "", whether it is certain). Raises UserError or OSError for what is wrong too."""

CHECKS: dict[str, Check] = {
    "tokenizer": _check_tokenizer,
    "init_from": _check_model,
    "model": _check_model,
    "source": _check_source,
    "file": _check_file,
    "shots_file": _check_file,
}
"""The check of a path by the name of its leaf."""
