"""CPU milliseconds of a server's programs: reading a chunk of a prompt, and a step of eight rows.

    JAX_PLATFORMS=cpu taskset --cpu-list 0 python benchmarks/serving_programs.py model.gguf

Each figure is the smallest of 15, of CPU time, so that other work on the machine counts little.
"""

import argparse
import time
from collections.abc import Callable

import jax
from rich.console import Console
from rich.table import Table

import camelid
from camelid.model.sampling import Sampling
from camelid.serve.programs import Programs

POSITIONS = {
    "8 at 50": [50] * 8,
    "8 at 200": [200] * 8,
    "8 at 1,000": [1000] * 8,
    "7 at 50, 1 at 1,900": [50] * 7 + [1900],
    "1 at 50": [50],
}


def milliseconds(work: Callable[[], object]) -> str:
    """The least CPU time of some work."""
    jax.block_until_ready(work())
    found = []
    for _ in range(15):
        begin = time.process_time()
        jax.block_until_ready(work())
        found.append(time.process_time() - begin)
    return f"{1e3 * min(found):.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="path of a model with a context of 2,048 tokens or more")
    parser.add_argument("--chunks", type=int, nargs="+", default=[16, 32, 64, 128], help="default: 16 32 64 128")
    args = parser.parse_args()
    model = camelid.load(args.model)
    chunks, steps = Table("chunk", "read at 0", "read at 1,024"), Table("rows", "a step")
    for chunk in args.chunks:
        last = chunk == args.chunks[-1]
        programs = Programs(model, rows=8, length=2048, chunk=chunk, blocks=8, adapters=(), alone=last)

        def read(begin: int, programs=programs, chunk=chunk) -> object:
            programs.read([1] * chunk, 0, begin)
            return programs._rows.caches

        chunks.add_row(str(chunk), *(milliseconds(lambda begin=begin: read(begin)) for begin in (0, 1024)))
    for name, positions in POSITIONS.items():
        for row in range(8):
            programs.stop(row)
        for row, position in enumerate(positions):
            programs.start(row, [1] * (position + 1), Sampling(), 0, 0)
        steps.add_row(name, milliseconds(programs.forward))
    steps.add_row("1 at 50, --exact=off", milliseconds(lambda: programs.forward(0)))
    Console().print(chunks, steps)


if __name__ == "__main__":
    main()
