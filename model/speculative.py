"""Speculative decoding: a small model proposes the next k tokens, the large one scores them all in one pass.

Proposals are kept or replaced so that every token has exactly the distribution that the target alone would draw it from
(Leviathan et al., arXiv:2211.17192, algorithm 1; Chen et al., arXiv:2302.01318, algorithm 2): the draft decides how
fast an answer comes, not what it is. Rows keep different numbers of proposals, so each writes the cache at a slot of
its own; what a rejected proposal left behind is masked, and overwritten by the next pass.

Proposals are drawn with the keys of `decode.generate` (key, prompt, sample, position), so a draft that agrees with the
target gives its very tokens. Whether a proposal is kept, and what replaces it, is drawn from keys of the position too.
A position that is proposed a second time meets the same keys: nothing before it depended on them.
"""

import functools
from collections.abc import Generator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from . import xla_cpu
from .cache import Cache
from .config import LlamaConfig
from .decode import Answers, Generation, Request, compiled, make_request, no_answers, stream_request
from .decoder import Decoder
from .llama import Model, Params
from .rows import Rows, extend, make_decoder, prefill, prompt_keys, read_prompts
from .sampling import RowSampling, Sampling, TokenTables, draw_from, log_distribution, reshape_distribution

_DECISIONS = 2**32 - 1  # folded into a row's key where a position's number would stand: no answer is as long


class SpeculativeGeneration(NamedTuple):
    """Answers as `decode.generate` gives them, and what they cost."""

    answer: Generation
    """The answers."""

    passes: Int[Array, "B n"]
    """Passes of the target after the one over the prompt, which gives the first token."""

    proposed: Int[Array, "B n"]
    """Tokens that the draft proposed: k for each pass, or fewer where the answer has less room."""

    accepted: Int[Array, "B n"]
    """Proposals that stand in the answer."""


class Sizes(NamedTuple):
    """The static arguments of a compiled `generate`."""

    n: int
    """Answers to each prompt."""

    max_tokens: int
    """The most tokens of any answer."""

    k: int
    """Proposals of the draft in a pass."""

    by_blocks: bool
    """Whether the program is compiled with `xla_cpu.compiler_options`."""


class _State(NamedTuple):
    """What a round hands to the next: R rows, each with an answer of its own length so far."""

    rows: Rows
    """The target's rows."""

    answers: Answers
    """The tokens of the answers so far."""

    draft_caches: list[Cache]
    """The draft's caches, for every position before that of `previous_R`."""

    previous_R: Int[Array, " R"]
    """The token before `rows.latest_R`, which the draft may not have read yet."""

    passes_R: Int[Array, " R"]
    """As in `SpeculativeGeneration`."""

    proposed_R: Int[Array, " R"]
    """As in `SpeculativeGeneration`."""

    accepted_R: Int[Array, " R"]
    """As in `SpeculativeGeneration`."""


def generate(
    target: Model,
    target_params: Params,
    draft: Model,
    draft_params: Params,
    tokens_BP: Int[Array, "B P"],
    lengths_B: Int[Array, " B"],
    key: Key[Array, ""] | Key[Array, " B"],
    sampling: Sampling | Sequence[Sampling],
    k: int = 4,
    prompt_ids_B: UInt32[Array, " B"] | None = None,
    limits_B: Int[Array, " B"] | None = None,
) -> SpeculativeGeneration:
    """Draws `sampling.n` answers of the target to each prompt, with k proposals of the draft in a pass.

    At temperature 0 the tokens are those of `decode.generate`, up to the rounding of logits; else their distribution
    is that of `decode.generate`. Compiled as `decode.generate`, and for each k.

    Args:
        target: the network whose answers are drawn.
        target_params: its parameters.
        draft: a network of the same vocabulary.
        draft_params: its parameters.
        tokens_BP: prompts, padded on the right.
        lengths_B: number of tokens of each prompt, 1 or more.
        key: one key for all prompts, or one for each.
        sampling: settings of all prompts, or a list with those of each.
        k: proposals in a pass, 1 or more.
        prompt_ids_B: see `decode.generate`.
        limits_B: see `decode.generate`.

    Raises:
        ValueError: k below 1, models of different vocabularies, or an empty prompt.
    """
    _check(target.config, draft.config, k)
    configs, params = (target.config, draft.config), (target_params, draft_params)
    request = make_request(target.config, params, tokens_BP, lengths_B, key, sampling, prompt_ids_B, limits_B)
    options = xla_cpu.compiler_options(params)
    run = compiled(_generate, options, static_argnums=(0, 1))
    return run(configs, _sizes(request, k, options), params, *request.arrays)


