"""Speculative decoding: a small model proposes the next k tokens, the large one scores them all in one pass.

Proposals are kept or replaced so that every token has exactly the distribution that the target alone would draw it from
(Leviathan et al., arXiv:2211.17192, algorithm 1; Chen et al., arXiv:2302.01318, algorithm 2): the draft decides how
fast an answer comes, not what it is. Rows keep different numbers of proposals, so each writes the cache at a slot of
its own; what a rejected proposal left behind is masked, and overwritten by the next pass.

Proposals are drawn with the keys of `decode.generate` (key, prompt, sample, position), so a draft that agrees with the
target gives its very tokens. Whether a proposal is kept, and what replaces it, is drawn from keys of the position too.
A position that is proposed a second time meets the same keys: nothing before it depended on them.
"""

import dataclasses
import itertools
from collections.abc import Generator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from .cache import Cache, Decoder
from .config import LlamaConfig
from .decode import (
    Generation,
    Matching,
    compiled,
    compiler_options,
    ids_of_contents,
    pad_prompts,
    prompt_ids,
    start,
    without_table,
)
from .llama import Model, Params
from .sampling import Sampling, draw, reshape_distribution
from .stopping import follow

_AS_GIVEN = Sampling()  # draws from the logits that it is given
_DECISIONS = 2**32 - 1  # folded into a row's key where a position's number would stand: no answer is as long


class SpeculativeGeneration(NamedTuple):
    """An answer as `decode.generate` gives it, and what it cost.

    passes: of the target, after the one over the prompt, which gives the first token. proposed: tokens of the draft, k
    a pass but where max_tokens left less room. accepted: those of them that stand in the answer.
    """

    answer: Generation
    passes: Int[Array, "B n"]
    proposed: Int[Array, "B n"]
    accepted: Int[Array, "B n"]


class _State(NamedTuple):
    """What a round hands to the next; R = B n rows, each with an answer of its own length so far."""

    target_caches: list[Cache]
    draft_caches: list[Cache]
    result: SpeculativeGeneration  # its fields by row; of the answer: [R, M + k] and [R]
    recent_R2: Int[Array, "R 2"]  # the last tokens: the last in no cache yet, the other perhaps not in the draft's
    seen_RV: Bool[Array, "R V"] | None
    keys_R: Key[Array, " R"]
    starts_R: Int[Array, " R"]  # the slot of each prompt's first token
    limits_R: Int[Array, " R"]
    stops: Matching | None


def generate(
    target: Model,
    target_params: Params,
    draft: Model,
    draft_params: Params,
    tokens_BP: Int[Array, "B P"],
    lengths_B: Int[Array, " B"],
    key: Key[Array, ""],
    sampling: Sampling,
    k: int = 4,
    prompt_ids_B: UInt32[Array, " B"] | None = None,
    limits_B: Int[Array, " B"] | None = None,
) -> SpeculativeGeneration:
    """`sampling.n` answers of the target to each prompt, as `decode.generate`, with k proposals of the draft a pass.

    At temperature 0 the tokens are those of `decode.generate`, up to the rounding of logits; else their distribution
    is the same. Compiled once per shape, `sampling` and k. Raises ValueError for k below 1, for models of different
    vocabularies and for an empty prompt.
    """
    _check(target.config, draft.config, k)
    if prompt_ids_B is None:
        prompt_ids_B = ids_of_contents(tokens_BP, lengths_B)
    configs, params = (target.config, draft.config), (target_params, draft_params)
    options = compiler_options(params)
    run = compiled(_generate, options, static_argnums=(0, 1, 2, 3))
    sampling, table_SV = without_table(sampling)
    arrays = tokens_BP, lengths_B, key, prompt_ids_B, limits_B, table_SV
    return run(configs, sampling, k, bool(options), params, *arrays)


def _check(target: LlamaConfig, draft: LlamaConfig, k: int) -> None:
    if k < 1:
        raise ValueError(f"speculative decoding with k = {k}: give 1 or more proposals a pass")
    if target.vocab_size != draft.vocab_size:
        raise ValueError(
            f"the target's vocabulary has {target.vocab_size} tokens, the draft's {draft.vocab_size}: give two models "
            "of one tokenizer"
        )


