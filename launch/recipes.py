"""Every recipe by the name that `config.recipe` gives it: recipe(settings, workdir, evaluators) -> what was trained."""

from ..rlhf import dpo, grpo, ppo, raft, reward
from ..train import pretrain, sft

RECIPES = {
    "pretrain": pretrain.run,
    "sft": sft.run,
    "reward": reward.run,
    "ppo": ppo.run,
    "grpo": grpo.run,
    "raft": raft.run,
    "dpo": dpo.run,
}
