"""What a command tells on standard error while it works: messages of the logger "camelid".

tell("resuming from step 40")         # shown at the levels debug and info, from process 0 alone
warn("checkpoints/80 is damaged")     # shown at the level warning too
set_level("warning")                  # what `--quiet` does; the default is info

The logger passes nothing on to the root logger, so that a message is shown once. Python programs may set its level or
add handlers of their own: `logging.getLogger("camelid")`.
"""

import logging
import sys
import warnings

LEVELS = ("debug", "info", "warning", "error")
"""The names of the levels, from the most to the fewest messages."""

LOGGER = logging.getLogger("camelid")


class _StandardError(logging.Handler):
    """Prints each message as one line, after the name of the package that it is from."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"{record.name.partition('.')[0]}: {record.getMessage()}", file=sys.stderr)  # an error ends the command


_HANDLER = _StandardError()

if not LOGGER.handlers:
    LOGGER.addHandler(_HANDLER)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False


def tell(line: str) -> None:
    """Tells how a command is getting on, from process 0 only; standard output is left to results."""
    _from_process_0(logging.INFO, line)


def warn(line: str) -> None:
    """Warns of something that a user should know although the command goes on, from process 0 only."""
    _from_process_0(logging.WARNING, line)


def _from_process_0(level: int, line: str) -> None:
    if LOGGER.isEnabledFor(level) and _process_index() == 0:
        LOGGER.log(level, "%s", line)


def _process_index() -> int:
    """The number of this process among those that train together. A process by itself takes no devices to find out."""
    import jax

    return jax.process_index() if jax.distributed.is_initialized() else 0


def shows(level: str) -> bool:
    """Whether messages of a level are shown."""
    return LOGGER.isEnabledFor(getattr(logging, level.upper()))


def set_level(level: str) -> None:
    """Sets which messages are shown.

    Args:
      level: one of `LEVELS`. At debug the messages of JAX and of Orbax are shown too, at error no warnings of Python.
    """
    LOGGER.setLevel(level.upper())
    if level == "error":
        warnings.simplefilter("ignore")
    if level == "debug":
        import jax

        jax.config.update("jax_logging_level", "DEBUG")
        logging.getLogger("jax").propagate = False
        logging.getLogger("jax._src.cache_key").setLevel(logging.INFO)  # a hundred lines for each program
        orbax = logging.getLogger("absl")
        orbax.setLevel(logging.INFO)
        orbax.addHandler(_HANDLER)  # once, however often it is called
        orbax.propagate = False
