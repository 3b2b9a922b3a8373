"""Lines on standard error about what a command does."""

import sys

import jax


def tell(line: str) -> None:
    """Says a line on standard error, once for all processes of a run: standard output belongs to results."""
    if jax.process_index() == 0:
        print(f"camelid: {line}", file=sys.stderr)
