"""The reward of an answer: a weighted sum of scores by reward models, tasks and functions, and its shaping.

The score of a task ("walks", "safe_sums:cost") and a function ("package.module:name", "file.py:name") check an answer's
text, as `reward_functions` describes.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import tasks
from ..checkpoints import Checkpoint
from ..data.tokenizer import Tokenizer
from ..errors import UserError
from ..settings.functions import FORMS
from ..settings.leaves import Count, Finite, Name, NotNegative, OneOf, Only, Path, Positive, Unset
from ..train.network import FrozenWeights
from ..train.run import Run
from . import scalar
from .reward_functions import LIMIT, RewardFunction, find_reward_function, of_callable, score_all
from .reward_model import load_network
from .rollout import Rollout, at_last_token


@dataclass(frozen=True)
class RewardSource:
    """A source of scores of answers. Exactly one of `model`, `task` and `function` is set."""

    model: Path | None = None
    """Path of a reward or cost model."""

    task: Name | None = None
    """Name of a task's score, such as "walks" or "safe_sums:cost"."""

    function: Name | None = None
    """Name of a function, as "package.module:name" or "file.py:name": reward(record, answer) -> float, or
    reward(records, answers) -> floats for all answers of a step; either may be `async def`."""

    weight: Finite = 1.0
    """Factor of the score in the sum over all sources."""

    weights: Annotated[str | None, OneOf("params", "ema"), Only("model")] = None
    """Which weights of the model to read: params, or ema, their moving average. Default: ema if its run kept one."""

    pessimism: Annotated[NotNegative, Only("model", default=0.0)] = 0.0
    """The score of an ensemble is mean - pessimism * deviation over its heads (arXiv:2310.02743)."""

    limit: Annotated[Count, Only("function", default=LIMIT)] = LIMIT
    """The most calls of an `async` function at the same time."""

    timeout_seconds: Annotated[Positive | None, Only("function"), Unset("no limit")] = None
    """The longest time for a call of an `async` function, in seconds; a longer call ends the run. None: no limit."""

    batch_size: Annotated[Count | None, Only("function"), Unset("all answers of a step")] = None
    """The most answers in a call of a function reward(records, answers). None: all answers of a step."""

    def check(self, where: str) -> None:
        if sum(source is not None for source in (self.model, self.task, self.function)) != 1:
            raise UserError(f"{where}: give one of model=PATH, task=NAME (such as safe_sums:cost), function={FORMS}")
        if self.model is None:
            self.find(where)

    @property
    def said(self) -> str:
        """What gives the scores, in words: "model runs/reward", "task primer" or "reward.py:judge"."""
        if self.function is not None:
            return self.function
        return f"task {self.task}" if self.model is None else f"model {self.model}"

    def find(self, where: str) -> RewardFunction:
        """The function that `task` or `function` names, called as the other settings say.

        Raises UserError, which begins with `where`, if there is none, or if a setting does nothing for it.
        """
        if self.function is None:
            try:
                return of_callable(tasks.find_score(self.task), self.task)
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
        found = find_reward_function(self.function, where)
        if not found.awaited and self.timeout_seconds is not None:
            raise UserError(
                f"{where}.timeout_seconds is for an `async` function, and {self.function} is not; leave it out"
            )
        if not (found.awaited and (self.batch_size or not found.batched)) and self.limit != LIMIT:
            raise UserError(
                f"{where}.limit is for an `async` function with several calls in a step, and {self.function} is not; "
                "leave it out"
            )
        if not found.batched and self.batch_size is not None:
            raise UserError(
                f"{where}.batch_size is for a function reward(records, answers), and {self.function} scores one answer "
                "in a call; leave it out"
            )
        return dataclasses.replace(
            found, limit=self.limit, timeout_seconds=self.timeout_seconds, batch_size=self.batch_size
        )


class ModelReward(NamedTuple):
    """A reward or cost model, without its parameters."""

    model: scalar.ScalarModel
    """The network."""
    weight: float
    """Factor of its score."""
    pessimism: float
    """How an ensemble's heads are combined (`scalar.combine`)."""


class FunctionReward(NamedTuple):
    """A Python function, or the score of a task, that gives rewards."""

    function: RewardFunction
    """The function, with its form."""
    weight: float
    """Factor of its score."""


class Rewards(NamedTuple):
    """The sources of a reward by their names."""

    models: dict[str, ModelReward]
    """Reward and cost models, which score on the device."""
    functions: dict[str, FunctionReward]
    """Functions and scores of tasks, which score texts on the host."""
    params: Mapping[str, Any] = {}
    """Parameters of the models, by the same names."""

    @property
    def names(self) -> list[str]:
        """The names of all sources."""
        return [*self.models, *self.functions]

    def of_models(self, params: Mapping[str, Any], rows: Rollout) -> dict[str, Float[Array, " R"]]:
        """The unweighted score of each row by each model, read at the answer's last token."""
        return {name: score_rows(part, params[name], rows) for name, part in self.models.items()}

    def of_functions(self, records: Sequence[Mapping], answers: Sequence[str]) -> dict[str, np.ndarray]:
        """The unweighted score of each answer by each function, float32 [R]; the errors of `score_all`."""
        return score_all({name: part.function for name, part in self.functions.items()}, records, answers)

    def total(self, scores: Mapping[str, Array]) -> Float[Array, " R"]:
        """The weighted sum of the scores [R] of all sources."""
        parts = self.models | self.functions
        return sum(part.weight * jnp.asarray(scores[name], jnp.float32) for name, part in parts.items())


