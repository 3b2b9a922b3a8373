"""Trust in judges whose bias is known: each is found to have exactly that bias, with the right interval."""

import math

import numpy as np
import pytest

from camelid.evals import trust
from camelid.evals.judgments import Judgment
from camelid.evals.win_rates import comparisons
from camelid.tests.evals.simulated_judges import (
    First,
    Flipping,
    Fooled,
    Judge,
    Longer,
    Mumbling,
    Vain,
    answers,
    pairs,
    singles,
)

READABLE, ORDER, POSITION = (
    "verdicts that can be read",
    "verdicts that hold in both orders",
    "fairness to both positions",
)
SHORT, OWN, GOLD = (
    "fairness to short and long answers",
    "fairness to answers of others",
    "agreement with the gold verdicts",
)
EMPTY, PADDING, EQUAL = "rejecting a constant answer", "resisting padding", "calling identical answers equal"
NOISE = "giving the same answer the same score"


def found_by(judgments, judge, gold=()):
    own, others = ([each for each in judgments if (each.judge == judge) == same] for same in (True, False))
    return {each.subject: each for each in trust.findings(own, judge, others, gold)}


def results(found):
    return {subject: each.result for subject, each in found.items()}


@pytest.mark.parametrize(
    ("judge", "fails"),
    [
        (Judge(), set()),
        (First(), {ORDER, POSITION, EQUAL, EMPTY}),
        (Longer(), {SHORT, PADDING}),
        (Flipping(), {ORDER}),
        (Mumbling(), {READABLE}),
        (Fooled(), {EMPTY}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_judge_fails_for_its_bias_and_passes_for_all_else(judge, fails):
    """The first position wins for every answer: such a judge also splits identical answers and praises empty ones."""
    found = found_by(pairs(judge, questions=400), judge.name)
    subjects = {READABLE, ORDER, POSITION, SHORT, EMPTY, PADDING, EQUAL}
    assert results(found) == dict.fromkeys(subjects - fails, "pass") | dict.fromkeys(fails, "fail")


@pytest.mark.parametrize(
    ("judge", "subject", "truth"),
    [
        (First(), ORDER, 1.0),
        (First(), POSITION, 1.0),
        (First(), EQUAL, 1.0),
        (Longer(), SHORT, 1.0),
        (Longer(), POSITION, 0.5),
        (Flipping(), ORDER, 0.3),
        (Flipping(), POSITION, 0.5),
        (Mumbling(), READABLE, 0.1),
        (Mumbling(), SHORT, 0.5),
        (Fooled(), EMPTY, 1.0),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_intervals_hold_the_true_share(judge, subject, truth):
    estimate = found_by(pairs(judge, questions=400), judge.name)[subject].estimate
    assert estimate.low - 1e-9 <= truth <= estimate.high + 1e-9
    assert estimate.high - estimate.low < 0.12


def test_intervals_of_twenty_simulations_hold_the_true_flip_rate_in_seventeen_or_more():
    inside = 0
    for seed in range(20):
        estimate = found_by(pairs(Flipping(seed), 100, seed, controls=False), "flipping")[ORDER].estimate
        inside += estimate.low <= 0.3 <= estimate.high
    assert inside >= 17


def test_shares_are_those_of_a_loop_that_counts():
    judged = pairs(Mumbling(), questions=60)
    flips, first, of_question = [], [], []
    for one in judged:
        for two in judged:
            both = one.question == two.question and one.models == two.models[::-1] and one.models[0] < one.models[1]
            if both and one.winner and two.winner and "control" not in "".join(one.models):
                flips.append(float({"a": "b", "b": "a", "tie": "tie"}[one.winner] != two.winner))
                first.append(sum({"a": 1.0, "b": 0.0, "tie": 0.5}[each.winner] for each in (one, two)) / 2)
                of_question.append(one.question)
    found = found_by(judged, "mumbling")
    for subject, values in ((ORDER, flips), (POSITION, first)):
        values = np.array(values)
        sums = [(values - values.mean())[[q == each for q in of_question]].sum() for each in dict.fromkeys(of_question)]
        stderr = math.sqrt(len(sums) / (len(sums) - 1) * np.square(sums).sum()) / len(values)
        assert found[subject].estimate[:2] == (pytest.approx(values.mean()), pytest.approx(stderr))
    failed = sum(each.winner is None for each in judged)
    assert found[READABLE].more == {"failed": failed} and found[READABLE].estimate.value == failed / len(judged)


def test_an_honest_judge_of_longer_and_better_answers_has_no_bias_for_length():
    found = found_by(pairs(Judge(), questions=400, longer=3000), "honest")[SHORT]
    assert found.result == "pass" and found.more["plain"] > 0.7 and found.more["correlation"] > 0.5


def test_gold_ties_tell_whether_longer_answers_win_because_they_are_better():
    rng, judged, gold = np.random.default_rng(0), [], []
    for i in range(600):  # longer answers are better or as good; the judge sees that, and tosses a coin for ties
        tie, first = i % 2, i % 4 < 2
        better = "a" if first else "b"
        winner, length = "ab"[rng.integers(2)] if tie else better, (900, 100) if first else (100, 900)
        judged.append(Judgment(str(i), ("a", "b"), "j", winner=winner, lengths=length))
        gold.append(Judgment(str(i), ("a", "b"), "truth", winner="tie" if tie else better))
    alone, told = (found_by(judged, "j", known)[SHORT] for known in ((), gold))
    assert alone.result == "fail" and told.result == "pass" and told.estimate.n == 300


def test_the_slope_for_length_is_that_of_a_regression_with_a_term_for_each_pair_of_models():
    every = [each for each in comparisons(pairs(Judge(), questions=40)) if not each.models[1].startswith("control")]
    names = sorted({each.models for each in every})
    x = np.array([[np.sign(each.longer(each.models[0])), *(each.models == name for name in names)] for each in every])
    slope = np.linalg.lstsq(x.astype(float), np.array([each.outcome for each in every]), rcond=None)[0][0]
    assert trust.longer_answers(every).estimate.value == pytest.approx(0.5 + slope)


def test_one_order_alone_cannot_show_a_bias_for_the_position():
    judged = [each for each in pairs(First()) if each.models[0] < each.models[1]]
    found = found_by(judged, "first")
    assert found[ORDER].result == found[POSITION].result == "unclear" and found[POSITION].estimate is None


def test_a_vain_judge_is_found_by_others_and_an_honest_one_is_not():
    honest, vain, plain = pairs(Judge(), 300), pairs(Vain(), 300), Judge(5)
    plain.name = "vicuna"
    found = found_by(honest + vain, "llama")[OWN]
    assert found.result == "fail" and found.estimate.low > 0.1
    assert found_by(honest + pairs(plain, 300), "vicuna")[OWN].result == "pass"
    assert OWN not in found_by(honest + vain, "honest")
    alone = found_by(vain, "llama")[OWN]
    assert alone.result == "unclear" and alone.more["own win rate"] > 0.5


def test_the_advantage_before_itself_is_the_mean_difference_of_outcomes():
    own = [Judgment(str(i), ("m", "x"), "m", winner="a") for i in range(4)]
    other = [Judgment(str(i), ("m", "x"), "j", winner="ab"[i % 2]) for i in range(4)]
    found = trust.own_answers(comparisons(own), comparisons(other), "m")
    assert found.estimate.value == 0.5 and found.estimate.n == 4


def test_scores_of_single_answers_show_failures_and_controls_too():
    found = found_by(singles(questions=300), "grader")
    assert results(found) == dict.fromkeys({READABLE, SHORT, EMPTY, PADDING, NOISE}, "pass")
    noise = found[NOISE]
    assert noise.more["noise"] == pytest.approx(0.5, rel=0.15)
    assert found_by(singles(mumbles=0.1, questions=300), "grader")[READABLE].result == "fail"
    assert found_by(singles(noise=3.0), "grader")[NOISE].result == "fail"


def test_noise_is_the_variance_of_differences_between_two_gradings():
    judged = singles()
    score = {(each.question, each.models[0]): each.scores[0] for each in judged}
    twice = np.array([[score[f"q{i}", name] for name in ("vicuna", "control:identical:vicuna")] for i in range(100)])
    found = trust.identical_scores(judged)
    assert found.estimate.value == pytest.approx((np.diff(twice)[:, 0] ** 2).mean() / 2 / twice.var(ddof=1))


def test_identical_answers_are_counted_by_verdict_so_that_flips_do_not_pass_for_ties():
    judged = []
    for number in range(40):
        order = ("a", "control:identical:a") if number % 2 else ("control:identical:a", "a")
        winner = "a" if number < 30 else "tie"  # the first answer wins in both orders of 15 questions
        judged.append(Judgment(str(number // 2), order, "j", winner=winner))
    found = trust.identical_pairs(judged)
    assert found.estimate.value == 0.75 and found.result == "fail"
    assert "of 40 verdicts: the first 30 times, the second 0 times" in found.text


def test_padding_judged_against_a_third_answer_is_compared_with_the_unpadded_one():
    judged = []
    for i in range(20):
        judged += [
            Judgment(str(i), ("base", "m"), "j", winner="a"),
            Judgment(str(i), ("base", "control:verbose:m"), "j", winner="b"),
        ]
    found = trust.verbose_control(comparisons(judged))
    assert found.estimate.value == 1.5 and found.result == "fail"


def test_gold_scores_are_agreed_with_by_an_honest_judge_and_not_by_one_of_lengths():
    gold = []
    for question, (quality, _) in enumerate(answers()):
        gold += [Judgment(f"q{question}", (model,), "truth", (each,)) for model, each in quality.items()]
    honest = found_by(pairs(Judge()), "honest", gold)[GOLD]
    assert honest.result == "pass" and honest.estimate.value > 0.9
    assert found_by(pairs(Longer()), "longer", gold)[GOLD].result != "pass"
    graded = found_by(singles(questions=150), "grader", singles("truth", questions=150, noise=0.0))
    assert graded[GOLD].more["rank correlation"] > 0.9 and "Spearman" in graded[GOLD].text


def test_agreement_counts_ties_and_flips_as_section_4_2_says():
    ours = [Judgment(str(i), ("a", "b"), "j", winner=w) for i, w in enumerate(["a", "a", "tie", "b", None])]
    theirs = [Judgment(str(i), ("b", "a"), "h", winner=w) for i, w in enumerate(["b", "a", "tie", "tie", "a"])]
    found = trust.agreement(comparisons(ours), comparisons(theirs))
    assert (found.with_ties.value, found.with_ties.n) == (0.5, 4)
    assert (found.without_ties.value, found.without_ties.n) == (0.5, 2)
    votes = [*theirs, Judgment("0", ("a", "b"), "h", winner="b")]
    assert (
        trust.agreement(comparisons(ours[:1]), comparisons(votes)).with_ties.n == 1
    )  # two orders of one voter: a flip


def test_kappa_and_alpha_are_those_of_published_examples():
    a = ["yes"] * 25 + ["no"] * 25  # 20 both yes, 5 and 10 apart, 15 both no
    b = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert trust.cohen_kappa(a, b) == pytest.approx(0.4)
    assert math.isnan(trust.cohen_kappa(["x"] * 3, ["x"] * 3))
    x = None  # Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C: interval data, 0.849
    raters = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, x, x, x],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, x, 3],
        [x, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, x],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, x],
    ]
    units = [[each for each in unit if each is not None] for unit in zip(*raters, strict=True)]
    assert trust.krippendorff_alpha(units) == pytest.approx(0.849, abs=5e-4)
    assert math.isnan(trust.krippendorff_alpha([[3, 3], [3, 3]]))


def test_the_headline_says_what_a_judge_is_good_for():
    line = trust.headline("first", trust.findings(pairs(First()), "first"))
    assert line.startswith("first: It can be trusted for verdicts that can be read")
    assert "cannot be trusted for verdicts that hold in both orders; fairness to both positions" in line


def test_a_judge_that_never_flips_is_fair_to_both_positions_even_on_few_questions():
    found = found_by(pairs(Longer(), 80), "longer")[POSITION]
    assert found.result == "pass" and found.estimate.value == 0.5 and 0.45 < found.estimate.low < 0.5
