"""The section `config.evals`: which evaluations a run makes, with which settings, and when."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from ..errors import UserError, did_you_mean
from ..settings.functions import FORMS
from ..settings.leaves import Name, Units
from ..settings.length import Length
from ..settings.sections import read, read_arguments

Evaluator = Callable[..., tuple[Mapping[str, float], Sequence[Mapping[str, str]]]]
"""evaluator(model, **settings) -> metrics and rows of samples. Settings are checked by the annotations
(`settings.leaves`). An attribute `metrics`, if it has one, names the metrics that it gives."""


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings that every section of `config.evals` may have, beside those of its evaluation."""

    use: Name | None = None
    """Name of the evaluation, or of a function "package.module:name" or "file.py:name". Default: the name of the
    section."""

    every: Annotated[Length | None, Units("steps", "epochs", "tokens", "percent", least=1)] = None
    """Interval between two evaluations. Default: `eval_steps` and its other units."""


class Chosen(NamedTuple):
    """An evaluation of a run."""

    name: str
    """The name of its section; metrics are reported as "eval/<name>/<metric>"."""

    evaluator: Evaluator
    """What evaluates the model."""

    settings: dict[str, Any]
    """Its settings."""

    every: Length | None
    """Interval between two evaluations; None: that of the run."""


OWN = {"use", *(f"every_{unit}" for unit in ("steps", "epochs", "tokens", "percent"))}


def chosen(sections: Mapping[str, Mapping[str, Any]], evaluators: Mapping[str, Evaluator]) -> list[Chosen]:
    """The evaluations of `config.evals`.

    Args:
      sections: `config.evals`.
      evaluators: the evaluations by name.

    Raises:
      UserError: an unknown evaluation, or settings that it does not have.
    """
    found = []
    for name, section in sections.items():
        where = f"config.evals.{name}"
        own = read({key: value for key, value in section.items() if key in OWN}, EvaluationSettings, where)
        use = own.use or name
        if use not in evaluators:
            there = f"only {', '.join(evaluators)}, or a function {FORMS}{did_you_mean(use, evaluators)}"
            raise UserError(f"{where}{'.use' if own.use else ''}: there is no evaluation {use!r}, {there}")
        evaluator = evaluators[use]
        rest = {key: value for key, value in section.items() if key not in OWN}
        found.append(Chosen(name, evaluator, read_arguments(rest, evaluator, where), own.every))
    return found
