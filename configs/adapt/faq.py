"""Tunes a model on questions and answers of your own, such as the FAQ of a shop, and on its documents.

    camelid curate documents shop --output=datasets/shop
    camelid train --workdir=runs/faq \\
        --config=configs/adapt/faq.py:init_from=model.gguf,questions=datasets/shop/questions
    camelid serve runs/faq

`questions` is any source of conversations, such as a CSV file with the columns question and answer. With the argument
`documents=datasets/shop/documents` passages of text are learnt in the same run, between the questions. Low-rank
adapters of rank `rank` learn, on every matrix.

Small files are seen more often. Each question is seen about 300 / n times, from 3 to 25 times, where n is the number
of questions: 12 times for 24 questions. Each passage is seen about 80 / n times, from 3 to 40 times, as facts of a text
are learnt more slowly than answers. `epochs=` and `document_epochs=` set other numbers. One question in twenty is held
out, at least one, and its loss is measured; `heldout=0` trains on all of them. --config.data.system='...' sets a system
prompt for all questions.
"""

import math

from camelid.configs.base import base
from camelid.data.sources import Source, raw_rows
from camelid.settings.config_files import parse_arguments

BYTES, TEMPLATE = 4, 40
"""Bytes of a token, and tokens that a chat template adds to a question: by them the rows of a source are guessed."""

ABOUT = ("meta", "id", "kind", "role", "from")
"""Fields of a record that are not its text."""


def size_of(source: str, template: int, seq_len: int) -> tuple[int, int]:
    """Number of the records of a source, and about how many rows of `seq_len` tokens they fill."""
    sizes = [_bytes_in(raw) / BYTES + template for _, raw in raw_rows(Source(source))] if source else []
    return len(sizes), max(1, math.ceil(sum(sizes) / seq_len))


def _bytes_in(value) -> int:
    """Bytes of the texts in a raw record, aside from what is about them."""
    if isinstance(value, str):
        return len(value.encode(errors="replace"))
    if isinstance(value, dict):
        return sum(_bytes_in(each) for name, each in value.items() if name not in ABOUT)
    return sum(map(_bytes_in, value)) if isinstance(value, list) else 0


def epochs_for(records: int, seen: int, least: int, most: int) -> float:
    """How many times so many records are passed over, so that about `seen` of them are seen."""
    return float(min(most, max(least, round(seen / max(records, 1)))))


def get_config(arg=None):
    a = parse_arguments(
        arg,
        init_from="",
        questions="",
        documents=None,
        template=None,
        rank=16,
        lr=8e-4,
        epochs=0.0,
        document_epochs=0.0,
        heldout=0.05,
        seq_len=256,
        batch_size=2,
        dtype="float32",
    )
    c = base()
    c.recipe = "sft"
    c.init_from = a.init_from
    c.template = a.template
    c.model.dtype = a.dtype
    c.model.remat = "dots"
    c.lora.targets = [(r"layers/(attention|mlp)/.*", a.rank)]
    c.lora.alpha = 2.0 * a.rank
    number, rows = size_of(a.questions, TEMPLATE, a.seq_len)
    epochs = a.epochs or epochs_for(number, 300, 3, 25)
    c.data.mixture.questions = {
        "source": a.questions,
        "format": "auto",
        "weight": rows * epochs,
        "columns": None,
        "heldout": a.heldout,
    }
    c.total_epochs = epochs
    if a.documents is not None:
        number, more = size_of(a.documents, 0, a.seq_len)
        again = a.document_epochs or epochs_for(number, 80, 3, 40)
        c.data.mixture.documents = {"source": a.documents, "format": "auto", "weight": more * again, "heldout": 0.0}
        c.total_epochs = (rows * epochs + more * again) / (rows + more)  # of all rows, drawn by the weights
    c.data.packing = "fewest_cuts"
    c.data.seq_len = a.seq_len
    c.data.batch_size = a.batch_size
    c.data.heldout = 0.0
    c.optim.lr = a.lr
    c.optim.weight_decay = 0.0
    c.schedule.warmup_percent = 5.0
    c.log_steps = 5
    c.eval_percent = 25.0
    return c
