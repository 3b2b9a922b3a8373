"""Which code runs: the commit of its checkout, and versions of packages."""

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parents[1]
PACKAGES = ("camelid", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
TIMEOUT = 5.0
"""Seconds for each call of git, which may be slow in a large checkout on a network file system."""


class Checkout(NamedTuple):
    """The state of a git checkout."""

    folder: str
    """Its uppermost folder."""

    commit: str | None
    """The commit that is checked out; None where there is none yet."""

    dirty: bool | None
    """Whether tracked files differ from the commit; None where git did not say in time."""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what is computed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
            continue
    return found


@functools.cache  # the code that runs is that of the beginning of the process
def checkouts(folder: str) -> tuple[Checkout | None, Checkout | None]:
    """The checkout of this package, and that around a folder where it is another one.

    The first is None where the package was installed without its checkout, even if it was installed into a folder of
    some other one. Without git both are None. Never raises, and takes at most a few times `TIMEOUT`.
    """
    own = None
    if _git(PACKAGE, "ls-files", "--error-unmatch", "errors.py") is not None:
        own = _checkout(PACKAGE)
    around = _checkout(Path(folder))
    return own, None if own is not None and around is not None and around.folder == own.folder else around


def _checkout(folder: Path) -> Checkout | None:
    top = _git(folder, "rev-parse", "--show-toplevel")
    if not top:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return Checkout(top, _git(folder, "rev-parse", "--verify", "HEAD"), None if changed is None else bool(changed))


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails, is not there or takes too long."""
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], env=environment, capture_output=True, text=True, timeout=TIMEOUT
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
