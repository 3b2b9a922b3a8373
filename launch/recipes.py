"""Every recipe by the name that `config.recipe` gives it, and the sections of its config."""

from collections.abc import Callable
from typing import NamedTuple

from ..rlhf import dpo, grpo, ppo, raft, reward, sections
from ..train import pretrain, sft
from ..train.sections import Supervised


class Recipe(NamedTuple):
    """run(settings, workdir, evaluators) gives what was trained. sections: of the config, as `train.leaves` has it."""

    run: Callable
    sections: type


RECIPES = {
    "pretrain": Recipe(pretrain.run, Supervised),
    "sft": Recipe(sft.run, Supervised),
    "reward": Recipe(reward.run, sections.Reward),
    "ppo": Recipe(ppo.run, sections.PPO),
    "grpo": Recipe(grpo.run, sections.GRPO),
    "raft": Recipe(raft.run, sections.RAFT),
    "dpo": Recipe(dpo.run, sections.DPO),
}
