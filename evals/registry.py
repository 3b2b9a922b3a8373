"""Every evaluation by the name that the command line and `config.evals` give it."""

from collections.abc import Iterator, Mapping
from typing import Any

from .. import tasks
from ..settings.functions import find_function
from .choices import choices
from .exact import exact
from .items import Evaluator, in_training
from .perplexity import perplexity
from .tasks import evaluator

NAMES = ("choices", "exact", "perplexity", "harness", *tasks.NAMES)


def find(name: str, where: str = "evaluation") -> Evaluator:
    """The evaluation called `name`, or the function "package.module:name" or "file.py:name".

    Raises UserError, which begins with `where`, if the function cannot be imported; KeyError for another name.
    """
    if ":" in name:
        return find_function(name, where, "evaluate(model)", None)
    if name == "harness":  # its package is an extra
        from .harness import harness

        return harness
    return {"choices": choices, "exact": exact, "perplexity": perplexity}.get(name) or evaluator(_known(name))


class Evaluations(Mapping[str, Any]):
    """The evaluations that `config.evals` may name, as runs take them; also functions of the user's own."""

    def __getitem__(self, name: str) -> Any:
        return in_training(find(name, "config.evals"), name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (":" in name or name in NAMES)

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)


def _known(name: str) -> str:
    if name not in NAMES:
        raise KeyError(name)
    return name
