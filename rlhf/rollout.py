"""Rollouts: answers that the policy draws, and the networks' states, log-probabilities and scores of their tokens.

A row is a prompt with one answer. Prompts are aligned right, so that every answer takes the last M slots and the output
head is applied to these slots alone:

    slot       0 ...          P-1 | P ...                      P+M-1
    tokens     0 0 prompt prompt  | answer ... stop 0 0 0

The state at slot t-1 is the state before token t: the token's log-probability and value are computed from it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..model import decode, llama
from ..model.logprobs import TokenScores, head_logprobs
from ..model.rows import align_right
from ..model.sampling import GREEDY_BELOW, Sampling
from ..settings.leaves import Count, Range, Text
from ..train.batches import RowLength


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
    """The section `config.rollout`: how the policy draws answers."""

    max_tokens: RowLength = 128
    """The most tokens of an answer."""

    temperature: Annotated[float, Range(least=GREEDY_BELOW)] = 1.0
    """Divisor of the logits when answers are drawn; their log-probabilities are taken at the same temperature."""

    n: Annotated[int, Range(least=1, most=2**16)] = 1
    """Number of answers to each prompt."""

    score_parts: Count = 1
    """Number of equal parts in which a step's answers are scored one after the other, to save memory."""

    stop: list[Text] = ()
    """Strings that end an answer, like the template's end of a turn. Reward functions see the text before the string;
    reward models see its tokens too."""


class Rollout(NamedTuple):
    """R = B n rows of T = P + M slots: n answers to each of B prompts, the answers to a prompt in adjacent rows."""

    tokens_RT: Int[Array, "R T"]
    """Prompt and answer, padded with 0 on both sides."""
    segment_ids_RT: Int[Array, "R T"]
    """1 for real tokens, 0 for padding."""
    positions_RT: Int[Array, "R T"]
    """Positions, counted from the first token of the prompt."""
    mask_RM: Float[Array, "R M"]
    """1 for the answer's tokens, including the stop token or the tokens of a stop string."""
    sampling_logprobs_RM: Float[Array, "R M"]
    """Log-probability of each token under the distribution that it was drawn from."""
    stopped_R: Float[Array, " R"]
    """1 for an answer that ended with a stop token or string, 0 for one that was cut at `max_tokens`."""
    index_R: Int[Array, " R"]
    """Index of the prompt in the data's records."""

    @property
    def answers_RM(self) -> Int[Array, "R M"]:
        """The answers' tokens, the last M slots."""
        return self.tokens_RT[:, -self.mask_RM.shape[1] :]

    @property
    def lengths_R(self) -> Int[Array, " R"]:
        """The number of tokens of each answer."""
        return jnp.sum(self.mask_RM, axis=1).astype(jnp.int32)


class Experience(NamedTuple):
    """Rollouts, and how the networks score them before the step's first update.

    Masked entries of arrays [R, M] are 0, except in `values`.
    """

    rows: Rollout
    """The answers with their prompts."""
    logp_RM: Float[Array, "R M"]
    """The policy's log-probability of each token."""
    ref_logp_RM: Float[Array, "R M"]
    """The reference's log-probability of each token."""
    entropy_RM: Float[Array, "R M"]
    """Entropy, in nats, of the policy's distribution before each token."""
    kl_exact_RM: Float[Array, "R M"]
    """KL(policy || reference) at each token, in nats, over the whole vocabulary."""
    values: dict[str, Float[Array, "R M"]]
    """By critic: the value of the state before each token."""
    scores: dict[str, Float[Array, " R"]]
    """By source of rewards, and "cost": the score of each answer, unweighted."""


def check_sampling(sampling: Sampling) -> None:
    """Raises ValueError for top-k, top-p, min-p, a repetition penalty, or temperature 0, which updates cannot follow.

    The set of tokens that a filter keeps changes with the policy. A token that was kept when it was drawn may have
    probability 0 after an update, and the probability ratio is then meaningless. A temperature and ids without a token
    are allowed, because log-probabilities are computed with them too.
    """
    plain = dataclasses.replace(sampling, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)
    if sampling != plain or sampling.is_greedy:
        raise ValueError(
            "rollouts are drawn from the whole distribution: leave top_k 0, top_p 1, min_p 0 and repetition_penalty 1, "
            f"and give a temperature above 0 (it is {sampling.temperature:g})"
        )


