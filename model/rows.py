"""Rows of a decoding batch: prompts are read in one pass, then every row advances by a token at each step.

A row is one answer being written. Rows have positions and settings of their own, so that answers may begin and end at
different steps (continuous batching):

    decoder = make_decoder(config, rows, by_blocks, params)    # the network in the form for few positions
    new, drawn = prefill(params, decoder, tables, prompts, ...)  # rows whose prompts are read, and first tokens
    rows = insert(rows, new, place)                            # places of rows that have ended, between two steps
    rows, drawn = step(decoder, tables, rows)                  # one more token for each row that has not ended

Prompts of one `prefill` end at the same slot of the cache. Rows that are stepped as `prefill` gives them write one slot
at every step; after `insert` every row writes a slot of its own. `decode.generate` and `decode.stream` are ways of
stepping, as is speculative decoding (`speculative.py`). A token is drawn from a key derived from (key, prompt, sample,
position): the answers to a prompt are the same alone, in any batch, under any padding and on any mesh, up to the
rounding of logits.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from . import adapter_rows
from .cache import Cache, keep, make_cache
from .config import LlamaConfig
from .decoder import Decoder
from .llama import Params, build
from .sampling import RowSampling, TokenTables, draw
from .sharding import BATCH, constrain
from .stopping import follow_all


class Rows(NamedTuple):
    """R answers being written, of which at least the first token was drawn."""

    caches: list[Cache]
    """Keys and values of each layer, for every position before that of `latest_R`."""

    slot: Int[Array, ""] | Int[Array, " R"]
    """Slot of the cache for `latest_R`: one that all rows share, or one for each row."""

    starts_R: Int[Array, " R"]
    """Slot of position 0, the first token of the prompt."""

    latest_R: Int[Array, " R"]
    """The last token of the answer so far."""

    drawn_R: Int[Array, " R"]
    """Number of tokens of the answer so far."""

    stopped_R: Bool[Array, " R"]
    """Whether a stop token or a stop string ended the answer."""

    seen_RV: Bool[Array, "R V"] | None
    """The tokens of prompt and answer so far; None where the settings have no filters and penalties."""

    stop_states_R: Int[Array, " R"]
    """State of the stop strings' automaton (`TokenTables.stops_SV`)."""

    keys_R: Key[Array, " R"]
    """Keys that the number of a token is folded into for its draw."""

    sampling: RowSampling
    """Settings of the rows."""

    adapters_R: Int[Array, " R"] | None = None
    """Number of the adapter that a row uses, 0 for none; None for a network without adapters of single rows."""

    @property
    def running_R(self) -> Bool[Array, " R"]:
        """Whether the answer has neither stopped nor reached its limit."""
        return ~self.stopped_R & (self.drawn_R < self.sampling.max_tokens_R)

    def with_own_slots(self) -> "Rows":
        """The rows with a slot for each."""
        return self._replace(slot=jnp.broadcast_to(self.slot, self.latest_R.shape))


class Drawn(NamedTuple):
    """What one step adds to R answers: at most T tokens to each."""

    tokens_RT: Int[Array, "R T"]
    """Tokens, of which the first `counts_R` of a row count."""

    counts_R: Int[Array, " R"]
    """Number of tokens that became part of the answer; 0 for a row that had ended before."""

    logprobs_RT: Float[Array, "R T"]
    """Log-probabilities under the model, at temperature 1 and before any filter."""

    sampling_logprobs_RT: Float[Array, "R T"]
    """Log-probabilities under the distribution that the tokens were drawn from."""


def make_decoder(
    config: LlamaConfig, positions: int, by_blocks: bool, params: Params, adapters: Sequence[Params] = ()
) -> Decoder:
    """The network in the form that `prefill` and `step` take.

    Args:
        config: the network's config.
        positions: number of positions in a step, of all rows together.
        by_blocks: whether the program is compiled with `xla_cpu.compiler_options`.
        params: the network's parameters.
        adapters: adapters that single rows use (`adapter_rows.put`).
    """
    model = build(config)
    if adapters:
        params = adapter_rows.put(params, adapters, model.abstract_params)
    return Decoder(model.bind(params), positions, by_blocks)


def align_right(
    tokens_BP: Int[Array, "B P"], lengths_B: Int[Array, " B"]
) -> tuple[Int[Array, "B P"], Bool[Array, "B P"]]:
    """Prompts shifted to end at the last slot, with token 0 before them, and the slots that prompts fill."""
    positions_BP = _positions(tokens_BP, lengths_B)
    shifted_BP = jnp.take_along_axis(tokens_BP, jnp.maximum(positions_BP, 0), axis=1)
    return constrain(jnp.where(positions_BP >= 0, shifted_BP, 0), BATCH, None), positions_BP >= 0


def _positions(tokens_BP: Int[Array, "B P"], lengths_B: Int[Array, " B"]) -> Int[Array, "B P"]:
    """Position of each slot in a prompt that ends at the last slot; negative before the prompt."""
    P = tokens_BP.shape[1]
    return jnp.arange(P)[None] - (P - lengths_B)[:, None]


