"""Every recipe by the name that `config.recipe` gives it."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from etils import epath
from ml_collections import ConfigDict

from ..errors import UserError, did_you_mean, shown
from ..rlhf import dpo, grpo, ppo, raft, reward
from ..settings.sections import read
from ..train import pretrain, sft
from ..train.evaluations import Evaluator
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


def read_config(config: ConfigDict) -> RunConfig:
    """The settings of a config, of the class of its recipe. Raises UserError as `settings.sections.read` does."""
    recipe = config.get("recipe")
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise UserError(
            f"config.recipe: {shown(recipe)} is none of {', '.join(RECIPES)}{did_you_mean(str(recipe), RECIPES)}"
        )
    return read(config, RECIPES[recipe].config, complete=True)


def run_of(
    config: ConfigDict,
    workdir: epath.PathLike,
    evaluators: Mapping[str, Evaluator],
    mesh: jax.sharding.Mesh | None = None,
) -> Run:
    """The run of a config, which `RECIPES[config.recipe].train` begins or resumes.

    Args:
      config: the config of one run.
      workdir: where checkpoints and metrics go.
      evaluators: the evaluations that `config.evals` may name.
      mesh: the devices; default: all, as `config.mesh` divides them.
    """
    settings = read_config(config)
    return Run(settings, workdir, mesh or mesh_of(settings.mesh), evaluators)