def _generate(configs, sampling: Sampling, k: int, by_blocks: bool, *arrays) -> SpeculativeGeneration:
    decoders, state = _start(configs, sampling, k, by_blocks, *arrays)
    result = _continue(sampling, k, decoders, state, sampling.max_tokens).result
    result = jax.tree.map(lambda x: x[:, : sampling.max_tokens] if x.ndim == 2 else x, result)
    return jax.tree.map(lambda x: x.reshape(-1, sampling.n, *x.shape[1:]), result)


def _start(
    configs: tuple[LlamaConfig, LlamaConfig],
    sampling: Sampling,
    k: int,
    by_blocks: bool,
    params: tuple[Params, Params],
    tokens_BP,
    lengths_B,
    *arrays,
) -> tuple[tuple[Decoder, Decoder], _State]:
    """Runs the prompts through both models; the first token is the target's own. arrays: the rest of what
    `decode.start` takes."""
    wide = dataclasses.replace(sampling, max_tokens=sampling.max_tokens + k)  # the last pass may reach k beyond the end
    (target, begun), (draft, begun_draft) = (
        start(config, wide, by_blocks, weights, tokens_BP, lengths_B, *arrays, positions=positions)
        for config, weights, positions in zip(configs, params, (k + 1, 1), strict=True)
    )
    last_B = jnp.take_along_axis(tokens_BP, lengths_B[:, None] - 1, axis=1)[:, 0]
    none_R = jnp.zeros_like(begun.latest_R)
    state = _State(
        target_caches=begun.caches,
        draft_caches=begun_draft.caches,
        result=SpeculativeGeneration(begun.answer, none_R, none_R, none_R),
        recent_R2=jnp.stack([jnp.repeat(last_B, sampling.n), begun.latest_R], axis=1),
        seen_RV=begun.seen_RV,
        keys_R=begun.keys_R,
        starts_R=begun.starts_R,
        limits_R=jnp.minimum(begun.limits_R, sampling.max_tokens),
        stops=begun.stops,
    )
    return (target, draft), state


def _continue(
    sampling: Sampling, k: int, decoders: tuple[Decoder, Decoder], state: _State, until: Int[Array, ""]
) -> _State:
    """Rounds until every row has stopped or is full, or one has made `until` passes of the target."""
    target, draft = decoders

    def one_round(state: _State) -> _State:
        tokens_Rk, q_RkV, draft_caches = _propose(sampling, k, draft, state)
        tokens_RT = jnp.concatenate([state.recent_R2[:, 1:], tokens_Rk], axis=1)
        first_R = _latest_slots(sampling, k, state)
        logits_RTV, target_caches = _pass(target, state.target_caches, tokens_RT, first_R, state)
        drawn = _judge(sampling, state, tokens_Rk, q_RkV, logits_RTV)
        return _record(sampling, state._replace(target_caches=target_caches, draft_caches=draft_caches), *drawn)

    def unfinished(state: _State):
        return jnp.any(_running(state)) & (jnp.max(state.result.passes) < until)

    return jax.lax.while_loop(unfinished, one_round, state)


def _running(state: _State) -> Bool[Array, " R"]:
    answer = state.result.answer
    return ~answer.stopped & (answer.lengths < state.limits_R)


def _latest_slots(sampling: Sampling, k: int, state: _State) -> Int[Array, " R"]:
    """The slot of each row's latest token."""
    prompt_slots = state.target_caches[0].keys_LSE.shape[-2] - sampling.max_tokens - k
    return prompt_slots + state.result.answer.lengths - 1


def _pass(
    decoder: Decoder, caches: list[Cache], tokens_RT: Int[Array, "R T"], first_R: Int[Array, " R"], state: _State
) -> tuple[Float[Array, "R T V"], list[Cache]]:
    """Logits after each of T tokens, whose slots begin at `first_R`."""
    slots_RT = first_R[:, None] + jnp.arange(tokens_RT.shape[1])[None]
    slots_11S = jnp.arange(caches[0].keys_LSE.shape[-2])[None, None]
    valid_RTS = (slots_11S >= state.starts_R[:, None, None]) & (slots_11S <= slots_RT[:, :, None])
    return decoder.window(tokens_RT, slots_RT - state.starts_R[:, None], caches, first_R, valid_RTS)