def read_prompts(
    params: Params, decoder: Decoder, tokens_BP: Int[Array, "B P"], lengths_B: Int[Array, " B"], n: int, slots: int
) -> tuple[list[Cache], Float[Array, "B V"]]:
    """Runs the network over prompts, once for all answers to each.

    Args:
        params: the network's parameters.
        decoder: the decoder of the same network.
        tokens_BP: prompts, padded on the right.
        lengths_B: number of tokens of each prompt, 1 or more.
        n: number of consecutive rows that answer each prompt.
        slots: slots of a row of the cache, P or more.

    Returns:
        A list with the cache of each layer, and logits [B, V] of the token after each prompt. Each prompt has n
        consecutive rows in the cache (B n in all). In the cache prompts are padded on the left and end at slot P - 1.
    """
    config = decoder.config
    positions_BP = jnp.maximum(_positions(tokens_BP, lengths_B), 0)
    tokens_BP, is_prompt_BP = align_right(tokens_BP, lengths_B)
    # Kept layer by layer: in floats, those of all layers would take the memory that codes save.
    kept_by = functools.partial(keep, config)
    network = build(config).bind(params)
    hidden_BPD, kept_N = network(tokens_BP, is_prompt_BP.astype(jnp.int32), positions_BP, keep=kept_by)
    layers = [jax.tree.map(lambda x, i=i: x[i], kept_N) for i in range(config.n_layers)]
    return [make_cache(kept, n, slots) for kept in layers], decoder.logits(hidden_BPD[:, -1])


def prefill(
    params: Params,
    decoder: Decoder,
    tables: TokenTables,
    tokens_BP: Int[Array, "B P"],
    lengths_B: Int[Array, " B"],
    keys_B: Key[Array, " B"],
    sampling: RowSampling,
    *,
    n: int = 1,
    slots: int,
) -> tuple[Rows, "Drawn"]:
    """Reads prompts and draws the first token of n answers to each.

    Args:
        params: the network's parameters.
        decoder: the decoder of the same network.
        tables: tables of tokens.
        tokens_BP: prompts, padded on the right.
        lengths_B: number of tokens of each prompt, 1 or more.
        keys_B: a key for each prompt (`prompt_keys`).
        sampling: settings of each prompt's answers.
        n: answers to each prompt, in consecutive rows.
        slots: slots of a row of the cache: P, or more where the rows are to be stepped as they are.

    Returns:
        B n rows that share a slot, and their first tokens.
    """
    caches, logits_BV = read_prompts(params, decoder, tokens_BP, lengths_B, n, slots)
    B, P = tokens_BP.shape
    seen_RV = None
    if sampling.filters is not None:
        is_prompt_BP = jnp.arange(P)[None] < lengths_B[:, None]
        seen_RV = jnp.repeat(_mark(jnp.zeros(logits_BV.shape, bool), tokens_BP, is_prompt_BP), n, axis=0)
    fold_samples = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    sampling = sampling.repeat(n)
    rows = Rows(
        caches=caches,
        slot=jnp.int32(P - 1),
        starts_R=jnp.repeat(P - lengths_B, n),
        latest_R=jnp.zeros(B * n, jnp.int32),
        drawn_R=jnp.zeros(B * n, jnp.int32),
        stopped_R=jnp.zeros(B * n, bool),
        seen_RV=seen_RV,
        stop_states_R=sampling.stop_state_R,
        keys_R=fold_samples(keys_B, jnp.arange(n)).reshape(-1),
        sampling=sampling,
    )
    return _draw_next(tables, rows, jnp.repeat(logits_BV, n, axis=0))


