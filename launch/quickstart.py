"""The quickstart: trains a small assistant in English and Chinese from scratch, on built-in data and a CPU.

Each stage is an ordinary run of an ordinary config. This module runs them one after the other, and writes a table and a
report at the end. A stage that is complete is not run again.
"""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
from etils import epath
from rich.console import Console
from rich.table import Table

from ..checkpoints.language_model import LanguageModel
from ..data.checksums import write_whole
from ..data.samples import read_samples
from ..data.sources import Source
from ..data.templates import load_template
from ..data.tokenizer import Tokenizer
from ..data.tokenizer_training import train_sentencepiece
from ..evals.registry import Evaluations
from ..rlhf.collect import DrawSettings, pairs_of, prompt_encoder, sample_answers, write
from ..settings.config_files import load_config
from ..tasks import primer
from ..train.lock import only_process_of
from .checks import check_phases
from .corpus import texts
from .outputs import check_writable
from .quickstart_report import write_report
from .recipes import train

CONFIGS = Path(__file__).parent.parent / "configs"
GROUPS = ("all", *primer.LANGUAGES, "greedy")
"""Rows of the score table: answers sampled at temperature 1, of all prompts and by language; and greedy answers."""
VOCAB_SIZE = 1024
TOKENIZER_RECORDS = 8000  # of each kind, documents and conversations
CONTROL = ("<|im_start|>", "<|im_end|>")  # the control tokens of the chat template chatml
PER_SKILL = 20  # held-out prompts of each skill in each language
MAX_TOKENS = 24  # largest number of tokens in an answer
PAIR_PROMPTS = 3000  # prompts that are answered four times for preference pairs


class Steps(NamedTuple):
    """The lengths of the stages in steps; None takes the length in the stage's config."""

    pretrain: int | None = None
    sft: int | None = None
    reward: int | None = None
    ppo: int | None = None
    prompts: int = PAIR_PROMPTS
    """The number of prompts that are answered for preference pairs."""


def quickstart(workdir: epath.Path, steps: Steps = Steps(), *, seed: int = 0) -> dict:  # noqa: B008
    """Runs all stages, and prints the table of scores.

    Args:
      workdir: the directory for all runs and the report.
      steps: the lengths of the stages.
      seed: seed of PPO; the stages before it do not depend on it.

    Returns:
      The content of `results.json`.
    """
    configs = _configs(workdir, steps, seed)
    check_writable(workdir)
    with only_process_of(workdir):
        return _quickstart(workdir, configs, steps.prompts)


def _quickstart(workdir: epath.Path, configs: Mapping[str, ml_collections.ConfigDict], prompts: int) -> dict:
    console = Console()
    begin = time.perf_counter()
    _announce(console, "1/6 tokenizer", "the primer's documents and conversations")
    make_tokenizer(workdir / "tokenizer")

    _announce(console, "2/6 pretraining", "the primer's documents: a small world, told in two languages")
    pretrained = _run(configs["pretrain"], workdir / "pretrain")
    pretrained.template = load_template("chatml")  # not trained on, but so it is asked like the tuned model
    scores = {"pretrained": _score(pretrained)}

    _announce(console, "3/6 instruction tuning", "conversations of a careless teacher")
    tuned = _run(configs["sft"], workdir / "sft")
    scores["sft"] = _score(tuned)

    _announce(console, "4/6 preferences", "pairs of the tuned model's answers")
    path = workdir / "pairs.jsonl"
    make_pairs(tuned, path, prompts)
    pairs = len(path.read_text().splitlines())
    console.print(f"{pairs:,} pairs of answers with different scores: {path}", highlight=False)

    _announce(console, "5/6 reward model", "which of two answers is better")
    _run(configs["reward"], workdir / "reward")

    _announce(console, "6/6 PPO", "the tuned model against the reward model")
    policy = _run(configs["ppo"], workdir / "ppo")
    scores["ppo"] = _score(policy)

    results = {
        "primer": {stage: _nested(metrics) for stage, (metrics, _) in scores.items()},
        "seconds": round(time.perf_counter() - begin, 1),
    }
    write_whole(workdir / "results.json", json.dumps(results, indent=2, ensure_ascii=False))
    write_report(workdir, results, {stage: rows for stage, (_, rows) in scores.items()}, per_skill=PER_SKILL)
    console.print(score_table(results["primer"]))
    console.print(f"{results['seconds']:.0f} seconds. Report: {workdir / 'report.html'}", highlight=False)
    typed = Path(sys.argv[0])  # as in .venv/bin/camelid
    command = typed if typed.name == "camelid" and not typed.is_absolute() else "camelid"
    console.print(f"Talk to it:  {command} chat {workdir / 'ppo'}", markup=False, highlight=False)
    return results


