"""Win rates and mean scores, beside loops that count."""

import itertools
import math

import numpy as np
import pytest

from camelid.evals import intervals
from camelid.evals.judgments import Judgment
from camelid.evals.win_rates import (
    common_opponent,
    comparisons,
    mean_outcome,
    mean_score,
    models_of,
    paired_scores,
    score_difference,
    win_rate,
)
from camelid.tests.evals.simulated_judges import QUALITY, Judge, Mumbling, pairs, singles


def pair(winner, models=("a", "b"), question="1", **fields):
    return Judgment(question, models, "judge", winner=winner, **fields)


def test_a_pair_in_both_orders_is_one_comparison_and_a_flip_is_a_tie():
    outcomes = {
        ("a", "b"): 1.0,
        ("a", "a"): 0.5,
        ("b", "b"): 0.5,
        ("b", "a"): 0.0,
        ("tie", "tie"): 0.5,
        ("a", "tie"): 0.5,
    }
    for (first, second), outcome in outcomes.items():
        (found,) = comparisons([pair(first), pair(second, ("b", "a"))])
        assert (found.models, found.outcome, found.both_orders) == (("a", "b"), outcome, True)
        assert found.flipped == ((first, second) not in {("a", "b"), ("b", "a"), ("tie", "tie")})


def test_one_unreadable_order_makes_the_comparison_missing():
    (found,) = comparisons([pair("a"), pair(None, ("b", "a"))])
    assert found.outcome is None and not found.both_orders
    assert win_rate([found], "a") is None


def test_repeated_judgments_of_an_order_are_joined_one_by_one():
    judged = [pair("a"), pair("b"), pair("b", ("b", "a")), pair("b", ("b", "a"))]
    assert [each.outcome for each in comparisons(judged)] == [1.0, 0.5]


def test_weights_are_the_mean_over_orders_of_the_side_asked_for():
    (found,) = comparisons(
        [pair("b", weight=0.8, lengths=(10, 30)), pair("b", ("b", "a"), weight=0.4, lengths=(30, 10))]
    )
    assert found.of("a") == (0.5, pytest.approx((0.2 + 0.4) / 2))
    assert found.of("b") == (0.5, pytest.approx((0.8 + 0.6) / 2))
    assert found.longer("b") == 20 and found.longer("a") == -20


@pytest.mark.parametrize("judge", [Judge(), Mumbling()], ids=lambda judge: judge.name)
def test_win_rates_are_those_of_a_loop_that_counts(judge):
    judged = pairs(judge, questions=50)
    for model, other in itertools.permutations(QUALITY, 2):
        wins = {}
        for first in judged:
            for second in judged:
                same = first.question == second.question and first.models == (model, other) == second.models[::-1]
                if same and first.winner and second.winner:
                    verdicts = {first.winner, {"a": "b", "b": "a", "tie": "tie"}[second.winner]}
                    wins[first.question] = (
                        {"a": 1.0, "b": 0.0, "tie": 0.5}[verdicts.pop()] if len(verdicts) == 1 else 0.5
                    )
        found = win_rate(comparisons(judged), model, other)
        values = np.array(list(wins.values()))
        assert found.value == pytest.approx(values.mean()) and found.n == len(values) == found.clusters
        assert found.stderr == pytest.approx(values.std(ddof=1) / math.sqrt(len(values)))


def test_the_rate_against_all_others_leaves_controls_out_and_clusters_by_question():
    found = comparisons(pairs(Judge()))
    rate = win_rate(found, "vicuna")
    alone = [win_rate(found, "vicuna", other).value for other in ("alpaca", "llama")]
    assert rate.value == pytest.approx(np.mean(alone)) and (rate.n, rate.clusters) == (300, 150)
    assert models_of(pairs(Judge())) == sorted(QUALITY)


def test_a_star_has_a_common_opponent_and_a_round_robin_none():
    assert common_opponent(comparisons([pair("a"), pair("a", ("a", "c")), pair("a", ("d", "a"))])) == "a"
    assert common_opponent(comparisons(pairs(Judge()))) is None
    assert common_opponent([]) is None


def test_mean_scores_and_paired_differences_are_those_of_numpy():
    judged = singles(mumbles=0.1)
    scores = {m: {j.question: j.scores[0] for j in judged if j.models == (m,) and j.scores} for m in QUALITY}
    for model, own in scores.items():
        values, found = np.array(list(own.values())), mean_score(judged, model)
        assert found.value == pytest.approx(values.mean()) and found.n == len(values) < 100
        assert found.stderr == pytest.approx(values.std(ddof=1) / math.sqrt(len(values)))
    shared = scores["vicuna"].keys() & scores["alpaca"].keys()
    apart = np.array([scores["vicuna"][q] - scores["alpaca"][q] for q in shared])
    found = score_difference(judged, "vicuna", "alpaca")
    assert found.value == pytest.approx(apart.mean()) and found.n == len(shared) == len(
        paired_scores(judged, "vicuna", "alpaca")
    )
    assert found.stderr == pytest.approx(apart.std(ddof=1) / math.sqrt(len(apart)))
    assert intervals.in_words(found) == "higher"


def test_models_that_share_no_question_have_no_difference():
    judged = [Judgment("1", ("a",), "j", (3.0,)), Judgment("2", ("b",), "j", (4.0,)), Judgment("2", ("a",), "j")]
    assert score_difference(judged, "a", "b") is None and mean_score(judged, "c") is None


def test_win_rates_over_five_questions_are_covered_by_their_intervals():
    rng = np.random.default_rng(0)
    strengths = rng.beta(2, 2, (2000, 5))  # how often the model wins on each question; 50% on average
    outcomes = rng.binomial(4, strengths[..., None] * np.ones(6)) / 4
    questions = np.repeat(range(5), 6).tolist()
    found = [mean_outcome(each.ravel().tolist(), questions) for each in outcomes]
    assert 0.93 < np.mean([each.low <= 0.5 <= each.high for each in found]) < 0.98  # 88% with a normal distribution


def test_intervals_of_outcomes_stay_within_0_and_1_and_have_a_width():
    few = mean_outcome([1.0, 1.0, 0.5], ["1", "2", "3"])
    assert 0 < few.low < 0.5 and 0.9 < few.high <= 1
    assert mean_outcome([0.5, 0.5], ["1", "2"]).low < 0.4
    many = np.random.default_rng(0).choice([0.0, 0.5, 1.0], 1000)
    found, plain = mean_outcome(many, range(1000)), intervals.mean(many)
    assert found[:2] == plain[:2] and (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=2e-3)
