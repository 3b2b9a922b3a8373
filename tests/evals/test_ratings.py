"""Ratings against closed forms, slow loops, scikit-learn, and numbers computed with FastChat's code."""

import itertools
import math
import warnings

import numpy as np
import pytest

from camelid.errors import UserError
from camelid.evals import ratings

ELO_PER_LOG_ODD = 400 / math.log(10)


def some_battles(n: int = 400, models: int = 5) -> tuple[list[ratings.Battle], list[tuple[int, int]]]:
    """Battles and the lengths of both answers, from a linear congruential generator: the same numbers anywhere."""
    state, battles, lengths = 1, [], []

    def draw(below: int) -> int:
        nonlocal state
        state = (1103515245 * state + 12345) % 2**31
        return (state >> 8) % below

    for _ in range(n):
        a = draw(models)
        b = (a + 1 + draw(models - 1)) % models
        length_a, length_b = 20 + draw(500), 20 + draw(500)
        point = draw(100)
        edge = 50 + 6 * (a - b) + (8 if length_a > length_b else -8)
        battles.append((f"m{a}", f"m{b}", "tie" if point % 7 == 0 else "a" if point < edge else "b"))
        lengths.append((length_a, length_b))
    return battles, lengths


def several(a: str, b: str, wins: int, losses: int, ties: int = 0) -> list[ratings.Battle]:
    return [(a, b, "a")] * wins + [(a, b, "b")] * losses + [(a, b, "tie")] * ties


# Ratings of `some_battles` by compute_elo, fit_bt and fit_contextual_bt of FastChat (rating_systems.py, 0e6d3e4b), with
# tol=1e-12 and one feature, the length. Its optimiser leaves about 3e-4 points of error in the second line.
FASTCHAT_ELO = {"m4": 1046.7199, "m3": 1023.0135, "m2": 1020.8853, "m0": 956.0053, "m1": 953.3759}
FASTCHAT_BT = {"m4": 1058.3936, "m3": 1041.2919, "m2": 1033.1145, "m0": 946.5275, "m1": 920.6725}
FASTCHAT_STYLE = {"m4": 1059.3324, "m3": 1043.8579, "m2": 1032.9752, "m0": 948.0577, "m1": 915.7768}
FASTCHAT_LENGTH = 0.28100881


def test_ratings_are_those_of_fastchat():
    battles, lengths = some_battles()
    assert ratings.elo(battles) == pytest.approx(FASTCHAT_ELO, abs=1e-4)
    assert ratings.bradley_terry(battles) == pytest.approx(FASTCHAT_BT, abs=5e-4)
    found = ratings.style_control(battles, {"length": ratings.relative_difference(*zip(*lengths, strict=True))})
    assert found == pytest.approx(FASTCHAT_STYLE, abs=1e-4)
    assert found.coefficients == pytest.approx({"length": FASTCHAT_LENGTH}, abs=1e-7)
    assert [*found] == [*FASTCHAT_STYLE]  # best first


def test_elo_moves_by_k_times_the_surprise_and_depends_on_the_order():
    battles = [("x", "y", "a"), ("y", "x", "a"), ("x", "z", "tie")]
    second = 32 / (1 + 10 ** (-32 / 400))  # y, at 984, beats x, at 1016
    x, y = 1016 - second, 984 + second
    third = 32 * (0.5 - 1 / (1 + 10 ** ((1000 - x) / 400)))
    assert ratings.elo(battles, k=32) == pytest.approx({"x": x + third, "y": y, "z": 1000 - third}, abs=1e-9)
    assert ratings.elo(battles[::-1], k=32) != ratings.elo(battles, k=32)
    assert sum(ratings.elo(some_battles()[0], init=1500).values()) == pytest.approx(5 * 1500)


