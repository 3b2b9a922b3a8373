"""Watching a policy learn: rollouts on held-out prompts, and the invariants that stop a run when they break."""

import itertools
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from ..data.prefetch import device_batch
from ..errors import UserError
from ..train.fit import Evaluator
from ..train.leaves import Count, Only, Path, Positive, Share, Unset, read
from ..train.loop import Evaluation, TrainingStopped, check_streak
from ..train.settings import Settings, did_you_mean
from ..train.setup import Lengths
from . import setup
from .rewards import Rewards

HEADLINE = {
    "objective/scores": "score",
    "objective/kl": "KL",
    "tokens/length": "length",
    "train/tokens_per_second": "tokens/s",
}
RATIO_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
"""How far the mean ratio of a step's first minibatch may be from 1: both sides are the same network on the same tokens,
so only rounding is between them."""


class Limits(NamedTuple):
    """The section `config.watch`: what stops a run.

    ratio_tolerance: of the first minibatch's ratio to 1, the mean over tokens (None: RATIO_TOLERANCE of the compute
    dtype). min_eos_rate: answers that end by themselves; fewer than that in `patience` steps in a row is a collapse.
    proxy, gold: two metrics of evaluations; when the first rises while the second falls `patience_evaluations` times in
    a row, the policy has found out the proxy (None: not watched).
    """

    ratio_tolerance: Annotated[Positive | None, Unset("that of the compute dtype")]
    min_eos_rate: Share
    patience: Count
    proxy: Path | None
    gold: Path | None
    patience_evaluations: Annotated[Count, Only("proxy", default=3)]

    @staticmethod
    def check(where: str, values: Mapping[str, Any]) -> None:
        if values["proxy"] is not None and values["proxy"] == values["gold"]:
            raise UserError(f"{where}.gold = {values['gold']!r} is the proxy too: name what it should not rise against")
        for name, other in (("proxy", "gold"), ("gold", "proxy")):
            if values[name] is not None and values[other] is None:
                raise UserError(
                    f"{where}.{name} = {values[name]!r} is watched against {where}.{other}, which is None: name a "
                    "metric of evaluations in both, or leave both None"
                )


ABOUT_ANSWERS = ("scores", "kl", "length", "eos_rate")
"""What the evaluation "heldout" measures of answers, beside each source's own scores."""


def check_names(limits: Limits, where: str, names: Iterable[str]) -> None:
    """Raises UserError for a metric to watch that is none of `names`, in which a last part of "*" stands for any."""
    names = list(names)
    known = {name.removesuffix("/*") for name in names if name.endswith("/*")}
    for leaf, name in (("proxy", limits.proxy), ("gold", limits.gold)):
        if name is None or name in names or any(name.startswith(f"{start}/") for start in known):
            continue
        raise UserError(
            f"{where}.{leaf} = {name!r}: no evaluation gives such a metric{did_you_mean(name, names)}; there are "
            f"{', '.join(names) or 'none, as nothing is held out'}"
        )


def heldout_names(sources: Iterable[str], languages: Collection[str]) -> list[str]:
    """The metrics of the evaluation "heldout" with rewards and judges of these names."""
    scores = [f"scores/{source}" for source in sources]
    of_language = [f"{score}/{language}" for score in scores for language in languages] if len(languages) != 1 else []
    return [f"eval/heldout/{name}" for name in (*ABOUT_ANSWERS, *scores, *of_language)]


def evaluation_names(evals: Iterable[str], evaluators: Mapping[str, Evaluator]) -> list[str]:
    """The metrics of further evaluations; of one that does not say, any."""
    return [f"eval/{name}/{metric}" for name in evals for metric in getattr(evaluators[name], "metrics", ("*",))]


def watch_of(settings: Settings, dtype: str, workdir: epath.Path) -> "Watch":
    """The check that `config.watch` and `config.guard` describe."""
    return Watch(read(settings, "watch", Limits), dtype, settings.guard.max_streak, workdir)