def _propose(
    sampling: Sampling, k: int, draft: Decoder, state: _State
) -> tuple[Int[Array, "R k"], Float[Array, "R k V"], list[Cache]]:
    """k tokens of the draft, one by one, and the log-probabilities that each was drawn with."""
    latest_slots_R = _latest_slots(sampling, k, state)

    def step(carry, i):
        latest_RT, caches, seen_RV = carry
        first_R = latest_slots_R + i + 1 - latest_RT.shape[1]
        logits_RTV, caches = _pass(draft, caches, latest_RT, first_R, state)
        q_RV = log_distribution(sampling, logits_RTV[:, -1], seen_RV)
        token_R, _, _ = draw(_AS_GIVEN, _fold_in(state.keys_R, state.result.answer.lengths + i), q_RV)
        token_R = jnp.where(i < 0, state.recent_R2[:, 1], token_R)
        if seen_RV is not None:
            seen_RV = seen_RV.at[jnp.arange(len(token_R)), token_R].set(True)
        return (token_R[:, None], caches, seen_RV), (token_R, q_RV)

    # Where all proposals were kept, the last is not in the draft's cache yet: two tokens come first, in one pass, or in
    # two where codes are met by one position alone.
    alone = draft.by_blocks and len(state.recent_R2) == 1
    carry = (state.recent_R2[:, :1] if alone else state.recent_R2, state.draft_caches, state.seen_RV)
    if alone:
        (_, caches, _), drawn = jax.lax.scan(step, carry, jnp.arange(-1, k))
        drawn = jax.tree.map(lambda xs: xs[1:], drawn)
    else:
        carry, first = step(carry, 0)
        (_, caches, _), rest = jax.lax.scan(step, carry, jnp.arange(1, k))
        drawn = jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), first, rest)
    tokens_Rk, q_RkV = jax.tree.map(lambda xs: jnp.swapaxes(xs, 0, 1), drawn)
    return tokens_Rk, q_RkV, caches


def log_distribution(
    sampling: Sampling, logits_RV: Float[Array, "R V"], seen_RV: Bool[Array, "R V"] | None
) -> Float[Array, "R V"]:
    """The logarithm of what `sampling.draw` draws from; at temperature 0 the likeliest token has probability 1."""
    shaped_RV = reshape_distribution(sampling, logits_RV, seen_RV)
    if sampling.temperature > 0:
        return jax.nn.log_softmax(shaped_RV, axis=-1)
    likeliest_R1 = jnp.argmax(shaped_RV, axis=-1, keepdims=True)
    return jnp.where(jnp.arange(shaped_RV.shape[-1])[None] == likeliest_R1, 0.0, -jnp.inf)


def _fold_in(keys_R: Key[Array, " R"], positions_R: Int[Array, " R"]) -> Key[Array, " R"]:
    return jax.vmap(jax.random.fold_in)(keys_R, positions_R)


def _judge(
    sampling: Sampling,
    state: _State,
    tokens_Rk: Int[Array, "R k"],
    q_RkV: Float[Array, "R k V"],
    logits_RTV: Float[Array, "R T V"],
) -> tuple[Int[Array, "R T"], Int[Array, " R"], Float[Array, "R T"], Float[Array, "R T"]]:
    """Proposals up to the first that is rejected, what replaces that (or follows them all), and anything after.

    T = k + 1. Returns the tokens, the number of accepted proposals, and the tokens' log-probabilities as `draw` does.
    """
    R, T, V = logits_RTV.shape
    seen_QV = None if state.seen_RV is None else _seen_along(state.seen_RV, tokens_Rk).reshape(-1, V)
    p_RTV = log_distribution(sampling, logits_RTV.reshape(-1, V), seen_QV).reshape(R, T, V)
    accept_keys_RT, replace_keys_RT, bonus_keys_R = _decision_keys(state, T)
    uniform_Rk = jax.vmap(jax.vmap(jax.random.uniform))(accept_keys_RT[:, :-1])
    kept_Rk = accepts(uniform_Rk, _of(p_RTV[:, :-1], tokens_Rk), _of(q_RkV, tokens_Rk))
    accepted_R = jnp.sum(jnp.cumprod(kept_Rk, axis=1), axis=1)

    rows_R = jnp.arange(R)
    q_RTV = jnp.pad(q_RkV, ((0, 0), (0, 1), (0, 0)), constant_values=-jnp.inf)  # nothing was proposed after them all
    left_RV = residual(p_RTV[rows_R, accepted_R], q_RTV[rows_R, accepted_R])
    keys_R = jnp.where(accepted_R == T - 1, bonus_keys_R, replace_keys_RT[rows_R, accepted_R])
    last_R, _, _ = draw(_AS_GIVEN, keys_R, left_RV)
    tokens_RT = jnp.pad(tokens_Rk, ((0, 0), (0, 1))).at[rows_R, accepted_R].set(last_R)
    logprobs_RT = _of(jax.nn.log_softmax(logits_RTV, axis=-1), tokens_RT)
    return tokens_RT, accepted_R, logprobs_RT, _of(p_RTV, tokens_RT)


