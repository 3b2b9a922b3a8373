"""The options of `camelid plan --serve`, which plans a server, and what it does."""

import argparse
import json

from .arguments import MESH, check_least, rope_of
from .plan_devices import devices_of


def add_serving(parser: argparse.ArgumentParser) -> None:
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
"""The options of `add_serving` beside --serve."""


def plan_server(args: argparse.Namespace) -> int:
    """Prints the plan of a server. The exit code is 1 if it does not fit."""
    check_least(args, slots=1, max_len=2, chunk=1, kept_chunks=0, **{f"mesh.{axis}": 1 for axis in MESH})
    devices = devices_of(args.topology)
    from ...errors import UserError
    from ..plans.serving import Served, config_of, largest, lines, serving_plan, to_json

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
    plan = serving_plan(served, devices, {axis: getattr(args, f"mesh.{axis}") or 1 for axis in MESH})
    most = None if plan.capacity is None else largest(plan)
    if args.json:
        print(json.dumps(to_json(plan, most), indent=2))
    else:
        print("\n".join(lines(plan, most, args.price)), flush=True)
    return int(plan.fits is False)