def test_a_star_has_closed_form_ratings():
    battles = [
        *several("c", "x", 3, 1),
        *several("y", "c", 7, 2, 3),
        *several("c", "z", 2, 2),
        *several("v", "c", 1, 98),
    ]
    odds = {"c": 1, "x": 1 / 3, "y": 8.5 / 3.5, "z": 1, "v": 1 / 98}
    closed = {model: 1000 + 400 * math.log10(x) for model, x in odds.items()}
    assert ratings.bradley_terry(battles, anchor="c") == pytest.approx(closed, abs=1e-6)
    at_1250 = {model: rating + 250 for model, rating in closed.items()}
    assert ratings.bradley_terry(battles, anchor=("c", 1250)) == pytest.approx(at_1250, abs=1e-6)
    mean = {model: rating - np.mean(list(closed.values())) for model, rating in closed.items()}
    assert ratings.bradley_terry(battles, init=0) == pytest.approx(mean, abs=1e-6)
    nepers = {model: rating / 400 * math.log(10) for model, rating in mean.items()}
    assert ratings.bradley_terry(battles, init=0, base=math.e, scale=1) == pytest.approx(nepers, abs=1e-8)
    assert ratings.win_probability(closed["y"], closed["c"]) == pytest.approx(8.5 / 12)


def minorised(battles: list[ratings.Battle], rounds: int = 3000) -> dict[str, float]:
    """Bradley-Terry ratings by Zermelo's iteration: gamma_i = wins_i / sum_j(n_ij / (gamma_i + gamma_j))."""
    models = sorted({model for battle in battles for model in battle[:2]})
    gamma, wins = dict.fromkeys(models, 1.0), dict.fromkeys(models, 0.0)
    meetings = {(i, j): 0 for i in models for j in models}
    for a, b, winner in battles:
        wins[a] += {"a": 1, "tie": 0.5, "b": 0}[winner]
        wins[b] += {"a": 0, "tie": 0.5, "b": 1}[winner]
        meetings[a, b] += 1
        meetings[b, a] += 1
    for _ in range(rounds):
        gamma = {i: wins[i] / sum(meetings[i, j] / (gamma[i] + gamma[j]) for j in models if j != i) for i in models}
    rating = {model: 400 * math.log10(value) for model, value in gamma.items()}
    return {model: 1000 + value - np.mean(list(rating.values())) for model, value in rating.items()}


def test_bradley_terry_finds_the_maximum_in_any_order_of_models_and_battles():
    battles, _ = some_battles(120)
    found = ratings.bradley_terry(battles)
    assert found == pytest.approx(minorised(battles), abs=1e-6)
    turned = [(b, a, {"a": "b", "b": "a", "tie": "tie"}[winner]) for a, b, winner in reversed(battles)]
    assert ratings.bradley_terry(turned) == pytest.approx(found, abs=1e-8)


@pytest.mark.parametrize("ridge", [0.0, 0.5, 20.0])
def test_ridge_and_features_are_those_of_logistic_regression(ridge):
    linear_model = pytest.importorskip("sklearn.linear_model")
    battles, lengths = some_battles(200)
    feature_N = ratings.relative_difference(*zip(*lengths, strict=True))
    models = sorted({battle[0] for battle in battles})
    rows, won, weights = [], [], []
    for (a, b, winner), feature in zip(battles, (feature_N - feature_N.mean()) / feature_N.std(), strict=True):
        row = [math.log(10) * ((model == a) - (model == b)) for model in models] + [feature]
        for outcome in (1, 0):  # a tie is half a row of each
            rows.append(row)
            won.append(outcome)
            weights.append(0.5 if winner == "tie" else float((winner == "a") == outcome))
    fit = linear_model.LogisticRegression(C=1 / ridge if ridge else math.inf, fit_intercept=False, tol=1e-10)
    r = fit.fit(rows, won, sample_weight=weights).coef_[0]
    found = ratings.style_control(battles, {"length": feature_N}, ridge=ridge)
    expected = {model: 1000 + 400 * (x - r[:-1].mean()) for model, x in zip(models, r[:-1], strict=True)}
    assert found == pytest.approx(expected, abs=0.02)
    assert found.coefficients["length"] == pytest.approx(r[-1], abs=1e-4)


def test_a_model_that_wins_all_needs_a_ridge():
    battles = [*several("best", "x", 9, 0), *several("x", "y", 2, 1), *several("y", "last", 4, 0)]
    says = "best won every battle against the others and last lost every battle .* give ridge=0.5"
    with pytest.raises(UserError, match=says):
        ratings.bradley_terry(battles)
    found = ratings.bradley_terry(battles, ridge=0.5)
    assert [*found] == ["best", "x", "y", "last"]
    r = {model: (rating - 1000) / 400 for model, rating in found.items()}
    surprise = 9 * (1 - ratings.win_probability(found["best"], found["x"]))
    assert math.log(10) * surprise == pytest.approx(
        0.5 * r["best"], rel=1e-6
    )  # the pull of battles is that of the ridge


