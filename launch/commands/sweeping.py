"""The command `camelid sweep`."""


def add_sweep(commands) -> None:
    """Adds `camelid sweep`."""
