"""Rollouts: answers that the policy draws, and what the networks say of their tokens.

A row is a prompt and an answer to it. Prompts are shifted to end at the same slot, so that every answer stands in the
last M slots and the vocabulary's head is only ever applied there:

    slot       0 ...          P-1 | P ...                      P+M-1
    tokens     0 0 prompt prompt  | answer ... stop 0 0 0

State t-1 is what the network knew before it drew token t: it gives the token's log-probability and its value.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..model import decode, llama
from ..model.rows import align_right
from ..model.sampling import Sampling
from ..train.losses import TokenScores, head_logprobs


class Rollout(NamedTuple):
    """R = B n rows of T = P + M slots; the n answers to a prompt stand together.

    segment_ids: 1 for real tokens, 0 for padding on either side. mask: 1 for the answer's tokens, among them the stop
    token or those that a stop string was written with. sampling_logprobs: of each token under the distribution it was
    drawn from. stopped: 1 where the answer ended by itself. index: the prompt's number in the data.
    """

    tokens_RT: Int[Array, "R T"]
    segment_ids_RT: Int[Array, "R T"]
    positions_RT: Int[Array, "R T"]
    mask_RM: Float[Array, "R M"]
    sampling_logprobs_RM: Float[Array, "R M"]
    stopped_R: Float[Array, " R"]
    index_R: Int[Array, " R"]

    @property
    def answers_RM(self) -> Int[Array, "R M"]:
        return self.tokens_RT[:, -self.mask_RM.shape[1] :]

    @property
    def lengths_R(self) -> Int[Array, " R"]:
        """Tokens of each answer."""
        return jnp.sum(self.mask_RM, axis=1).astype(jnp.int32)


class Experience(NamedTuple):
    """Rollouts and what the networks said of them before any update; 0 where masked. kl_exact: KL(policy || reference)
    at each token, over the whole vocabulary. values, by critic: of the state before each token. scores: by reward and
    cost."""

    rows: Rollout
    logp_RM: Float[Array, "R M"]
    ref_logp_RM: Float[Array, "R M"]
    entropy_RM: Float[Array, "R M"]
    kl_exact_RM: Float[Array, "R M"]
    values: dict[str, Float[Array, "R M"]]
    scores: dict[str, Float[Array, " R"]]


def check_sampling(sampling: Sampling) -> None:
    """Raises ValueError for a way to sample whose log-probabilities training could not follow.

    What top-k and the like keep changes with the policy: a token kept when it was drawn may be one of probability 0
    after an update, and the ratio of both means nothing. Temperature is another matter: scores are taken at it.
    So are ids without a token: they are never drawn, and have probability 0 in scores.
    """
    plain = dataclasses.replace(sampling, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)
    if sampling != plain or sampling.temperature == 0:
        raise ValueError(
            "rollouts are drawn from the whole distribution at a temperature above 0: no filter, no penalty"
        )


def roll_out(
    model: llama.Model, params: llama.Params, batch: Mapping[str, Array], key: jax.Array, sampling: Sampling
) -> Rollout:
    """`sampling.n` answers to each prompt of a batch (`data.prompts`). The randomness of an answer derives from key,
    prompt, sample and position, and from nothing that stands beside it."""
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
    """Of the states of whole rows, those before each of the answer's M tokens."""
    return hidden_RTD[:, -M - 1 : -1]


def answer_states(model: llama.Model, params: llama.Params, rows: Rollout) -> Float[Array, "R M D"]:
    """The network's state before each token of the answers."""
    hidden_RTD = model.hidden(params, rows.tokens_RT, rows.segment_ids_RT, rows.positions_RT)
    return states_before(hidden_RTD, rows.mask_RM.shape[1])


def score_answers(model: llama.Model, params: llama.Params, rows: Rollout, temperature: float) -> TokenScores:
    """Log-probability and entropy of each token of the answers at a temperature, [R, M]."""
    states_RMD = answer_states(model, params, rows)
    return head_logprobs(llama.output_kernel(params), states_RMD, rows.answers_RM, temperature)


def at_last_token(x_RT: Float[Array, "R T"], rows: Rollout) -> Float[Array, " R"]:
    """Of numbers at each slot of whole rows, that of the answer's last real token."""
    last_R = rows.tokens_RT.shape[1] - rows.mask_RM.shape[1] + rows.lengths_R - 1
    return jnp.take_along_axis(x_RT, last_R[:, None], axis=1)[:, 0]


def in_parts(fn: Callable[[Any], Any], rows: Any, parts: int) -> Any:
    """`fn(rows)`, computed for one of `parts` equal parts of the rows at a time to save memory."""
    if parts == 1:
        return fn(rows)
    split = jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), rows)
    _, done = jax.lax.scan(lambda _, part: (None, fn(part)), None, split)
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), done)
