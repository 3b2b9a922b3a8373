"""Published judgments of every kind are read, and what follows from them is what their authors print."""

import json
import math

import numpy as np
import pytest

from camelid.errors import UserError
from camelid.evals import ratings
from camelid.evals.judgments import Judgment
from camelid.evals.published import battles, battles_and_questions, read, totals


def write(path, *records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    return path


def review(question, score, text="8 7\nGood."):
    ids = {"review_id": f"r{question}", "answer1_id": "x", "answer2_id": "y", "reviewer_id": 1, "metadata": {}}
    return ids | {"question_id": question, "text": text, "score": score}


@pytest.fixture
def reviews(tmp_path):
    questions = [{"question_id": 1, "category": "math"}, {"question_id": 2, "category": "math"}]
    questions += [{"question_id": 3, "category": "writing"}, {"question_id": 4, "category": "writing"}]
    scores = ([10, 2.5], [9.0, 4.0], [8, 9], [-1, -1])
    records = [review(question, score) for question, score in enumerate(scores, 1)]
    return write(tmp_path / "review_gpt35_vicuna-13b-v1_1.jsonl", *records), write(tmp_path / "q.jsonl", *questions)


def test_reviews_have_the_models_of_their_file_name_and_the_categories_of_the_questions(reviews):
    path, questions = reviews
    first, *_, last = read(path, questions=questions)
    models = ("gpt35", "vicuna-13b-v1_1")
    assert first == Judgment("1", models, "gpt-4-0328", (10.0, 2.5), "a", "math", text="8 7\nGood.")
    assert last.failed and last.category == "writing" and last.scores is None
    assert next(iter(read(path))).category == ""
    other = path.rename(path.with_name("gpt-3.5-turbo_review_bard_vicuna.jsonl"))
    assert next(iter(read(other))).judge == "gpt-3.5-turbo" and next(iter(read(other))).models == ("bard", "vicuna")
    with pytest.raises(UserError, match=r"reviews.jsonl:1: reviews name their models only in the file's name: rename"):
        list(read(path.with_name("gpt-3.5-turbo_review_bard_vicuna.jsonl").rename(path.with_name("reviews.jsonl"))))


def test_totals_are_sums_of_scores_by_category_without_those_that_failed(reviews):
    path, questions = reviews
    found = totals(read(path, questions=questions))
    assert {group: each[:2] for group, each in found.items()} == {"": (27, 15.5), "math": (19, 6.5), "writing": (8, 9)}
    assert {group: each.failed for group, each in found.items()} == {"": 1, "math": 0, "writing": 1}
    assert found["math"].ratio.value == pytest.approx(6.5 / 19)
    errors_N = np.array([2.5, 4.0]) - 6.5 / 19 * np.array([10, 9])  # the ratio's standard error, linearised
    assert found["math"].ratio.stderr == pytest.approx(np.sqrt(2 * (errors_N**2).sum()) / 19)
    mixed = [*read(path), Judgment("9", ("other", "model"), "j", (1.0, 1.0))]
    with pytest.raises(UserError, match="question 9 has other and model after gpt35 and vicuna-13b-v1_1: give scored"):
        totals(mixed)
    with pytest.raises(UserError, match="writing: there are no scores to sum up"):
        totals([judgment for judgment in read(path, questions=questions) if judgment.question != "3"])


def mt_pair(question, g1, g2, **more):
    texts = {"g1_judgment": "[[A]]", "g2_judgment": "[[B]]", "judge": ["gpt-4", "pair-v2"], "turn": 1}
    return texts | {"question_id": question, "model_1": "x", "model_2": "y", "g1_winner": g1, "g2_winner": g2} | more


def test_mt_bench_pairs_are_one_judgment_in_each_order_and_one_battle(tmp_path):
    outcomes = [("model_1", "model_1"), ("model_2", "model_2"), ("model_1", "model_2"), ("tie", "model_1")]
    outcomes += [("tie", "tie"), ("error", "model_1"), ("model_2", "error")]
    path = write(tmp_path / "gpt-4_pair.jsonl", *(mt_pair(81 + i, *each) for i, each in enumerate(outcomes)))
    found = list(read(path))
    assert found[0] == Judgment("81", ("x", "y"), "gpt-4", winner="a", text="[[A]]")
    assert found[1] == Judgment("81", ("y", "x"), "gpt-4", winner="b", text="[[B]]")  # model_1 came second
    assert [judgment.winner for judgment in found[2:6]] == ["b", "a", "a", "a"]
    assert [judgment.failed for judgment in found[10:]] == [True, False, False, True]
    assert battles(found) == [("x", "y", winner) for winner in ("a", "b", "tie", "tie", "tie")]
    assert battles(found[::-1]) == [("y", "x", winner) for winner in ("tie", "tie", "tie", "a", "b")]
    assert len(battles(found, join=False)) == 12
    assert battles_and_questions(found)[1] == (("x", "y", "b"), "82")


def test_turns_judges_and_repetitions_are_battles_of_their_own(tmp_path):
    records = [mt_pair(81, "model_1", "model_1"), mt_pair(81, "model_2", "model_2", turn=2)]
    records += [mt_pair(81, "tie", "tie", judge=["claude", "pair-v2"]), mt_pair(81, "model_1", "model_2")]
    found = battles(read(write(tmp_path / "x.jsonl", *records)))
    assert sorted(found) == [("x", "y", "a"), ("x", "y", "b"), ("x", "y", "tie"), ("x", "y", "tie")]


def test_mt_bench_single_grades_are_scores(tmp_path):
    common = {"question_id": 81, "model": "x", "judge": ["gpt-4", "single-v1"], "user_prompt": "", "tstamp": 1.0}
    records = [common | {"judgment": "Rating: [[9]]", "score": 9, "turn": 2}]
    records += [common | {"judgment": "I cannot.", "score": -1, "turn": 1}]
    records += [common | {"judgment": "Rating: [[99]]", "score": 99, "turn": 1}]  # not on the scale from 1 to 10
    graded, failed, beyond = read(write(tmp_path / "gpt-4_single.jsonl", *records))
    assert beyond.failed
    assert graded == Judgment("81", ("x",), "gpt-4", (9.0,), turn=2, text="Rating: [[9]]")
    assert failed.failed and failed.scores is None
    with pytest.raises(UserError, match="question 81: the judgment of a single answer is no battle; give pairs"):
        battles([graded])
    pair = mt_pair(81, "model_1", "model_1", m1_score=9, m2_score=-1)  # a pair of two single grades
    assert [(each.models, each.scores) for each in read(write(tmp_path / "x.jsonl", pair))] == [
        (("x",), (9.0,)),
        (("y",), None),
    ]


def test_alpaca_eval_annotations_have_a_probability_and_lengths(tmp_path):
    common = {"instruction": "Hi?", "output_1": "Hello.", "output_2": "你好", "generator_1": "gpt4", "generator_2": "x"}
    common |= {"annotator": "weighted", "dataset": "koala"}
    preferences = [1.25, 2, 1.5, 0, None, float("nan")]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps([common | {"preference": each} for each in preferences]))
    found = list(read(path))
    assert found[0] == Judgment("Hi?", ("gpt4", "x"), "weighted", None, "a", "koala", lengths=(6, 2), weight=0.25)
    assert [each.winner for each in found] == ["a", "b", "tie", "tie", None, None]
    assert [each.weight for each in found] == [0.25, 1.0, 0.5, 0.5, None, None]
    path.write_text(json.dumps([common | {"preference": 3}]))
    with pytest.raises(UserError, match=r"annotations.json, record 1: preference is 3.0: it must be from 1 to 2"):
        list(read(path))


