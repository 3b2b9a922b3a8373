"""Tunes a model on questions and answers of your own, such as the FAQ of a shop, and before that on its documents.

    camelid curate documents shop --output=data
    camelid train --config=configs/adapt/faq.py:init_from=model.gguf,questions=data/questions --workdir=runs/faq
    camelid serve runs/faq

`questions` is any source of conversations, such as a CSV file with the columns question and answer. With the argument
`documents=data/documents` two phases are trained: first the passages as text, in runs/faq/documents, and then the
questions, in runs/faq/questions. Low-rank adapters of rank `rank` learn, on every matrix.

Small files are seen more often. Each question is seen 360 / n times, at least 3 and at most 30 times, where n is the
number of questions: 15 times for 24 questions, 3 times from 120 on. Each passage is seen 40 / n times, from once to
10 times. `epochs=` and `document_epochs=` set other numbers. One question in twenty is held out, at least one, and its
loss is measured; `heldout=0` trains on all of them. --config.data.system='...' sets a system prompt for all questions.
"""

from camelid.configs.base import base
from camelid.data.sources import Source, raw_rows
from camelid.settings.config_files import parse_arguments


def epochs_for(source: str, seen: int, least: int, most: int) -> float:
    """How many times the records of a source are passed over, so that about `seen` of them are seen."""
    records = sum(1 for _ in raw_rows(Source(source))) if source else seen
    return float(min(most, max(least, round(seen / max(records, 1)))))


def get_config(arg=None):
    a = parse_arguments(
        arg,
        init_from="",
        questions="",
        documents=None,
        template=None,
        rank=16,
        lr=1e-3,
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
    c.data.mixture.questions = {
        "source": a.questions,
        "format": "auto",
        "weight": 1.0,
        "columns": None,
        "heldout": a.heldout,
    }
    c.data.packing = "best_fit"
    c.data.seq_len = a.seq_len
    c.data.batch_size = a.batch_size
    c.data.heldout = 0.0
    c.total_epochs = a.epochs or epochs_for(a.questions, 360, 3, 30)
    c.optim.lr = a.lr
    c.optim.weight_decay = 0.0
    c.schedule.warmup_percent = 5.0
    c.log_steps = 5
    c.eval_percent = 25.0
    if a.documents is None:
        return c
    c.data.mixture.documents = {"source": a.documents, "format": "auto", "weight": 0.0, "heldout": 1.0}
    c.phases = [
        (
            "documents",
            {
                "recipe": "pretrain",
                "data.packing": "contiguous",
                "data.mixture.documents.weight": 1.0,
                "data.mixture.documents.heldout": 0.0,
                "data.mixture.questions.weight": 0.0,
                "data.mixture.questions.heldout": a.heldout or 1.0,  # what is not trained on has to be measured
                "total_epochs": a.document_epochs or epochs_for(a.documents, 40, 1, 10),
            },
        ),
        ("questions", {}),
    ]
    return c