def _seen_along(seen_RV: Bool[Array, "R V"], tokens_Rk: Int[Array, "R k"]) -> Bool[Array, "R T V"]:
    """Which tokens stand before each of the k proposals and after them all."""
    drawn_RkV = jnp.cumsum(jax.nn.one_hot(tokens_Rk, seen_RV.shape[1], dtype=jnp.int32), axis=1) > 0
    return seen_RV[:, None] | jnp.pad(drawn_RkV, ((0, 0), (1, 0), (0, 0)))


def _decision_keys(state: _State, T: int) -> tuple[Key[Array, "R T"], Key[Array, "R T"], Key[Array, " R"]]:
    """For each of the next T positions the keys of acceptance and of replacement, and for the last that of its draw."""
    lengths_R = state.result.answer.lengths
    decisions_R = jax.vmap(jax.random.fold_in, (0, None))(state.keys_R, jnp.uint32(_DECISIONS))
    positions_RT = lengths_R[:, None] + jnp.arange(T)[None]
    keys_RT = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(decisions_R, positions_RT)
    keys_RT2 = jax.vmap(jax.vmap(jax.random.split))(keys_RT)
    return keys_RT2[..., 0], keys_RT2[..., 1], _fold_in(state.keys_R, lengths_R + T - 1)


def accepts(uniform: Float[Array, "*any"], p: Float[Array, "*any"], q: Float[Array, "*any"]) -> Bool[Array, "*any"]:
    """With probability min(1, p / q), given the logarithms of p, the target's probability, and q > 0, the draft's."""
    return uniform < jnp.exp(p - q)


def residual(p_RV: Float[Array, "R V"], q_RV: Float[Array, "R V"]) -> Float[Array, "R V"]:
    """Logits of norm(max(0, p - q)): what the target draws more often than the draft. p and q are logarithms."""
    left_RV = jnp.maximum(jnp.exp(p_RV) - jnp.exp(q_RV), 0)
    # Where p = q but for rounding, a proposal may be rejected by a hair and nothing be left: any draw from p will do.
    return jnp.where(jnp.any(left_RV > 0, axis=-1, keepdims=True), jnp.log(left_RV), p_RV)


def _of(values_RTV: Float[Array, "R T V"], tokens_RT: Int[Array, "R T"]) -> Float[Array, "R T"]:
    return jnp.take_along_axis(values_RTV, tokens_RT[..., None], axis=-1)[..., 0]