def _check(target: LlamaConfig, draft: LlamaConfig, k: int) -> None:
    if k < 1:
        raise ValueError(f"speculative decoding with k = {k}: give 1 or more proposals a pass")
    if target.vocab_size != draft.vocab_size:
        raise ValueError(
            f"the target's vocabulary has {target.vocab_size} tokens, the draft's {draft.vocab_size}: give two models "
            "of one tokenizer"
        )


def _sizes(request: Request, k: int, options: tuple) -> Sizes:
    return Sizes(request.n, request.max_tokens, k, bool(options))


def _generate(
    configs: tuple[LlamaConfig, LlamaConfig], sizes: Sizes, params: tuple[Params, Params], *arrays
) -> SpeculativeGeneration:
    decoders, state = _start(configs, sizes, params, *arrays)
    tables, pad_id = arrays[-2:]
    one_round = functools.partial(_one_round, sizes.k, decoders, tables)
    state = jax.lax.while_loop(lambda state: jnp.any(state.rows.running_R), one_round, state)
    return _finish(state, sizes.n, pad_id)


def _finish(state: _State, n: int, pad_id: Int[Array, ""]) -> SpeculativeGeneration:
    counts = (x.reshape(-1, n) for x in (state.passes_R, state.proposed_R, state.accepted_R))
    return SpeculativeGeneration(state.answers.finish(state.rows, n, pad_id), *counts)


def _start(
    configs: tuple[LlamaConfig, LlamaConfig],
    sizes: Sizes,
    params: tuple[Params, Params],
    tokens_BP,
    lengths_B,
    key,
    prompt_ids_B,
    sampling: RowSampling,
    tables: TokenTables,
    _pad_id,
) -> tuple[tuple[Decoder, Decoder], _State]:
    """Runs the prompts through both models; the first token is the target's own."""
    B, P = tokens_BP.shape
    slots = P + sizes.max_tokens + sizes.k  # the last pass may reach k positions beyond the end
    target, draft = (
        make_decoder(config, B * sizes.n * positions, sizes.by_blocks, weights)
        for config, weights, positions in zip(configs, params, (sizes.k + 1, 1), strict=True)
    )
    keys_B = prompt_keys(key, prompt_ids_B)
    rows, drawn = prefill(params[0], target, tables, tokens_BP, lengths_B, keys_B, sampling, n=sizes.n, slots=slots)
    draft_caches, _ = read_prompts(params[1], draft, tokens_BP, lengths_B, sizes.n, slots)
    last_B = jnp.take_along_axis(tokens_BP, lengths_B[:, None] - 1, axis=1)[:, 0]
    none_R = jnp.zeros_like(rows.drawn_R)
    state = _State(
        rows=rows.with_own_slots(),
        answers=no_answers(B * sizes.n, sizes.max_tokens).write(jnp.int32(0), drawn),
        draft_caches=draft_caches,
        previous_R=jnp.repeat(last_B.astype(jnp.int32), sizes.n),
        passes_R=none_R,
        proposed_R=none_R,
        accepted_R=none_R,
    )
    return (target, draft), state


