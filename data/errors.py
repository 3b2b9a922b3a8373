"""What a user can mend: one clear line instead of a traceback."""


class UserError(ValueError):
    """A mistake in what the user gave: its one-line message says what, where, and how to mend it."""
