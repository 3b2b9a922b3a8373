"""Lengths of time in a unit that the user chooses: steps, epochs, tokens, percent of the run, or seconds."""

from dataclasses import dataclass, field

from ..errors import UserError

LONGEST = 2**31 - 1
"""The most steps of a run: steps are int32 on the device."""


@dataclass(frozen=True)
class Length:
    """A length of time, which a config gives in one of several leaves: `<name>_steps`, `<name>_epochs`, ..."""

    value: float
    """Number of units, 0 or more."""

    unit: str
    """steps, epochs (passes over the whole mixture), tokens, percent (of the run's steps) or seconds."""

    path: str = field(default="", compare=False)
    """The dotted name of the leaf, for messages."""

    def steps(
        self,
        *,
        steps_per_epoch: float | None = None,
        tokens_per_step: float | None = None,
        total_steps: int | None = None,
    ) -> int:
        """The length in steps, rounded; at least 1 unless the length is 0.

        Args:
          steps_per_epoch: steps of one pass over the mixture; None where no data are read.
          tokens_per_step: tokens of a batch; None where no data are read.
          total_steps: steps of the run; None where its length is what is asked for.

        Raises:
          UserError: the unit cannot be converted with what is given.
        """
        per_unit = {
            "steps": 1,
            "epochs": steps_per_epoch,
            "tokens": tokens_per_step and 1 / tokens_per_step,
            "percent": total_steps and total_steps / 100,
        }.get(self.unit)
        if not per_unit:
            raise UserError(f"{self.path or 'a length'}: {self.unit} cannot be converted to steps here; give steps")
        steps = self.value * per_unit
        if steps > LONGEST:
            name = self.path or "a length"
            raise UserError(f"{name} = {self.value:g}: these are {steps:.3g} steps; give at most {LONGEST}")
        return max(1, round(steps)) if self.value else 0
