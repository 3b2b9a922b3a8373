"""The command `camelid configs`."""


def add_configs(commands) -> None:
    """Adds `camelid configs`."""