def score_rows(part: ModelReward, params: Any, rows: Rollout) -> Float[Array, " R"]:
    """The score of each row by one model, with its parameters `params`, read at the answer's last token."""
    scores_RTH = part.model.apply(params, rows.tokens_RT, rows.segment_ids_RT, rows.positions_RT)
    return at_last_token(scalar.combine(scores_RTH, part.pessimism), rows)


def load_rewards(run: Run, sources: Mapping[str, RewardSource], where: str) -> Rewards:
    """Loads the sources of a reward.

    Args:
      run: the run in which answers are scored. Its policy's tokenizer must be that of the models.
      sources: the sources by name.
      where: dotted name of the config's section that names the sources, for messages.
    """
    models, functions, params = {}, {}, {}
    for name, source in sources.items():
        if source.model is None:
            functions[name] = FunctionReward(source.find(f"{where}.{name}"), source.weight)
            continue
        found = run.open(source.model, source.weights)
        model, params[name] = load_model(found, run.tokenizer, run.frozen, run.model.config.dtype)
        if source.pessimism and model.heads == 1:
            raise UserError(
                f"{where}.{name}.pessimism = {source.pessimism} does nothing: {source.model} has one head, and the "
                "deviation is over several; leave it out"
            )
        models[name] = ModelReward(model, source.weight, source.pessimism)
    return Rewards(models, functions, params)


def load_model(
    found: Checkpoint, tokenizer: Tokenizer, frozen: FrozenWeights, dtype: str
) -> tuple[scalar.ScalarModel, Any]:
    """Loads the reward model of a checkpoint, and returns network and parameters.

    Args:
      found: the checkpoint.
      tokenizer: the policy's tokenizer. UserError if the reward model has another one.
      frozen: frozen weights that are in memory: adapters share their base with other networks that stand on it.
      dtype: dtype of the computation.
    """
    check_tokenizer(found, tokenizer)
    return load_network(found, frozen, dtype=dtype)


def check_tokenizer(found: Checkpoint, tokenizer: Tokenizer) -> None:
    """Raises UserError unless the model of a checkpoint has the policy's tokenizer."""
    own = found.tokenizer
    if own is None:
        raise UserError(f"{found.name}: the model has no tokenizer; give one with the policy's tokenizer")
    if own.fingerprint != tokenizer.fingerprint and (difference := own.difference(tokenizer)):
        raise UserError(
            f"{found.name}: the model's tokenizer is not the policy's: {difference}; give a model with the same one"
        )


@dataclass(frozen=True)
class Shaping:
    """The section `config.reward.shaping`: from an answer's score to the reward at its last token. The steps are taken
    in the order of the fields."""

    normalise: bool = False
    """Whether the running mean of all scores is subtracted, and the result divided by their running deviation."""

    clip: Annotated[Positive | None, Unset("no clipping")] = None
    """Scores are clipped to [-clip, clip]. None: no clipping."""

    missing_eos: Annotated[Finite | None, Unset("its own score")] = None
    """Score of an answer that is cut at `rollout.max_tokens` (arXiv:1909.08593, section 3.1.2). None: its own score."""

    length_penalty: Finite = 0.0
    """Number that is subtracted for each token of an answer."""

    def __call__(self, scores_R: Float[Array, " R"], rows: Rollout, stats: Mapping[str, Array]) -> Float[Array, " R"]:
        """The shaped scores.

        Args:
          scores_R: the weighted score of each answer.
          rows: the rollouts.
          stats: mean and variance of all scores so far, including `scores_R` (`update_stats`).
        """
        if self.normalise:
            scores_R = (scores_R - stats["mean"]) * jax.lax.rsqrt(stats["var"] + 1e-8)
        if self.clip is not None:
            scores_R = jnp.clip(scores_R, -self.clip, self.clip)
        if self.missing_eos is not None:
            scores_R = jnp.where(rows.stopped_R > 0, scores_R, self.missing_eos)
        return scores_R - self.length_penalty * rows.lengths_R


@dataclass(frozen=True)
class RewardSettings:
    """The section `config.reward`: the reward of an answer."""

    sources: dict[str, RewardSource] = field(default_factory=dict)
    """Sources of scores by their names: {"model": path}, {"task": name} or {"function": "file.py:name"}, each with a
    weight (default: 1). The score of an answer is their weighted sum."""

    shaping: Shaping = Shaping()
    """From the score of an answer to its reward."""


FIRST_STATS = {"count": 0.0, "mean": 0.0, "var": 0.0}
"""The statistics of no scores."""


def update_stats(stats: Mapping[str, Array], scores_R: Float[Array, " R"]) -> dict[str, Array]:
    """Updates count, mean and variance of all scores of a run by the scores of a step (Chan et al. 1979, pairwise)."""
    n = jnp.float32(scores_R.size)
    count = stats["count"] + n
    delta = jnp.mean(scores_R) - stats["mean"]
    squares = stats["var"] * stats["count"] + jnp.var(scores_R) * n + delta**2 * stats["count"] * n / count
    return {"count": count, "mean": stats["mean"] + delta * n / count, "var": squares / count}


def at_end(reward_R: Float[Array, " R"], mask_RM: Float[Array, "R M"]) -> Float[Array, "R M"]:
    """The reward of each token when an answer's whole reward is given at its last real token."""
    following_RM = jnp.pad(mask_RM[:, 1:], ((0, 0), (0, 1)))
    return reward_R[:, None] * mask_RM * (1.0 - following_RM)
