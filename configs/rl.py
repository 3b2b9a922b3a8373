"""Base configs of PPO, of GRPO and RLOO, and of RAFT, with every default.

Every setting is described at its field, with the source of its default: those that the recipes share in
`rlhf/answer_task.py`, the others in `rlhf/ppo.py`, `grpo.py` and `raft.py`.
"""

from ml_collections import ConfigDict

from camelid.rlhf.grpo import GRPOConfig
from camelid.rlhf.ppo import PPOConfig
from camelid.rlhf.raft import RAFTConfig
from camelid.settings.sections import to_config


def ppo_base() -> ConfigDict:
    """The default config of the recipe `ppo`."""
    return to_config(PPOConfig())


def grpo_base() -> ConfigDict:
    """The default config of the recipe `grpo`."""
    return to_config(GRPOConfig())


def raft_base() -> ConfigDict:
    """The default config of the recipe `raft`."""
    return to_config(RAFTConfig())
