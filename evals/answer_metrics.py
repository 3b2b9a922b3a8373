"""Scores of an answer beside its references: metrics by name, or functions of the user's own.

A metric is a function metric(answer, references) -> float, larger is better.
"""

import contextlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction

from ..data.samples import CJK
from ..errors import UserError, did_you_mean
from ..settings import functions

Metric = Callable[[str, Sequence[str]], float]

NUMBER = re.compile(
    r"(?<![\d.])[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,4}|/\d+)?(?![\d²³])"
)
"""A number with signs, commas between thousands, decimals, an exponent or a denominator."""

WORD = re.compile(r"[\N{CJK UNIFIED IDEOGRAPH-4E00}-\N{CJK UNIFIED IDEOGRAPH-9FFF}]|[^\W_]+")
"""A word of an alphabet, or one Chinese character."""

ARTICLES = re.compile(r"\b(a|an|the)\b")
KEPT = "#%+"
"""Punctuation that is part of what is meant, as in C# and 5%."""


def plain(text: str) -> str:
    """A text for comparison: NFKC, lower case, without punctuation and needless spaces.

    NFKC makes full-width characters plain. A minus before a digit stays, and so do # and %.
    """
    text = unicodedata.normalize("NFKC", text).casefold().replace("\N{MINUS SIGN}", "-")
    text = re.sub(r"-(?!\d)|(?<=\w)-", " ", text)
    return " ".join(
        "".join(" " if unicodedata.category(c).startswith("P") and c not in (*KEPT, "-") else c for c in text).split()
    )


def normalised(text: str) -> str:
    """A plain text without English articles, as in the evaluation of SQuAD (arXiv:1606.05250, section 6.1); with them
    where nothing else is left, and the text itself where it is nothing but punctuation."""
    found = plain(text)
    return " ".join(ARTICLES.sub(" ", found).split()) or found or text.strip()


def exact(answer: str, references: Sequence[str]) -> float:
    """1 if the normalised answer is one of the normalised references."""
    return float(normalised(answer) in map(normalised, references))


def contains(answer: str, references: Sequence[str]) -> float:
    """1 if a plain reference stands in the plain answer, as whole words; Chinese anywhere."""
    return float(any(_stands_in(plain(each) or each.strip(), plain(answer) or answer) for each in references))


def _stands_in(part: str, whole: str) -> bool:
    if CJK.search(part):
        return part in whole
    return f" {part} " in f" {whole} " or re.search(rf"(?<!\w){re.escape(part)}(?!\w)", whole) is not None


def starts(answer: str, references: Sequence[str]) -> float:
    """1 if the answer's first line is a reference, normalised: what a base model goes on with does not count."""
    return exact(answer.strip().partition("\n")[0], references)


def number(answer: str, references: Sequence[str]) -> float:
    """1 if the last number of the answer equals the last number of a reference.

    What stands after "####" is taken first, in answer and reference, as GSM8K writes it (arXiv:2110.14168).
    """
    found = last_number(answer)
    return float(found is not None and found in map(last_number, references))


def last_number(text: str) -> Fraction | None:
    """The last number of a text, or of what stands after its last "####"; None if there is none."""
    text = text.translate(WIDE).replace("\N{MINUS SIGN}", "-")
    found = NUMBER.findall(text.rpartition("####")[2]) or NUMBER.findall(text)
    for each in reversed(found):
        with contextlib.suppress(ZeroDivisionError, ValueError):
            top, _, bottom = each.replace(",", "").partition("/")
            return Fraction(top) / Fraction(bottom or 1)
    return None


WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
"""Full-width forms of ASCII characters."""


def f1(answer: str, references: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of words, Chinese by characters, with the best reference."""
    return max(_f1(_words(answer), _words(each)) for each in references)


def _words(text: str) -> Counter[str]:
    return Counter(WORD.findall(normalised(text)))


def _f1(answer: Counter[str], reference: Counter[str]) -> float:
    shared = (answer & reference).total()
    return 2 * shared / (answer.total() + reference.total()) if shared else 0.0


METRICS: dict[str, Metric] = {each.__name__: each for each in (exact, starts, contains, number, f1)}


def find(name: str, where: str) -> Metric:
    """The metric called `name`, or a function of the user's own. Raises UserError, which begins with `where`."""
    if ":" in name:
        return functions.find_function(name, where, "metric(answer, references)", "", [""])
    if name not in METRICS:
        known = f"{', '.join(METRICS)} or a function {functions.FORMS}"
        raise UserError(f"{where}: there is no metric {name!r}, only {known}{did_you_mean(name, METRICS)}")
    return METRICS[name]