def make_pairs(tuned: LanguageModel, path: epath.Path, prompts: int) -> None:
    """Writes preference pairs of a model's answers, unless the file exists.

    Args:
      tuned: the model that answers.
      path: the file.
      prompts: number of training prompts to answer.
    """
    if not path.exists():
        asked = read_samples(Source("primer:chat"), "train", prompt_encoder(tuned, MAX_TOKENS), limit=prompts)
        answers = sample_answers(tuned, asked, "primer", DrawSettings(n=4, max_tokens=MAX_TOKENS))
        hint = "the tuned model's answers have equal scores: raise --sft_steps, --pretrain_steps or --pair_prompts"
        write(pairs_of(answers, per_prompt=2), path, hint)


def make_tokenizer(directory: epath.Path) -> Tokenizer:
    """Loads the tokenizer in `directory`; trains it on the primer if there is none."""
    if (directory / "tokenizer.model").exists():
        return Tokenizer.load(directory)
    corpus = texts([Source("primer:documents"), Source("primer:chat")], max_records=TOKENIZER_RECORDS)
    return train_sentencepiece(corpus, vocab_size=VOCAB_SIZE, output_dir=directory, special_tokens=CONTROL)


def score_table(scores: Mapping[str, Mapping]) -> Table:
    """A table of mean scores in the primer, with a row for each group of prompts and a column for each stage."""
    first = next(iter(scores.values()))
    prompts = PER_SKILL * len(first["skills"]) * len(primer.LANGUAGES)
    table = Table("score", *scores, title=f"answers at temperature 1 to {prompts} prompts")
    for name in GROUPS:
        table.add_row(name, *(f"{stage[name]:.2f}" for stage in scores.values()), end_section=name == GROUPS[-1])
    for skill in first["skills"]:
        table.add_row(skill, *(f"{stage['skills'][skill]:.2f}" for stage in scores.values()))
    return table


def _score(model: LanguageModel) -> tuple[dict[str, float], list[dict[str, str]]]:
    """Scores a model's answers to held-out prompts of the primer.

    Returns:
      Mean scores by group, of answers sampled at temperature 1 as in PPO, and under "greedy/..." of greedy answers. And
      the sampled answers with their prompts.
    """
    evaluate = Evaluations()["primer"]
    drawn, rows = evaluate(model, per_group=PER_SKILL, max_tokens=MAX_TOKENS, temperature=1.0)
    greedy, _ = evaluate(model, per_group=PER_SKILL, max_tokens=MAX_TOKENS)
    return drawn | {f"greedy/{name}": value for name, value in greedy.items()}, rows


def _configs(root: epath.Path, steps: Steps, seed: int) -> dict[str, ml_collections.ConfigDict]:
    """The config of each stage, from `configs/<stage>/primer.py`; all are checked before the first stage runs.

    Args:
      root: the directory of the quickstart.
      steps: the lengths of the stages.
      seed: seed of PPO.
    """
    arguments = {
        "pretrain": {"tokenizer": root / "tokenizer"},
        "sft": {"init_from": root / "pretrain", "source": "primer:careless"},
        "reward": {"init_from": root / "sft", "pairs": str(root / "pairs.jsonl").replace("+", r"\+")},
        "ppo": {"init_from": root / "sft", "reward": root / "reward"},
    }
    configs = {}
    for stage, given in arguments.items():
        length = getattr(steps, stage)
        given |= {} if length is None else {"steps": length}
        words = ",".join(f"{key}={value}".replace(",", r"\,") for key, value in given.items())
        overrides = [f"--config.seed={seed}"] if stage == "ppo" else []
        configs[stage] = load_config(f"{CONFIGS / stage / 'primer.py'}:{words}", overrides)
        if "cache_dir" in configs[stage].data:
            configs[stage].data.cache_dir = str(root / "cache")
    check_phases(configs, Evaluations())
    return configs


def _run(config: ml_collections.ConfigDict, workdir: epath.Path) -> Any:
    """Trains a config in its run directory, and returns the model."""
    return train(config, workdir, Evaluations()).model


def _nested(metrics: Mapping[str, float]) -> dict:
    """The scores of `_score` in the form {"all", "en", "zh", "greedy", "skills": {skill: score}}."""
    top = {name: metrics[name] for name in ("all", *primer.LANGUAGES)} | {"greedy": metrics["greedy/all"]}
    return top | {"skills": {skill: metrics[skill] for skill in primer.SKILLS}}


def _announce(console: Console, stage: str, what: str) -> None:
    """Prints a heading with the name and the description of a stage."""
    console.rule(f"[bold]{stage}[/bold]  {what}", align="left")
