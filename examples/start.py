"""The model that the examples start from: a network of 0.16 M parameters, taught the primer's conversations.

camelid train --config=start.py --workdir=runs/start
"""

from camelid.configs.sft.primer import get_config as shipped


def get_config():
    c = shipped("steps=400")
    c.init_from = None  # from random parameters
    c.model.preset = "nano-test"
    c.tokenizer = "runs/tokenizer"
    c.data.batch_size = 32
    c.optim.lr = 6e-3
    c.log_steps = 50
    c.eval_percent = 100.0
    return c
