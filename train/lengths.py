"""Lengths of a run and of its intervals, from the units in which the config gives them to steps."""

from typing import Any, NamedTuple

from ..checkpoints.reading import Best
from ..errors import UserError
from .settings import Seconds, Settings, duration


class Lengths(NamedTuple):
    """Durations of a run, in steps."""

    total: int
    log: int
    evaluate: int


def lengths_of(settings: Settings, batches: Any) -> Lengths:
    """`config.total_*`, `log_*` and `eval_*`, each in steps, epochs, tokens or percent."""
    units = dict(steps_per_epoch=batches.steps_per_epoch, tokens_per_step=batches.batch_size * batches.length)
    total = duration(settings, "total", **units)
    lengths = Lengths(
        total=total,
        log=duration(settings, "log", **units, total_steps=total),
        evaluate=duration(settings, "eval", **units, total_steps=total),
    )
    if 0 in lengths:
        raise UserError("config.total, log and eval are lengths of at least one step")
    return lengths


def saving_of(settings: Settings, lengths: Lengths, batches: Any) -> dict[str, Any]:
    """`config.checkpoint` as `Checkpoints` takes it. Where no `every_*` is set, a run saves ten times, so that what a
    kill takes is less than a tenth of it."""
    section = settings.checkpoint
    every = duration(section, "every", **units_of(lengths, batches), seconds=True, required=False)
    every = max(1, lengths.total // 10) if every is None else every
    best = section.get("best")
    return {
        "every_seconds": every if isinstance(every, Seconds) else None,
        "every_steps": None if isinstance(every, Seconds) else every,
        "keep_last": section.keep_last,
        "keep_every": section.keep_every,
        "best": best and Best(*best),
    }


def units_of(lengths: Lengths, batches: Any) -> dict[str, Any]:
    """In what lengths of time may be given, beside steps."""
    return dict(
        steps_per_epoch=batches.steps_per_epoch,
        tokens_per_step=batches.batch_size * batches.length,
        total_steps=lengths.total,
    )
