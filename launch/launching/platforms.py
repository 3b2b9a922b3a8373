"""The platforms that `camelid launch --on=NAME` knows. A further one is a file beside this one and a line here."""

import argparse
from collections.abc import Callable
from typing import NamedTuple

from . import local, slurm
from .job import Job, Launched


class Platform(NamedTuple):
    """How a job is written, submitted, seen and ended on one platform."""

    add_options: Callable[[argparse.ArgumentParser], None]
    """Adds the options that only this platform reads."""

    processes: Callable[[argparse.Namespace], int]
    """The number of processes that the options ask for."""

    describe: Callable[[Job, argparse.Namespace], str]
    """The text of the job file, in the platform's vocabulary."""

    preview: Callable[[Job, str], str]
    """What `--dry_run` prints of a job and the text of `describe`, for people."""

    sees: Callable[[str, Job, argparse.Namespace], bool]
    """Whether what is missing at a path now and here is missing for the job too."""

    hints: Callable[[Job, argparse.Namespace], list[str]]
    """Sentences about a job that is as its options say, and perhaps not as its user meant it."""

    launch: Callable[[Job, str], Launched]
    """Writes the job file with the text of `describe` into `job.launch`, which exists, and submits it."""

    state: Callable[[Launched], str | None]
    """The job's state in the platform's words; None once it has ended."""

    stop: Callable[[Launched], None]
    """Tells the job to save and to end, for good."""


PLATFORMS = {
    module.__name__.rpartition(".")[2]: Platform(*(getattr(module, name) for name in Platform._fields))
    for module in (local, slurm)
}
