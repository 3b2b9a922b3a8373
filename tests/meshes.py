"""Resumes runs on other meshes and with other numbers of processes, and measures how far their end is from that of an
uninterrupted run.

    python -m camelid.tests.meshes                       all cases on all layouts
    python -m camelid.tests.meshes sft ppo --layouts=8,2x4

A case is a run of 8 steps with a checkpoint after step 4. A straight run goes through on the first layout. For each
other layout a copy of it loses its last checkpoint and resumes from step 4 there. Written for each: the largest
relative difference of a step's loss, and ‖resumed - straight‖ / ‖straight‖ of the worst leaf of parameters, moving
averages, optimiser state and other entries; of arrays of codes, the share of codes that differ.

A layout is the number of devices, with "x" and the sizes of the mesh axes data, fsdp, tensor and, if it is above 1,
context, where they are not all fsdp ("8:2x2x2", "8:1x2x1x4"), after "2p" for two processes ("2p4": two processes of two
devices). "chain" resumes after every two steps on another layout: two processes, one, two.
"""

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from camelid.model.sharding import AXES
from camelid.tests import make_loss_goldens as goldens

HERE = Path(__file__).parent
STEPS, SAVED = 8, 4
CAMELID = [sys.executable, "-c", "import sys; from camelid.launch.cli import main; sys.exit(main())"]
SFT = "tiny.py:recipe=sft"
CASES: dict[str, tuple[str, Sequence[str]]] = {
    "sft": (SFT, []),  # with a moving average, and the gradients of two parts of a batch
    "lora": (f"{SFT},lora=lora", []),
    "nf4": (f"{SFT},lora=nf4", []),
    "adamw8bit": (SFT, ["--config.optim.name=adamw8bit"]),
    "muon": (SFT, ["--config.optim.name=muon", "--config.optim.lr=1e-3"]),
    "offload": (SFT, ["--config.optim.offload=True", "--config.ema_decay=None"]),
    "ppo": ("tiny_rl.py:recipe=ppo", ["--config.optim.lr=1e-4", "--config.critic.lr=1e-4"]),
    "grpo": ("tiny_rl.py:recipe=grpo", ["--config.optim.lr=1e-4"]),
}
LAYOUTS = ("1", "8", "8:8x1x1", "8:1x4x2", "8:2x2x2", "2p2", "2p4:2x1x2", "chain")
COUNTED = ("train/tokens", "objective/scores")


class Layout(NamedTuple):
    """Processes, devices of each, and sizes of the mesh axes data, fsdp, tensor and context."""

    processes: int
    devices: int
    axes: tuple[int, int, int, int]

    @classmethod
    def read(cls, text: str) -> "Layout":
        found = re.fullmatch(r"(?:(\d+)p)?(\d+)(?::(\d+)x(\d+)x(\d+)(?:x(\d+))?)?", text)
        if found is None:
            raise argparse.ArgumentTypeError(f"{text!r} is no layout")
        processes, devices = int(found[1] or 1), int(found[2])
        axes = tuple(int(size or 1) for size in found.groups()[2:]) if found[3] else (1, devices, 1, 1)
        return cls(processes, devices // processes, axes)


def command(case: str, root: Path, workdir: Path, layout: Layout, steps: int) -> list[str]:
    config, more = CASES[case]
    axes = [f"--config.mesh.{name}={size}" for name, size in zip(AXES, layout.axes, strict=True)]
    fixed = [f"--config.total_steps={steps}", "--config.data.heldout=0.0", "--config.schedule.name=constant"]
    saved = ["--config.checkpoint.every_steps=2", "--config.checkpoint.keep_last=9"]
    config = f"--config={HERE / config},root={root},init_from={root / goldens.START}"
    return ["train", config, f"--workdir={workdir}", *fixed, *saved, *axes, *more]


def train(case: str, root: Path, workdir: Path, layout: Layout, steps: int = STEPS) -> None:
    """Trains a run to its end, from its last checkpoint where it has one."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(root / "compiled"),
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
        f" --xla_force_host_platform_device_count={layout.devices}",
    }
    argv = [*CAMELID, *command(case, root, workdir, layout, steps)]
    cluster = []
    if layout.processes > 1:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        cluster = ["--distributed", f"--coordinator=127.0.0.1:{port}", f"--num_processes={layout.processes}"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    numbered = [[f"--process_id={i}"] if cluster else [] for i in range(layout.processes)]
    processes = [subprocess.Popen([*argv, *cluster, *number], **pipes) for number in numbered]
    said = [process.communicate()[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(said)


def state_of(workdir: Path) -> dict[str, Any]:
    """The arrays of a run's last checkpoint by their paths, on one device."""
    import jax
    import numpy as np
    from orbax.checkpoint import v1 as ocp

    from camelid.checkpoints.reading import find

    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    path = find(workdir)
    asked = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), ocp.metadata(path).metadata)
    leaves = jax.tree_util.tree_leaves_with_path(ocp.load(path, asked))
    return {jax.tree_util.keystr(name, simple=True, separator="/"): np.asarray(x) for name, x in leaves}


