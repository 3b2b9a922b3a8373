"""The reward of an answer: a weighted sum of scores by reward models, tasks and functions, and its shaping.

The score of a task ("walks", "safe_sums:cost") and a function ("package.module:name") check an answer's text. Both are
called as

    reward(record, answer) -> float

where `record` is {"messages": the prompt, "reference": the answer in the data or None, "meta": {...}, ...}, as
`data.prompts` describes it, and `answer` is the text.
"""

import copy
import math
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
from ..settings import functions
from ..settings.leaves import Finite, NotNegative, OneOf, Only, Path, Positive, Unset
from ..train.network import FrozenWeights
from ..train.run import Run
from . import scalar
from .reward_model import load_network
from .rollout import Rollout, at_last_token

LARGEST_SCORE = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class RewardSource:
    """A source of scores of answers. Exactly one of `model`, `task` and `function` is set."""

    model: Path | None = None
    """Path of a reward or cost model."""

    task: Path | None = None
    """Name of a task's score, such as "walks" or "safe_sums:cost"."""

    function: Path | None = None
    """Name of a function reward(record, answer) -> float, as "package.module:name"."""

    weight: Finite = 1.0
    """Factor of the score in the sum over all sources."""

    weights: Annotated[str | None, OneOf("params", "ema"), Only("model")] = None
    """Which weights of the model to read: params, or ema, their moving average. Default: ema if its run kept one."""

    pessimism: Annotated[NotNegative, Only("model", default=0.0)] = 0.0
    """The score of an ensemble is mean - pessimism * deviation over its heads (arXiv:2310.02743)."""

    def check(self, where: str) -> None:
        if sum(source is not None for source in (self.model, self.task, self.function)) != 1:
            raise UserError(
                f"{where}: give one of model=PATH, task=NAME (such as safe_sums:cost), function=package.module:name"
            )
        if self.model is None:
            self.find(where)

    def find(self, where: str) -> tasks.Score:
        """The function that `task` or `function` names; UserError, which begins with `where`, if there is none."""
        if self.function is not None:
            return find_function(self.function, where)
        try:
            return tasks.find_score(self.task)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None


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

    function: tasks.Score
    """reward(record, answer) -> float."""
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
        """The unweighted score of each answer by each function, float32 [R]; the errors of `scores_of`."""
        return {name: scores_of(name, part.function, records, answers) for name, part in self.functions.items()}

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


def find_function(name: str, where: str) -> tasks.Score:
    """Imports the function "package.module:name". Raises UserError, which begins with `where`, if it is no reward."""
    return functions.find_function(name, where, "reward(record, answer)", {}, "")


def scores_of(
    name: str, function: tasks.Score, records: Sequence[Mapping], answers: Sequence[str]
) -> Float[np.ndarray, " R"]:
    """Calls a reward function for each answer, and returns the scores, float32 [R].

    Args:
      name: the reward's name, for messages.
      function: the function.
      records: the record of each answer's prompt; the function gets a copy.
      answers: the texts.

    Raises UserError if the function raises an exception or returns anything but a finite number.
    """
    scores = [_score(name, function, record, answer) for record, answer in zip(records, answers, strict=True)]
    return np.array(scores, np.float32)


def _score(name: str, function: tasks.Score, record: Mapping, answer: str) -> float:
    try:
        value = function(copy.deepcopy(record), answer)  # a function may write into it
        score = float(value) if hasattr(value, "__float__") else math.nan
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's function may raise
        raise UserError(f"reward {name}: {functions.raised(error)} for answer {answer!r}") from error
    if not abs(score) <= LARGEST_SCORE:
        raise UserError(f"reward {name}: gave {value!r} for answer {answer!r}; it must be a finite number")
    return score


@dataclass(frozen=True)
class Shaping:
    """The section `config.reward.shaping`: from an answer's score to the reward at its last token. The steps are taken
    in the order of the fields."""

    normalise: bool = False
    """Whether the running mean of all scores is subtracted, and the result divided by their running deviation."""

    clip: Annotated[Positive | None, Unset("any score")] = None
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
    """Sources of scores by their names: {"model": path}, {"task": name} or {"function": "package.module:name"}, each
    with a weight (default: 1). The score of an answer is their weighted sum."""

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
