"""The configs of a reward model and of direct preference optimisation with every default.

Every setting is described at its field: `rlhf/pair_batches.py` has what both share, `rlhf/reward.py` and `rlhf/dpo.py`
the rest.
"""

from ml_collections import ConfigDict

from camelid.rlhf.dpo import DPOConfig
from camelid.rlhf.reward import RewardConfig
from camelid.settings.sections import to_config


def reward_base() -> ConfigDict:
    return to_config(RewardConfig())


def dpo_base() -> ConfigDict:
    return to_config(DPOConfig())
