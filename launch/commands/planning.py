"""The command `camelid plan`."""

import argparse
import json
import os

from .arguments import add_config, command


def add_plan(commands) -> None:
    """Adds `camelid plan`."""
    parser = command(
        commands,
        "plan",
        _plan,
        "Tell what a step of a run needs on devices that may be absent: memory, FLOPs, collectives, time and price. "
        "It compiles the step of `camelid train`, and reads no data, tokenizer or weights. The exit code is 1 if the "
        "step does not fit.",
        "camelid plan --config=configs/pretrain/llama.py:size=65b --topology=v5p:8x8x8\n"
        "camelid plan --config=configs/sft/lora.py --architecture=llama-7b --topology=rtx4090:1",
    )
    add_config(parser)
    parser.add_argument(
        "--topology",
        required=True,
        metavar="NAME",
        help="devices: a TPU slice such as v5p:8x8x8 or v5p-512, hosts x GPUs such as h100:64x8, or cpu:8 "
        "(docs/scaling.md)",
    )
    parser.add_argument(
        "--architecture",
        metavar="PRESET",
        help="architecture of checkpoints that the config names and that are not on this machine, such as llama-7b",
    )
    parser.add_argument("--price", type=float, metavar="P", help="price of a chip for an hour, to tell that of the run")
    parser.add_argument(
        "--count_only",
        action="store_true",
        help="compile nothing: tell FLOPs, and the memory that stays between steps, within seconds",
    )
    parser.add_argument("--json", action="store_true", help="print the plans of all phases as a JSON list")


def _plan(args: argparse.Namespace) -> int:
    from ..plans.topologies import environment_for, topology

    os.environ.update(environment_for(args.topology))  # before JAX starts a backend
    import jax

    from ...errors import UserError
    from ...evals.registry import Evaluations
    from ...model.config import LlamaConfig
    from ...settings.config_files import load_phases
    from ..plans.plan import plan
    from ..plans.report import lines, to_json

    jax.config.update("jax_platforms", "cpu")
    try:
        architecture = args.architecture and LlamaConfig.preset(args.architecture)
    except ValueError as error:
        raise UserError(f"--architecture: {error}") from None
    devices, plans = topology(args.topology), []
    for phase, config in load_phases(args.config, args.overrides).items():
        options = dict(architecture=architecture, phase=phase, compiles=not args.count_only)
        plans.append(plan(config, devices, Evaluations(), **options))
        if not args.json:
            print("\n".join(lines(plans[-1], args.price)), flush=True)
    if args.json:
        print(json.dumps([to_json(each, args.price) for each in plans], indent=2))
    return int(any(each.fits is False for each in plans))
