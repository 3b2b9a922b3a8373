"""The command `camelid plan`."""

import argparse
import json
import math
from typing import Any

from .arguments import add_config, check_least, command, refuse_unread
from .plan_devices import devices_of
from .planning_server import SERVING, add_serving, plan_server


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
        help="devices: a TPU slice such as v5p:8x8x8 or v5p-512, hosts x GPUs such as h100:64x8, cpu:8, or "
        "local for this machine (docs/scaling.md)",
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
    parser.add_argument(
        "--search",
        nargs="?",
        type=int,
        const=4,
        metavar="N",
        help="choose mesh, remat policy and parts of a batch: compile the config's own settings and the N most "
        "promising others (default: 4), the best of them with another attention kernel too; tell which are the best in "
        "time or memory; a leaf that is given as a flag keeps its value",
    )
    parser.add_argument("--json", action="store_true", help="print the plans of all phases, or of a server, as JSON")
    add_serving(parser)


def _search(args: argparse.Namespace, devices: Any, architecture: Any) -> int:
    """Prints what a search found. The exit code is 1 if none of the settings fits."""
    from ...errors import UserError
    from ...settings.config_files import load_phases
    from ..plans.report import search_lines, to_json
    from ..plans.search import LEAVES, flags, pareto, search

    check_least(args, search=1)
    phases = load_phases(args.config, args.overrides)
    if len(phases) > 1:
        raise UserError(f"--search: {args.config} has {len(phases)} phases; give the config of one run")
    (config,) = phases.values()
    given = [word.removeprefix("--config.").split("=")[0] for word in args.overrides]
    options = dict(architecture=architecture, fixed=[name for name in given if name in LEAVES], most=args.search)
    found = []
    for each in search(config, devices, **options):
        found.append(each)
        if not args.json:
            print("\n".join(search_lines(each, flags(each.candidate, config))), flush=True)
    best = pareto(found)
    if args.json:
        told = [
            {"flags": flags(each.candidate, config), "best": each in best} | to_json(each.plan, args.price)
            for each in found
        ]
        print(json.dumps(told, indent=2))
    else:
        print("the best in time or memory:" if best else "none of these fits")
        print("\n".join(f"  {flags(each.candidate, config)}" for each in best))
    return int(not best)


def _plan(args: argparse.Namespace) -> int:
    from ...errors import UserError

    if (args.config is None) == (args.serve is None):
        raise UserError("give --config=NAME to plan a run, or --serve=MODEL to plan a server: one of the two")
    if args.price is not None and not 0 < args.price < math.inf:
        raise UserError(f"--price {args.price:g}: give a finite number above 0")
    if args.count_only and (args.price is not None or args.search is not None):
        raise UserError("--count_only tells no time, which --price and --search need: leave one out")
    if args.serve is None:
        refuse_unread(args, SERVING, "--serve")
        return _plan_run(args)
    refuse_unread(args, ("architecture", "count_only", "search"), "--config")
    return plan_server(args)


def _plan_run(args: argparse.Namespace) -> int:
    devices = devices_of(args.topology)
    from ...errors import UserError
    from ...model.config import LlamaConfig
    from ...settings.config_files import load_phases
    from ..plans.plan import plan_phases
    from ..plans.report import lines, to_json

    try:
        architecture = args.architecture and LlamaConfig.preset(args.architecture)
    except ValueError as error:
        raise UserError(f"--architecture: {error}") from None
    if args.search is not None:
        return _search(args, devices, architecture)
    phases, plans = load_phases(args.config, args.overrides), []
    options = dict(architecture=architecture, compiles=not args.count_only)
    for found in plan_phases(phases, devices, **options):
        plans.append(found)
        if not args.json:
            print("\n".join(lines(found, args.price)), flush=True)
    if args.json:
        print(json.dumps([to_json(each, args.price) for each in plans], indent=2))
    return int(any(each.fits is False for each in plans))
