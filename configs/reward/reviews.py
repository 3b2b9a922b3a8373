"""A reward model of sentiment, from pairs of a pleased and a displeased review. The policy does not see its reviews.

camelid train --config=configs/reward/reviews.py --workdir=runs/reviews/reward

After two and a half minutes on two cores it orders 72% of held-out pairs (English 68%, Chinese 81%). After another
epoch and a half it orders 75%, but the loss rises from 0.58 to 0.86: the model is then far too sure.
"""

from camelid.configs.preferences import reward_base
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(arg, init_from="runs/reviews/sft", epochs=1.5)
    c = reward_base()
    c.init_from = a.init_from
    c.data.mixture = {"reviews": {"source": "reviews:pairs", "format": "auto", "weight": 1.0}}
    c.data.seq_len = 160
    c.data.batch_size = 16
    c.total_epochs = a.epochs
    c.optim.lr = 2e-4
    c.calibrate.prompts = 256
    c.calibrate.max_tokens = 48
    c.eval_percent = 25.0
    c.eval_batches = 40
    return c
