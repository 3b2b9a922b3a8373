"""Every recipe by the name that `config.recipe` gives it, and the sections of its config."""

from collections.abc import Callable
from typing import NamedTuple

from ..rlhf import dpo, grpo, ppo, raft, reward, sections
from ..train import pretrain, sft
from ..train.run import Result, Run
from ..train.sections import Supervised


class Recipe(NamedTuple):
    """How a config is trained, and what it has to say."""

    train: Callable[[Run], Result]
    sections: type
    """The sections of the config, as `train.leaves` describes them."""


RECIPES = {
    "pretrain": Recipe(pretrain.train, Supervised),
    "sft": Recipe(sft.train, Supervised),
    "reward": Recipe(reward.train, sections.Reward),
    "ppo": Recipe(ppo.train, sections.PPO),
    "grpo": Recipe(grpo.train, sections.GRPO),
    "raft": Recipe(raft.train, sections.RAFT),
    "dpo": Recipe(dpo.train, sections.DPO),
}