BAD = {
    "there are no battles": ([], {}),
    "battle 2 is \\('x', 'y', 'draw'\\): give": ([("x", "y", "a"), ("x", "y", "draw")], {}),
    "battle 1 is \\('x', 'y'\\): give": ([("x", "y")], {}),
    "battle 1 is \\('x', 'x', 'a'\\): a battle needs the names of two": ([("x", "x", "a")], {}),
    "2 groups of models, so .*: x, y; u, v; add battles": ([*several("x", "y", 1, 1), *several("u", "v", 0, 0, 1)], {}),
    "anchor gpt5 is in no battle; did you mean gpt4": (several("gpt4", "y", 1, 1), {"anchor": "gpt5"}),
    "anchor's rating is nan: give a finite number": (several("x", "y", 1, 1), {"anchor": ("x", math.nan)}),
    "ridge is -1: give a finite number of 0 or more": (several("x", "y", 1, 1), {"ridge": -1}),
    "ridge is inf: give a finite": (several("x", "y", 1, 1), {"ridge": math.inf}),
    "ridge is True: give a finite": (several("x", "y", 1, 1), {"ridge": True}),
    "base is 1: give a finite number above 1": (several("x", "y", 1, 1), {"base": 1}),
    "base is inf: give": (several("x", "y", 1, 1), {"base": math.inf}),
    "scale is 0: give a finite number above 0": (several("x", "y", 1, 1), {"scale": 0}),
    "init is nan: give": (several("x", "y", 1, 1), {"init": math.nan}),
}


@pytest.mark.parametrize("says", BAD)
def test_battles_that_cannot_be_rated_are_refused_with_a_reason(says):
    battles, settings = BAD[says]
    with pytest.raises(UserError, match=says):
        ratings.bradley_terry(battles, **settings)


def test_numbers_that_make_no_sense_are_refused():
    battles = several("x", "y", 3, 2)
    wrong = {
        "k is nan: give a finite number above 0": lambda: ratings.elo(battles, k=math.nan),
        "k is -4: give": lambda: ratings.elo(battles, k=-4),
        "init is inf: give a finite number": lambda: ratings.elo(battles, init=math.inf),
        "rating_a is nan: give": lambda: ratings.win_probability(math.nan, 0),
        "a length or count is -1.0: give finite": lambda: ratings.relative_difference([-1], [0]),
        "a length or count is inf: give": lambda: ratings.relative_difference([1], [math.inf]),
        "there are 2 and 1 lengths": lambda: ratings.relative_difference([1, 2], [1]),
        "seed is -1: give a whole number of 0 or more": lambda: ratings.bootstrap(battles, rounds=2, seed=-1),
        "rounds is 1.5: give a whole number of 1": lambda: ratings.bootstrap(battles, rounds=1.5, seed=0),
    }
    for says, call in wrong.items():
        with pytest.raises(UserError, match=says):
            call()


def test_one_cluster_has_no_interval_and_tells_no_models_apart():
    battles = several("a", "b", 6, 4)
    for found in (
        ratings.sandwich(battles, clusters=["q"] * 10),
        ratings.bootstrap(battles, clusters=["q"] * 10, rounds=5, seed=0),
    ):
        assert found["a"].median == pytest.approx(1000 + 200 * math.log10(1.5))
        assert all(math.isnan(value) for each in found.values() for value in (each.low, each.high, each.stderr))
    twice = [*battles, *battles], ["q"] * 10 + ["r"] * 10  # two questions that agree exactly show no spread either
    assert math.isnan(ratings.sandwich(twice[0], clusters=twice[1])["a"].low)
    for given, clusters in ((battles, ["q"] * 10), twice):
        assert ratings.ranks(given, clusters=clusters) == {"a": (1, 2, ("b",)), "b": (1, 2, ("a",))}


