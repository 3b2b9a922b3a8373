"""The command `camelid doctor`."""


def add_doctor(commands) -> None:
    """Adds `camelid doctor`."""
