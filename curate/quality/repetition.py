"""The step `gopher_repetition`: the rules against repetition of Gopher's MassiveText (arXiv:2112.11446, table A1).

Numbers are those of datatrove's GopherRepetitionFilter for the same words, with two differences. The most frequent
n-gram counts only if it occurs twice: else every text of a few words would repeat itself. In Chinese no spaces are
counted between the words of an n-gram.
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, ClassVar

from ...settings.leaves import Share, Unset
from .. import words
from .rules import Number, Quality, Rule, duplicates, tokens

OFF = Unset("no such rule")
Fraction = Annotated[Share | None, OFF]
TOP, REPEATED = (2, 3, 4), (5, 6, 7, 8, 9, 10)


@dataclass(frozen=True)
class RepetitionLimits:
    """The largest fractions that are kept; None switches a rule off."""

    dup_line_frac: Fraction = 0.3
    """Lines that have occurred before, of all lines."""

    dup_para_frac: Fraction = 0.3
    """Paragraphs that have occurred before, of all paragraphs."""

    dup_line_char_frac: Fraction = 0.2
    """Characters in lines that have occurred before, of all characters."""

    dup_para_char_frac: Fraction = 0.2
    """Characters in paragraphs that have occurred before, of all characters."""

    top_2_gram: Fraction = 0.2
    """Characters in the most frequent pair of words, of all characters."""

    top_3_gram: Fraction = 0.18
    """Characters in the most frequent triple of words."""

    top_4_gram: Fraction = 0.16
    """Characters in the most frequent four words in a row."""

    duplicated_5_n_grams: Fraction = 0.15
    """Characters in 5-grams that have occurred before, overlaps counted once."""

    duplicated_6_n_grams: Fraction = 0.14
    """Characters in 6-grams that have occurred before."""

    duplicated_7_n_grams: Fraction = 0.13
    """Characters in 7-grams that have occurred before."""

    duplicated_8_n_grams: Fraction = 0.12
    """Characters in 8-grams that have occurred before."""

    duplicated_9_n_grams: Fraction = 0.11
    """Characters in 9-grams that have occurred before."""

    duplicated_10_n_grams: Fraction = 0.10
    """Characters in 10-grams that have occurred before."""


NAMES = (
    *("dup_para_frac", "dup_para_char_frac", "dup_line_frac", "dup_line_char_frac"),
    *(f"top_{n}_gram" for n in TOP),
    *(f"duplicated_{n}_n_grams" for n in REPEATED),
)
"""The rules, in the order in which they are asked."""

CHINESE = RepetitionLimits(
    top_3_gram=0.2,
    top_4_gram=0.2,
    duplicated_5_n_grams=0.2,
    duplicated_6_n_grams=0.18,
    duplicated_7_n_grams=0.16,
    duplicated_8_n_grams=0.14,
    duplicated_9_n_grams=0.12,
    duplicated_10_n_grams=0.12,
)
"""Thresholds for Chinese, whose words are shorter: its n-grams are set phrases and punctuation more often."""


@dataclass(frozen=True)
class GopherRepetition(Quality, RepetitionLimits):
    """Rejects texts that repeat lines, paragraphs or words. Columns: repetition_<name of the rule>, fractions."""

    rules: ClassVar = tuple(Rule(name, f"repetition_{name}", name) for name in NAMES)
    reasons: ClassVar = NAMES
    prefix: ClassVar = "repetition"

    zh: RepetitionLimits = CHINESE
    """Thresholds for Chinese."""

    def measure(self, text: str, language: str) -> dict[str, Number]:
        """The columns of a text. A text without characters has zeros."""
        paragraphs, lines = re.split(r"\n{2,}", text.strip()), re.split(r"\n+", text)
        paragraph_count, paragraph_characters = duplicates(paragraphs)
        line_count, line_characters = duplicates(lines)
        found = tokens(text, language)
        gap = 0 if words.is_chinese(language) else 1
        size = max(1, len(text))
        values = [paragraph_count / len(paragraphs), paragraph_characters / size]
        values += [line_count / len(lines), line_characters / size]
        values += [each / size for each in top_n_grams(found, gap)]
        values += [each / size for each in repeated_n_grams(found)]
        return {rule.column: value for rule, value in zip(self.rules, values, strict=True)}


def top_n_grams(found: tuple[str, ...], gap: int) -> list[int]:
    """For each n of TOP: the characters of all places of the most frequent n-gram, 0 if none occurs twice.

    Args:
      found: the words of a text.
      gap: characters between two words of an n-gram.
    """
    sizes = []
    for n in TOP:
        if sizes and not sizes[-1]:
            sizes.append(0)  # what does not occur twice is no beginning of what does
            continue
        counts = Counter(zip(*(found[start:] for start in range(n)), strict=False))
        top, count = max(counts.items(), key=lambda pair: pair[1], default=((), 0))
        sizes.append((sum(map(len, top)) + gap * (n - 1)) * count if count > 1 else 0)
    return sizes


def repeated_n_grams(found: tuple[str, ...]) -> list[int]:
    """For each n of REPEATED: the characters in n-grams that have occurred before, from left to right, without
    overlaps."""
    sizes = []
    for n in REPEATED:
        if sizes and not sizes[-1]:
            sizes.append(0)
            continue
        seen: set[tuple[str, ...]] = set()
        grams = list(zip(*(found[start:] for start in range(n)), strict=False))
        place = characters = 0
        while place < len(grams):
            gram = grams[place]
            if gram in seen:
                characters += sum(map(len, gram))
                place += n
            else:
                seen.add(gram)
                place += 1
        sizes.append(characters)
    return sizes