def test_equal_models_are_seldom_told_apart_by_few_questions():
    rng = np.random.default_rng(0)
    told, covered = {3: 0, 5: 0}, {3: [], 5: []}
    for questions in told:
        for _ in range(200):
            points = rng.random((questions, 3, 4))  # four verdicts on each pair of models
            strengths = rng.normal(size=(questions, 3))  # which agree, as a question suits one model better
            battles, clusters = [], []
            for q, (pair, (a, b)) in itertools.product(range(questions), enumerate(((0, 1), (0, 2), (1, 2)))):
                p = 1 / (1 + math.exp(strengths[q, b] - strengths[q, a]))
                battles += [(f"m{a}", f"m{b}", "a" if point < p else "b") for point in points[q, pair]]
                clusters += [q] * 4
            told[questions] += "m1" not in ratings.ranks(battles, clusters=clusters, ridge=0.01)["m0"].tied
            found = ratings.sandwich(battles, clusters=clusters, ridge=0.01).values()
            covered[questions] += [each.low <= 1000 <= each.high for each in found]
    assert max(told.values()) <= 20  # 10 are expected; standard deviation 3
    assert min(np.mean(each) for each in covered.values()) > 0.92


def test_a_bootstrap_of_few_clusters_has_wider_ends():
    battles, clusters = some_battles(400)[0], [i % 6 for i in range(400)]
    found = ratings.bootstrap(battles, rounds=2000, seed=0, clusters=clusters)
    wide = ratings.sandwich(battles, clusters=clusters)
    for model, each in found.items():
        assert each.stderr == pytest.approx(wide[model].stderr, rel=0.2)
        assert each.high - each.low > 4 * each.stderr  # Phi(-sqrt(6 / 5) * 2.571) is 0.24%, not 2.5%


def test_groups_that_never_met_are_refused_with_a_ridge_too():
    with pytest.raises(UserError, match="no battles connect these 2 groups"):
        ratings.bradley_terry([*several("x", "y", 1, 1), *several("u", "v", 1, 1)], ridge=0.5)


def test_the_influence_of_length_is_taken_out():
    rng = np.random.default_rng(0)
    a_N, b_N = rng.integers(0, 2, 4000), rng.integers(0, 2, 4000)
    long_N = rng.normal(a_N - b_N, 1.0)  # model 1 writes longer answers
    keep_N = a_N != b_N
    won_N = rng.random(4000) < 1 / (1 + np.exp(-0.8 * long_N))  # and length alone decides
    battles = [
        (f"m{a}", f"m{b}", "a" if won else "b") for a, b, won, keep in zip(a_N, b_N, won_N, keep_N, strict=True) if keep
    ]
    plain = ratings.bradley_terry(battles)
    assert plain["m1"] - plain["m0"] > 90
    for center in (True, False):
        found = ratings.style_control(battles, {"length": long_N[keep_N]}, center=center)
        assert abs(found["m1"] - found["m0"]) < 25
        assert found.coefficients["length"] == pytest.approx(0.8 * long_N[keep_N].std(), abs=0.1)


def test_without_centring_ratings_are_at_equal_style_even_if_one_model_is_always_first():
    rng = np.random.default_rng(0)
    longer_N = rng.normal(1.0, 1.0, 4000)  # the baseline, always a, writes longer answers
    won_N = rng.random(4000) < 1 / (1 + np.exp(-longer_N))
    battles = [("baseline", "model", "a" if won else "b") for won in won_N]
    found = {
        c: ratings.style_control(battles, {"length": longer_N}, center=c, anchor="baseline") for c in (True, False)
    }
    assert abs(found[False]["model"] - 1000) < 25  # as good, at equal length
    assert found[True]["model"] == pytest.approx(1000 - ELO_PER_LOG_ODD, abs=35)  # at the mean difference in length


def test_a_constant_feature_is_left_out_and_said():
    battles, lengths = some_battles()
    features = {"flat": [3.0] * len(battles), "length": ratings.relative_difference(*zip(*lengths, strict=True))}
    with pytest.warns(UserWarning, match="style feature flat is the same in all battles: it is left out"):
        found = ratings.style_control(battles, features)
    assert found.dropped == ("flat",) and [*found.coefficients] == ["length"]
    assert found == pytest.approx(FASTCHAT_STYLE, abs=1e-4)
    with pytest.warns(UserWarning, match="style feature 0 is the same"):
        alone = ratings.style_control(battles, np.zeros((len(battles), 1)))
    assert alone == pytest.approx(ratings.bradley_terry(battles, ridge=0.5), abs=1e-9)  # which adds equal battles up


