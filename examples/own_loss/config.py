"""Instruction tuning on the primer's conversations with the loss of loss.py.

camelid train --config=config.py --workdir=../runs/own_loss
"""

from camelid.configs.sft.primer import get_config as shipped


def get_config():
    c = shipped("init_from=../runs/start,steps=100")
    c.loss = "loss.py:make_loss"
    c.data.batch_size = 32
    c.data.cache_dir = "../runs/cache"
    c.log_steps = 25
    c.eval_percent = 100.0
    return c
