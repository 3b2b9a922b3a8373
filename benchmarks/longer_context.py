"""Measures perplexity past the trained context, for each rotary scaling, before and after a little tuning.

A small model is trained on a text in rows of 128 tokens. It is then measured, and tuned, in rows of 512 tokens:

    .venv/bin/python benchmarks/longer_context.py --text=texts/tinyshakespeare.txt --workdir=runs/longer

Prints a table in Markdown: perplexity on held-out documents, by the number of tokens before the predicted one. A run
that is complete is not repeated.
"""

import argparse
import itertools
import json
from pathlib import Path

from etils import epath

from camelid.checkpoints.language_model import LanguageModel, load
from camelid.data.sources import Source, read
from camelid.data.tokenizer_training import train_sentencepiece
from camelid.evals.items import metrics_of
from camelid.evals.perplexity import of_cache, text_cache
from camelid.launch.recipes import recipe_of, run_of
from camelid.settings.config_files import load_config

CONFIGS = Path(__file__).parent.parent / "configs" / "pretrain"
CONTEXT, LONG, BORDERS = 128, 512, (128, 256)
KINDS = ("untouched", "linear", "ntk", "yarn")
DOCUMENT = 20_000  # characters


def write_documents(text: Path, workdir: Path) -> None:
    """Writes the text in documents of 20,000 characters, every tenth into heldout.jsonl, the rest into train.jsonl."""
    whole = text.read_text("utf-8")
    pieces = [{"text": whole[start : start + DOCUMENT]} for start in range(0, len(whole), DOCUMENT)]
    parts = {"train": [p for i, p in enumerate(pieces) if i % 10], "heldout": pieces[::10]}
    for name, part in parts.items():
        (workdir / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)), "utf-8")


def train(config: str, workdir: Path, leaves: dict) -> LanguageModel:
    """Trains a config in a run directory, or resumes it, and returns the model.

    Args:
      config: name and arguments of a file in configs/pretrain.
      workdir: the run directory.
      leaves: settings to change, by name.
    """
    common = {"data.heldout": 0.0, "data.cache_dir": workdir.parent / "cache"}
    overrides = [f"--config.{name}={value}" for name, value in (common | leaves).items()]
    settings = load_config(f"{CONFIGS}/{config}", overrides)
    model = recipe_of(settings).train(run_of(settings, epath.Path(workdir), {})).model
    if model.step < leaves["total_steps"]:
        raise SystemExit(f"{workdir}: stopped at step {model.step}: give the same command again to resume")
    return model


def row(llama: LanguageModel, workdir: Path) -> list[str]:
    """The perplexity of a model in each range of positions, as text."""
    cache = text_cache(llama, Source(f"{workdir}/heldout.jsonl"), cache_dir=f"{workdir}/cache")
    found = metrics_of(of_cache(llama, cache, seq_len=LONG, borders=BORDERS))
    ranges = itertools.pairwise((0, *BORDERS, LONG))
    return [f"{found[f'perplexity/{start}-{stop}'].value:.1f}" for start, stop in ranges]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, type=Path, help="a text file in UTF-8")
    parser.add_argument("--workdir", required=True, type=Path, help="directory for all runs")
    parser.add_argument("--steps", default=1000, type=int, help="steps in rows of 128 tokens (default: 1000)")
    parser.add_argument("--longer_steps", default=100, type=int, help="steps in rows of 512 tokens (default: 100)")
    parser.add_argument("--longer_lr", default=3e-4, type=float, help="learning rate of the latter (default: 3e-4)")
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    write_documents(args.text, args.workdir)
    source, tokenizer, short = f"{args.workdir}/train.jsonl", args.workdir / "tokenizer", args.workdir / "short"
    if not tokenizer.exists():
        texts = (record["text"] for record in read(Source(source)))
        train_sentencepiece(texts, vocab_size=2048, output_dir=tokenizer)
    rows = {"data.seq_len": CONTEXT, "data.batch_size": 32, "model.max_len": CONTEXT}
    length = {"total_steps": args.steps, "total_epochs": None}
    train(f"text.py:source={source},tokenizer={tokenizer},preset=nano-1m", short, rows | length)

    lines = []
    for kind in KINDS:
        plain = kind == "untouched"
        before = row(load(short, rope=None if plain else (kind, LONG)), args.workdir)
        given = f"init_from={short},source={source},length={LONG},batch_size=8,lr={args.longer_lr}"
        leaves = {"total_steps": args.longer_steps} | ({"model.rope_scaling": None} if plain else {})
        tuned = train(f"longer.py:{given}" + ("" if plain else f",kind={kind}"), args.workdir / kind, leaves)
        after = row(tuned, args.workdir)
        lines.append(f"| {kind} | {' | '.join(before + after)} |")
    names = [f"{stop} {when}" for when in ("before", "tuned") for stop in (*BORDERS, LONG)]
    print(f"| positions | {' | '.join(f'to {name}' for name in names)} |", "| --- " * 7 + "|", *lines, sep="\n")


if __name__ == "__main__":
    main()
