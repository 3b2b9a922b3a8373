"""The command `camelid launch`."""


def add_launch(commands) -> None:
    """Adds `camelid launch`."""