def roll_out(
    model: llama.Model, params: llama.Params, batch: Mapping[str, Array], key: jax.Array, sampling: Sampling
) -> Rollout:
    """Draws `sampling.n` answers to each prompt of a batch.

    Args:
      model: the network.
      params: the parameters of the policy.
      batch: prompts (`data.prompts`).
      key: the key of the draws. The randomness of a token derives from key, prompt, sample and position; it does not
        depend on the other prompts of the batch.
      sampling: how answers are drawn.
    """
    P, n = batch["tokens"].shape[1], sampling.n
    answer = decode.generate(model, params, batch["tokens"], batch["lengths"], key, sampling, batch["ids"])
    tokens_RM, lengths_R = answer.tokens.reshape(-1, sampling.max_tokens), answer.lengths.reshape(-1)
    mask_RM = (jnp.arange(sampling.max_tokens)[None] < lengths_R[:, None]).astype(jnp.float32)
    prompts_BP, real_BP = align_right(batch["tokens"], batch["lengths"])
    segments_RT = jnp.concatenate([jnp.repeat(real_BP.astype(jnp.int32), n, axis=0), mask_RM.astype(jnp.int32)], axis=1)
    starts_R = jnp.repeat(P - batch["lengths"], n)
    return Rollout(
        tokens_RT=jnp.concatenate([jnp.repeat(prompts_BP, n, axis=0), jnp.where(mask_RM > 0, tokens_RM, 0)], axis=1),
        segment_ids_RT=segments_RT,
        positions_RT=jnp.maximum(jnp.arange(P + sampling.max_tokens)[None] - starts_R[:, None], 0),
        mask_RM=mask_RM,
        sampling_logprobs_RM=answer.sampling_logprobs.reshape(mask_RM.shape),
        stopped_R=answer.stopped.reshape(-1).astype(jnp.float32),
        index_R=jnp.repeat(batch["index"], n),
    )


def states_before(hidden_RTD: Float[Array, "R T D"], M: int) -> Float[Array, "R M D"]:
    """The states before each of the answer's M tokens, from the states at all T slots of a row."""
    return hidden_RTD[:, -M - 1 : -1]


def answer_states(model: llama.Model, params: llama.Params, rows: Rollout) -> Float[Array, "R M D"]:
    """Runs a network with its parameters over whole rows; returns its last hidden state before each answer token."""
    hidden_RTD = model.hidden(params, rows.tokens_RT, rows.segment_ids_RT, rows.positions_RT)
    return states_before(hidden_RTD, rows.mask_RM.shape[1])


def score_answers(model: llama.Model, params: llama.Params, rows: Rollout, temperature: float) -> TokenScores:
    """Scores the answers' tokens with a network and its parameters: log-probability and entropy of each, [R, M].

    temperature: divisor of the logits.
    """
    states_RMD = answer_states(model, params, rows)
    return head_logprobs(llama.output_kernel(params), states_RMD, rows.answers_RM, temperature)


def at_last_token(x_RT: Float[Array, "R T"], rows: Rollout) -> Float[Array, " R"]:
    """The entry of `x_RT` at the last real token of each answer."""
    last_R = rows.tokens_RT.shape[1] - rows.mask_RM.shape[1] + rows.lengths_R - 1
    return jnp.take_along_axis(x_RT, last_R[:, None], axis=1)[:, 0]


def in_parts(fn: Callable[[Any], Any], rows: Any, parts: int) -> Any:
    """Computes fn(rows) for one of `parts` equal parts of the rows at a time, to save memory."""
    if parts == 1:
        return fn(rows)
    split = jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), rows)
    _, done = jax.lax.scan(lambda _, part: (None, fn(part)), None, split)
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), done)
