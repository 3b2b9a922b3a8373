"""A loaded reward or cost model with its tokenizer and chat template, ready to score answers.

judge = camelid.load_reward("runs/reward")
judge.score(["Who lives in the lighthouse?"], ["A fox."])  # float32 [1]
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Int

from .. import checkpoints
from ..checkpoints import Checkpoint
from ..checkpoints.checkpoint import user_errors
from ..data.pairs import encode_answer
from ..data.templates import ChatTemplate
from ..data.tokenizer import Tokenizer
from ..errors import UserError
from ..model.decode import pad_prompts
from ..model.sharding import make_mesh
from ..train.network import FrozenWeights
from . import scalar

Messages = Sequence[Mapping[str, Any]]


class RewardModel:
    """A reward or cost model in memory.

    Attributes:
      model: the network's pure functions.
      params: its parameters, a plain nested dict of arrays.
      tokenizer: its tokenizer, or None.
      template: its chat template, or None.
      mesh: the devices that hold the parameters.
      step: the training step of the parameters.
    """

    def __init__(
        self,
        model: scalar.ScalarModel,
        params: scalar.Params,
        tokenizer: Tokenizer | None,
        template: ChatTemplate | None,
        mesh: jax.sharding.Mesh,
        step: int | None = None,
    ):
        self.model, self.params, self.mesh, self.step = model, params, mesh, step
        self.tokenizer, self.template = tokenizer, template

    def score(
        self,
        prompts: Sequence[str | Messages],
        answers: Sequence[str],
        *,
        pessimism: float = 0.0,
        batch_size: int = 8,
    ) -> Float[np.ndarray, " N"]:
        """Scores answers to prompts, written by the chat template and read at the answer's last token as in training.

        Rows of like length share a batch and are padded to a power of two, so that few shapes are compiled.

        Args:
          prompts: conversations as lists of {"role", "content"} dicts, or strings for one user turn.
          answers: an answer to each prompt, the assistant's next turn. An empty one is its stop token alone.
          pessimism: the score of an ensemble is mean - pessimism * deviation over its heads (arXiv:2310.02743).
          batch_size: number of answers that are scored together.

        Returns:
          The score of each answer, or its cost for a cost model, float32 in the order of the answers.

        Raises:
          UserError: the lists are empty or of different lengths, the model has no tokenizer or template, prompt and
            answer exceed the context, or a setting is out of range or does nothing.
        """
        if not prompts or len(prompts) != len(answers):
            raise UserError(f"{len(prompts)} prompts and {len(answers)} answers: give one or more, as many of each")
        if isinstance(prompts, str) or isinstance(answers, str):
            raise UserError("prompts or answers is a string: give lists, such as [prompt] and [answer]")
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size}: give 1 or more")
        if pessimism and self.model.heads == 1:
            raise UserError(f"pessimism {pessimism} does nothing: the model has one head; leave it out")
        rows = self.encode(prompts, answers)
        context = self.model.config.max_len
        for number, row in enumerate(rows, 1):
            if len(row) > context:
                said = f"answer {number} has {len(row):,} tokens with its prompt"
                raise UserError(f"{said}, more than the context of {context:,}: shorten it")
        return self.score_tokens(rows, pessimism=pessimism, batch_size=batch_size)

    def encode(self, prompts: Sequence[str | Messages], answers: Sequence[str]) -> list[list[int]]:
        """The tokens of each prompt with its answer, up to the token that ends the assistant's turn.

        Raises UserError if the model has no tokenizer or template.
        """
        for name in ("tokenizer", "template"):
            if getattr(self, name) is None:
                raise UserError(f"this reward model has no {name}: set `{name}`, or give token ids to `score_tokens`")

        def encode(prompt: str | Messages, answer: str, stop: int | None = None) -> list[int]:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
            told = [{"role": "assistant", "content": answer}]
            return encode_answer({"messages": messages}, told, self.tokenizer, self.template, stop=stop).tokens.tolist()

        stop = encode("?", ".")[-1]
        return [encode(*pair, stop) for pair in zip(prompts, answers, strict=True)]

    def score_tokens(
        self, rows: Sequence[Sequence[int]], *, pessimism: float = 0.0, batch_size: int = 8
    ) -> Float[np.ndarray, " N"]:
        """Scores rows of token ids, each a prompt with an answer, at their last tokens.

        Args:
          rows: the token ids, one or more of each row.
          pessimism: as in `score`.
          batch_size: number of rows that are scored together; the last batch is filled up with its last row.

        Returns:
          The score of each row, float32 in the order of the rows.
        """
        order, scores_N = sorted(range(len(rows)), key=lambda i: len(rows[i])), np.zeros(len(rows), np.float32)
        with jax.set_mesh(self.mesh):
            for begin in range(0, len(order), batch_size):
                chosen = order[begin : begin + batch_size]
                filled = chosen + chosen[-1:] * (batch_size - len(chosen))
                padded = pad_prompts([rows[i] for i in filled])
                scores_N[chosen] = np.asarray(self._scores(self.params, *padded, pessimism))[: len(chosen)]
        return scores_N

    @functools.cached_property
    def _scores(self):
        @jax.jit
        def scores(
            params: scalar.Params, tokens_RT: Int[Array, "R T"], lengths_R: Int[Array, " R"], pessimism: float
        ) -> Float[Array, " R"]:
            return scalar.combine(scalar.last_scores(self.model, params, tokens_RT, lengths_R), pessimism)

        return scores


def load_reward(
    path: epath.PathLike,
    *,
    step: int | str | None = None,
    mesh: jax.sharding.Mesh | None = None,
    dtype: str | None = None,
    weights: str | None = None,
) -> RewardModel:
    """Loads a reward or cost model from disk.

    Args:
      path: a run of the recipe `reward` (its latest checkpoint), RUN@best, RUN@STEP, or one checkpoint.
      step: which checkpoint of the run at `path`: that of a step, such as 500, or "best", the one that its
        `config.checkpoint.best` keeps; default: the latest one.
      mesh: devices for the parameters; default: one device.
      dtype: dtype of parameters and computation; default: as trained.
      weights: "params" for the parameters of the last step, "ema" for their moving average. Default: the moving average
        if the run kept one.

    Raises:
      UserError: the path holds no reward or cost model, the run has no checkpoint of the step, or an option does not
        fit.
    """
    found = checkpoints.open(path, weights, step=step)
    mesh = mesh if mesh is not None else make_mesh({}, jax.local_devices()[:1])
    with user_errors():
        changes = {} if dtype is None else dict(dtype=dtype, param_dtype=dtype)
        model, params = load_network(found, FrozenWeights(mesh), **changes)
    return RewardModel(model, params, found.tokenizer, found.template, mesh, found.step)


def load_network(found: Checkpoint, frozen: FrozenWeights, **changes: Any) -> tuple[scalar.ScalarModel, Any]:
    """Loads network and parameters of a reward or cost model.

    Args:
      found: its checkpoint. UserError if it holds a language model.
      frozen: frozen weights that are in memory: adapters share their base with other networks that stand on it.
      **changes: fields of the config that differ from the stored one, such as dtype.
    """
    scalar.check_is_scalar(found)
    model = scalar.build(found.config.replace(**changes), found.heads)
    return model, frozen.load_whole(found, jax.eval_shape(model.init, jax.random.key(0)))
