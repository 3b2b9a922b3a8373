"""How pleased a text sounds: a classifier of texts in English or Chinese.

Logistic regression on the n-grams in a text, words in English and characters in Chinese, each weighted by its log-count
ratio and the whole scaled to length 1 (Wang and Manning 2012, "Baselines and Bigrams"). It reads a bag of n-grams, so
praise in any order fools it; it can tell whether a reward that was optimised still agrees with one that was not.
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

BUCKETS = 2**18  # that n-grams are hashed into
SMOOTHING = 1.0  # added to every count
PENALTY = 0.3  # on half the squared weights, beside the sum of the texts' losses
TOLERANCE = 1e-6  # the largest derivative of the mean loss at which the fit ends
_UNITS = {"en": re.compile(r"[a-z]+(?:'[a-z]+)?|[0-9]+|[!?]"), "zh": re.compile(r"[\w!?]")}


@dataclass(frozen=True)
class SentimentClassifier:
    """A classifier of texts in one language."""

    language: str
    ratios: np.ndarray  # float64 [BUCKETS], the log-count ratio of each bucket
    regression: LogisticRegression

    @classmethod
    def fit(cls, texts: Sequence[str], labels: Sequence[int], language: str) -> "SentimentClassifier":
        """The classifier of texts with labels 0 and 1. Raises UserError where one of the labels is missing."""
        y = np.asarray(labels)
        if set(y.tolist()) != {0, 1}:
            raise UserError(f"a sentiment classifier needs texts of both labels, 0 and 1; it got {sorted(set(labels))}")
        present = _present(texts, language)
        ratios = _log_count_ratios(present, y)
        regression = LogisticRegression(C=1 / PENALTY, tol=TOLERANCE, solver="newton-cg")
        return cls(language, ratios, regression.fit(_scale(present, ratios), y))

    def probability(self, texts: Sequence[str]) -> np.ndarray:
        """The probability that each text is a pleased one, float64 [len(texts)].

        For a text of unknown n-grams it is about the share of pleased texts among those of the fit.
        """
        return self.regression.predict_proba(_scale(_present(texts, self.language), self.ratios))[:, 1]

    def accuracy(self, texts: Sequence[str], labels: Sequence[int]) -> float:
        """The share of texts whose label is the likelier one."""
        return float(np.mean((self.probability(texts) > 0.5) == np.asarray(labels)))


def ngrams(text: str, language: str) -> list[str]:
    """The words or characters of a text, and each two that follow each other."""
    units = _UNITS[language].findall(unicodedata.normalize("NFKC", text).lower())
    return units + [f"{a} {b}" for a, b in pairwise(units)]


def _present(texts: Sequence[str], language: str) -> sparse.csr_matrix:
    """1 where a text has an n-gram of a bucket, [texts, BUCKETS]."""
    rows = [sorted({zlib.crc32(gram.encode()) % BUCKETS for gram in ngrams(text, language)}) for text in texts]
    ends = np.cumsum([0, *map(len, rows)])
    buckets = np.fromiter((bucket for row in rows for bucket in row), np.int32, ends[-1])
    return sparse.csr_matrix((np.ones(len(buckets)), buckets, ends), shape=(len(rows), BUCKETS))


def _log_count_ratios(present: sparse.csr_matrix, y: np.ndarray) -> np.ndarray:
    counts = np.stack([np.asarray(present[y == label].sum(axis=0)).ravel() + SMOOTHING for label in (0, 1)])
    log_shares = np.log(counts / counts.sum(axis=1, keepdims=True))
    return log_shares[1] - log_shares[0]


def _scale(present: sparse.csr_matrix, ratios: np.ndarray) -> sparse.csr_matrix:
    """Each n-gram times its ratio, each text at length 1."""
    return normalize(present @ sparse.diags(ratios)).tocsr()
