"""Length-controlled win rates: against scikit-learn, and where the truth is known."""

import math

import numpy as np
import pytest

from camelid.evals.judgments import Judgment
from camelid.evals.length_control import (
    PENALTIES,
    difficulties,
    length_controlled,
    logistic,
    standardised,
)
from camelid.evals.win_rates import comparisons, win_rate


def judged(theta, phi, questions=2000, seed=0, gamma=0.0, model="m", longer=0.0, hard=None):
    """Comparisons of a model with a baseline by a judge that follows the regression; lengths are normal."""
    rng = np.random.default_rng(seed)
    hard = np.zeros(questions) if hard is None else hard
    apart = rng.normal(longer, 300, questions).round().astype(int)
    chance = 1 / (1 + np.exp(-(theta + phi * np.tanh(apart / apart.std(ddof=1)) + gamma * hard)))
    return comparisons(
        Judgment(f"q{i}", (model, "base"), "judge", winner="a" if rng.random() < p else "b", lengths=(3000 + d, 3000))
        for i, (p, d) in enumerate(zip(chance, apart.tolist(), strict=True))
    )


def test_coefficients_are_those_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(300, 3)), rng.random(300), rng.random(300)
    for penalty in (0.01, 1.0, 20.0):
        reference = linear_model.LogisticRegression(
            l1_ratio=1.0, solver="liblinear", C=1 / penalty, fit_intercept=False, tol=1e-9, max_iter=10_000
        ) if _has_l1_ratio(linear_model) else linear_model.LogisticRegression(
            penalty="l1", solver="liblinear", C=1 / penalty, fit_intercept=False, tol=1e-9, max_iter=10_000
        )  # fmt: skip
        reference.fit(np.concatenate([x, x]), [1] * 300 + [0] * 300, np.concatenate([w * y, w * (1 - y)]))
        np.testing.assert_allclose(logistic(x, y, w, penalty), reference.coef_[0], atol=2e-5)


def test_the_rate_is_that_of_equal_lengths_and_the_plain_one_is_not():
    theta, phi = -0.5, 1.5
    found = judged(theta, phi, longer=400)
    controlled = length_controlled(found, "m", "base")
    truth = 1 / (1 + math.exp(-theta))
    assert controlled.rate.low < truth < controlled.rate.high and controlled.rate.high - controlled.rate.low < 0.1
    assert win_rate(found, "m", "base").low > truth + 0.1
    assert controlled.coefficients["length"] == pytest.approx(phi, abs=0.3) and controlled.notes == ()


def test_the_other_side_has_the_complement():
    found = judged(0.4, 1.0, questions=300)
    one, other = length_controlled(found, "m", "base").rate, length_controlled(found, "base", "m").rate
    assert one.value + other.value == pytest.approx(1, abs=1e-6)
    assert one.low + other.high == pytest.approx(1, abs=1e-6)


def test_intervals_cover_the_truth_in_about_nineteen_of_twenty():
    truth = 1 / (1 + math.exp(-0.3))
    inside = 0
    for seed in range(60):
        rate = length_controlled(judged(0.3, 1.0, questions=200, seed=seed), "m", "base").rate
        inside += rate.low < truth < rate.high
    assert 52 <= inside <= 60  # 57 of 60 on average


def test_equal_differences_of_length_are_said_and_the_rate_is_the_plain_one():
    found = comparisons(
        Judgment(str(i), ("m", "base"), "judge", winner="aab"[i % 3], lengths=(i + 5, i)) for i in range(90)
    )
    controlled = length_controlled(found, "m", "base")
    assert "length is not controlled" in controlled.notes[0] and set(controlled.coefficients) == {"model"}
    assert controlled.rate.value == pytest.approx(2 / 3, abs=1e-3)
    assert controlled.rate.stderr == pytest.approx(win_rate(found, "m", "base").stderr, rel=0.01)


def test_missing_lengths_and_an_always_longer_model_are_said():
    bare = comparisons([Judgment("1", ("m", "base"), "judge", winner="a")])
    assert length_controlled(bare, "m", "base").rate is None
    controlled = length_controlled([*judged(0, 1, 50, longer=5000), *bare], "m", "base")
    assert any("extrapolates" in note for note in controlled.notes)
    assert any(note.startswith("1 pairs without lengths") for note in controlled.notes)

    steep = length_controlled(judged(0, 40, 300), "m", "base")
    assert "length decides nearly all verdicts" in steep.notes[0]


def test_probabilities_are_fitted_where_the_judge_gives_them():
    found = comparisons(
        Judgment(str(i), ("base", "m"), "judge", winner="b", weight=0.7, lengths=(10, 10 + i % 7)) for i in range(100)
    )
    assert length_controlled(found, "m", "base").rate.value == pytest.approx(0.7, abs=2e-3)


def test_copies_pull_the_coefficient_of_length_to_what_they_show():
    found = judged(0.0, 2.0, questions=300)
    copies = comparisons(  # length alone does nothing to this judge
        Judgment(f"q{i}", ("copy", "base"), "judge", winner="tie", lengths=(i, 50)) for i in range(100)
    )
    free, held = length_controlled(found, "m", "base"), length_controlled(found, "m", "base", copies=copies)
    assert 0 < held.coefficients["length"] < free.coefficients["length"]


def test_difficulty_is_found_from_other_models_and_not_from_one_itself():
    rng = np.random.default_rng(1)
    hard = rng.normal(size=400)
    found = [each for k in range(8) for each in judged(0.2 * k - 0.8, 0.5, 400, k + 5, 1.0, f"m{k}", hard=hard)]
    gamma = difficulties(found, "base", without="m0")
    assert np.corrcoef(hard, [gamma[f"q{i}"] for i in range(400)])[0, 1] > 0.65
    changed = [each for each in found if each.models[1] != "m0"]
    assert gamma == difficulties(changed, "base")
    assert difficulties(found[: 4 * 400], "base") is None
    controlled = length_controlled(found, "m0", "base", difficulty=gamma)
    assert controlled.coefficients["difficulty"] > 0.3
    flat = length_controlled(found, "m0", "base", difficulty=dict.fromkeys(gamma, 0.3))
    assert "difficulty is dropped" in flat.notes[0] and "difficulty" not in flat.coefficients


def test_lengths_are_standardised_as_published():
    apart = [100, -50, 30, 400]
    np.testing.assert_allclose(standardised(apart), np.tanh(np.array(apart) / np.std(apart, ddof=1)))
    assert standardised([7, 7, 7]) is None and standardised([3]) is None
    assert len(PENALTIES) == 10 and PENALTIES.max() == 1e4 and PENALTIES.min() == pytest.approx(1e-4)


def _has_l1_ratio(linear_model) -> bool:
    """Whether this scikit-learn names the absolute penalty by l1_ratio (from 1.8)."""
    return linear_model.LogisticRegression().l1_ratio == 0.0
