"""How pleased a text sounds: a classifier of reviews, and with it the gold score of the task `reviews`.

    gold(record, answer)     the probability that a passage is a pleased one, by a classifier that has seen only reviews
                             which neither policy nor reward model learn from
    proxy(record, answer)    the same by a classifier of the reward model's part, to optimise against

The classifier is logistic regression on the n-grams in a text, words in English and characters in Chinese, each
weighted by its log-count ratio and the whole scaled to length 1 (Wang and Manning 2012, "Baselines and Bigrams"). It
reads a bag, so it can be fooled by praise in any order; what it is for is to tell whether the reward that was optimised
still agrees with one that was not.
"""

import re
import unicodedata
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, pairwise

import numpy as np
from scipy import sparse

from ..errors import UserError
from ..tasks import reviews

BUCKETS = 2**18  # that n-grams are hashed into
SMOOTHING = 1.0  # added to every count
PENALTY = 0.3  # on half the squared weights, beside the sum of the texts' losses
TOLERANCE = 0.1  # the steepest that the loss may still be in any weight
MOST_STEPS = 2_000
_UNITS = {"en": re.compile(r"[a-z]+(?:'[a-z]+)?|[0-9]+|[!?]"), "zh": re.compile(r"[\w!?]")}


@dataclass(frozen=True)
class SentimentClassifier:
    """A classifier of texts in one language. weights: of each bucket, float [BUCKETS]."""

    language: str
    ratios: np.ndarray
    weights: np.ndarray
    bias: float

    @classmethod
    def fit(cls, texts: Sequence[str], labels: Sequence[int], language: str) -> "SentimentClassifier":
        """The classifier of texts with labels 0 and 1. Raises UserError where one of the labels is missing."""
        y = np.asarray(labels)
        if set(y.tolist()) != {0, 1}:
            raise UserError(f"a sentiment classifier needs texts of both labels, 0 and 1; it got {sorted(set(labels))}")
        present = _present(texts, language)
        ratios = _log_count_ratios(present, y)
        weights, bias = _regress(_scale(present, ratios), y)
        return cls(language, ratios, weights, bias)

    def probability(self, texts: Sequence[str]) -> np.ndarray:
        """How likely each text is a pleased one, float64 [len(texts)]; that of a text of unknown n-grams is the
        share of pleased ones, about."""
        logits = _scale(_present(texts, self.language), self.ratios) @ self.weights + self.bias
        return 1.0 / (1.0 + np.exp(-logits))

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
    weighted = (present @ sparse.diags(ratios)).tocsr()
    lengths = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
    return (sparse.diags(1.0 / np.maximum(lengths, 1e-9)) @ weighted).tocsr()


def _regress(x: sparse.csr_matrix, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights and bias of the penalised logistic regression of y on x.

    By accelerated gradient steps (Nesterov 1983) that start anew where they turn back (O'Donoghue and Candes 2015,
    arXiv:1204.3982). They take sparse products alone, which do not wait for the threads of a busy machine.
    """
    x = sparse.hstack([x, np.ones((x.shape[0], 1))], format="csr")  # the last weight is the bias
    transposed, signs = x.T.tocsr(), 2.0 * y - 1.0
    penalties = np.append(np.full(x.shape[1] - 1, PENALTY), 0.0)
    step = 1.0 / (0.25 * _largest_eigenvalue(x, transposed) + PENALTY)  # that of a loss as curved as this one can be
    found = ahead = np.zeros(x.shape[1])
    age = 1.0
    for _ in range(MOST_STEPS):
        gradient = penalties * ahead - transposed @ (signs * np.exp(-np.logaddexp(0.0, signs * (x @ ahead))))
        if np.abs(gradient).max() < TOLERANCE:
            break
        reached = ahead - step * gradient
        if np.sum(gradient * (reached - found)) > 0:
            age = 1.0
        next_age = (1.0 + np.sqrt(1.0 + 4.0 * age**2)) / 2.0
        ahead = reached + (age - 1.0) / next_age * (reached - found)
        found, age = reached, next_age
    return ahead[:-1], float(ahead[-1])


def _largest_eigenvalue(x: sparse.csr_matrix, transposed: sparse.csr_matrix) -> float:
    """Of the product of x and its transpose, or a little more, by power iteration."""
    vector, size = np.ones(x.shape[0]), 1.0
    for _ in range(30):
        vector = x @ (transposed @ (vector / size))
        size = np.sqrt(np.sum(vector**2))
    return 1.02 * size


@cache
def classifier(language: str, part: str) -> SentimentClassifier:
    """The classifier of a language that a part of the reviews makes, from its passages and its whole reviews."""
    read = [reviews.labelled(language, "train", part=part, whole=whole) for whole in (False, True)]
    pairs = dict.fromkeys(chain(*read))  # each once: a short review is its own passage
    return SentimentClassifier.fit(*zip(*pairs, strict=True), language)


def accuracies(part: str = "gold") -> dict[str, float]:
    """How often a part's classifier is right about the passages that it has not seen: its held-out ones and all of the
    other parts, by language."""
    found = {}
    for language in reviews.LANGUAGES:
        places = [(other, split) for other in reviews.PARTS for split in ("train", "heldout")]
        unseen = [reviews.labelled(language, s, part=p) for p, s in places if (p, s) != (part, "train")]
        texts, labels = zip(*chain(*unseen), strict=True)
        found[language] = classifier(language, part).accuracy(texts, labels)
    return found


def gold(record: Mapping, answer: str) -> float:
    """How pleased prompt and answer sound together, in [0, 1], to who has read other reviews than any model here."""
    return _score(record, answer, "gold")


def proxy(record: Mapping, answer: str) -> float:
    """The same to who has read the reviews that are there for the reward model."""
    return _score(record, answer, "reward")


def _score(record: Mapping, answer: str, part: str) -> float:
    prompt = record["messages"][-1]["content"].strip()
    passage = reviews.join(prompt, answer)
    return float(classifier(reviews.language_of(prompt), part).probability([passage])[0])
