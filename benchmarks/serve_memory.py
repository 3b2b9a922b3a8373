"""Memory of `camelid serve` beside what the shapes of its rows and blocks predict.

    python benchmarks/serve_memory.py model.gguf

The bytes of rows and kept blocks are those of `model.slots`, which `jax.eval_shape` finds without memory. The process
also holds the parameters, in the form of a decoder, and Python with JAX; the growth from one `--max_len` to the next
is rows and blocks alone.
"""

import argparse
import os

import jax
from rich.console import Console
from rich.table import Table
from serve_servers import camelid

from camelid.checkpoints.language_model import load
from camelid.model import slots
from camelid.model.config import LlamaConfig


def predicted(config: LlamaConfig, rows: int, length: int, chunk: int) -> tuple[int, int]:
    """Bytes of the rows and of as many kept blocks as the rows hold.

    Args:
      config: the model's shapes.
      rows: number of rows.
      length: slots of a row.
      chunk: slots of a block.
    """
    shapes = jax.eval_shape(
        lambda: (slots.empty(config, rows, length), slots.empty_caches(config, rows * length // chunk, chunk))
    )
    return tuple(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shape)) for shape in shapes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="the model")
    parser.add_argument("--slots", type=int, default=8, help="rows (default: 8)")
    parser.add_argument("--chunk", type=int, default=32, help="slots of a block (default: 32)")
    parser.add_argument("--max_lens", type=int, nargs="+", default=[1024, 2048, 4096], help="multiples of the chunk")
    args = parser.parse_args()
    os.environ.pop("GLIBC_TUNABLES", None)  # the Makefile's setting keeps the temporary memory of programs
    config = load(args.path).config
    table = Table("max_len", "rows, MB", "blocks, MB", "process, MB", "its growth / rows and blocks'", "peak, MB")
    before = None
    for length in args.max_lens:
        server = camelid(args.path, length, os.cpu_count(), f"--slots={args.slots} --chunk={args.chunk}")
        sizes, process = predicted(config, args.slots, length, args.chunk), server.memory()
        growth = "" if before is None else f"{(process - before[1]) / (sum(sizes) - before[0]):.3f}"
        numbers = [f"{size / 1e6:.0f}" for size in (*sizes, process)]
        table.add_row(str(length), *numbers, growth, f"{server.memory('VmHWM') / 1e6:.0f}")
        before = sum(sizes), process
        server.stop()
    Console().print(table)


if __name__ == "__main__":
    main()
