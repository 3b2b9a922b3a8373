"""The command `camelid compare`."""


def add_compare(commands) -> None:
    """Adds `camelid compare`."""
