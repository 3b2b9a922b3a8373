"""Trains one small run of every recipe and of every way to train it, and writes down what came out, bit for bit.

    python -m camelid.tests.record before.json
    ... change the code ...
    python -m camelid.tests.record after.json --against=before.json

A refactor must not change a number: the second command exits with 1 and names each run and metric that differs, with
the largest relative difference. Recorded are all metrics of every step but those of time and memory, a hash of the
parameters at the end, and answers of two of the models, greedy and sampled. Numbers are those of one machine and one
version of JAX.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from camelid.tests.kills import CAMELID, CONFIGS, TIMING, make_root

LISA = ["--config.lisa.layers=1", "--config.lisa.period_steps=4"]
STEPS_20 = ["--config.total_steps=20", "--config.eval_percent=50.0"]
MODELS = ("sft", "ppo")


def commands(root: Path) -> dict[str, tuple[int, list[str]]]:
    """The runs by name, each with its number of devices and its arguments after `--workdir`; later runs start from
    earlier ones."""
    config = f"--config={Path(__file__).with_name('tiny.py')}:root={root / 'data'},recipe="
    rl = f"--config={Path(__file__).with_name('tiny_rl.py')}:root={root / 'data'},recipe="
    sft = f"{config}sft,init_from={root / 'pretrain'}"
    tuned, reward = f"init_from={root / 'sft'}", f"reward={root / 'reward'}"
    plain = ["--config.optim.accumulate=1", "--config.ema_decay=None"]
    phases = f"--config={CONFIGS / 'adapt' / 'domain.py'}:init_from={root / 'pretrain'},template=chatml,rank=0"
    phases += f",documents={root / 'data/text.jsonl'},questions={root / 'data/chat.jsonl'},seq_len=64,batch_size=8"
    steps = [f"--config.phases.{name}.total_epochs=None" for name in ("documents", "questions")]
    steps += [f"--config.phases.{name}.total_steps=20" for name in ("documents", "questions")]
    found = {
        "pretrain": (1, [f"{config}pretrain"]),
        "sft": (1, [sft]),  # with accumulation and a moving average
        "sft_plain": (1, [sft, *plain]),
        "sft_lisa": (1, [sft, *plain, *LISA]),
        "sft_mesh_data": (8, [sft, "--config.mesh.data=8", "--config.mesh.fsdp=1", *plain]),
        "sft_mesh_all": (
            8,
            [sft, "--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2", *plain],
        ),
        "phases": (1, [phases, *steps, "--config.log_steps=1", f"--config.data.cache_dir={root / 'cache'}"]),
        "reward": (1, [f"{rl}reward,{tuned}", *STEPS_20]),
        "ppo": (1, [f"{rl}ppo,{tuned},{reward}", *STEPS_20]),
        "ppo_functions": (1, [f"{rl}ppo,{tuned}", *STEPS_20]),
        "ppo_shared": (1, [f"{rl}ppo,{tuned}", *STEPS_20, "--config.critic.shared=True"]),
        "ppo_lora": (1, [f"{rl}ppo,{tuned},{reward},lora=lora", *STEPS_20]),
        "grpo": (1, [f"{rl}grpo,{tuned},{reward}", *STEPS_20]),
        "raft": (1, [f"{rl}raft,{tuned}", *STEPS_20]),
    }
    for name in ("lora", "dora", "pissa", "nf4"):
        found[f"sft_{name}"] = (1, [f"{sft},lora={name}", *plain])
    for kind in ("sigmoid", "kto", "simpo", "orpo"):
        found[f"dpo_{kind}"] = (1, [f"{rl}dpo,{tuned},kind={kind}", *STEPS_20])
    return found


def record(root: Path, only: list[str]) -> dict[str, dict]:
    """Trains all or some of the runs under `root` and gives what came out of each by name."""
    make_root(root / "data")
    found = {}
    for name, (devices, arguments) in commands(root).items():
        if only and name not in only:
            continue
        shutil.rmtree(root / name, ignore_errors=True)
        _run(["train", *arguments, f"--workdir={root / name}"], root, devices)
        parts = [path.parent for path in sorted((root / name).glob("**/metrics.jsonl"))]
        for part in parts:
            found[str(part.relative_to(root))] = {"params": params_hash(part), "metrics": metrics(part)}
        print(f"{name}: {found[str(parts[-1].relative_to(root))]['params'][:12]}", flush=True)
    for name in MODELS:
        if (root / name).exists() and not (only and name not in only):
            found[f"{name} answers"] = {"answers": answers(root, name)}
    return found


def _run(arguments: list[str], root: Path, devices: int) -> str:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(root / "compiled"),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    done = subprocess.run([*CAMELID, *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def metrics(folder: Path) -> list[dict]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if not TIMING.search(name)} for line in lines]


def params_hash(folder: Path) -> str:
    """One hash over the parameters, and their moving average, of the last checkpoint, by their paths."""
    import jax
    import numpy as np
    from orbax.checkpoint import v1 as ocp

    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    path = max((folder / "checkpoints").iterdir(), key=lambda step: int(step.name) if step.name.isdecimal() else -1)
    shapes = ocp.metadata(path).metadata
    asked = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes)
    total = hashlib.sha256()
    state = ocp.load(path, asked)
    kept = {name: state[name] for name in ("params", "ema") if name in state}
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(kept):
        total.update(jax.tree_util.keystr(key_path).encode() + np.asarray(leaf).tobytes())
    return total.hexdigest()


def answers(root: Path, name: str) -> list[str]:
    """Twenty greedy and twenty sampled answers of a model to questions of the data."""
    lines = (root / "data" / "chat.jsonl").read_text(encoding="utf-8").splitlines()[:20]
    prompts = [json.loads(line)["instruction"] for line in lines]
    said = []
    for sampling in (["--temperature=0"], ["--temperature=1.0", "--seed=3"]):
        said.append(_run(["generate", str(root / name), "--chat", "--max_tokens=24", *sampling, *prompts], root, 1))
    return said


def differences(before: dict, after: dict) -> list[str]:
    """A line for each run and metric in which two records differ."""
    lines = []
    for run in dict.fromkeys([*before, *after]):
        if run not in before or run not in after:
            lines.append(f"{run}: only {'after' if run in after else 'before'}")
            continue
        old, new = before[run], after[run]
        if "answers" in old:
            lines += [f"{run}: differ"] if old != new else []
            continue
        if old["params"] != new["params"]:
            lines.append(f"{run}: parameters differ")
        lines += [f"{run}: {name}: {what}" for name, what in _metric_differences(old["metrics"], new["metrics"])]
    return lines


def _metric_differences(before: list[dict], after: list[dict]) -> list[tuple[str, str]]:
    if [line["step"] for line in before] != [line["step"] for line in after]:
        return [("steps", "other ones are reported")]
    worst: dict[str, str | float] = {}
    for old, new in zip(before, after, strict=True):
        for name in dict.fromkeys([*old, *new]):
            if name not in old or name not in new:
                worst[name] = "only before" if name in old else "only after"
            elif old[name] != new[name]:
                gap = abs(old[name] - new[name]) / max(abs(old[name]), abs(new[name]))
                worst[name] = max(worst.get(name, 0.0), gap)
    return [(name, what if isinstance(what, str) else f"differs by {what:.1e}") for name, what in worst.items()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--against", type=Path, metavar="FILE", help="a record of before")
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="for runs; data and programs stay")
    parser.add_argument("--only", nargs="*", default=[], metavar="RUN", help="these runs alone")
    args = parser.parse_args()
    found = record(args.root, args.only)
    args.output.write_text(json.dumps(found, indent=1))
    if args.against is None:
        return 0
    before = json.loads(args.against.read_text())
    lines = differences({name: before[name] for name in before if not args.only or name in found}, found)
    print("\n".join(lines) or f"{len(found)} records: the same bits")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
