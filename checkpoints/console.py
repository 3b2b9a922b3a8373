"""What a command tells on standard error while it works (`data.console`)."""

from ..data.console import tell, warn

__all__ = ["tell", "warn"]
