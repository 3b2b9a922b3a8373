"""A classifier that tells how pleased a text sounds, for English or Chinese.

It is a logistic regression on the n-grams of a text, of words in English and of characters in Chinese. Each n-gram is
weighted by its log-count ratio, and each text is scaled to length 1 (Wang and Manning 2012, "Baselines and Bigrams").
The order of n-grams plays no part, so praise in any order fools it. It can still tell whether a reward that was
optimised agrees with one that was not.
"""

import re
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize

from ..errors import UserError

BUCKETS = 2**18  # number of buckets that n-grams are hashed into
SMOOTHING = 1.0  # added to every count
PENALTY = 0.3  # factor of half the squared weights, which are added to the sum of the texts' losses
TOLERANCE = 1e-6  # the fit ends when no derivative of the mean loss is larger
_UNITS = {"en": re.compile(r"[a-z]+(?:'[a-z]+)?|[0-9]+|[!?]"), "zh": re.compile(r"[\w!?]")}


@dataclass(frozen=True)
class SentimentClassifier:
    """A classifier of texts in one language."""

    language: str  # "en" or "zh"
    ratios: np.ndarray  # float64 [BUCKETS], the log-count ratio of each bucket
    regression: LogisticRegression  # fitted

    @classmethod
    def fit(cls, texts: Sequence[str], labels: Sequence[int], language: str) -> "SentimentClassifier":
        """Fits a classifier to texts.

        Args:
          texts: the texts.
          labels: 1 for the text of a pleased author, 0 for any other.
          language: "en" or "zh".

        Raises:
          UserError: one of the labels does not occur.
        """
        y = np.asarray(labels)
        if set(y.tolist()) != {0, 1}:
            raise UserError(f"the labels of the texts are {sorted(set(labels))}: give texts of both labels, 0 and 1")
        present = _present(texts, language)
        ratios = _log_count_ratios(present, y)
        regression = LogisticRegression(C=1 / PENALTY, tol=TOLERANCE, solver="newton-cg")
        return cls(language, ratios, regression.fit(_scale(present, ratios), y))

    def probability(self, texts: Sequence[str]) -> np.ndarray:
        """The probability that the author of each text is pleased, float64 [len(texts)].

        For a text whose n-grams are all unknown it is about the share of pleased texts in the fit.
        """
        return self.regression.predict_proba(_scale(_present(texts, self.language), self.ratios))[:, 1]

    def accuracy(self, texts: Sequence[str], labels: Sequence[int]) -> float:
        """The share of texts whose label is the more probable one."""
        return float(np.mean((self.probability(texts) > 0.5) == np.asarray(labels)))


def ngrams(text: str, language: str) -> list[str]:
    """The words (English) or characters (Chinese) of a text, and its pairs of neighbours."""
    units = _UNITS[language].findall(unicodedata.normalize("NFKC", text).lower())
    return units + [f"{a} {b}" for a, b in pairwise(units)]


def _present(texts: Sequence[str], language: str) -> sparse.csr_matrix:
    """1 where a text has an n-gram in a bucket, else 0: float64 [texts, BUCKETS]."""
    rows = [sorted({zlib.crc32(gram.encode()) % BUCKETS for gram in ngrams(text, language)}) for text in texts]
    ends = np.cumsum([0, *map(len, rows)])
    buckets = np.fromiter((bucket for row in rows for bucket in row), np.int32, ends[-1])
    return sparse.csr_matrix((np.ones(len(buckets)), buckets, ends), shape=(len(rows), BUCKETS))


def _log_count_ratios(present: sparse.csr_matrix, y: np.ndarray) -> np.ndarray:
    """The log of each bucket's smoothed share in texts of label 1 over that in label 0, float64 [BUCKETS]."""
    counts = np.stack([np.asarray(present[y == label].sum(axis=0)).ravel() + SMOOTHING for label in (0, 1)])
    log_shares = np.log(counts / counts.sum(axis=1, keepdims=True))
    return log_shares[1] - log_shares[0]


def _scale(present: sparse.csr_matrix, ratios: np.ndarray) -> sparse.csr_matrix:
    """`present` with each bucket multiplied by its ratio, and each text scaled to length 1."""
    return normalize(present @ sparse.diags(ratios)).tocsr()
