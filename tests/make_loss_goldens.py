"""The losses of 30 steps of every recipe, on one CPU device: makes the goldens, or compares with them.

    python -m camelid.tests.make_loss_goldens                   compares all recipes with tests/golden/losses
    python -m camelid.tests.make_loss_goldens dpo_ipo ppo       compares these
    python -m camelid.tests.make_loss_goldens --write ppo       writes the golden of ppo anew

Write a golden anew only with a change that is meant to change numbers, and say so in the commit. Pretraining and
tuning start from a seed, everything else from the tuned run: where sft differs, it may be the cause of the others.

The runs are compiled as the tests compile them unless XLA_FLAGS is set. To see what a compiler may change:

    XLA_FLAGS=--xla_backend_optimization_level=3 python -m camelid.tests.make_loss_goldens

Recipes that sample compare in two parts. A rounding may flip a drawn token, and then the runs are different ones. Until
the first step whose answers differ (their tokens or scores), losses have to agree; `SAME_ANSWERS` is the least number
of steps until then. The scores of the whole run have to agree on average.
"""

import argparse
import importlib.metadata
import json
import math
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from camelid.data.tokenizer_training import train_sentencepiece
from camelid.launch.cli import main

SUITE_FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
"""Those of tests/conftest.py that may change numbers."""

LOSSES = Path(__file__).parent / "golden" / "losses"
STEPS = 30
TOLERANCE = {"train/loss": 1e-4, "train/grad_norm": 3e-3}
"""Largest difference of a step's loss, and of the norm of its gradient, relative to values above 1. XLA's optimisation
levels 0 and 3, with other fusions, are up to 8e-6 and 3e-4 apart."""
DRAWN = ("train/tokens", "objective/scores")
"""What tells that other answers are drawn: their tokens, and their mean score."""
SAME_ANSWERS = 8
"""Least number of steps in which a run draws the answers of its golden, token for token."""
SCORES = 0.15
"""Largest difference of the mean score of the answers of all steps."""

STEADY = "--config.optim.eps=1e-3"
"""With Adam's usual epsilon, gradients that are rounding errors move parameters as far as any other, and what compilers
round otherwise would be another start for the runs that follow."""
GRPO = ["--config.grpo.kl_coef=0.04"]
RLOO = ["--config.grpo.advantage=rloo", "--config.grpo.kl_in=reward", "--config.grpo.kl_estimator=k1"]
RECIPES: dict[str, tuple[str, Sequence[str]]] = {
    "pretrain": ("tiny.py:recipe=pretrain", ["--config.data.batch_size=8"]),
    "sft": ("tiny.py:recipe=sft", ["--config.data.batch_size=8", "--config.model.preset=nano-test", STEADY]),
    "lora": ("tiny.py:recipe=sft,lora=lora", ["--config.data.batch_size=8", "--config.ema_decay=None"]),
    "reward": ("tiny_rl.py:recipe=reward", ["--config.calibrate.prompts=0"]),
    "dpo": ("tiny_rl.py:recipe=dpo", []),
    "dpo_robust": ("tiny_rl.py:recipe=dpo,kind=robust", ["--config.dpo.label_smoothing=0.1"]),
    "dpo_hinge": ("tiny_rl.py:recipe=dpo,kind=hinge", []),
    "dpo_ipo": ("tiny_rl.py:recipe=dpo,kind=ipo", []),
    "dpo_kto": ("tiny_rl.py:recipe=dpo,kind=kto", []),
    "dpo_simpo": ("tiny_rl.py:recipe=dpo,kind=simpo", ["--config.dpo.beta=0.5"]),
    "dpo_orpo": ("tiny_rl.py:recipe=dpo,kind=orpo", []),
    "ppo": ("tiny_rl.py:recipe=ppo", []),
    "grpo": ("tiny_rl.py:recipe=grpo", GRPO),
    "rloo": ("tiny_rl.py:recipe=grpo", RLOO),
    "raft": ("tiny_rl.py:recipe=raft", []),
}
"""By the name of a golden: its config, and what the run has besides."""
SAMPLES = ("ppo", "grpo", "rloo", "raft")
"""The goldens of recipes that draw answers."""
START = "sft"
"""The run that all others but pretraining start from."""