def empty_rows(like: Rows, rows: int, slots: int) -> Rows:
    """Rows of which none is running, as places for `insert`.

    Args:
        like: any rows of the same network and the same parts of settings (`row_sampling(..., for_any=True)`), as those
            of a first prompt.
        rows: number of rows.
        slots: slots of a row of the cache, the most tokens of a prompt and its answer together.
    """
    like, per_row = like.with_own_slots(), len(like.latest_R)
    slots_axis = like.caches[0].keys_LSE.ndim - 2

    def blank(x, *, is_cache: bool = False):
        shape = [x.shape[0] // per_row * rows, *x.shape[1:]]
        if is_cache:
            shape[slots_axis] = slots
        return jnp.zeros(shape, x.dtype)

    caches = jax.tree.map(functools.partial(blank, is_cache=True), like.caches)
    keys_R = jnp.broadcast_to(like.keys_R[:1], (rows,))
    return jax.tree.map(blank, like._replace(caches=[], keys_R=None))._replace(caches=caches, keys_R=keys_R)


def insert(rows: Rows, new: Rows, first: Int[Array, ""] | int) -> Rows:
    """Rows in which `new` ones have the places from `first` on; the answers that had these places are dropped.

    Args:
        rows: all rows, each with a slot of its own.
        new: rows from `prefill`, with as many slots or fewer, and as many places for stop ids. A row must have a slot
            for each token that its answer may still get.
        first: number of the first place.
    """
    per_row = len(rows.latest_R)

    def put(old, part):
        start = jnp.asarray(first, jnp.int32) * (old.shape[0] // per_row)
        return jax.lax.dynamic_update_slice(old, part, (start, *[jnp.int32(0)] * (old.ndim - 1)))

    return jax.tree.map(put, rows, new.with_own_slots())


def step(decoder: Decoder, tables: TokenTables, rows: Rows) -> tuple[Rows, Drawn]:
    """Runs the network over the latest token of every row, and draws one more for each row that is running."""
    logits_R1V, caches = decoder(rows.latest_R[:, None], rows.slot, rows.starts_R, rows.caches)
    return _draw_next(tables, rows._replace(caches=caches), logits_R1V[:, 0])


def _draw_next(tables: TokenTables, rows: Rows, logits_RV: Float[Array, "R V"]) -> tuple[Rows, Drawn]:
    """Draws the next token of each unfinished row from its logits, and returns the new rows and what was drawn."""
    keys_R = jax.vmap(jax.random.fold_in)(rows.keys_R, rows.drawn_R)
    found = draw(rows.sampling, keys_R, logits_RV, rows.seen_RV, tables.is_unused_V)
    tokens_R1, logprobs_R1, sampling_logprobs_R1 = (x[:, None] for x in found)
    return extend(tables, rows, tokens_R1, jnp.ones_like(rows.drawn_R), logprobs_R1, sampling_logprobs_R1)


def extend(
    tables: TokenTables,
    rows: Rows,
    tokens_RT: Int[Array, "R T"],
    offered_R: Int[Array, " R"],
    logprobs_RT: Float[Array, "R T"],
    sampling_logprobs_RT: Float[Array, "R T"],
) -> tuple[Rows, Drawn]:
    """Adds tokens to the answers that are running, up to one that ends the answer or to its limit.

    Args:
        tables: tables of tokens.
        rows: the rows before.
        tokens_RT: candidates for the next T tokens of each answer.
        offered_R: number of candidates that count.
        logprobs_RT: log-probabilities of the candidates under the model.
        sampling_logprobs_RT: log-probabilities of the candidates under the distribution that they were drawn from.
    """
    T = tokens_RT.shape[1]
    ends_RT = jnp.any(tokens_RT[:, :, None] == rows.sampling.stop_ids_RI[:, None, :], axis=-1)
    states_R = rows.stop_states_R
    if tables.stops_SV is not None:
        states_RT, complete_RT = follow_all(tables.stops_SV, states_R, tokens_RT)
        ends_RT |= complete_RT
    most_R = jnp.minimum(offered_R, rows.sampling.max_tokens_R - rows.drawn_R)
    kept_RT = rows.running_R[:, None] & (jnp.arange(T)[None] < most_R[:, None])
    if T > 1:
        kept_RT &= jnp.cumsum(ends_RT, axis=1) - ends_RT == 0  # no earlier candidate ends the answer
    counts_R = jnp.sum(kept_RT, axis=1, dtype=jnp.int32)

    def after(before_R, values_RT):  # the value that belongs to the last token of the answer
        if T == 1:
            return jnp.where(kept_RT[:, 0], values_RT[:, 0], before_R)
        all_RT = jnp.concatenate([before_R[:, None], values_RT], axis=1)
        return jnp.take_along_axis(all_RT, counts_R[:, None], axis=1)[:, 0]

    if tables.stops_SV is not None:
        states_R = after(states_R, states_RT)
    rows = rows._replace(
        slot=rows.slot + (counts_R if rows.slot.ndim else T),
        latest_R=after(rows.latest_R, tokens_RT),
        drawn_R=rows.drawn_R + counts_R,
        stopped_R=rows.stopped_R | jnp.any(ends_RT & kept_RT, axis=1),
        seen_RV=None if rows.seen_RV is None else _mark(rows.seen_RV, tokens_RT, kept_RT),
        stop_states_R=states_R,
    )
    return rows, Drawn(tokens_RT, counts_R, logprobs_RT, sampling_logprobs_RT)


def _mark(
    seen_RV: Bool[Array, "R V"], tokens_RT: Int[Array, "R T"], is_seen_RT: Bool[Array, "R T"]
) -> Bool[Array, "R V"]:
    """`seen_RV` with further tokens."""
    return seen_RV.at[jnp.arange(len(seen_RV))[:, None], tokens_RT].max(is_seen_RT)


def prompt_keys(key: Key[Array, ""] | Key[Array, " B"], prompt_ids_B: UInt32[Array, " B"]) -> Key[Array, " B"]:
    """A key for each prompt, from one key for all or from one for each, and from the prompts' numbers."""
    return jax.vmap(jax.random.fold_in)(jnp.broadcast_to(key, len(prompt_ids_B)), prompt_ids_B)
