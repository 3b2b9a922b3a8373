"""The configs of learning from rewards with every default: PPO, GRPO and its relatives, RAFT.

Every setting is described at its field, with the source of its default: `rlhf/answer_task.py` has what the recipes
share, `rlhf/ppo.py`, `grpo.py` and `raft.py` the rest.
"""

from ml_collections import ConfigDict

from camelid.rlhf.grpo import GRPOConfig
from camelid.rlhf.ppo import PPOConfig
from camelid.rlhf.raft import RAFTConfig
from camelid.settings.sections import to_config


def ppo_base() -> ConfigDict:
    return to_config(PPOConfig())


def grpo_base() -> ConfigDict:
    return to_config(GRPOConfig())


def raft_base() -> ConfigDict:
    return to_config(RAFTConfig())
