"""Scores of an answer beside its references: metrics by name, or functions of the user's as "package.module:name".

A metric is a function metric(answer, references) -> float, larger is better.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from ..errors import UserError, did_you_mean
from ..settings import functions

Metric = Callable[[str, Sequence[str]], float]

NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")
WORD = re.compile(r"[\N{CJK UNIFIED IDEOGRAPH-4E00}-\N{CJK UNIFIED IDEOGRAPH-9FFF}]|[^\W_]+")
"""A word of an alphabet, or one Chinese character."""


def normalised(text: str) -> str:
    """A text for comparison: NFKC, lower case, without punctuation, English articles and needless spaces.

    As in the evaluation of SQuAD (arXiv:1606.05250, section 6.1); NFKC makes full-width characters plain.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = "".join(" " if unicodedata.category(c).startswith("P") or c in string.punctuation else c for c in text)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact(answer: str, references: Sequence[str]) -> float:
    """1 if the normalised answer is one of the normalised references."""
    return float(normalised(answer) in map(normalised, references))


def contains(answer: str, references: Sequence[str]) -> float:
    """1 if a normalised reference stands in the normalised answer."""
    return float(any(normalised(each) in normalised(answer) for each in references))


def starts(answer: str, references: Sequence[str]) -> float:
    """1 if the answer's first line is a reference, normalised: what a base model goes on with does not count."""
    return exact(answer.strip().partition("\n")[0], references)


def number(answer: str, references: Sequence[str]) -> float:
    """1 if the last number of the answer equals the last number of a reference.

    What stands after "####" is taken first, in answer and reference, as GSM8K writes it (arXiv:2110.14168).
    """
    found = last_number(answer)
    return float(found is not None and found in map(last_number, references))


def last_number(text: str) -> float | None:
    """The last number of a text, or of what stands after its last "####"; None if there is none."""
    text = unicodedata.normalize("NFKC", text)
    found = NUMBER.findall(text.rpartition("####")[2]) or NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


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
    """The metric called `name`, or the function "package.module:name". Raises UserError, which begins with `where`."""
    if ":" in name:
        return functions.find_function(name, where, "metric(answer, references)", "", [""])
    if name not in METRICS:
        known = f"{', '.join(METRICS)} or package.module:name"
        raise UserError(f"{where}: there is no metric {name!r}, only {known}{did_you_mean(name, METRICS)}")
    return METRICS[name]
