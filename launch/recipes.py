"""Every recipe by the name that `config.recipe` gives it, and recipes of the user's own."""

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from etils import epath
from ml_collections import ConfigDict

from ..errors import UserError, did_you_mean, shown
from ..rlhf import dpo, grpo, ppo, raft, reward
from ..settings.functions import FORMS, find_function, first_annotation, is_function
from ..settings.sections import read
from ..train import pretrain, sft
from ..train.evaluations import Evaluator
from ..train.host_memory import keep_freed_memory
from ..train.run import Result, Run, mesh_of
from ..train.run_config import RunConfig, SupervisedConfig


class Recipe(NamedTuple):
    """How a config is trained, and which settings it has."""

    train: Callable[[Run], Result]
    config: type[RunConfig]


RECIPES = {
    "pretrain": Recipe(pretrain.train, SupervisedConfig),
    "sft": Recipe(sft.train, SupervisedConfig),
    "reward": Recipe(reward.train, reward.RewardConfig),
    "ppo": Recipe(ppo.train, ppo.PPOConfig),
    "grpo": Recipe(grpo.train, grpo.GRPOConfig),
    "raft": Recipe(raft.train, raft.RAFTConfig),
    "dpo": Recipe(dpo.train, dpo.DPOConfig),
}


def recipe_of(config: Mapping) -> Recipe:
    """The recipe that `config.recipe` names: one of `RECIPES`, or a function train(run) "package.module:name" or
    "file.py:name", whose argument is annotated with its config, as in `def train(run: Run[MyConfig]) -> Result`.

    Raises UserError where there is no such recipe.
    """
    name = config.get("recipe")
    if isinstance(name, str) and name in RECIPES:
        return RECIPES[name]
    if isinstance(name, str) and is_function(name):
        train = find_function(name, "config.recipe", "train(run)", None)
        return Recipe(train, _config_of(train, name))
    known = f"{', '.join(RECIPES)}, or a function {FORMS}"
    raise UserError(f"config.recipe: {shown(name)} is none of {known}{did_you_mean(str(name), RECIPES)}")


def _config_of(train: Callable[..., object], name: str) -> type[RunConfig]:
    """The class of the config of a recipe of the user's own, from the annotation of its argument."""
    argument = next(iter(inspect.signature(train).parameters))
    annotation = first_annotation(train, name)
    kind = next(iter(typing.get_args(annotation)), None)
    if not (typing.get_origin(annotation) is Run and isinstance(kind, type) and issubclass(kind, RunConfig)):
        raise UserError(
            f"config.recipe: {name!r} does not say which config it has: annotate its argument, as in "
            f"def {train.__name__}({argument}: Run[MyConfig]), where MyConfig is a dataclass from RunConfig"
        )
    if inspect.get_annotations(kind) and "__dataclass_fields__" not in vars(kind):  # else its fields are no fields
        raise UserError(f"config.recipe: {name!r}: write @dataclass(frozen=True) above class {kind.__name__}")
    return kind


def read_config(config: ConfigDict) -> RunConfig:
    """The settings of a config, of the class of its recipe. Raises UserError as `settings.sections.read` does."""
    return read(config, recipe_of(config).config, complete=True)


def train(config: ConfigDict, workdir: epath.PathLike, evaluators: Mapping[str, Evaluator]) -> Result:
    """Trains a config of one run, from its start or from where it was cut off, and records the attempt.

    Raises UserError if a recipe of the user's own gives no `Result`.
    """
    run = run_of(config, workdir, evaluators)
    keep_freed_memory(run.mesh)
    with run.recorded():
        result = recipe_of(config).train(run)
        if not isinstance(result, Result):
            said = f"gave {shown(result)} and no Result: let it end with `return run.result(params, loop)`"
            raise UserError(f"config.recipe: {config.recipe!r} {said}")
        return result


def run_of(
    config: ConfigDict,
    workdir: epath.PathLike,
    evaluators: Mapping[str, Evaluator],
    mesh: jax.sharding.Mesh | None = None,
) -> Run:
    """The run of a config, which `recipe_of(config).train` begins or resumes.

    Args:
      config: the config of one run.
      workdir: where checkpoints and metrics go.
      evaluators: the evaluations that `config.evals` may name.
      mesh: the devices; default: all, as `config.mesh` divides them.
    """
    settings = read_config(config)
    return Run(settings, workdir, mesh or mesh_of(settings.mesh), evaluators)
