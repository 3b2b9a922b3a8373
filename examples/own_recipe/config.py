"""A student of 0.06 M parameters learns the primer's conversations from the start model.

camelid train --config=config.py --workdir=../runs/own_recipe
"""

from recipe import DistillConfig

from camelid.configs.sft.primer import get_config as shipped
from camelid.settings.sections import to_config


def get_config():
    c = to_config(DistillConfig())
    c.update(shipped("steps=200"))
    c.recipe = "recipe.py:train"
    c.init_from = None
    c.tokenizer = "../runs/tokenizer"
    c.model.preset = "nano-test"
    c.model.dim, c.model.ffn_dim = 32, 96
    c.distill.teacher = "../runs/start"
    c.data.batch_size = 32
    c.optim.lr = 6e-3
    c.data.cache_dir = "../runs/cache"
    c.log_steps = 50
    c.eval_percent = 100.0
    return c
