"""The draft model of speculative decoding, and how much of what it proposes is accepted."""

import dataclasses
from typing import TYPE_CHECKING

from ..model import speculative

if TYPE_CHECKING:
    from .language_model import LanguageModel


@dataclasses.dataclass
class Draft:
    """A draft model for speculative decoding, and the counts of its accepted tokens."""

    llama: "LanguageModel"
    """The draft model."""
    k: int = 4
    """The number of tokens that it proposes per pass of the large model."""
    passes: int = 0
    """The number of passes of the large model so far."""
    accepted: int = 0
    """The number of proposed tokens that became part of answers."""

    def count(self, result: speculative.SpeculativeGeneration) -> None:
        """Adds the passes and accepted tokens of one call."""
        self.passes += int(result.passes.sum())
        self.accepted += int(result.accepted.sum())

    def __str__(self) -> str:
        return f"{self.accepted / max(self.passes, 1):.2f} of {self.k} proposals accepted a pass"
