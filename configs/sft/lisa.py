"""A model of somebody else's, tuned whole on one's own records, a few layers at a time (LISA, arXiv:2403.17919).

    camelid train --config=configs/sft/lisa.py:init_from=model.gguf,source=mine.json --workdir=runs/mine
    camelid chat runs/mine

`init_from` is a folder of Hugging Face's or Meta's, a GGUF file or a run; its own chat template is used. Embedding,
final norm and head learn all the time, and with them `layers` layers that are drawn anew for every `period` steps:
gradients and moments exist for these alone, and activations are computed twice instead of being kept.
"""

from camelid.configs.records import ARGUMENTS, records_base
from camelid.settings.config_files import parse_arguments


def get_config(arg=None):
    a = parse_arguments(arg, **ARGUMENTS, layers=2, period=20, lr=5e-5)
    c = records_base(a)
    c.model.remat = "full"
    c.lisa.layers = a.layers
    c.lisa.period_steps = a.period
    return c
