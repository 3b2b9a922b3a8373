"""Weights & Biases: the section `config.wandb`, and the reports of a run that are sent there."""

import hashlib
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from etils import epath

from ..data.console import shows, tell
from ..errors import UserError
from ..settings.leaves import Name, OneOf, Only, Unset


@dataclass(frozen=True)
class WandbSettings:
    """The section `config.wandb`: the project on Weights & Biases that gets the run's config, metrics and samples."""

    project: Annotated[Name | None, Unset("no reports to Weights & Biases")] = None
    """Project on Weights & Biases that the run belongs to. None: nothing is sent."""

    name: Annotated[Name | None, Only("project")] = None
    """Name of the run. Default: the last two parts of the work directory, such as runs/sft."""

    group: Annotated[Name | None, Only("project")] = None
    """Name under which the project's table joins several runs, such as the seeds of one experiment. None: no group."""

    tags: Annotated[list[Name] | None, Unset("no tags"), Only("project", default=[])] = None
    """Words by which the project's runs can be filtered."""

    entity: Annotated[Name | None, Only("project")] = None
    """User or team that owns the project. None: the account's default."""

    mode: Annotated[str | None, OneOf("online", "offline"), Only("project")] = None
    """online: reports are sent as the run trains. offline: they are kept in WORKDIR/wandb until `wandb sync` sends
    them. None: the environment variable WANDB_MODE, or online."""


def check_installed(settings: WandbSettings) -> None:
    """Raises UserError if the config asks for Weights & Biases and the package is missing."""
    if settings.project is not None and importlib.util.find_spec("wandb") is None:
        asked = f"config.wandb.project = {settings.project!r}"
        raise UserError(f"{asked} asks for Weights & Biases, which is missing: pip install wandb")


class WeightsAndBiases:
    """Sends metrics and tables of samples to Weights & Biases. A run that resumes goes on under its own id there.

    What cannot be sent while the run trains never ends it: a line says so, and nothing more is sent.

    Args:
      settings: the section `config.wandb`, with a project.
      workdir: folder of the run, whose absolute path decides the run's id.
      config: the settings of the run, as nested mappings.

    Raises:
      UserError: the package is missing, or Weights & Biases refuses the settings, such as where nobody is logged in.
      OSError: Weights & Biases cannot be reached.
    """

    def __init__(self, settings: WandbSettings, workdir: epath.Path, config: Mapping[str, Any]):
        check_installed(settings)
        import wandb

        self._wandb = wandb
        place = workdir.resolve()
        asked = dict(
            project=settings.project,
            entity=settings.entity,
            name=settings.name or "/".join(place.parts[-2:]),
            group=settings.group,
            tags=settings.tags and list(settings.tags),
            mode=settings.mode,
            config=dict(config),
            id=hashlib.blake2b(os.fspath(place).encode(), digest_size=8).hexdigest(),
            resume="allow",
            dir=os.fspath(workdir),
            settings=wandb.Settings(silent=not shows("info")),  # it prints a summary at the end
        )
        try:
            self._run: Any = wandb.init(**asked)
            self._run.define_metric("*", step_metric="step")  # steps may come out of order: evaluations, resumed runs
        except Exception as error:  # its own errors, and those of the libraries beneath it
            is_mistake = any(each.__name__ == "UsageError" for each in type(error).__mro__)
            raise (UserError if is_mistake else OSError)(
                f"Weights & Biases: {_words(error)}; config.wandb.mode=offline keeps the reports for `wandb sync`"
            ) from error

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._send(lambda run: run.log({"step": step, **values}))

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        columns = list(rows[0]) if rows else []
        cells = [list(row.values()) for row in rows]
        self._send(lambda run: run.log({"step": step, name: self._wandb.Table(columns, cells)}))

    def close(self, finished: bool) -> None:
        self._send(lambda run: run.finish(exit_code=0 if finished else 1))

    def _send(self, content: Callable[[Any], Any]) -> None:
        if self._run is None:
            return
        try:
            content(self._run)
        except Exception as error:  # such as where the process that sends was killed
            self._run = None
            tell(f"Weights & Biases gets no more reports of this run, which goes on: {_words(error)}")


def _words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