def test_features_that_do_not_fit_are_refused():
    battles = several("x", "y", 5, 5)
    features = {
        "style feature length has 9 values for 10 battles": {"length": range(9)},
        "style feature length of battle 3 is nan": {"length": [1, 2, math.nan, *range(7)]},
        "style features have to be numbers": {"length": ["long"] * 10},
        "predict the winner perfectly, or repeat each other": {"length": [*range(5, 10), *range(-5, 0)]},
    }
    for says, each in features.items():
        with pytest.raises(UserError, match=says):
            ratings.style_control(battles, each, ridge=0)


def test_sandwich_intervals_of_two_models_are_those_of_a_proportion():
    found = ratings.sandwich(several("x", "y", 30, 10), anchor="y")
    stderr = ELO_PER_LOG_ODD / math.sqrt(40 * 0.75 * 0.25) * math.sqrt(40 / 39)
    assert found["x"].median == pytest.approx(1000 + 400 * math.log10(3))
    assert found["x"].stderr == pytest.approx(stderr)
    assert found["x"].high - found["x"].low == pytest.approx(2 * 2.022691 * stderr, rel=1e-6)  # t of 39 degrees
    assert found["y"] == pytest.approx((1000, 1000, 1000, 0), abs=1e-9)
    with_ties = ratings.sandwich(several("x", "y", 20, 0, 20), anchor="y")
    assert with_ties["x"].stderr == pytest.approx(stderr * math.sqrt(1 / 3))  # scores vary by 1/16 instead of 3/16


