"""Checks of a policy's metrics that stop its run: broken invariants, collapse, exploitation of the reward."""

import itertools
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from ..errors import UserError, did_you_mean
from ..settings.leaves import Count, Name, Only, Positive, Share, Unset
from ..train.evaluations import Chosen
from ..train.loop import TrainingStopped, check_streak

HEADLINE = {
    "objective/scores": "score",
    "objective/kl": "KL",
    "tokens/length": "length",
    "train/tokens_per_second": "tokens/s",
}
RATIO_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
"""By compute dtype: how far the mean probability ratio of a step's first minibatch may be from 1. Both probabilities
come from the same network and tokens, so that only rounding separates them."""


@dataclass(frozen=True)
class WatchSettings:
    """The section `config.watch`: what stops a run."""

    ratio_tolerance: Annotated[Positive | None, Unset("the default of the compute dtype")] = None
    """How far the mean probability ratio of a step's first minibatch may be from 1. Default: 1e-4 in float32, 2e-2 in
    bfloat16."""

    min_eos_rate: Share = 0.02
    """The least share of a step's answers that end by themselves. A smaller share in `patience` steps in a row stops
    the run."""

    patience: Count = 20
    """Number of steps in a row with a share below `min_eos_rate` that stops the run."""

    proxy: Name | None = None
    """Metric of an evaluation that the policy could exploit, such as "eval/heldout/scores". None: not watched."""

    gold: Name | None = None
    """Metric of an evaluation that falls when the policy exploits the proxy. None: not watched."""

    patience_evaluations: Annotated[Count, Only("proxy", default=3)] = 3
    """Number of evaluations in a row, with a rising `proxy` and a falling `gold`, that stops the run."""

    def check(self, where: str) -> None:
        if self.proxy is not None and self.proxy == self.gold:
            raise UserError(
                f"{where}.gold = {self.gold!r} is the proxy too: name a metric that falls when it is exploited"
            )
        for name, other in (("proxy", "gold"), ("gold", "proxy")):
            value = getattr(self, name)
            if value is not None and getattr(self, other) is None:
                raise UserError(
                    f"{where}.{name} = {value!r} needs {where}.{other}, which is None: name a metric of evaluations in "
                    "both, or leave both None"
                )


ANSWER_METRICS = ("scores", "kl", "length", "eos_rate")
"""Metrics of the evaluation "heldout" that exist whatever the sources of scores are."""


def check_names(limits: WatchSettings, where: str, names: Iterable[str]) -> None:
    """Raises UserError if a metric to watch is not given by any evaluation.

    Args:
      limits: `config.watch`.
      where: dotted name of that section, for messages.
      names: the metrics of the run's evaluations. A name that ends with "/*" stands for all that begin like it.
    """
    names = list(names)
    known = {name.removesuffix("/*") for name in names if name.endswith("/*")}
    for leaf, name in (("proxy", limits.proxy), ("gold", limits.gold)):
        if name is None or name in names or any(name.startswith(f"{start}/") for start in known):
            continue
        raise UserError(
            f"{where}.{leaf} = {name!r}: no evaluation gives such a metric{did_you_mean(name, names)}; "
            + (
                f"choose one of {', '.join(names)}"
                if names
                else "nothing is evaluated: set config.data.heldout above 0"
            )
        )


def heldout_names(sources: Iterable[str], languages: Collection[str]) -> list[str]:
    """The names of the metrics of the evaluation "heldout".

    Args:
      sources: names of the sources of scores.
      languages: languages of the held-out prompts. With more than one, scores are reported for each language too.
    """
    scores = [f"scores/{source}" for source in sources]
    of_language = [f"{score}/{language}" for score in scores for language in languages] if len(languages) != 1 else []
    return [f"eval/heldout/{name}" for name in (*ANSWER_METRICS, *scores, *of_language)]


def evaluation_names(evaluations: Iterable[Chosen]) -> list[str]:
    """The names of the metrics of `config.evals`; "eval/<name>/*" for an evaluator that does not list its metrics."""
    return [f"eval/{each.name}/{name}" for each in evaluations for name in getattr(each.evaluator, "metrics", ("*",))]


class Watch:
    """The check of a policy's metrics (a `train.loop.Check`): raises TrainingStopped if `config.watch` is violated.

    Args:
      limits: `config.watch`.
      dtype: dtype of the computation, which sets the default tolerance of ratios.
      max_streak: `config.guard.max_streak`.

    Attributes:
      counters: steps in a row in which too few answers ended, and proxy and gold of the last evaluations; a checkpoint
        keeps them.
    """

    def __init__(self, limits: WatchSettings, dtype: str, max_streak: int):
        self._limits = limits
        self._check_streak = check_streak(max_streak)
        self._tolerance = limits.ratio_tolerance or RATIO_TOLERANCE[dtype]
        self.counters: dict[str, Any] = {"steps_below": 0, "pairs": []}

    def restore(self, counters: Mapping[str, Any]) -> None:
        """Takes over the counters of a checkpoint."""
        self.counters = {"steps_below": counters["steps_below"], "pairs": [tuple(pair) for pair in counters["pairs"]]}

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Checks the metrics of a step."""
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        if bad:
            raise TrainingStopped(
                f"step {step}: {', '.join(bad)} not finite; lower config.optim.lr, or look at the rewards"
            )
        self._check_streak(step, metrics)
        if "policy/first_ratio_error" in metrics:
            self._check_ratio(step, metrics["policy/first_ratio_error"])
        if "tokens/eos_rate" in metrics:
            self._check_ends(step, metrics["tokens/eos_rate"])
        if self._limits.proxy in metrics and self._limits.gold in metrics:
            self._check_hacking(step, metrics[self._limits.proxy], metrics[self._limits.gold])

    def _check_ratio(self, step: int, error: float) -> None:
        if error > self._tolerance:
            raise TrainingStopped(
                f"step {step}: the first minibatch's ratio is off 1 by {error:.2g} a token, more than "
                f"{self._tolerance:.2g}: tokens were not scored by the policy that is updated; if only rounding "
                "differs, raise config.watch.ratio_tolerance"
            )

    def _check_ends(self, step: int, eos_rate: float) -> None:
        below = self.counters["steps_below"] + 1 if eos_rate < self._limits.min_eos_rate else 0
        self.counters["steps_below"] = below
        if below >= self._limits.patience:
            raise TrainingStopped(
                f"step {step}: for {below} steps fewer than {self._limits.min_eos_rate:.0%} of answers "
                "ended by themselves; set config.reward.shaping.missing_eos, or raise config.rollout.max_tokens"
            )

    def _check_hacking(self, step: int, proxy: float, gold: float) -> None:
        n = self._limits.patience_evaluations
        recent = self.counters["pairs"] = [*self.counters["pairs"], (proxy, gold)][-n - 1 :]
        moves = list(itertools.pairwise(recent))
        if len(moves) == n and all(new[0] > old[0] and new[1] < old[1] for old, new in moves):
            raise TrainingStopped(
                f"step {step}: in {n} evaluations in a row {self._limits.proxy} rose while {self._limits.gold} fell: "
                "the policy exploits the reward; raise config.kl.coef or config.grpo.kl_coef, or end the "
                f"run where {self._limits.gold} is best"
            )
