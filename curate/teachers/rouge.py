"""ROUGE-L of two texts, as the package rouge-score computes it, with Chinese split into words.

ROUGE-L is the F-measure of the longest common subsequence of the words of two texts (Lin, "ROUGE: a package for
automatic evaluation of summaries", 2004). Self-instruct (arXiv:2212.10560, section 2.2) and Alpaca take an instruction
as new if its ROUGE-L with every earlier one is at most 0.7.
"""

import re
from collections.abc import Mapping, Sequence

from ..words import HAN, split

_PIECE = re.compile(f"[a-z0-9]+|[{HAN}]+")


def rouge_words(text: str) -> list[str]:
    """The words of a text that ROUGE-L compares.

    Runs of ASCII letters and digits are words in lower case, which is the tokenizer of rouge-score without stemming.
    Runs of Chinese characters are split into words by `words.split`. All other characters only separate words.
    """
    found = []
    for piece in _PIECE.findall(text.lower()):
        found += [piece] if piece.isascii() else split(piece, "zh")
    return found


def rouge_l(a: Sequence[str], b: Sequence[str]) -> float:
    """ROUGE-L of two lists of words, from 0 to 1; 0 if one of them is empty."""
    return f_measure(lcs(positions_of(a), len(a), b), len(a), len(b))


def f_measure(common: int, a: int, b: int) -> float:
    """The F-measure of a common subsequence, rounded as rouge-score rounds it.

    Args:
      common: words of the common subsequence.
      a, b: number of words of the two texts.
    """
    if not common:
        return 0.0
    precision, recall = common / a, common / b
    return 2 * precision * recall / (precision + recall)


def positions_of(words: Sequence[str]) -> dict[str, int]:
    """For each word a number whose bit i is set if the word stands at place i."""
    found: dict[str, int] = {}
    for place, word in enumerate(words):
        found[word] = found.get(word, 0) | 1 << place
    return found


def lcs(positions: Mapping[str, int], length: int, others: Sequence[str]) -> int:
    """The length of the longest common subsequence of two lists of words.

    All columns of a row of the table of lengths are computed at once, as bits of one number (Hyyrö, "Bit-parallel LCS
    length computation revisited", 2004). It takes as many steps as `others` has words.

    Args:
      positions: of the first list, as `positions_of` gives it.
      length: number of words of the first list.
      others: the second list.
    """
    whole = row = (1 << length) - 1
    for word in others:
        if (at := positions.get(word)) is not None:
            met = row & at
            row = (row + met | row - met) & whole
    return length - row.bit_count()
