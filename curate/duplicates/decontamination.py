"""The step `decontaminate`: rows that leak questions or answers of evaluation sets are rejected, or marked."""

import functools
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from ...errors import UserError
from ...settings.leaves import OneOf, Share
from ..rows import Rejected, Row
from .evaluation_sets import EvaluationSet
from .ngrams import Index, Ngrams
from .shingles import searched


@dataclass(frozen=True)
class Decontaminate:
    """Rejects rows that have n-grams of evaluation sets (`curate/duplicates/ngrams.py`)."""

    reasons: ClassVar = ("leaks_evaluation",)

    against: dict[str, EvaluationSet] = field(default_factory=dict)
    """The evaluation sets, by a name for messages."""

    ngrams: Ngrams = Ngrams()
    """Which n-grams are looked for."""

    share: Share = 0.0
    """Least share of the n-grams of a question, or of an answer, by which a row leaks it; with 0 a single one is
    enough."""

    action: Annotated[str, OneOf("reject", "mark")] = "reject"
    """What happens to a row that leaks: it is rejected, or the column `leaks` names the items, such as "gsm8k:
    gsm8k_test.jsonl:7". Other rows then have an empty list there."""

    def check(self, where: str) -> None:
        if not self.against:
            raise UserError(f'{where}.against names no evaluation set: give one, such as gsm8k={{"source": "PATH"}}')

    @functools.cached_property
    def index(self) -> Index:
        """The index of the evaluation sets, made once in each process."""
        return Index.from_sets(self.against, self.ngrams)

    def __call__(self, row: Row) -> Row | Rejected:
        hits = [hit for hit in self.index.hits(*searched(row.record)) if hit.share >= self.share]
        if self.action == "mark":
            return row.with_(leaks=[f"{hit.set}: {hit.item}" for hit in hits])
        if not hits:
            return row
        first, others = hits[0], f" and {len(hits) - 1:,} more" if len(hits) > 1 else ""
        detail = f'{first.set}: {first.item}, {first.share:.0%} of its n-grams, such as "{first.ngram}"{others}'
        return Rejected("leaks_evaluation", detail)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "index"}
