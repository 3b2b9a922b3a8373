"""How often 95% intervals of ratings contain the true rating.

    python benchmarks/ratings_coverage.py --simulations=1000 --rounds=200

Battles are drawn between models whose ratings are known, some of them ties, and both kinds of intervals of
`evals/ratings.py` are computed for each simulation. The command prints the share of intervals that contain the true
rating, over all models and simulations: 95% is right. In the last two settings each question gives three battles that
mostly agree: intervals that take battles for independent are too narrow there, and those by clusters are right.

With `--few` it prints instead how often two of five equally strong models are told apart by few questions, on which
each two models meet: 5% is right. Each question suits some models better than others.
"""

import argparse
import itertools
import time
import warnings
from typing import NamedTuple

import numpy as np

from camelid.evals import ratings


class Setting(NamedTuple):
    models: int
    battles: int
    ties: float  # share of the possible ties: 0 for none, 1 for as many as leave the expected score as it is
    spread: float  # standard deviation of the true ratings
    copies: int = 1  # battles of a question
    clustered: bool = False


SETTINGS = (
    Setting(models=5, battles=300, ties=0.0, spread=100),
    Setting(models=5, battles=300, ties=0.5, spread=100),
    Setting(models=10, battles=1000, ties=0.3, spread=150),
    Setting(models=20, battles=4000, ties=0.3, spread=200),
    Setting(models=5, battles=900, ties=0.0, spread=100, copies=3),
    Setting(models=5, battles=900, ties=0.0, spread=100, copies=3, clustered=True),
)


def simulate(setting: Setting, rng: np.random.Generator) -> tuple[list[ratings.Battle], list[int], dict[str, float]]:
    """Battles, their questions, and the true ratings with mean 1000."""
    rating_M = rng.normal(0, setting.spread, setting.models)
    rating_M += 1000 - rating_M.mean()
    battles, questions = [], []
    for question in range(setting.battles // setting.copies):
        a, b = rng.choice(setting.models, 2, replace=False)
        p = ratings.win_probability(rating_M[a], rating_M[b])
        tie = 2 * setting.ties * min(p, 1 - p)  # the expected score stays p
        point = rng.random()
        for _ in range(setting.copies):
            place = point if rng.random() < 0.8 else rng.random()
            winner = "a" if place < p - tie / 2 else "tie" if place < p + tie / 2 else "b"
            battles.append((f"m{a}", f"m{b}", winner))
            questions.append(question)
    return battles, questions, {f"m{i}": float(rating) for i, rating in enumerate(rating_M)}


def few_questions(simulations: int, seed: int) -> None:
    """Prints how often equally strong models are told apart, and how often their intervals contain the truth."""
    print("questions | told apart | sandwich bootstrap")
    for count in (1, 2, 3, 5, 10, 40):
        rng, told, covered = np.random.default_rng([seed, count]), [], {"sandwich": [], "bootstrap": []}
        for simulation in range(simulations):
            battles, clusters = [], []
            for question in range(count):
                strength_M = rng.normal(size=5)
                for a, b in itertools.combinations(range(5), 2):
                    wins = int((rng.random(2) < 1 / (1 + np.exp(strength_M[b] - strength_M[a]))).sum())
                    battles.append((f"m{a}", f"m{b}", ("b", "tie", "a")[wins]))  # both orders; a flip is a tie
                    clusters.append(question)
            told += [4 - len(each.tied) for each in ratings.ranks(battles, clusters=clusters, ridge=0.5).values()]
            found = {
                "sandwich": ratings.sandwich(battles, clusters=clusters, ridge=0.5),
                "bootstrap": ratings.bootstrap(battles, rounds=100, seed=simulation, clusters=clusters, ridge=0.5),
            }
            for name, intervals in found.items():
                covered[name] += [each.low <= 1000 <= each.high for each in intervals.values()]
        shares = [f"{np.mean(each):8.1%}" for each in covered.values()] if count > 1 else ["none", "none"]
        print(f"{count:9} | {np.mean(told) / 4:10.1%} | {shares[0]:>8} {shares[1]:>9}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1000, help="simulations of each setting (default: 1000)")
    parser.add_argument("--rounds", type=int, default=200, help="resamples of each bootstrap (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random numbers (default: 0)")
    parser.add_argument("--settings", default="1,2,3,4,5,6", help="numbers of the settings (default: 1,2,3,4,5,6)")
    parser.add_argument("--few", action="store_true", help="tell apart equal models by few questions instead")
    args = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # resamples without finite ratings
    if args.few:
        few_questions(args.simulations, args.seed)
        return

    print("models battles ties copies clusters | sandwich bootstrap | mean width | left out | seconds")
    for number in map(int, args.settings.split(",")):
        setting, begin = SETTINGS[number - 1], time.monotonic()
        rng = np.random.default_rng([args.seed, number])
        covered, width, left_out = {"sandwich": [], "bootstrap": []}, [], 0
        for simulation in range(args.simulations):
            battles, questions, truth = simulate(setting, rng)
            clusters = questions if setting.clustered else None
            try:
                found = {
                    "sandwich": ratings.sandwich(battles, clusters=clusters),
                    "bootstrap": ratings.bootstrap(battles, rounds=args.rounds, seed=simulation, clusters=clusters),
                }
            except ratings.UserError:  # a model won or lost all its battles
                left_out += 1
                continue
            for name, intervals in found.items():
                covered[name] += [each.low <= truth[model] <= each.high for model, each in intervals.items()]
            width += [each.high - each.low for each in found["sandwich"].values()]
        shares = {name: f"{np.mean(each):8.2%}" for name, each in covered.items()}
        print(
            f"{setting.models:6} {setting.battles:7} {setting.ties:4} {setting.copies:6} {setting.clustered!s:>8} | "
            f"{shares['sandwich']} {shares['bootstrap']:>9} | {np.mean(width):10.1f} | {left_out:8} | "
            f"{time.monotonic() - begin:7.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
