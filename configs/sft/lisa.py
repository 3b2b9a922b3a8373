"""Tunes an existing model on your own records, a few layers at a time (LISA, arXiv:2403.17919).

    camelid train --config=configs/sft/lisa.py:init_from=model.gguf,source=mine.json --workdir=runs/mine
    camelid chat runs/mine

`init_from` is a folder of Hugging Face's or Meta's, a GGUF file or a run; its own chat template is used. Embedding,
final norm and head are trained in every step, with `layers` layers that are drawn anew every `period` steps. Gradients
and Adam's moments exist only for the trained layers, and activations are recomputed instead of being stored.
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
