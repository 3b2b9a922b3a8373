"""Lengths of a run and of its intervals, from the units in which the config gives them to steps."""

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from ..checkpoints.reading import Best
from ..errors import UserError
from ..settings.leaves import Count, Name, OneOf, Positive, Units, Unset
from ..settings.length import Length

Every = Annotated[Length, Units("steps", "epochs", "tokens", "percent", least=1)]
"""An interval of at least one step."""


@dataclass(frozen=True)
class CheckpointSettings:
    """The section `config.checkpoint`: when states are saved, and which of them are kept."""

    every: Annotated[Length | None, Units("steps", "epochs", "tokens", "percent", least=1)] = None
    """Interval between two regular checkpoints. Default: a tenth of the run."""

    temporary_seconds: Annotated[Positive | None, Unset("no temporary checkpoints")] = 600.0
    """Seconds since the last save after which a temporary checkpoint is saved, so that a kill loses no more than about
    these. It is deleted as soon as a newer checkpoint is complete. None: there are none."""

    keep_last: Count = 2
    """Number of latest regular checkpoints that are kept."""

    keep_every: Count | None = None
    """Checkpoints of steps that this number divides are kept for ever."""

    best: tuple[Name, Annotated[str, OneOf("max", "min")]] | None = None
    """A metric of an evaluation, such as ("eval/heldout/text/loss", "min"): its best checkpoint is kept too."""


class Lengths(NamedTuple):
    """Lengths of a run and of its intervals, in steps."""

    total: int
    """Steps of the run."""

    log: int
    """Steps between two reports."""

    evaluate: int
    """Steps between two evaluations."""

    steps_per_epoch: float | None = None
    """Steps of one pass over the mixture; None where no data are read, and all lengths are given in steps."""

    tokens_per_step: float | None = None
    """Tokens of a batch; None where no data are read."""

    def steps(self, length: Length) -> int:
        """A length of the config in steps."""
        return length.steps(
            steps_per_epoch=self.steps_per_epoch, tokens_per_step=self.tokens_per_step, total_steps=self.total
        )


def lengths_of(config: Any, batches: Any) -> Lengths:
    """The lengths `total`, `log` and `eval` of a config (`train.run_config.RunConfig`) that reads these batches."""
    units = dict(steps_per_epoch=batches.steps_per_epoch, tokens_per_step=batches.batch_size * batches.length)
    total = config.total.steps(**units)
    log, evaluate = (length.steps(**units, total_steps=total) for length in (config.log, config.eval))
    if 0 in (total, log, evaluate):
        raise UserError("config.total, log and eval are lengths of at least one step")
    return Lengths(total, log, evaluate, **units)


def saving_of(settings: CheckpointSettings, lengths: Lengths) -> dict[str, Any]:
    """`config.checkpoint` as keyword arguments of `Checkpoints`."""
    every = settings.every or Length(max(1, lengths.total // 10), "steps")
    return {
        "every_steps": lengths.steps(every),
        "temporary_seconds": settings.temporary_seconds,
        "keep_last": settings.keep_last,
        "keep_every": settings.keep_every,
        "best": settings.best and Best(*settings.best),
    }