def apart(found: dict[str, Any], straight: dict[str, Any]) -> dict[str, float]:
    """How far the worst leaf of each kind is from the one of the straight run."""
    import numpy as np

    assert found.keys() == straight.keys(), found.keys() ^ straight.keys()
    worst: dict[str, float] = {}
    for name, a in straight.items():
        b, kind = found[name], name.split("/")[0]
        if np.issubdtype(a.dtype, np.integer) and a.ndim:
            kind, far = f"{kind} codes", float(np.mean(a != b))
        else:
            a, b = (np.asarray(x, np.float64) for x in (a, b))
            far = float(np.linalg.norm(a - b) / (np.linalg.norm(a) or 1.0))
        worst[kind] = max(worst.get(kind, 0.0), far)
    return worst


def metrics(workdir: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def cut(source: Path, target: Path, step: int) -> None:
    """A copy of a run without the checkpoints after a step."""
    shutil.copytree(source, target)
    for path in (target / "checkpoints").iterdir():
        if path.name.isdecimal() and int(path.name) > step:
            shutil.rmtree(path)


def resumed(case: str, root: Path, straight: Path, text: str) -> Path:
    """The workdir of a copy of the straight run that went on from its middle on another layout."""
    workdir = root / f"{case}-{text.replace(':', '-')}"
    shutil.rmtree(workdir, ignore_errors=True)
    cut(straight, workdir, SAVED if text != "chain" else 2)
    if text != "chain":
        train(case, root, workdir, Layout.read(text))
        return workdir
    for end, layout in ((4, "2p2"), (6, "1"), (8, "2p2")):
        train(case, root, workdir, Layout.read(layout))
        if end < STEPS:  # the run went to its end: take back what is after the step
            shutil.move(workdir, whole := workdir.with_name(f"{workdir.name}-{end}"))
            cut(whole, workdir, end)
            shutil.rmtree(whole)
    return workdir


def compare(case: str, root: Path, layouts: Sequence[str]) -> Iterator[str]:
    """A line for each layout."""
    first = Layout.read(layouts[0])
    straight = root / f"{case}-straight"
    if not straight.exists():
        train(case, root, straight, first)
    expected = state_of(straight)
    for text in layouts:
        workdir = resumed(case, root, straight, text)
        losses = [abs(a - b) / max(abs(a), 1e-3) for a, b in _pairs(straight, workdir, "train/loss")]
        drawn = [sum(a != b for a, b in _pairs(straight, workdir, name)) for name in COUNTED if metrics(straight, name)]
        far = apart(state_of(workdir), expected)
        said = [f"{kind} {value:.1e}" if value else f"{kind} same bits" for kind, value in sorted(far.items())]
        answers = f"; steps with other answers {max(drawn)}" if len(drawn) == len(COUNTED) else ""
        yield f"{case} from {layouts[0]} on {text}: loss {max(losses):.1e}{answers}; {', '.join(said)}"
        shutil.rmtree(workdir)


def _pairs(straight: Path, workdir: Path, name: str) -> Iterator[tuple[float, float]]:
    return zip(metrics(straight, name), metrics(workdir, name), strict=True)


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"cases (default: all): {', '.join(CASES)}")
    layouts = f"the layouts, the straight run's first (default: {','.join(LAYOUTS)})"
    parser.add_argument("--layouts", default=",".join(LAYOUTS), help=layouts)
    parser.add_argument("--root", type=Path, default=Path("/tmp/camelid-meshes"), help="folder for the runs")
    args = parser.parse_args()
    if unknown := set(args.cases) - set(CASES):
        parser.error(f"there is no case {', '.join(sorted(unknown))}")
    args.root.mkdir(parents=True, exist_ok=True)
    goldens.write_data(args.root)
    goldens.train(goldens.START, args.root)
    for case in args.cases or CASES:
        for line in compare(case, args.root, args.layouts.split(",")):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run())
