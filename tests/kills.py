"""Kills commands with kill -9 at random times, gives each again, and compares what comes out with an undisturbed run.

python -m camelid.tests.kills train --count=100 --seed=0

Kinds: train (tuning, from a run that this script makes), best (with its best checkpoint kept), lora, reward, dpo, ppo,
grpo (with all that the host counts), phases (two runs, the second from the first), cache (`data prepare --config`),
prepare (`data prepare --source`), tokenizer, collect, convert, diff and peft. Each time: a fresh folder, one to three
kills, then the command to its end. In a run every second kill comes when a checkpoint is just being saved. Counted are
the ends that are the same bit for bit, and those that differ, show a traceback, are an error or a hang.
"""

import argparse
import collections
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs"
TIMING = re.compile(r"second|memory|mfu")  # metrics that no two runs share
RUNS = ("train", "best", "lora", "reward", "dpo", "ppo", "grpo", "phases")
OTHERS = ("cache", "prepare", "tokenizer", "collect", "convert", "diff", "peft")
CAMELID = [sys.executable, "-c", "import sys; from camelid.launch.cli import main; sys.exit(main())"]
LIMIT = 900  # seconds for a command


class Kind:
    """One of the commands: its arguments for a folder, and what its end is told by."""

    def __init__(self, name: str, root: Path):
        self.name, self.root = name, root

    def arguments(self, folder: Path) -> list[str]:
        config = f"--config={Path(__file__).with_name('tiny.py')}:root={self.root},recipe="
        rl = f"--config={Path(__file__).with_name('tiny_rl.py')}:root={self.root},recipe="
        tuned = f"init_from={self.root / 'tuned'}"
        started = f"{config}sft,init_from={self.root / 'base'}"
        often = ["--config.checkpoint.every_steps=2"]
        match self.name:
            case "train":
                return ["train", started, f"--workdir={folder}"]
            case "best":
                best = "--config.checkpoint.best=('eval/heldout/chat/loss', 'min')"
                return ["train", started, f"--workdir={folder}", best, "--config.eval_percent=20", *often]
            case "lora":
                return ["train", f"{started},lora=dora", f"--workdir={folder}", *often]
            case "reward" | "dpo":
                return ["train", f"{rl}{self.name},{tuned}", f"--workdir={folder}", *often]
            case "ppo":
                steps = ["--config.total_steps=6", "--config.checkpoint.every_steps=1"]
                return ["train", f"{rl}ppo,{tuned}", f"--workdir={folder}", *steps]
            case "grpo":
                counted = ["--config.watch.min_eos_rate=1.0", "--config.watch.patience=100"]
                counted += ["--config.watch.proxy=eval/heldout/scores", "--config.watch.gold=eval/heldout/length"]
                counted += ["--config.early_stopping.metric=eval/heldout/scores", "--config.early_stopping.mode=max"]
                counted += ["--config.early_stopping.patience=9", "--config.watch.patience_evaluations=9"]
                steps = ["--config.total_steps=8", "--config.checkpoint.every_steps=1", "--config.log_steps=3"]
                return [
                    "train",
                    f"{rl}grpo,{tuned}",
                    f"--workdir={folder}",
                    *steps,
                    "--config.eval_percent=25",
                    *counted,
                ]
            case "phases":
                given = f"init_from={self.root / 'base'},documents={self.root / 'text.jsonl'}"
                given += f",questions={self.root / 'chat.jsonl'},seq_len=64,batch_size=8,rank=0,template=chatml"
                domain = f"--config={CONFIGS / 'adapt' / 'domain.py'}:{given}"
                steps = [f"--config.phases.{name}.total_epochs=None" for name in ("documents", "questions")]
                steps += [f"--config.phases.{name}.total_steps=8" for name in ("documents", "questions")]
                steps += ["--config.log_steps=1", f"--config.data.cache_dir={self.root / 'cache'}", *often]
                return ["train", domain, f"--workdir={folder}", *steps]
            case "tokenizer":
                source = f"--source={self.root / 'big.jsonl'}"
                return ["tokenizer", "train", source, "--vocab_size=300", f"--output={folder}"]
            case "collect":
                asked = [f"--source={self.root / 'chat.jsonl'}", "--reward=camelid.tests.tiny_rl:tens", "--prompts=64"]
                more = ["--max_tokens=16", f"--output={folder / 'pairs.jsonl'}"]
                return ["data", "collect", str(self.root / "tuned"), *asked, *more]
            case "diff":
                return ["diff", "make", str(self.root / "base"), str(self.root / "tuned"), str(folder / "out")]
            case "peft":
                return ["convert", str(self.root / "lora"), str(folder / "out"), "--to=peft", "--base_name=x"]
            case "cache":
                big = f"--config.data.mixture.text.source={self.root / 'big.jsonl'}"
                return ["data", "prepare", f"{config}pretrain", big, f"--config.data.cache_dir={folder}"]
            case "prepare":
                return ["data", "prepare", f"--source={self.root / 'big.jsonl'}", "--name=big", f"--output={folder}"]
            case "convert":
                return ["convert", str(self.root / "tuned"), str(folder / "out"), "--to=huggingface"]

    def outcome(self, folder: Path) -> object:
        """What two undisturbed runs have in common."""
        if self.name == "phases":
            return [(self._state(run), self._metrics(run)) for run in sorted(folder.glob("*/checkpoints/.."))]
        if self.name == "diff":
            return self._state(folder / "out")
        if self.name in RUNS:
            from camelid.checkpoints.reading import read_manifest

            return self._state(folder), self._metrics(folder), read_manifest(folder)["counters"]
        if self.name == "prepare":
            from camelid.data.sources import Source, read

            [info] = folder.rglob("dataset_info.json")
            return {name: list(read(Source(f"tfds:{info.parent}:{name}"))) for name in ("train", "heldout")}
        hidden = re.compile(r"(^|/)\.|\.lock$")
        files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
        return {
            name: hashlib.sha256(p.read_bytes()).hexdigest() for name, p in files.items() if not hidden.search(name)
        }

    def _state(self, folder: Path) -> dict[str, str]:
        import jax
        import numpy as np
        from orbax.checkpoint import v1 as ocp

        from camelid.checkpoints.reading import find

        where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        path = find(folder)
        asked = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), ocp.metadata(path).metadata
        )
        leaves = jax.tree_util.tree_leaves_with_path(ocp.load(path, asked))
        return {jax.tree_util.keystr(k): hashlib.sha256(np.asarray(x).tobytes()).hexdigest() for k, x in leaves}

    def _metrics(self, folder: Path) -> list[dict]:
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [{name: value for name, value in line.items() if not TIMING.search(name)} for line in lines]