def write_data(root: Path) -> None:
    """Text, conversations and pairs: sentences that are easily learnt, the same at every call. With a tokenizer."""
    rng = random.Random(0)
    colours, animals = ("red", "blue", "green", "black", "white"), ("fox", "owl", "horse", "whale", "wolf")
    drawn = [(rng.choice(colours), rng.choice(animals)) for _ in range(300)]
    turn = lambda role, content: [{"role": role, "content": content}]  # noqa: E731
    ask = lambda n, c, a: f"Which colour has the {c} {a} number {n}?"  # noqa: E731
    records = {
        "text": [{"text": " ".join(f"the {c} {a} sees {n} {a}s." for n in range(len(c) % 3 + 1))} for c, a in drawn],
        "chat": [
            {"instruction": ask(n, c, a), "input": "", "output": f"It is {c}, {a}."} for n, (c, a) in enumerate(drawn)
        ],
        "pairs": [
            {
                "kind": "preference",
                "messages": turn("user", ask(n, c, a)),
                "chosen": turn("assistant", f"It is blue, {a}."),
                "rejected": turn("assistant", f"It is {colours[n % 5]} or {c}, {a}."),
            }
            for n, (c, a) in enumerate(drawn)
        ],
    }
    for name, rows in records.items():
        (root / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    texts = [value for rows in records.values() for row in rows for value in row.values() if isinstance(value, str)]
    control = ["<|im_start|>", "<|im_end|>"]
    train_sentencepiece(
        list(filter(None, texts)), vocab_size=384, output_dir=root / "tokenizer", special_tokens=control
    )


def train(name: str, root: Path) -> Path:
    """Trains the run of a golden, and before it the one that it starts from, unless they are there. Returns its folder.

    root: a folder that `write_data` filled.
    """
    workdir = root / name
    if not workdir.exists():
        if name not in ("pretrain", START):
            train(START, root)
        assert main(arguments(name, root)) == 0
    return workdir


def arguments(name: str, root: Path) -> list[str]:
    """The command line of the run of a golden."""
    config, more = RECIPES[name]
    config += f",root={root}" + ("" if name in ("pretrain", START) else f",init_from={root / START}")
    argv = ["train", f"--config={Path(__file__).parent / config}", f"--workdir={root / name}"]
    argv += [f"--config.total_steps={STEPS}", "--config.data.heldout=0.0", "--config.checkpoint.every_steps=100"]
    if config.startswith(("tiny_rl.py:recipe=reward", "tiny_rl.py:recipe=dpo")):
        argv += ["--config.optim.lr=3e-4", "--config.data.batch_size=8", "--config.data.seq_len=96"]
    if name == START:
        argv += [f"--config.tokenizer={root / 'tokenizer'}"]
    if name in SAMPLES:
        argv += ["--config.optim.lr=5e-4", "--config.data.batch_size=4", "--config.watch.patience=1000"]
    return argv + list(more)


def series(workdir: Path) -> dict[str, list[float]]:
    """The loss and the gradient's norm of each step; for answers that were drawn, their tokens and mean score too."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    names = [*TOLERANCE] + ([*DRAWN] if "objective/scores" in lines[-1] else [])
    return {name: [line[name] for line in lines if "train/loss" in line] for name in names}


def difference(found: float, expected: float) -> float:
    """The difference of two numbers, relative to an expected one above 1."""
    return abs(found - expected) / max(1.0, abs(expected))


def same_answers(found: Mapping[str, list[float]], golden: Mapping[str, list[float]]) -> int:
    """Number of steps until the first one whose answers differ in their number of tokens or their mean score."""
    for step in range(len(golden["train/loss"])):
        for name in DRAWN:
            if name in golden and not math.isclose(found[name][step], golden[name][step], rel_tol=1e-6):
                return step
    return len(golden["train/loss"])


def complaints(found: Mapping[str, list[float]], golden: Mapping[str, list[float]]) -> list[str]:
    """What differs between a run and its golden by more than rounding; a sentence each."""
    said, losses = [], golden["train/loss"]
    if len(found["train/loss"]) != len(losses):
        return [f"{len(found['train/loss'])} steps instead of {len(losses)}"]
    same = same_answers(found, golden)
    for name, tolerance in TOLERANCE.items():
        for step, (value, expected) in enumerate(zip(found[name][:same], golden[name][:same], strict=True), 1):
            if not difference(value, expected) <= tolerance:  # NaN is a difference
                said.append(f"{name} of step {step} is {value:.7g} instead of {expected:.7g}")
                break
    if "objective/scores" in golden:
        if same < min(SAME_ANSWERS, len(losses)):
            said.append(f"other answers are drawn from step {same + 1} on")
        means = [sum(each["objective/scores"]) / len(losses) for each in (found, golden)]
        if not abs(means[0] - means[1]) <= SCORES:
            said.append(f"the mean score is {means[0]:.4g} instead of {means[1]:.4g}")
    return said


def golden_of(name: str) -> dict[str, list[float]]:
    """The numbers of a golden."""
    return json.loads((LOSSES / f"{name}.json").read_text())["series"]


def made_with() -> dict[str, str]:
    """Versions, machine and flags of this process."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    cpu = next((x.split(":")[1].strip() for x in _cpu_info() if x.startswith("model name")), platform.processor())
    return {name: importlib.metadata.version(name) for name in packages} | {
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {cpu}",
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _cpu_info() -> list[str]:
    info = Path("/proc/cpuinfo")
    return info.read_text().splitlines() if info.exists() else []


def write(name: str, found: Mapping[str, list[float]]) -> None:
    """Writes a golden, a line for each series."""
    rows = [f'    "{each}": {json.dumps([float(f"{x:.8g}") for x in values])}' for each, values in found.items()]
    made = ",\n".join(f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in made_with().items())
    text = f'{{\n  "made_with": {{\n{made}\n  }},\n  "series": {{\n' + ",\n".join(rows) + "\n  }\n}\n"
    LOSSES.mkdir(exist_ok=True)
    (LOSSES / f"{name}.json").write_text(text, encoding="utf-8")


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"goldens (default: all): {', '.join(RECIPES)}")
    parser.add_argument("--write", action="store_true", help="write the goldens anew instead of comparing")
    args = parser.parse_args()
    if unknown := set(args.names) - set(RECIPES):
        parser.error(f"there is no golden {', '.join(sorted(unknown))}")
    os.environ.setdefault("XLA_FLAGS", SUITE_FLAGS)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="camelid-goldens-") as folder:
        root = Path(folder)
        write_data(root)
        for name in args.names or RECIPES:
            begin = time.process_time()
            found = series(train(name, root))
            seconds = time.process_time() - begin
            if args.write:
                write(name, found)
                print(f"{name}: written ({seconds:.1f} CPU seconds)", flush=True)
                continue
            golden, said = golden_of(name), complaints(found, golden_of(name))
            same = same_answers(found, golden)
            far = [max(map(difference, found[each][:same], golden[each][:same]), default=0.0) for each in TOLERANCE]
            print(
                f"{name}: {'; '.join(said) or 'as its golden'} (largest difference of a loss {far[0]:.1e}, of a "
                f"gradient's norm {far[1]:.1e}, over {same} steps; {seconds:.1f} CPU seconds)",
                flush=True,
            )
            failed += bool(said)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(run())
