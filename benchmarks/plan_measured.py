"""Compares what `camelid plan` predicts of a step with what the step takes on this machine's devices.

    python benchmarks/plan_measured.py --case=pretrain --steps=10

Plans the step of a shipped config at the width of LLaMA 7B, fills its arguments with made-up arrays, and executes the
compiled programs. Prints a line of JSON: predicted and measured peak of a device's memory (backends that report it),
seconds of a step, and model FLOPs utilisation. A case needs a process of its own, since a device's peak is that of its
process. Without --case each case gets one.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from camelid.launch.plans.memory import memory_of
from camelid.launch.plans.planned_run import PlannedRun, PlannedStep
from camelid.launch.plans.topologies import local
from camelid.launch.recipes import read_config, recipe_of
from camelid.model.config import LlamaConfig
from camelid.settings.config_files import load_phases
from camelid.train.run import mesh_of
from camelid.train.throughput import peak_flops

HALF = ["--config.model.dtype=bfloat16"]
STORED = [*HALF, "--config.model.param_dtype=bfloat16"]
CASES = {
    "pretrain": ("pretrain/llama:size=7b", ["--config.data.batch_size=8", *HALF]),
    "lora": ("sft/lora:init_from=absent,source=absent,batch_size=8,seq_len=2048", STORED),
    "ppo": ("ppo/colossalchat", ["--config.data.batch_size=16", *STORED]),
}
"""{case: (config, flags)}."""


def planned(case: str, layers: int, smaller: str | None) -> tuple[PlannedStep, int]:
    """The step of a case on the devices of this machine, and its predicted peak in bytes.

    Args:
      case: name of the case.
      layers: layers of the network.
      smaller: a preset in place of llama-7b, to try the script where that is too large.
    """
    name, flags = CASES[case]
    preset = smaller or "llama-7b"
    network = LlamaConfig.preset(preset, n_layers=layers, max_len=2048)
    own = [f"--config.model.preset={preset}", "--config.model.max_len=2048"] if case == "pretrain" else []
    (config,) = load_phases(name, [*flags, *own, f"--config.model.n_layers={layers}"]).values()
    settings = read_config(config)
    run = PlannedRun(settings, mesh_of(settings.mesh, local().devices), network, chain=True)
    step = run.plan(recipe_of(config).train)
    return step, memory_of(step).peak


def arrays(shapes: Any) -> Any:
    """Arrays of these shapes and shardings: small random numbers, and ones for whole numbers."""

    def one(number: int, x: jax.ShapeDtypeStruct) -> jax.Array:
        if jnp.issubdtype(x.dtype, jnp.floating):
            make = lambda: 0.02 * jax.random.normal(jax.random.key(number), x.shape, x.dtype)  # noqa: E731
        else:
            make = lambda: jnp.ones(x.shape, x.dtype)  # noqa: E731
        return jax.jit(make, out_shardings=x.sharding)()

    leaves, tree = jax.tree.flatten(shapes)
    return tree.unflatten([one(number, x) for number, x in enumerate(leaves)])


def batch_of(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """A batch whose rows are full and whose tokens are all learnt."""
    made = {}
    for name, x in shapes.items():
        positions = np.broadcast_to(np.arange(x.shape[-1]), x.shape) if x.shape else 0
        value = positions if name.endswith("positions") else np.ones(x.shape)
        if name.endswith("lengths"):
            value = np.full(x.shape, shapes["tokens"].shape[-1])
        made[name] = jax.device_put(value.astype(x.dtype), x.sharding)
    return made


def measure(step: PlannedStep, steps: int) -> list[float]:
    """Seconds of each of `steps` steps after the first."""
    (program,) = step.programs
    given = program.arguments
    base, frozen, state = (arrays(given[name]) for name in ("base", "frozen", "state"))
    state = {**state, **jax.tree.map(jnp.zeros_like, {name: state[name] for name in ("step", "guard")})}
    batch, seconds = batch_of(given["batch"]), []
    for _ in range(steps + 1):
        begin = time.perf_counter()
        state, _ = jax.block_until_ready(program.compiled(base, frozen, state, batch))
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]


def report(case: str, layers: int, steps: int, smaller: str | None) -> dict[str, Any]:
    """What is predicted and measured of a case."""
    step, predicted = planned(case, layers, smaller)
    seconds = statistics.median(measure(step, steps))
    device = jax.devices()[0]
    peak, flops = (device.memory_stats() or {}).get("peak_bytes_in_use"), step.flops_per_token * step.tokens
    best = peak_flops(device)
    return {
        "case": case,
        "device": device.device_kind,
        "layers": layers,
        "predicted_peak": predicted,
        "measured_peak": peak,
        "measured_to_predicted": peak and peak / predicted,
        "seconds": seconds,
        "tokens_per_second": step.tokens / seconds,
        "mfu": best and flops / seconds / best / jax.device_count(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, help="the case (default: each in a process of its own)")
    parser.add_argument("--layers", type=int, default=4, help="layers of the network (default: 4)")
    parser.add_argument("--steps", type=int, default=10, help="steps that are timed (default: 10)")
    parser.add_argument("--smaller", metavar="PRESET", help="preset in place of llama-7b, to try the script")
    args = parser.parse_args()
    if args.case is not None:
        print(json.dumps(report(args.case, args.layers, args.steps, args.smaller)), flush=True)
        return
    for case in CASES:
        subprocess.run([sys.executable, __file__, f"--case={case}", *sys.argv[1:]], check=False)


if __name__ == "__main__":
    main()
