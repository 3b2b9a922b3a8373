"""The step `fineweb`: the filters that made FineWeb (arXiv:2406.17557, section 3.5), as datatrove has them.

Numbers are those of datatrove's FineWebQualityFilter for the same words. The paper gives 0.1 for char_dup_ratio; the
code that made the data set has 0.01, which is the default here. list_ratio is in the code alone.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from ...settings.leaves import NotNegative, Share, Unset, Whole
from .rules import Number, Quality, Rule, duplicates, sentence_ends, tokens

OFF = Unset("no such rule")


@dataclass(frozen=True)
class FineWebLimits:
    """Thresholds of the rules, for documents; None switches a rule off."""

    line_punct_thr: Annotated[Share | None, OFF] = 0.12
    """The least share of lines that end with a mark that ends sentences."""

    line_punct_exclude_zero: bool = False
    """Whether texts are kept in which no line ends with a mark that ends sentences."""

    short_line_thr: Annotated[Share | None, OFF] = 0.67
    """The largest share of short lines."""

    short_line_length: Whole = 30
    """The number of characters up to which a line is short."""

    char_duplicates_ratio: Annotated[Share | None, OFF] = 0.01
    """The largest share of characters that are in lines that have occurred before."""

    new_line_ratio: Annotated[NotNegative | None, OFF] = 0.3
    """The largest ratio of line breaks to words; punctuation marks count as words here."""


CHINESE = FineWebLimits(line_punct_exclude_zero=True, short_line_length=8, char_duplicates_ratio=0.1)
"""Thresholds for Chinese. A line of eight characters is about as short as one of thirty letters. Verse, headings and
comments often have no mark at the end of any line. 0.1 is the paper's value; verse and exercises repeat lines."""


@dataclass(frozen=True)
class FineWeb(Quality, FineWebLimits):
    """Rejects texts of lists, of short lines, and of repeated lines.

    Columns: fineweb_line_punct_ratio, fineweb_short_line_ratio, fineweb_char_dup_ratio, fineweb_list_ratio.
    """

    rules: ClassVar = (
        Rule("line_punct_ratio", "fineweb_line_punct_ratio", "line_punct_thr", is_least=True),
        Rule("short_line_ratio", "fineweb_short_line_ratio", "short_line_thr"),
        Rule("char_dup_ratio", "fineweb_char_dup_ratio", "char_duplicates_ratio"),
        Rule("list_ratio", "fineweb_list_ratio", "new_line_ratio"),
    )
    reasons: ClassVar = tuple(rule.reason for rule in rules)
    prefix: ClassVar = "fineweb"

    zh: FineWebLimits = CHINESE
    """Thresholds for Chinese."""

    def measure(self, text: str, language: str) -> dict[str, Number]:
        """The columns of a text. One without lines has zeros. fineweb_line_punct_ratio is left out where it does not
        count (line_punct_exclude_zero)."""
        lines = [line for line in text.split("\n") if line.strip()]
        count, limits = max(1, len(lines)), self.limits(language)
        ended = sum(map(sentence_ends(language), lines))
        measured = dict(
            fineweb_short_line_ratio=sum(len(line) <= limits.short_line_length for line in lines) / count,
            fineweb_char_dup_ratio=duplicates(lines)[1] / max(1, len(text) - text.count("\n")),
            fineweb_list_ratio=text.count("\n") / max(1, len(tokens(text, language))),
        )
        if ended or not limits.line_punct_exclude_zero:
            measured["fineweb_line_punct_ratio"] = ended / count
        return measured