def arena_hard(question, *labels, **more):
    games = [None if label is None else {"score": label, "judgment": f"So: [[{label}]]"} for label in labels]
    return {"question_id": question, "model": "x", "judge": "gpt-4", "games": games} | more


def test_arena_hard_judgments_of_both_versions_are_two_games(tmp_path):
    new = {"category": "creative_writing", "uid": "u1", "model": "x", "judge": "gpt-4.1"}
    new["games"] = [{"score": "A<<B", "judgment": {"answer": "[[A<<B]]"}}, {"score": None, "judgment": {"answer": "?"}}]
    records = [arena_hard("q1", "A>>B", "A=B"), arena_hard("q2", None, "B>A"), new, new | {"baseline": "own"}]
    found = list(read(write(tmp_path / "x.jsonl", *records)))
    assert found[0] == Judgment("q1", ("gpt-4-0314", "x"), "gpt-4", None, "a", text="So: [[A>>B]]")
    assert [each.winner for each in found] == ["a", "tie", None, "b", "b", None, "b", None]
    assert [each.models for each in found[4:7]] == [
        ("gemini-2.0-flash-001", "x"),
        ("x", "gemini-2.0-flash-001"),
        ("own", "x"),
    ]
    assert found[4].question == "u1" and found[4].text == "[[A<<B]]"
    assert battles(found[:2], join=False, decisive=3) == [("gpt-4-0314", "x", "a")] * 3 + [("x", "gpt-4-0314", "tie")]
    assert battles(found) == [("gpt-4-0314", "x", "tie")]
    both = read(write(tmp_path / "y.jsonl", arena_hard("q1", "A>>B", "B>>A"), arena_hard("q2", "A>>B", "A>B")))
    assert battles(both, decisive=3) == [("gpt-4-0314", "x", "a")] * 3 + [("gpt-4-0314", "x", "tie")]
    other = write(tmp_path / "w.jsonl", arena_hard("q1", "A>B", "A=B"))
    assert [each.models for each in read(other, baseline="mine")] == [("mine", "x"), ("x", "mine")]
    unknown = write(tmp_path / "z.jsonl", arena_hard("q", "A>B", "A>B", category="jokes"))
    with pytest.raises(UserError, match=r"z.jsonl:1: the record names no baseline, and none is known for .* jokes"):
        list(read(unknown))