def test_sandwich_intervals_are_those_of_a_loop_over_battles():
    battles, lengths = some_battles(150)
    feature_N = ratings.relative_difference(*zip(*lengths, strict=True))
    feature_N = (feature_N - feature_N.mean()) / feature_N.std()
    clusters = [i // 4 for i in range(150)]
    models = sorted({battle[0] for battle in battles})
    fit = ratings.style_control(battles, {"length": feature_N}, ridge=0.3)
    hessian, sums = 0.3 * np.eye(6), np.zeros((38, 6))
    for (a, b, winner), feature, cluster in zip(battles, feature_N, clusters, strict=True):
        x = np.array([math.log(10) * ((model == a) - (model == b)) for model in models] + [feature])
        odds = math.log(10) / 400 * (fit[a] - fit[b]) + fit.coefficients["length"] * feature
        p = 1 / (1 + math.exp(-odds))
        hessian += p * (1 - p) * np.outer(x, x)
        sums[cluster] += ({"a": 1, "tie": 0.5, "b": 0}[winner] - p) * x
    bread = np.linalg.inv(hessian)
    around_mean = np.eye(6)
    around_mean[:5, :5] -= 1 / 5
    covariance = around_mean @ bread @ (38 / 37 * sums.T @ sums) @ bread @ around_mean
    found = ratings.sandwich(battles, clusters=clusters, features={"length": feature_N}, ridge=0.3)
    expected = dict(zip(models, 400 * np.sqrt(np.diag(covariance))[:5], strict=True))
    assert {model: each.stderr for model, each in found.items()} == pytest.approx(expected, rel=1e-6)


def test_the_bootstrap_is_seeded_and_agrees_with_the_sandwich_and_a_plain_loop():
    battles, _ = some_battles(400)
    found = ratings.bootstrap(battles, rounds=400, seed=1)
    assert found == ratings.bootstrap(battles, rounds=400, seed=1) != ratings.bootstrap(battles, rounds=400, seed=2)
    assert found.separated == 0
    rng = np.random.default_rng(0)
    plain = [ratings.bradley_terry([battles[i] for i in rng.integers(0, 400, 400)]) for _ in range(400)]
    for model, each in ratings.sandwich(battles).items():
        samples = [fit[model] for fit in plain]
        assert found[model].low == pytest.approx(np.quantile(samples, 0.025), abs=0.5 * each.stderr)
        assert found[model].high == pytest.approx(np.quantile(samples, 0.975), abs=0.5 * each.stderr)
        assert found[model].stderr == pytest.approx(each.stderr, rel=0.15)
        assert found[model].median == pytest.approx(each.median, abs=0.3 * each.stderr)


@pytest.mark.parametrize("features", [False, True])
def test_copies_of_a_battle_in_one_cluster_add_nothing_to_what_is_known(features):
    battles, lengths = some_battles(200)
    given = {"length": ratings.relative_difference(*zip(*lengths, strict=True))} if features else None
    thrice = {"length": np.tile(given["length"], 3)} if features else None
    once = ratings.sandwich(battles, clusters=range(200), features=given)
    assert ratings.sandwich(battles * 3, clusters=[*range(200)] * 3, features=thrice) == {
        model: pytest.approx(each, rel=1e-6) for model, each in once.items()
    }
    once = ratings.bootstrap(battles, rounds=5, seed=0, clusters=range(200), features=given)
    assert ratings.bootstrap(battles * 3, rounds=5, seed=0, clusters=[*range(200)] * 3, features=thrice) == {
        model: pytest.approx(each, rel=1e-6) for model, each in once.items()
    }
    with pytest.raises(UserError, match="there are 3 clusters for 200 battles"):
        ratings.sandwich(battles, clusters="abc", features=given)


def test_resamples_without_finite_ratings_are_counted_and_said():
    battles = several("x", "y", 19, 1)
    with pytest.warns(UserWarning, match="of 200 resamples have no finite ratings"):
        found = ratings.bootstrap(battles, rounds=200, seed=0, anchor="y")
    assert 40 < found.separated < 110  # 0.95 ** 20 of 200 are 72
    assert found["x"].high > 1000 + 400 * math.log10(200) > found["x"].median  # beyond a win in 200 battles
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ratings.bootstrap(battles, rounds=200, seed=0, ridge=0.5).separated == 0


def test_ranks_say_which_models_cannot_be_told_apart():
    battles = [
        *several("best", "good", 700, 300),
        *several("good", "fair", 505, 495),
        *several("fair", "poor", 520, 480),
        *several("best", "poor", 720, 280),
    ]
    found = ratings.ranks(battles)
    assert [*found] == ["best", "good", "fair", "poor"]
    assert found["best"] == ratings.Rank(1, 1, ())
    assert found["good"].rank == found["fair"].rank == 2 and "fair" in found["good"].tied
    assert ratings.groups(found)[0] == ("best",)
    chain = {"a": ratings.Rank(1, 2, ("b",)), "b": ratings.Rank(1, 3, ("a", "c")), "c": ratings.Rank(2, 3, ("b",))}
    assert ratings.groups(chain) == [("a", "b"), ("b", "c")]


def test_ranks_compare_differences_not_whether_intervals_overlap():
    # x and y are known relative to each other, and both hardly relative to z
    battles = [*several("x", "y", 600, 400), *several("y", "z", 4, 4), *several("x", "z", 4, 4)]
    intervals = ratings.sandwich(battles)
    assert intervals["y"].high > intervals["x"].low
    found = ratings.ranks(battles)
    assert found["x"].tied == ("z",) and found["y"].tied == ("z",) and found["z"] == ratings.Rank(1, 3, ("x", "y"))


def test_thirty_thousand_battles_are_resampled_a_hundred_times():
    rng = np.random.default_rng(0)
    a_N, step_N, point_N = rng.integers(0, 30, 30_000), rng.integers(1, 30, 30_000), rng.random(30_000)
    truth_M = 15 * np.arange(30.0)
    truth_M += 1000 - truth_M.mean()
    battles = [
        (f"m{a}", f"m{b}", "a" if point < ratings.win_probability(truth_M[a], truth_M[b]) else "b")
        for a, b, point in zip(a_N.tolist(), ((a_N + step_N) % 30).tolist(), point_N, strict=True)
    ]
    found = ratings.bootstrap(battles, rounds=100, seed=0)
    within = [found[f"m{i}"].low <= truth <= found[f"m{i}"].high for i, truth in enumerate(truth_M)]
    assert sum(within) >= 25  # 95% of 30 are 28.5
