"""One process a work directory: a lock that ends with the process that holds it, however that ends."""

import contextlib
import fcntl
import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from ..data.errors import UserError
from .report import tell

NAME = ".lock"


@contextlib.contextmanager
def only_process_of(workdir: epath.PathLike) -> Iterator[None]:
    """Holds the lock of a work directory, which is made if need be. UserError says who else holds it.
    A directory that is made for it and stays empty goes with it.

    Of a run of several processes, process 0 holds it for all. The system frees it when its holder dies. On object
    stores (gs://) and on file systems without locks there is none, which is told in a line.
    """
    held, problem, made = None, None, False
    if jax.process_index() == 0:
        try:
            made = "://" not in os.fspath(workdir) and not Path(workdir).exists()
            held = _take(workdir)
        except UserError as error:
            problem = error
    if jax.process_count() > 1 and not multihost_utils.broadcast_one_to_all(np.int32(problem is None)):
        problem = problem or UserError(f"{workdir}: another run holds this work directory (see process 0)")
    if problem is not None:
        raise problem
    try:
        yield
    finally:
        if held is not None:
            (Path(workdir) / NAME).unlink(missing_ok=True)  # while it is held: `_take` looks whether it is still there
            os.close(held)
            if made:
                with contextlib.suppress(OSError):  # it is not empty
                    Path(workdir).rmdir()


def _take(workdir: epath.PathLike) -> int | None:
    """The descriptor of the locked file; None where there are no locks."""
    if "://" in os.fspath(workdir):
        tell(f"{workdir}: no lock there; nothing keeps a second run out of this work directory")
        return None
    path = Path(workdir) / NAME
    while True:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # its last holder has just removed it, which was empty
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _describe(os.pread(file, 4096, 0))
            os.close(file)
            raise UserError(
                f"{workdir} is in use by {holder}; wait for it or end it, or give another --workdir"
            ) from None
        except OSError as error:
            os.close(file)
            tell(f"{path}: cannot be locked ({error.strerror}); nothing keeps a second run out of this work directory")
            return None
        if path.exists() and os.fstat(file).st_ino == path.stat().st_ino:
            break
        os.close(file)  # its last holder has just removed it
    me = {"pid": os.getpid(), "host": socket.gethostname(), "command": shlex.join(sys.argv)}
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(me).encode(), 0)
    return file


def _describe(content: bytes) -> str:
    try:
        holder = json.loads(content)
        return f"process {holder['pid']} on {holder['host']} ({holder['command']})"
    except (ValueError, KeyError, TypeError):  # it has not written it yet
        return "another process"