def test_votes_are_battles_and_those_of_people_who_saw_the_names_are_left_out(tmp_path):
    votes = ["model_a", "model_b", "tie", "tie (bothbad)", "both_bad"]
    records = [{"model_a": "x", "model_b": "y", "winner": vote, "judge": "user_1", "anony": True} for vote in votes]
    records.append(records[0] | {"anony": False, "question_id": 7})
    path = tmp_path / "clean_battle.json"
    path.write_text(json.dumps(records))
    assert battles(read(path)) == [("x", "y", winner) for winner in ("a", "b", "tie", "tie", "tie")]
    assert [each.question for each in read(path, anonymous=False)][-1] == "7"


def test_arena_hard_scores_come_out_of_its_battles(tmp_path):
    """Counts of the battles that Arena-Hard made of its published judgments of two models: 37.90% and 23.34%."""
    counts = {"gpt-4-0613": (686, 173, 385), "gpt-3.5-turbo-0125": (1012, 144, 258)}
    records = [
        {"question_id": "q", "model_a": "gpt-4-0314", "model_b": model, "winner": winner}
        for model, each in counts.items()
        for winner, count in zip(("model_a", "tie", "model_b"), each, strict=True)
        for _ in range(count)
    ]
    path = write(tmp_path / "arena_hard_battles.jsonl", *records)
    found = ratings.bradley_terry(battles(read(path), join=False), anchor="gpt-4-0314")
    scores = {model: round(100 * ratings.win_probability(found[model], found["gpt-4-0314"]), 2) for model in counts}
    assert scores == {"gpt-4-0613": 37.90, "gpt-3.5-turbo-0125": 23.34}


BAD = {
    "no known judgment has the fields a, b; known are answer1_id": {"a": 1, "b": 2},
    "\\[1\\] is no record; give an object": [1],
    "winner is 'model_c': it must be one of model_a": {"model_a": "x", "model_b": "y", "winner": "model_c"},
    "model_a is None: it must be a name": {"model_a": None, "model_b": "y", "winner": "tie"},
    "score is '9': it must be a number": {"model": "x", "judge": "j", "judgment": "", "score": "9", "turn": 1},
    "score is \\[8\\]: it must be two numbers": review(1, [8]),
    "score is 8: it must be two numbers": review(1, 8),
    "the record is malformed": {"model": "x", "judge": "j", "games": 5},
    "question_id is None: it must be a text": review(None, [8, 7]),
    "turn is inf: it must be a whole number": {"model": "x", "judge": "j", "judgment": "", "score": 9, "turn": math.inf}
    | {"question_id": 1},
    "score is 10+\\.\\.\\.0+: it must be a number of a usual size": review(1, [10**400, 7]),
    "the field question_id is missing": {name: x for name, x in review(1, [8, 7]).items() if name != "question_id"},
    "score is 'A>C': it must be a label": arena_hard("q", "A>C", "A>B"),
    "g1_winner is 'A': it must be one of model_1": mt_pair(1, "A", "tie"),
}


@pytest.mark.parametrize("says", BAD)
def test_a_record_that_cannot_be_read_is_refused_with_its_place(says, tmp_path):
    good = {"model_a": "x", "model_b": "y", "winner": "tie"}
    path = write(tmp_path / "review_x_y.jsonl", good, BAD[says])
    with pytest.raises(UserError, match=f"review_x_y.jsonl:2: {says}"):
        list(read(path))


def test_broken_json_and_missing_files_are_refused_with_their_place(tmp_path):
    path = tmp_path / "votes.jsonl"
    path.write_text('{"model_a": "x", "model_b": "y", "winner": "tie"}\n{"model_a": \n')
    found = read(path)
    assert next(found).winner == "tie"
    with pytest.raises(UserError, match=r"votes.jsonl:2: invalid JSON"):
        next(found)
    with pytest.raises(UserError, match="no such file"):
        next(read(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match=r"votes.jsonl:1: a question needs the fields question_id and category"):
        next(read(path, questions=path))


def test_pairs_of_a_model_with_itself_are_left_out(tmp_path):
    votes = [{"model_a": a, "model_b": b, "winner": "model_a"} for a, b in ("xy", "xx", "yx")]
    path = tmp_path / "votes.jsonl"
    path.write_text("\n".join(map(json.dumps, votes)))
    assert [each.models for each in read(path)] == [("x", "y"), ("y", "x")]
