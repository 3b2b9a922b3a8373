"""ROUGE-L equals the package rouge-score's, and the index keeps exactly what comparing all pairs keeps."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camelid.curate.teachers.novelty import Novelty
from camelid.curate.teachers.rouge import lcs, positions_of, rouge_l, rouge_words

rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="rouge-score is not installed")
WORDS = [f"w{i}" for i in range(8)]
TEXTS = [
    "Give three tips for staying healthy.",
    "Give me 3 tips for staying HEALTHY!",
    "Don't re-write C++ in café №5: it's 3.14",
    "",
    "...",
    "a a a b a a",
]


def table_score(a, b):
    return rouge_scorer._score_lcs(a, b).fmeasure


@pytest.mark.parametrize("a", TEXTS)
def test_scores_of_english_texts_equal_those_of_rouge_score(a):
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    for b in TEXTS:
        assert rouge_l(rouge_words(a), rouge_words(b)) == scorer.score(a, b)["rougeL"].fmeasure


@given(*[st.lists(st.sampled_from(WORDS), max_size=90)] * 2)
@settings(max_examples=60, deadline=None)
def test_a_common_subsequence_is_as_long_as_the_table_says(a, b):
    expected = rouge_scorer._lcs_table(a, b)[-1][-1] if a and b else 0
    assert lcs(positions_of(a), len(a), b) == lcs(positions_of(b), len(b), a) == expected


def test_chinese_is_compared_by_words_and_not_by_letters_nor_left_out():
    one, other = rouge_words("请把这个句子翻译成英文"), rouge_words("请把这个句子翻译成法文")
    assert one == ["请", "把", "这个", "句子", "翻译成", "英文"]
    assert rouge_l(one, other) == pytest.approx(5 / 6)
    assert rouge_l(rouge_words("电脑"), rouge_words("大脑")) == 0  # which share a letter and no word
    assert rouge_words("用Python写函数。") == ["用", "python", "写", "函数"]


def texts(count, seed):
    """Random texts with many near the threshold: earlier ones with some words replaced, added, or exchanged."""
    rng, found = random.Random(seed), []
    vocabulary = [f"v{int(rng.paretovariate(0.7))}" for _ in range(400)]
    for _ in range(count):
        if found and rng.random() < 0.7:
            words = list(rng.choice(found))
            for _ in range(rng.randrange(1 + len(words) // 2)):
                words[rng.randrange(len(words))] = rng.choice(vocabulary)
            if rng.random() < 0.3:
                words += rng.choices(vocabulary, k=rng.randrange(1, 4))
            rng.random() < 0.3 and rng.shuffle(words)
        else:
            words = rng.choices(vocabulary, k=rng.randrange(1, 25))
        found.append(words)
    return found


@pytest.mark.parametrize("threshold", [0.7, 0.5, 0.0, 0.9])
def test_the_kept_texts_are_those_of_comparing_all_pairs_by_rouge_score(threshold):
    novelty, kept = Novelty(threshold), []
    for number, text in enumerate(texts(110, seed=int(threshold * 10))):
        scores = [table_score(other, text) for _, other in kept]
        similar = novelty.add(text)
        if max(scores, default=0.0) > threshold:
            assert (similar.score, similar.place) == (max(scores), scores.index(max(scores)))
        else:
            assert similar is None
            kept.append((number, text))
    assert len(novelty) == len(kept)
    assert 1 < len(kept) < 109


def test_the_most_similar_text_is_the_first_of_those_with_the_highest_score():
    novelty, kept = Novelty(), []
    for text in texts(80, seed=3):
        scores = [table_score(other, text) for other in kept]
        similar = novelty.nearest(text)
        if max(scores, default=0.0) > 0:
            assert (similar.score, similar.place) == (max(scores), scores.index(max(scores)))
        else:
            assert similar is None
        novelty.keep(text)
        kept.append(text)


def test_a_score_of_exactly_the_threshold_is_new_where_rouge_score_rounds_it_so():
    for a, b in [(range(10), range(3, 13)), (range(7), range(13)), (range(14), range(26)), (range(20), range(6, 26))]:
        one, other = [f"x{i}" for i in a], [f"x{i}" for i in b]
        novelty = Novelty(0.7)
        assert novelty.add(one) is None
        assert (novelty.add(other) is not None) == (table_score(one, other) > 0.7)


def test_texts_without_words_are_always_new():
    novelty = Novelty(0.7)
    assert [novelty.add([]), novelty.add([]), novelty.add(["a"]), novelty.add(["a"]) is not None] == [None] * 3 + [True]
