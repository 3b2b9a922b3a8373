"""The classifier of sentiment: what it learns, and that its probabilities are those of the least loss."""

import math

import numpy as np
import pytest
from scipy import optimize

from camelid.errors import UserError
from camelid.tasks import sentiment
from camelid.tasks.sentiment import SentimentClassifier, ngrams

GOOD = ["a great film", "great acting, a joy", "what a joy!", "not bad at all"]
BAD = ["a bad film", "bad acting, a bore", "what a bore!", "not great at all"]


@pytest.fixture(scope="module")
def english() -> SentimentClassifier:
    return SentimentClassifier.fit(GOOD + BAD, [1] * 4 + [0] * 4, "en")


def test_ngrams_are_words_or_characters_and_their_pairs():
    words = ["it's", "great", "isn't", "it", "?"]
    assert ngrams("It's GREAT, isn't it?", "en") == [*words, "it's great", "great isn't", "isn't it", "it ?"]
    assert ngrams("很好！ＯＫ", "zh") == ["很", "好", "!", "o", "k", "很 好", "好 !", "! o", "o k"]


def test_it_tells_new_texts_apart_and_heeds_pairs_of_words(english):
    likely = english.probability(["such a joy", "such a bore", "not bad", "not great"])
    assert likely[0] > 0.6 > 0.4 > likely[1]
    assert likely[2] > likely[3]
    assert english.accuracy(GOOD + BAD, [1] * 4 + [0] * 4) == 1.0
    assert english.accuracy(GOOD + BAD, [0] * 4 + [1] * 4) == 0.0


def test_a_text_of_nothing_known_is_a_coin_toss(english):
    likely = english.probability(["", "zzz qqq"])
    assert likely == pytest.approx(0.5, abs=0.02) and likely.dtype == np.float64


def test_repeating_praise_does_not_pay(english):
    once, often = english.probability(["great joy", "great joy great joy great joy great joy"])
    assert often == pytest.approx(once, abs=0.05)


def test_chinese_is_read_by_characters():
    texts = ["很好，很满意", "非常好", "满意的一次", "很差，很失望", "非常差", "失望的一次"]
    chinese = SentimentClassifier.fit(texts, [1, 1, 1, 0, 0, 0], "zh")
    good, bad = chinese.probability(["好满意", "差失望"])
    assert good > 0.6 > 0.4 > bad


def test_probabilities_are_those_of_the_least_loss_counted_out_in_plain_python(english):
    """The independent twin: n-grams in dicts, and another package's minimiser of the loss written out."""
    texts, labels = GOOD + BAD, [1] * 4 + [0] * 4
    bags = [set(ngrams(text, "en")) for text in texts]
    vocabulary = sorted(set().union(*bags))
    counts = {
        label: {
            gram: 1 + sum(gram in bag for bag, y in zip(bags, labels, strict=True) if y == label) for gram in vocabulary
        }
        for label in (0, 1)
    }
    total = {label: sum(found.values()) + sentiment.BUCKETS - len(vocabulary) for label, found in counts.items()}
    ratio = {gram: math.log(counts[1][gram] / total[1]) - math.log(counts[0][gram] / total[0]) for gram in vocabulary}

    def scaled(bag):
        values = [ratio[gram] if gram in bag else 0.0 for gram in vocabulary]
        return [value / math.sqrt(sum(v * v for v in values)) for value in values]

    def logit(parameters, row):
        return sum(w * v for w, v in zip(parameters[:-1], row, strict=True)) + parameters[-1]

    def loss(parameters):
        losses = [
            math.log1p(math.exp(-logit(parameters, row) if y else logit(parameters, row)))
            for row, y in zip(rows, labels, strict=True)
        ]
        return 0.5 * sentiment.PENALTY * sum(w * w for w in parameters[:-1]) + sum(losses)

    rows = [scaled(bag) for bag in bags]
    least = optimize.minimize(loss, np.zeros(len(vocabulary) + 1), options={"gtol": 1e-6}).x
    for text in (*texts, "a joy at all", "bad, a bore!"):
        expected = 1 / (1 + math.exp(-logit(least, scaled(set(ngrams(text, "en"))))))
        assert english.probability([text])[0] == pytest.approx(expected, abs=2e-4), text


@pytest.mark.parametrize("labels", [[1, 1], [0, 0]])
def test_one_label_alone_teaches_nothing(labels):
    with pytest.raises(UserError, match="give texts of both labels"):
        SentimentClassifier.fit(["a", "b"], labels, "en")