def _record(
    sampling: Sampling,
    state: _State,
    tokens_RT: Int[Array, "R T"],
    accepted_R: Int[Array, " R"],
    logprobs_RT: Float[Array, "R T"],
    sampling_logprobs_RT: Float[Array, "R T"],
) -> _State:
    """Writes down what was drawn, up to a stop token or the end of the answer, where the row has not stopped."""
    result, old = state.result, state.result.answer
    running_R = _running(state)
    index_1T = jnp.arange(tokens_RT.shape[1])[None]
    room_R = state.limits_R - old.lengths
    ends_RT = jnp.isin(tokens_RT, jnp.array(sampling.stop_ids, jnp.int32))
    if state.stops is not None:
        states_RT, complete_RT = _follow_along(state.stops, tokens_RT)
        ends_RT |= complete_RT
    before_end_RT = jnp.cumsum(ends_RT, axis=1) - ends_RT == 0
    kept_RT = running_R[:, None] & before_end_RT & (index_1T <= jnp.minimum(accepted_R, room_R - 1)[:, None])
    count_R = jnp.sum(kept_RT, axis=1)
    places_RT = jnp.where(kept_RT, old.lengths[:, None] + index_1T, old.tokens.shape[1])  # past the end: not written

    def write(into_RM, new_RT):
        return jax.vmap(lambda into_M, places_T, new_T: into_M.at[places_T].set(new_T, mode="drop"))(
            into_RM, places_RT, new_RT
        )

    answer = Generation(
        tokens=write(old.tokens, tokens_RT),
        lengths=old.lengths + count_R,
        logprobs=write(old.logprobs, logprobs_RT),
        sampling_logprobs=write(old.sampling_logprobs, sampling_logprobs_RT),
        stopped=old.stopped | jnp.any(ends_RT & kept_RT, axis=1),
    )
    k = tokens_RT.shape[1] - 1
    result = SpeculativeGeneration(
        answer,
        passes=result.passes + running_R,
        proposed=result.proposed + jnp.where(running_R, jnp.minimum(k, room_R), 0),
        accepted=result.accepted + jnp.minimum(count_R, accepted_R),
    )
    history = jnp.concatenate([state.recent_R2, tokens_RT], axis=1)
    recent_R2 = jnp.take_along_axis(history, count_R[:, None] + jnp.arange(2)[None], axis=1)
    seen_RV = state.seen_RV
    if seen_RV is not None:
        seen_RV = seen_RV.at[jnp.arange(len(tokens_RT))[:, None], tokens_RT].max(kept_RT)
    stops = state.stops
    if stops is not None:
        before_RT = jnp.concatenate([stops.states_R[:, None], states_RT], axis=1)
        stops = stops._replace(states_R=jnp.take_along_axis(before_RT, count_R[:, None], axis=1)[:, 0])
    return state._replace(result=result, recent_R2=recent_R2, seen_RV=seen_RV, stops=stops)


def _follow_along(stops: Matching, tokens_RT: Int[Array, "R T"]) -> tuple[Int[Array, "R T"], Bool[Array, "R T"]]:
    """`stopping.follow` of T tokens one after the other."""

    def step(states_R, tokens_R):
        states_R, complete_R = follow(stops.table_SV, states_R, tokens_R)
        return states_R, (states_R, complete_R)

    _, (states_TR, complete_TR) = jax.lax.scan(step, stops.states_R, tokens_RT.T)
    return states_TR.T, complete_TR.T


def stream(
    target: Model,
    target_params: Params,
    draft: Model,
    draft_params: Params,
    prompt: Sequence[int],
    key: Key[Array, ""],
    sampling: Sampling,
    k: int = 4,
    limit: int | None = None,
) -> Generator[int, None, SpeculativeGeneration]:
    """The tokens of one answer, up to k + 1 at a time: those of `generate` for the same key and prompt.

    limit: the most of them, where that is less than `sampling.max_tokens`. The generator returns the whole, fields by
    row: [1, max_tokens + k] and [1].
    """
    _check(target.config, draft.config, k)
    if sampling.n != 1:
        raise ValueError(f"a stream is one answer, sampling.n is {sampling.n}")
    tokens_1P, lengths_1 = pad_prompts([prompt])
    configs, params = (target.config, draft.config), (target_params, draft_params)
    ids_1 = prompt_ids(tokens_1P, lengths_1)
    options = compiler_options(params)
    begin = compiled(_start, options, static_argnums=(0, 1, 2, 3))
    go_on = compiled(_continue, options, static_argnums=(0, 1), donate_argnums=3)
    most = sampling.max_tokens if limit is None else min(limit, sampling.max_tokens)
    sampling, table_SV = without_table(sampling)
    arrays = tokens_1P, lengths_1, key, ids_1, np.array([most], np.int32), table_SV
    decoders, state = begin(configs, sampling, k, bool(options), params, *arrays)
    told = 0
    for passes in itertools.count(1):
        answer = jax.device_get(state.result.answer)
        yield from answer.tokens[0, told : answer.lengths[0]].tolist()
        told = answer.lengths[0]
        if answer.stopped[0] or told == most:
            return jax.device_get(state.result)
        state = go_on(sampling, k, decoders, state, passes)
