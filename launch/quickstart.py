"""The quickstart: from nothing to a small assistant in English and Chinese, on the embedded data and a CPU.

Each stage is an ordinary run of an ordinary config; what is special here is only that they follow each other, and the
table and report at the end. A stage that is complete is not run again.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from etils import epath
from rich.console import Console
from rich.table import Table

from ..data import primer
from ..data.errors import UserError
from ..data.templates import load_template
from ..data.tokenizer import Tokenizer
from ..data.tokenizer_training import train_sentencepiece
from ..evals.gold import gold
from ..train import pretrain, sft
from ..train.bundle import Llama
from ..train.loop import TrainingStopped
from ..train.settings import Settings, load_config
from .corpus import texts
from .report import write_report

CONFIGS = Path(__file__).parent.parent / "configs"
VOCAB_SIZE = 1024
TOKENIZER_RECORDS = 8000  # of each kind
CONTROL = ("<|im_start|>", "<|im_end|>")  # chatml's
PER_SKILL = 20  # held-out prompts of each skill in each language


def quickstart(workdir: epath.Path, *, pretrain_steps: int | None = None, sft_steps: int | None = None) -> dict:
    """Runs all stages under `workdir`, prints the table of gold scores and returns what `results.json` holds.

    pretrain_steps, sft_steps: instead of those in the configs.
    """
    console = Console()
    begin = time.perf_counter()
    _announce(console, "1/3 tokenizer", "the primer's documents and conversations")
    make_tokenizer(workdir / "tokenizer")

    _announce(console, "2/3 pretraining", "the primer's documents: a small world, told in two languages")
    arguments = {"tokenizer": workdir / "tokenizer", "steps": pretrain_steps}
    pretrained = _run(pretrain.run, "pretrain", arguments, workdir)
    pretrained.template = load_template("chatml")  # it has never seen one; it is asked as the tuned one will be
    scores = {"pretrained": gold(pretrained, per_skill=PER_SKILL)}

    _announce(console, "3/3 instruction tuning", "the primer's conversations, loss on the answers")
    tuned = _run(sft.run, "sft", {"init_from": workdir / "pretrain", "steps": sft_steps}, workdir)
    scores["sft"] = gold(tuned, per_skill=PER_SKILL)

    results = {
        "gold": {stage: _nested(metrics) for stage, (metrics, _) in scores.items()},
        "seconds": round(time.perf_counter() - begin, 1),
    }
    (workdir / "results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False))
    write_report(workdir, results, {stage: rows for stage, (_, rows) in scores.items()})
    console.print(gold_table(results["gold"]))
    console.print(f"{results['seconds']:.0f} seconds. Report: {workdir / 'report.html'}", highlight=False)
    console.print(f"Talk to it:  .venv/bin/camelid chat {workdir / 'sft'}", markup=False, highlight=False)
    return results


def make_tokenizer(directory: epath.Path) -> Tokenizer:
    """The tokenizer in `directory`, trained on the primer if there is none yet."""
    if (directory / "tokenizer.model").exists():
        return Tokenizer.load(directory)
    sources = ("primer:documents", "primer:chat")
    corpus = texts(sources, max_records=TOKENIZER_RECORDS)
    return train_sentencepiece(corpus, vocab_size=VOCAB_SIZE, output_dir=directory, special_tokens=CONTROL)


def gold_table(scores: Mapping[str, Mapping]) -> Table:
    """Gold scores: a row for each group of prompts, a column for each stage."""
    table = Table("gold score", *scores, title="held-out prompts")
    first = next(iter(scores.values()))
    for name in ("all", *primer.LANGUAGES):
        table.add_row(
            name, *(f"{stage[name]:.2f}" for stage in scores.values()), end_section=name == primer.LANGUAGES[-1]
        )
    for skill in first["skills"]:
        table.add_row(skill, *(f"{stage['skills'][skill]:.2f}" for stage in scores.values()))
    return table


def _run(recipe: Callable[..., Llama], name: str, arguments: Mapping[str, Any], root: epath.Path) -> Llama:
    """The run of `configs/<name>/primer.py` in `root/<name>`, to its end."""
    given = ",".join(f"{key}={value}" for key, value in arguments.items() if value is not None)
    config = load_config(f"{CONFIGS / name / 'primer.py'}:{given}", [f"--config.data.cache_dir={root / 'cache'}"])
    settings = Settings(config)
    if settings.recipe != name:
        raise UserError(f"configs/{name}/primer.py is of the recipe {settings.recipe}")
    model = recipe(settings, root / name, {"gold": gold})
    if model.step < config.total_steps:
        raise TrainingStopped(f"{root / name}: stopped at step {model.step}; the same command goes on from there")
    return model


def _nested(metrics: Mapping[str, float]) -> dict:
    """{"all", "en", "zh", "skills": {skill: score}} of `evals.gold`'s flat names."""
    top = {name: metrics[name] for name in ("all", *primer.LANGUAGES)}
    return top | {"skills": {skill: metrics[skill] for skill in primer.SKILLS}}


def _announce(console: Console, stage: str, what: str) -> None:
    console.rule(f"[bold]{stage}[/bold]  {what}", align="left")
