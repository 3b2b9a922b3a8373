"""Base configs of reward models and of direct preference optimisation, with every default.

Every setting is described at its field: those that both share in `rlhf/pair_batches.py`, the others in `rlhf/reward.py`
and `rlhf/dpo.py`.
"""

from ml_collections import ConfigDict

from camelid.rlhf.dpo import DPOConfig
from camelid.rlhf.reward import RewardConfig
from camelid.settings.sections import to_config


def reward_base() -> ConfigDict:
    """The default config of the recipe `reward`."""
    return to_config(RewardConfig())


def dpo_base() -> ConfigDict:
    """The default config of the recipe `dpo`."""
    return to_config(DPOConfig())