class Watch:
    """A `train.loop.Check`. The evaluations before a resume are read back from metrics.jsonl."""

    def __init__(self, limits: Limits, dtype: str, max_streak: int, workdir: epath.Path):
        self._limits = limits
        self._check_streak = check_streak(max_streak)
        self._tolerance = limits.ratio_tolerance or RATIO_TOLERANCE[dtype]
        self._path = epath.Path(workdir) / "metrics.jsonl"
        self._seldom_ended = 0
        self._pairs: list[tuple[float, float]] | None = None

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        if bad:
            raise TrainingStopped(
                f"step {step}: {', '.join(bad)} not finite; lower config.optim.lr, or look at rewards"
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
                f"{self._tolerance:.2g}: tokens were not scored by the policy that is being updated"
            )

    def _check_ends(self, step: int, eos_rate: float) -> None:
        self._seldom_ended = self._seldom_ended + 1 if eos_rate < self._limits.min_eos_rate else 0
        if self._seldom_ended >= self._limits.patience:
            raise TrainingStopped(
                f"step {step}: for {self._seldom_ended} steps fewer than {self._limits.min_eos_rate:.0%} of answers "
                "ended by themselves; set config.reward.shaping.missing_eos, or raise config.rollout.max_tokens"
            )

    def _check_hacking(self, step: int, proxy: float, gold: float) -> None:
        if self._pairs is None:
            self._pairs = _read_pairs(self._path, self._limits.proxy, self._limits.gold, before=step)
        self._pairs.append((proxy, gold))
        n = self._limits.patience_evaluations
        recent = self._pairs[-n - 1 :]
        moves = list(itertools.pairwise(recent))
        if len(moves) == n and all(new[0] > old[0] and new[1] < old[1] for old, new in moves):
            raise TrainingStopped(
                f"step {step}: in {n} evaluations in a row {self._limits.proxy} rose while {self._limits.gold} fell: "
                "the policy is exploiting the reward; raise config.kl.coef, or end the run where the second was best"
            )


def _read_pairs(path: epath.Path, proxy: str, gold: str, before: int) -> list[tuple[float, float]]:
    """Both metrics at every evaluation of the run before a step."""
    steps: dict[int, dict] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        record = json.loads(line)
        if record["step"] < before:
            steps.setdefault(record["step"], {}).update(record)
    return [(record[proxy], record[gold]) for record in steps.values() if proxy in record and gold in record]


def heldout_rollouts(
    settings: Settings,
    scene: setup.Scene,
    act: Callable,
    frozen: Mapping[str, Any],
    graders: Sequence[Rewards],
    lengths: Lengths,
) -> list[Evaluation]:
    """The evaluation "heldout": answers to the held-out prompts, drawn as in training, what they score with rewards and
    judges, over all and by language, and `config.eval_rows` of them to read. None where nothing is held out."""
    shown = settings.eval_rows
    prompts = scene.heldout
    if prompts is None:
        return []
    look, judge = jax.jit(act), jax.jit(scene.judges.of_models)
    host = setup.host_scores(scene, prompts.records, *graders, scene.judges)

    def run(params: Any) -> tuple[dict[str, float], list[dict[str, str]]]:
        state = {"params": params, "step": jnp.zeros((), jnp.int32)}
        parts, languages, rows = [], [], []
        for number in range(len(prompts)):
            seen = look(state, frozen, device_batch(prompts, number, scene.rows))
            seen = seen._replace(scores=seen.scores | judge(scene.judge_params, seen.rows))
            seen = host(seen) if host else seen
            real = prompts.real(number) * scene.sampling.n
            parts.append({name: np.asarray(x)[:real] for name, x in _by_answer(scene, seen).items()})
            languages += [prompts.records[i]["language"] for i in np.asarray(seen.rows.index_R)[:real]]
            if len(rows) < shown:
                rows += _table(scene, seen, parts[-1], min(shown - len(rows), real))
        return _means({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, languages), rows

    return [Evaluation("heldout", lengths.evaluate, run)]


def _by_answer(scene: setup.Scene, seen: Any) -> dict[str, Any]:
    """Numbers about each answer, [R]: reward, its parts, KL to the reference in nats, length, whether it ended."""
    mask_RM = seen.rows.mask_RM
    return {
        "scores": scene.graders.total(seen.scores),
        **{f"scores/{name}": score_R for name, score_R in seen.scores.items()},
        "kl": jnp.sum(seen.kl_exact_RM * mask_RM, axis=1),
        "length": seen.rows.lengths_R,
        "eos_rate": seen.rows.stopped_R,
    }


def _means(by_answer: Mapping[str, np.ndarray], languages: Sequence[str]) -> dict[str, float]:
    """The mean of each number; where prompts are in several languages, that of each score in each of them too."""
    means = {name: float(np.mean(x)) for name, x in by_answer.items()}
    scores = {name: x for name, x in by_answer.items() if name.startswith("scores/")}
    found, languages = sorted(set(languages)), np.array(languages)
    for language in found if len(found) > 1 else ():
        means |= {f"{name}/{language}": float(np.mean(x[languages == language])) for name, x in scores.items()}
    return means


def _table(scene: setup.Scene, seen: Any, by_answer: Mapping[str, np.ndarray], count: int) -> list[dict[str, str]]:
    """The first answers of a batch as rows to read."""
    texts, index = setup.decode_answers(scene, seen.rows)
    return [
        {
            "prompt": scene.heldout.records[index[row]]["messages"][-1]["content"],
            "answer": texts[row],
            "score": f"{by_answer['scores'][row]:.2f}",
            "KL": f"{by_answer['kl'][row]:.2f}",
        }
        for row in range(count)
    ]