def _one_round(k: int, decoders: tuple[Decoder, Decoder], tables: TokenTables, state: _State) -> _State:
    """Proposals of the draft, a pass of the target over them, and what is kept of them."""
    target, draft = decoders
    rows = state.rows
    tokens_Rk, q_RkV, draft_caches = _propose(k, draft, tables, state)
    tokens_RT = jnp.concatenate([rows.latest_R[:, None], tokens_Rk], axis=1)
    logits_RTV, caches = target(tokens_RT, rows.slot, rows.starts_R, rows.caches)
    tokens_RT, accepted_R, *log_probs = _judge(tables, rows, tokens_Rk, q_RkV, logits_RTV)
    after, drawn = extend(tables, rows._replace(caches=caches), tokens_RT, accepted_R + 1, *log_probs)
    history_RH = jnp.concatenate([state.previous_R[:, None], rows.latest_R[:, None], tokens_RT], axis=1)
    room_R = rows.sampling.max_tokens_R - rows.drawn_R
    return _State(
        rows=after,
        answers=state.answers.write(rows.drawn_R, drawn),
        draft_caches=draft_caches,
        previous_R=jnp.take_along_axis(history_RH, drawn.counts_R[:, None], axis=1)[:, 0],
        passes_R=state.passes_R + rows.running_R,
        proposed_R=state.proposed_R + jnp.where(rows.running_R, jnp.minimum(k, room_R), 0),
        accepted_R=state.accepted_R + jnp.minimum(drawn.counts_R, accepted_R),
    )


def _propose(
    k: int, draft: Decoder, tables: TokenTables, state: _State
) -> tuple[Int[Array, "R k"], Float[Array, "R k V"], list[Cache]]:
    """k tokens of the draft, one by one, and the log-probabilities that each was drawn with."""
    rows, sampling = state.rows, state.rows.sampling

    def step(carry, i):
        latest_RT, caches, seen_RV = carry
        first_R = rows.slot + i + 1 - latest_RT.shape[1]
        logits_RTV, caches = draft(latest_RT, first_R, rows.starts_R, caches)
        shaped_RV = reshape_distribution(sampling, logits_RTV[:, -1], seen_RV, tables.is_unused_V)
        q_RV = log_distribution(sampling, shaped_RV)
        token_R = draw_from(jax.vmap(jax.random.fold_in)(rows.keys_R, rows.drawn_R + i), q_RV)
        token_R = jnp.where(i < 0, rows.latest_R, token_R)
        if seen_RV is not None:
            seen_RV = seen_RV.at[jnp.arange(len(token_R)), token_R].set(True)
        return (token_R[:, None], caches, seen_RV), (token_R, q_RV)

    # Where all proposals were kept, the last is not in the draft's cache yet: two tokens come first, in one pass, or in
    # two passes where a pass over one position multiplies codes and one over two decodes them.
    alone = draft.by_blocks and len(rows.latest_R) == 1
    first_RT = state.previous_R[:, None]
    if not alone:
        first_RT = jnp.concatenate([first_RT, rows.latest_R[:, None]], axis=1)
    carry = (first_RT, state.draft_caches, rows.seen_RV)
    if alone:
        (_, caches, _), drawn = jax.lax.scan(step, carry, jnp.arange(-1, k))
        drawn = jax.tree.map(lambda xs: xs[1:], drawn)
    else:
        carry, first = step(carry, 0)
        (_, caches, _), rest = jax.lax.scan(step, carry, jnp.arange(1, k))
        drawn = jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), first, rest)
    tokens_Rk, q_RkV = jax.tree.map(lambda xs: jnp.swapaxes(xs, 0, 1), drawn)
    return tokens_Rk, q_RkV, caches


