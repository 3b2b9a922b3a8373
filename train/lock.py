"""A lock on the work directory, so that one process at a time trains in it. It ends with the process."""

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from ..data.console import warn
from ..data.locks import locked
from ..errors import UserError

NAME = ".lock"


@contextlib.contextmanager
def only_process_of(workdir: epath.PathLike) -> Iterator[None]:
    """Holds the lock of a work directory while the context lasts.

    The directory and its parents are made if they are missing, and removed again if they stay empty. In a run of
    several processes, process 0 holds the lock for all. Object stores (gs://) have no locks; a line on standard error
    says so.

    Raises:
      UserError: the directory cannot be made, or another process, which the message names, holds the lock.
    """
    problem = None
    with contextlib.ExitStack() as held:
        if jax.process_index() == 0:
            try:
                held.enter_context(_locked(workdir))
            except UserError as error:
                problem = error
        if jax.process_count() > 1 and not multihost_utils.broadcast_one_to_all(np.int32(problem is None)):
            problem = problem or UserError(
                f"{workdir}: process 0 cannot make or lock this work directory; its message says why"
            )
        if problem is not None:
            raise problem
        yield


@contextlib.contextmanager
def _locked(workdir: epath.PathLike) -> Iterator[None]:
    if "://" in os.fspath(workdir):
        warn(f"{workdir}: object stores have no locks; do not start a second run in this work directory")
        yield
        return

    def refuse(holder: str) -> None:
        raise UserError(f"{workdir} is in use by {holder}; wait for it or end it, or give another --workdir")

    path = Path(workdir)
    try:
        made = list(itertools.takewhile(lambda folder: not folder.exists(), (path, *path.parents)))
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be made: {error.strerror}; give another folder") from None
    try:
        with locked(path / NAME, refuse):
            yield
    finally:
        with contextlib.suppress(OSError):  # it is not empty
            for folder in made:
                folder.rmdir()
