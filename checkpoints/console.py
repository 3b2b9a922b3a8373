"""Progress lines of a command on standard error."""

import sys

import jax


def tell(line: str) -> None:
    """Prints a line on standard error, from process 0 only; standard output is left to results."""
    if jax.process_index() == 0:
        print(f"camelid: {line}", file=sys.stderr)
