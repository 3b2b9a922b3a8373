"""Judgments by simulated judges whose bias is known, for tests of reports."""

import itertools

import numpy as np

from camelid.evals.judgments import Judgment

QUALITY = {"alpaca": 0.0, "llama": 0.6, "vicuna": 1.0}


class Judge:
    """An honest judge with a little noise; subclasses add one bias each. A verdict is of answers (author, length)."""

    name = "honest"
    noise = 0.1

    def __init__(self, seed: int = 0):
        self.rng = np.random.default_rng(seed)

    def verdict(self, a, b, apart: float) -> str | None:
        """The winner, from how much better answer a is than b."""
        apart += self.noise * self.rng.normal()
        return "tie" if abs(apart) < 0.05 else "a" if apart > 0 else "b"


class First(Judge):
    name = "first"

    def verdict(self, a, b, apart):
        return "a"


class Longer(Judge):
    name = "longer"

    def verdict(self, a, b, apart):
        return "tie" if a[1] == b[1] else "a" if a[1] > b[1] else "b"


class Flipping(Judge):
    """Turns its verdict on two models round at random, so that one of two orders is turned in three of ten pairs."""

    name = "flipping"
    noise = 0.0
    share = (1 - 0.4**0.5) / 2  # 2 * share * (1 - share) is 0.3

    def verdict(self, a, b, apart):
        found = super().verdict(a, b, apart)
        turned = {a[0], b[0]} <= QUALITY.keys() and self.rng.random() < self.share
        return {"a": "b", "b": "a", "tie": "a"}[found] if turned else found


class Mumbling(Judge):
    name = "mumbling"

    def verdict(self, a, b, apart):
        return None if self.rng.random() < 0.1 else super().verdict(a, b, apart)


class Fooled(Judge):
    """Takes the constant answer for the best one."""

    name = "fooled"

    def verdict(self, a, b, apart):
        for author, winner in ((a[0], "a"), (b[0], "b")):
            if author == "control:null":
                return winner
        return super().verdict(a, b, apart)


class Vain(Judge):
    """Is itself one of the models, and adds to its own answers."""

    name = "llama"

    def verdict(self, a, b, apart):
        return super().verdict(a, b, apart + 0.8 * ((a[0] == self.name) - (b[0] == self.name)))


def answers(questions: int = 150, seed: int = 1, longer: float = 0.0):
    """The quality and the length of each model's answer to each question; arguments as of `pairs`."""
    rng = np.random.default_rng(seed)
    for _ in range(questions):
        quality = {model: each + 0.5 * rng.normal() for model, each in QUALITY.items()}
        yield quality, {model: int(rng.integers(200, 2000) + longer * QUALITY[model]) for model in QUALITY}


def pairs(judge: Judge, questions: int = 150, seed: int = 1, controls: bool = True, longer: float = 0.0):
    """Judgments of all pairs of models in both orders, and of controls of the model vicuna.

    Args:
      judge: the judge.
      questions: number of questions.
      seed: of the answers, which every judge sees alike.
      controls: whether there are controls.
      longer: characters by which an answer is longer for a unit of its model's quality.
    """
    found = []
    for question, (quality, length) in enumerate(answers(questions, seed, longer)):
        matches = list(itertools.combinations(QUALITY, 2))
        if controls:
            null, verbose, same = "control:null", "control:verbose:vicuna", "control:identical:vicuna"
            quality |= {null: -5.0, verbose: quality["vicuna"] - 0.3, same: quality["vicuna"]}
            length |= {null: 20, verbose: length["vicuna"] + 600, same: length["vicuna"]}
            matches += [("vicuna", verbose), ("vicuna", same), ("vicuna", null), ("alpaca", null)]
        for pair in matches:
            for a, b in (pair, pair[::-1]):
                shown = [(author, length[author]) for author in (a, b)]
                equal = quality[a] == quality[b] and judge.name != "first"
                winner = "tie" if equal else judge.verdict(*shown, quality[a] - quality[b])
                found.append(
                    Judgment(
                        question=f"q{question}",
                        models=(a, b),
                        judge=judge.name,
                        winner=winner,
                        category=("writing", "math")[question % 2],
                        lengths=(length[a], length[b]),
                        text=f"[[{winner}]]",
                    )
                )
    return found


def singles(name: str = "grader", questions: int = 100, noise: float = 0.5, seed: int = 2, mumbles: float = 0.0):
    """Judgments of single answers from 1 to 10, with the controls of the model vicuna.

    Args:
      name: of the judge.
      questions: number of questions.
      noise: standard deviation of the judge's own noise in points.
      seed: of answers and noise.
      mumbles: share of judgments without a score.
    """
    rng, found = np.random.default_rng(seed), []
    for question in range(questions):
        hard, quality = rng.normal(), {model: 5 + each for model, each in QUALITY.items()}
        worth = {model: each + hard + rng.normal() for model, each in quality.items()}
        worth |= {"control:null": 1.0, "control:verbose:vicuna": worth["vicuna"] - 1}
        worth["control:identical:vicuna"] = worth["vicuna"]
        for author, each in worth.items():
            score = None if rng.random() < mumbles else (float(np.clip(each + noise * rng.normal(), 1, 10)),)
            about = dict(category=("writing", "math")[question % 2], lengths=(int(rng.integers(200, 2000)),))
            found.append(Judgment(f"q{question}", (author,), name, score, **about))
    return found
