"""The command `camelid plan`."""

import argparse
import json
import os

from .arguments import MESH, add_config, check_least, command, refuse_unread, rope_of


def add_plan(commands) -> None:
    """Adds `camelid plan`."""
    parser = command(
        commands,
        "plan",
        _plan,
        "Tell what a step of a run needs on devices that may be absent: memory, FLOPs, collectives, time and price. "
        "It compiles the step of `camelid train`, and reads no data, tokenizer or weights. With --serve it compiles "
        "the programs of `camelid serve`, and tells memory, the largest number of slots and the speed of decoding. "
        "The exit code is 1 if it does not fit.",
        "camelid plan --config=configs/pretrain/llama.py:size=65b --topology=v5p:8x8x8\n"
        "camelid plan --config=configs/sft/lora.py:init_from=llama-7b,source=mine.json,dtype=bfloat16 \\\n"
        "    --architecture=llama-7b --topology=rtx4090:1\n"
        "camelid plan --serve=llama-7b --quantize=int8 --slots=16 --max_len=2048 --topology=rtx4090:1",
    )
    add_config(parser, required=False)
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
    parser.add_argument("--json", action="store_true", help="print the plans of all phases, or of a server, as JSON")
    _add_serving(parser)


def _add_serving(parser: argparse.ArgumentParser) -> None:
    """Adds the options for the plan of a server, which have the names of `camelid serve`."""
    group = parser.add_argument_group("for a server")
    group.add_argument(
        "--serve",
        metavar="MODEL",
        help="plan a server of this model, in place of a run: a path as of `camelid serve`, or an architecture such as "
        "llama-7b, whose weights are in bfloat16 unless --dtype says otherwise",
    )
    group.add_argument(
        "--slots", type=int, default=8, metavar="N", help="answers that are written at a time (default: 8)"
    )
    group.add_argument(
        "--max_len", type=int, metavar="N", help="most tokens of a prompt and its answer (default: the model's context)"
    )
    group.add_argument(
        "--chunk", type=int, default=32, metavar="N", help="tokens of a prompt that are read at a time (default: 32)"
    )
    group.add_argument(
        "--kept_chunks",
        type=int,
        metavar="N",
        help="chunks of prompts that are kept (default: as many as the slots hold)",
    )
    group.add_argument(
        "--exact",
        choices=("on", "off"),
        default="on",
        help="off: an answer that is written alone has a program of its own (default: on)",
    )
    group.add_argument("--dtype", choices=("float32", "bfloat16"), help="dtype of weights and computation")
    group.add_argument("--cache", choices=("int8",), help="dtype of keys and values (default: that of the computation)")
    group.add_argument(
        "--quantize", choices=("int8", "int4", "nf4"), help="keep the weight matrices quantised (default: as they are)"
    )
    group.add_argument("--rope", metavar="KIND:TOKENS", help="stretch the context, as in yarn:8192")
    for axis, said in MESH.items():
        group.add_argument(
            f"--mesh.{axis}", type=int, metavar="N", help=f"number of devices that split {said} (default: 1)"
        )


SERVING = (
    *("slots", "max_len", "chunk", "kept_chunks", "exact", "dtype", "cache", "quantize", "rope"),
    *(f"mesh.{axis}" for axis in MESH),
)
"""The options of `_add_serving` beside --serve."""


def _plan(args: argparse.Namespace) -> int:
    from ...errors import UserError

    if (args.config is None) == (args.serve is None):
        raise UserError("give --config=NAME to plan a run, or --serve=MODEL to plan a server: one of the two")
    if args.serve is None:
        refuse_unread(args, SERVING, "--serve")
        return _plan_run(args)
    refuse_unread(args, ("architecture", "count_only"), "--config")
    return _plan_server(args)


def _plan_server(args: argparse.Namespace) -> int:
    from ..plans.topologies import environment_for, topology

    check_least(args, slots=1, max_len=2, chunk=1, kept_chunks=0, **{f"mesh.{axis}": 1 for axis in MESH})
    os.environ.update(environment_for(args.topology))  # before JAX starts a backend
    import jax

    from ...errors import UserError
    from ..plans.serving import Served, config_of, largest, lines, serving_plan, to_json

    jax.config.update("jax_platforms", "cpu")
    if args.chunk & (args.chunk - 1):
        raise UserError(f"--chunk {args.chunk}: give a power of two")
    config = config_of(args.serve, dtype=args.dtype, cache=args.cache, rope=rope_of(args))
    if args.max_len is not None and args.max_len > config.max_len:
        raise UserError(f"--max_len {args.max_len}: give 2 to the model's context of {config.max_len:,} tokens")
    served = Served(
        config,
        quantize=args.quantize,
        rows=args.slots,
        max_len=args.max_len,
        chunk=args.chunk,
        kept_chunks=args.kept_chunks,
        exact=args.exact == "on",
    )
    plan = serving_plan(served, topology(args.topology), {axis: getattr(args, f"mesh.{axis}") or 1 for axis in MESH})
    most = None if plan.capacity is None else largest(plan)
    if args.json:
        print(json.dumps(to_json(plan, most), indent=2))
    else:
        print("\n".join(lines(plan, most, args.price)), flush=True)
    return int(plan.fits is False)


def _plan_run(args: argparse.Namespace) -> int:
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
