"""A reward model of sentiment: which of two reviews is by the pleased author. Its reviews are none of the policy's.

camelid train --config=configs/reward/reviews.py --workdir=runs/reviews/reward

In two and a half minutes on two cores it puts 72% of held-out pairs in order (English 68%, Chinese 81%). Another epoch
and a half takes that to 75%, and the loss from 0.58 to 0.86: it is then far too sure.
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
