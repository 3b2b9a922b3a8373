"""Self-instruct with every default: whole tasks as Alpaca's, from seeds that `--seeds` names.

    camelid curate instruct --seeds=seeds.jsonl --rows=1000 --teacher=http://localhost:8000 --output=datasets/tasks

Every setting is described at its field in `curate/instruct.py`. `method=self_instruct` takes seeds without answers.
"""

from camelid.curate.teachers.instruct import Instruct
from camelid.settings.config_files import parse_arguments
from camelid.settings.sections import to_config


def get_config(arg=None):
    a = parse_arguments(arg, name="instructions", method="alpaca")
    c = to_config(Instruct())
    c.name, c.method = a.name, a.method
    return c