def _judge(
    tables: TokenTables,
    rows: Rows,
    tokens_Rk: Int[Array, "R k"],
    q_RkV: Float[Array, "R k V"],
    logits_RTV: Float[Array, "R T V"],
) -> tuple[Int[Array, "R T"], Int[Array, " R"], Float[Array, "R T"], Float[Array, "R T"]]:
    """Keeps proposals up to the first that is rejected, and draws the token after them.

    Args:
        tables: tables of tokens.
        rows: the target's rows before the pass.
        tokens_Rk: proposals.
        q_RkV: log-probabilities of the draft that the proposals were drawn with.
        logits_RTV: the target's logits before each proposal and after them all; T = k + 1.

    Returns:
        The tokens, with anything after the drawn one, the number of accepted proposals, and the tokens'
        log-probabilities under the model and under the distribution that they were drawn from.
    """
    R, T, V = logits_RTV.shape
    sampling_QS = rows.sampling.repeat(T)
    seen_QV = None if rows.seen_RV is None else _seen_along(rows.seen_RV, tokens_Rk).reshape(-1, V)
    shaped_QV = reshape_distribution(sampling_QS, logits_RTV.reshape(-1, V), seen_QV, tables.is_unused_V)
    p_RTV = log_distribution(sampling_QS, shaped_QV).reshape(R, T, V)
    accept_keys_RT, replace_keys_RT, bonus_keys_R = _decision_keys(rows, T)
    uniform_Rk = jax.vmap(jax.vmap(jax.random.uniform))(accept_keys_RT[:, :-1])
    kept_Rk = accepts(uniform_Rk, _of(p_RTV[:, :-1], tokens_Rk), _of(q_RkV, tokens_Rk))
    accepted_R = jnp.sum(jnp.cumprod(kept_Rk, axis=1), axis=1)

    rows_R = jnp.arange(R)
    q_RTV = jnp.pad(q_RkV, ((0, 0), (0, 1), (0, 0)), constant_values=-jnp.inf)  # nothing was proposed after them all
    left_RV = residual(p_RTV[rows_R, accepted_R], q_RTV[rows_R, accepted_R])
    keys_R = jnp.where(accepted_R == T - 1, bonus_keys_R, replace_keys_RT[rows_R, accepted_R])
    tokens_RT = jnp.pad(tokens_Rk, ((0, 0), (0, 1))).at[rows_R, accepted_R].set(draw_from(keys_R, left_RV))
    logprobs_RT = _of(jax.nn.log_softmax(logits_RTV, axis=-1), tokens_RT)
    return tokens_RT, accepted_R, logprobs_RT, _of(p_RTV, tokens_RT)


def _seen_along(seen_RV: Bool[Array, "R V"], tokens_Rk: Int[Array, "R k"]) -> Bool[Array, "R T V"]:
    """Which tokens stand before each of the k proposals and after them all."""
    seen = [seen_RV]
    for t in range(tokens_Rk.shape[1]):
        seen.append(seen[-1] | (jnp.arange(seen_RV.shape[1])[None] == tokens_Rk[:, t, None]))
    return jnp.stack(seen, axis=1)


def _decision_keys(rows: Rows, T: int) -> tuple[Key[Array, "R T"], Key[Array, "R T"], Key[Array, " R"]]:
    """For each of the next T positions the keys of acceptance and of replacement, and for the last that of its draw."""
    decisions_R = jax.vmap(jax.random.fold_in, (0, None))(rows.keys_R, jnp.uint32(_DECISIONS))
    positions_RT = rows.drawn_R[:, None] + jnp.arange(T)[None]
    keys_RT = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(decisions_R, positions_RT)
    keys_RT2 = jax.vmap(jax.vmap(jax.random.split))(keys_RT)
    return keys_RT2[..., 0], keys_RT2[..., 1], jax.vmap(jax.random.fold_in)(rows.keys_R, rows.drawn_R + T - 1)


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
    """Yields the tokens of one answer, up to k + 1 at a time: those of `generate` for the same key and prompt.

    Args:
        target: the network whose answer is drawn.
        target_params: its parameters.
        draft: a network of the same vocabulary.
        draft_params: its parameters.
        prompt: tokens of the prompt, 1 or more.
        key: key of the randomness.
        sampling: settings, with n = 1.
        k: proposals in a pass, 1 or more.
        limit: the most tokens of the answer, 1 or more, where that is less than `sampling.max_tokens`.

    Returns:
        The whole answer and its costs, as `generate` gives them.
    """
    _check(target.config, draft.config, k)
    configs, params = (target.config, draft.config), (target_params, draft_params)
    request = stream_request(target.config, params, prompt, key, sampling, limit)
    options = xla_cpu.compiler_options(params)
    begin = compiled(_start, options, static_argnums=(0, 1))
    go_on = compiled(_one_round, options, static_argnums=0, donate_argnums=3)
    decoders, state = begin(configs, _sizes(request, k, options), params, *request.arrays)
    tables, pad_id = request.arrays[-2:]
    told = 0
    while True:
        tokens_1M, length, running = jax.device_get(
            (state.answers.tokens_RM, state.rows.drawn_R[0], state.rows.running_R[0])
        )
        yield from tokens_1M[0, told:length].tolist()
        told = length
        if not running:
            return jax.device_get(_finish(state, 1, pad_id))
        state = go_on(k, decoders, tables, state)