def make_root(root: Path) -> None:
    """Text, conversations, a tokenizer and two small runs, which the commands start from."""
    from camelid.data.tokenizer_training import train_sentencepiece
    from camelid.launch.cli import main

    if (root / "tuned" / "metrics.jsonl").exists():
        return
    root.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    words = ["red", "blue", "fox", "owl", "whale", "sees", "the", "a", "狐狸", "of", "horse", "green"]
    sentence = lambda: " ".join(rng.choices(words, k=rng.randrange(4, 20)))  # noqa: E731
    text = [{"text": sentence()} for _ in range(300)]
    chat = [{"instruction": sentence(), "input": "", "output": sentence()} for _ in range(400)]
    big = [{"text": " ".join(sentence() for _ in range(20))} for _ in range(20_000)]
    turn = lambda role: [{"role": role, "content": sentence()}]  # noqa: E731
    sides = {"messages": "user", "chosen": "assistant", "rejected": "assistant"}
    pairs = [{"kind": "preference"} | {side: turn(role) for side, role in sides.items()} for _ in range(100)]
    for name, records in {"text": text, "chat": chat, "big": big, "pairs": pairs}.items():
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        (root / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    texts = [r["text"] for r in text] + [r["instruction"] for r in chat]
    control = ["<|im_start|>", "<|im_end|>"]
    train_sentencepiece(texts, vocab_size=320, output_dir=root / "tokenizer", special_tokens=control)
    config = f"--config={Path(__file__).with_name('tiny.py')}:root={root},recipe="
    assert main(["train", f"{config}pretrain", f"--workdir={root / 'base'}"]) == 0
    started = f"{config}sft,init_from={root / 'base'}"
    assert main(["train", started, f"--workdir={root / 'tuned'}"]) == 0
    assert main(["train", f"{started},lora=lora", f"--workdir={root / 'lora'}"]) == 0


def start(arguments: list[str], root: Path) -> subprocess.Popen:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(root / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    return subprocess.Popen([*CAMELID, *arguments], env=environment, **pipes)


def finish(process: subprocess.Popen) -> tuple[str, str]:
    """How the command ended: done, hang, traceback or error, and what it said."""
    try:
        said, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return "hang", ""
    if "Traceback" in said:
        return "traceback", said
    return ("done" if process.returncode == 0 else "error"), said


def wait_for_a_save(process: subprocess.Popen, folder: Path, after: float, before: float) -> float:
    """Waits until something new is in a folder of checkpoints, or the command ends; gives the seconds from there to the
    kill. before: seconds in which nothing is looked for, so that it is not always the first save."""
    time.sleep(before / 2)
    seen = set(folder.rglob("checkpoints/*"))
    while process.poll() is None and not set(folder.rglob("checkpoints/*")) - seen:
        time.sleep(0.002)
    return after


def kill_at_random(kind: Kind, count: int, seed: int) -> collections.Counter:
    """The counts of how commands ended that were killed before."""
    rng, counts = random.Random(seed), collections.Counter()
    straight = kind.root / f"{kind.name}-straight"
    for _ in range(2 if not straight.exists() else 1):  # the second time everything is compiled
        straight = kind.root / f"{kind.name}-straight{time.monotonic_ns()}"
        begin = time.monotonic()
        how, said = finish(start(kind.arguments(straight), kind.root))
        seconds = time.monotonic() - begin
        assert how == "done", said
    expected = kind.outcome(straight)
    for trial in range(count):
        folder = kind.root / f"{kind.name}-{seed}-{trial}-{os.getpid()}"
        killed = []
        for _ in range(rng.randrange(1, 4)):
            process = start(kind.arguments(folder), kind.root)
            moment = rng.uniform(0.2, 1.0) * seconds
            if kind.name in RUNS and rng.random() < 0.5:
                moment = wait_for_a_save(process, folder, rng.uniform(0, 0.05), moment)
            try:
                process.communicate(timeout=moment)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                killed.append(round(moment, 1))
        how, said = finish(start(kind.arguments(folder), kind.root))
        if how == "done" or "exists already" in said:  # a conversion that was killed after its last step
            how = "same" if kind.outcome(folder) == expected else "different"
        counts[how] += 1
        counts["kills"] += len(killed)
        print(f"{kind.name} {trial}: killed after {killed} of {seconds:.1f} s: {how}", flush=True)
        if how == "same":
            subprocess.run(["rm", "-rf", str(folder)], check=True)
        else:
            print(said[-2000:], f"kept: {folder}", sep="\n", flush=True)
    return counts


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=(*RUNS, *OTHERS))
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", type=Path, default=Path("/tmp/camelid-kills"))
    args = parser.parse_args()
    make_root(args.root)
    counts = kill_at_random(Kind(args.kind, args.root), args.count, args.seed)
    print(f"{args.kind}: " + ", ".join(f"{name} {counts[name]}" for name in sorted(counts)))
    return 0 if set(counts) <= {"same", "kills"} else 1


if __name__ == "__main__":
    sys.exit(run())
