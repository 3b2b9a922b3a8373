"""Lengths of a run and of its intervals, from the units in which the config gives them to steps."""

from typing import Any, NamedTuple

from ..checkpoints.reading import Best
from ..errors import UserError
from .settings import Seconds, Settings, duration


class Lengths(NamedTuple):
    """Lengths of a run and of its intervals, in steps, and what other units of time are worth."""

    total: int
    log: int
    """Steps between two reports."""
    evaluate: int
    """Steps between two evaluations."""
    steps_per_epoch: float | None = None
    """None where no data are read, and lengths are given in steps."""
    tokens_per_step: float | None = None

    @property
    def units(self) -> dict[str, Any]:
        """The further arguments of `settings.duration`."""
        return {name: getattr(self, name) for name in ("steps_per_epoch", "tokens_per_step")} | {
            "total_steps": self.total
        }


def lengths_of(config: Settings, batches: Any) -> Lengths:
    """`config.total_*`, `log_*` and `eval_*`, each in steps, epochs, tokens or percent."""
    units = dict(steps_per_epoch=batches.steps_per_epoch, tokens_per_step=batches.batch_size * batches.length)
    total = duration(config, "total", **units)
    log, evaluate = (duration(config, name, **units, total_steps=total) for name in ("log", "eval"))
    if 0 in (total, log, evaluate):
        raise UserError("config.total, log and eval are lengths of at least one step")
    return Lengths(total, log, evaluate, **units)


def saving_of(config: Settings, lengths: Lengths) -> dict[str, Any]:
    """`config.checkpoint` as `Checkpoints` takes it. Where no `every_*` is set, a run saves ten times, so that what a
    kill takes is less than a tenth of it."""
    section = config.checkpoint
    every = duration(section, "every", **lengths.units, seconds=True, required=False)
    every = max(1, lengths.total // 10) if every is None else every
    best = section.get("best")
    return {
        "every_seconds": every if isinstance(every, Seconds) else None,
        "every_steps": None if isinstance(every, Seconds) else every,
        "keep_last": section.keep_last,
        "keep_every": section.keep_every,
        "best": best and Best(*best),
    }
