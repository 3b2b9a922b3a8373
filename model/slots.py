"""The device's part of a server: rows of fixed shape that requests join and leave, and blocks of prompts to reuse.

R rows of the key/value cache, of which each is free, reading a prompt, or writing an answer. All functions have shapes
that no request changes, so that a server compiles each once, before its first request:

    rows = read(decoder, rows, tokens_C, row, begin, adapter)  # C tokens of a prompt, from the slot `begin` on
    rows, hidden = embed(decoder, rows, tokens_C, count, ...)  # the same, and the states after these tokens
    rows = start(rows, row, start_of(prompt, ...))             # the row answers
    rows, logits_RV = forward(decoder, rows)                   # one more token for each row that answers: its logits
    rows, found = draw_next(tables, rows, logits_RV, ...)      # and the token
    rows = stop(rows, row)

Position 0 of a row is its slot 0. The last token of a prompt is not read with the others but by the first step, so that
all answers come from one program: a row's numbers are the same bits whatever the other rows do. A chunk's numbers
depend on the tokens up to its end alone, and chunks begin at multiples of C: a block of C slots that was kept is the
same bits as one that is read again. A step is two programs, so that the host may decide which tokens may follow (a
grammar) while the first one runs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from . import xla_cpu
from .cache import Cache, keep
from .config import LlamaConfig
from .decoder import Decoder
from .rows import Rows
from .sampling import RowSampling, Sampling, TokenTables, draw, row_sampling
from .sharding import constrain

MOST_TOP = 20
"""Number of likeliest tokens that a step reports."""


class Found(NamedTuple):
    """What a step finds for R rows."""

    tokens_R: Int[Array, " R"]
    """The tokens that were drawn; of no meaning for rows that do not answer."""

    logprobs_R: Float[Array, " R"]
    """Log-probabilities under the model, at temperature 1 and before any filter."""

    top_RN: Int[Array, "R N"]
    """The `MOST_TOP` likeliest tokens under the model; 0 where none was asked for."""

    top_logprobs_RN: Float[Array, "R N"]
    """Their log-probabilities."""


class Hidden(NamedTuple):
    """States that the output head reads: those of the last layer, normalised. Float32."""

    sum_D: Float[Array, " D"]
    """Their sum over the tokens of a text."""

    last_D: Float[Array, " D"]
    """That of the text's last token."""


def empty(config: LlamaConfig, rows: int, slots: int, *, adapters: bool = False) -> Rows:
    """Rows that do not answer, of which each has a cache of `slots` slots. adapters: whether rows may use adapters."""
    settings, _ = row_sampling([Sampling(max_tokens=1)] * rows, config.vocab_size, for_any=True)
    return Rows(
        caches=empty_caches(config, rows, slots),
        slot=jnp.full(rows, slots - 1, jnp.int32),
        starts_R=jnp.zeros(rows, jnp.int32),
        latest_R=jnp.zeros(rows, jnp.int32),
        drawn_R=jnp.zeros(rows, jnp.int32),
        stopped_R=jnp.ones(rows, bool),
        seen_RV=jnp.zeros((rows, config.vocab_size), bool),
        stop_states_R=jnp.zeros(rows, jnp.int32),
        keys_R=jnp.broadcast_to(jax.random.key(0), (rows,)),
        sampling=jax.tree.map(jnp.asarray, settings),
        adapters_R=jnp.zeros(rows, jnp.int32) if adapters else None,
    )


def empty_caches(config: LlamaConfig, rows: int, slots: int) -> list[Cache]:
    """Caches of all layers that hold nothing: rows of a batch, or blocks of prompts."""
    blank_BTKE = jnp.zeros((rows, slots, config.n_kv_heads, config.head_dim), config.dtype)

    def make() -> Cache:
        kept = keep(config, blank_BTKE, blank_BTKE)
        return jax.tree.map(lambda x: xla_cpu.rows_and_heads(jnp.swapaxes(x, 1, 2)), kept)

    return [make() for _ in range(config.n_layers)]


def _part(caches: list[Cache], rows: int, row: Int[Array, ""], begin: Int[Array, ""] | int, slots: int) -> list[Cache]:
    """`slots` slots of one row's caches, from `begin` on."""

    def cut(x):
        per_row, axis = x.shape[0] // rows, _slots_axis(caches)
        starts = [jnp.int32(0)] * x.ndim
        starts[0], starts[axis] = row * per_row, jnp.asarray(begin, jnp.int32)
        sizes = [per_row, *x.shape[1:]]
        sizes[axis] = slots
        return jax.lax.dynamic_slice(x, starts, sizes)

    return jax.tree.map(cut, caches)


def _put(caches: list[Cache], rows: int, part: list[Cache], row: Int[Array, ""], begin: Int[Array, ""] | int) -> list:
    """Caches in which one row has `part` from the slot `begin` on."""

    def write(x, new):
        starts = [jnp.int32(0)] * x.ndim
        starts[0], starts[_slots_axis(caches)] = row * (x.shape[0] // rows), jnp.asarray(begin, jnp.int32)
        return jax.lax.dynamic_update_slice(x, new, starts)

    return jax.tree.map(write, caches, part)


def _slots_axis(caches: list[Cache]) -> int:
    return caches[0].keys_LSE.ndim - 2


def read(
    decoder: Decoder, rows: Rows, tokens_C: Int[Array, " C"], row: Int[Array, ""], begin: Int[Array, ""],
    adapter: Int[Array, ""],
) -> Rows:  # fmt: skip
    """Rows of which one has read C more tokens of its prompt.

    Args:
        decoder: the network.
        rows: the rows before.
        tokens_C: the tokens; after the prompt's end any others, whose slots are written again before they are read.
        row: number of the row.
        begin: slot of the first token.
        adapter: number of the adapter that reads, 0 for none.
    """
    return _read(decoder, rows, tokens_C, row, begin, adapter)[0]


def embed(
    decoder: Decoder, rows: Rows, tokens_C: Int[Array, " C"], count: Int[Array, ""], row: Int[Array, ""],
    begin: Int[Array, ""], adapter: Int[Array, ""],
) -> tuple[Rows, Hidden]:  # fmt: skip
    """Reads C more tokens of a text, as `read`, and gives the states that the output head would read.

    Args:
        decoder: the network.
        rows: the rows before.
        tokens_C: the tokens.
        count: number of tokens that are the text's, 1 or more; after its end there are any others.
        row: number of the row.
        begin: slot of the first token.
        adapter: number of the adapter that reads, 0 for none.
    """
    rows, hidden_CD = _read(decoder, rows, tokens_C, row, begin, adapter)
    states_CD = hidden_CD.astype(jnp.float32)
    is_text_C = jnp.arange(len(tokens_C)) < count
    sum_D = jnp.sum(jnp.where(is_text_C[:, None], states_CD, 0), axis=0)
    return rows, Hidden(constrain(sum_D, None), constrain(states_CD[count - 1], None))


def _read(
    decoder: Decoder, rows: Rows, tokens_C: Int[Array, " C"], row: Int[Array, ""], begin: Int[Array, ""],
    adapter: Int[Array, ""],
) -> tuple[Rows, Float[Array, "C D"]]:  # fmt: skip
    """Rows of which one has read C more tokens, and the states after each."""
    start_1, filled, one = jnp.zeros(1, jnp.int32), begin + len(tokens_C), _one(rows, adapter)
    hidden_1CD, caches = decoder.hidden(tokens_C[None], begin, start_1, rows.caches, filled, one, row=row)
    return rows._replace(caches=caches), hidden_1CD[0]


def _one(rows: Rows, adapter: Int[Array, ""]) -> Int[Array, " 1"] | None:
    """The adapter of a batch of one row."""
    return None if rows.adapters_R is None else jnp.reshape(adapter, 1)


def score(
    decoder: Decoder, rows: Rows, tokens_C: Int[Array, " C"], row: Int[Array, ""], begin: Int[Array, ""],
    adapter: Int[Array, ""], targets_C: Int[Array, " C"],
) -> tuple[Float[Array, " C"], Int[Array, "C N"], Float[Array, "C N"]]:  # fmt: skip
    """Scores the tokens of a prompt after a row has read them with `read`. The row does not change.

    Args:
        decoder: the network.
        rows: the rows.
        tokens_C: the chunk of the prompt.
        row: number of the row.
        begin: slot of the chunk's first token.
        adapter: number of the adapter that read it.
        targets_C: the token that follows each token of the chunk.

    Returns:
        Log-probabilities of the targets; the `MOST_TOP` likeliest tokens in the place of each, and their
        log-probabilities.
    """
    start_1, filled, one = jnp.zeros(1, jnp.int32), begin + len(tokens_C), _one(rows, adapter)
    logits_1CV, _ = decoder(tokens_C[None], begin, start_1, rows.caches, filled, one, row=row, is_written=True)
    logp_CV = jax.nn.log_softmax(logits_1CV[0], axis=-1)
    top_logprobs_CN, top_CN = jax.lax.top_k(logp_CV, _most_top(logp_CV))
    return jnp.take_along_axis(logp_CV, targets_C[:, None], axis=1)[:, 0], top_CN, top_logprobs_CN


def _most_top(x_XV: jax.Array) -> int:
    """Number of likeliest tokens that are reported, of a vocabulary that may have less."""
    return min(MOST_TOP, x_XV.shape[-1])


def keep_block(
    blocks: list[Cache], rows: Rows, row: Int[Array, ""], begin: Int[Array, ""], block: Int[Array, ""]
) -> list[Cache]:
    """Blocks of which one is a copy of a row's slots from `begin` on."""
    size = blocks[0].slots
    return _put(blocks, _count(blocks, rows), _part(rows.caches, len(rows.latest_R), row, begin, size), block, 0)


def restore(
    rows: Rows, blocks: list[Cache], chosen_M: Int[Array, " M"], count: Int[Array, ""], row: Int[Array, ""]
) -> Rows:
    """Rows of which one begins with copies of the first `count` blocks of `chosen_M`."""
    size, R, B = blocks[0].slots, len(rows.latest_R), _count(blocks, rows)

    def one(i, caches):
        return _put(caches, R, _part(blocks, B, chosen_M[i], 0, size), row, i * size)

    return rows._replace(caches=jax.lax.fori_loop(0, count, one, rows.caches))


def _count(blocks: list[Cache], rows: Rows) -> int:
    """Number of blocks."""
    per_row = rows.caches[0].keys_LSE.shape[0] // len(rows.latest_R)
    return blocks[0].keys_LSE.shape[0] // per_row


def copy(rows: Rows, source: Int[Array, ""], row: Int[Array, ""], filled: Int[Array, ""], size: int) -> Rows:
    """Rows of which one has the first `filled` slots of another, for a further answer to the same prompt.

    They are copied in parts of `size` slots, of which a row has a whole number.
    """
    R = len(rows.latest_R)

    def one(i, caches):
        return _put(caches, R, _part(caches, R, source, i * size, size), row, i * size)

    return rows._replace(caches=jax.lax.fori_loop(0, -(-filled // size), one, rows.caches))


class Start(NamedTuple):
    """What a row needs to answer, made by `start_of`."""

    token: np.int32
    """The last token of the prompt, which was not read."""

    slot: np.int32
    """Its position."""

    key: Key[Array, ""]
    """Key that the number of a token is folded into for its draw."""

    seen_V: Bool[np.ndarray, " V"]
    """The tokens of the prompt."""

    sampling: RowSampling
    """Settings, of one row."""

    adapter: np.int32
    """Number of the adapter that answers, 0 for none."""


def start_of(
    prompt: Sequence[int], key: Key[Array, ""], sampling: Sampling, vocab_size: int, adapter: int = 0
) -> Start:
    """What a row needs to answer a prompt. Stop ids, stop strings and the limit do not count: the host ends rows."""
    seen_V = np.zeros(vocab_size, bool)
    seen_V[np.asarray(prompt)] = True
    free = Sampling(
        max_tokens=2**31 - 1,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
    )
    settings, _ = row_sampling([free], vocab_size, for_any=True)
    return Start(np.int32(prompt[-1]), np.int32(len(prompt) - 1), key, seen_V, settings, np.int32(adapter))


def start(rows: Rows, row: Int[Array, ""], how: Start) -> Rows:
    """Rows of which one answers from the next step on."""

    def put(old_R, new):
        return jax.lax.dynamic_update_slice_in_dim(old_R, jnp.asarray(new, old_R.dtype)[None], row, axis=0)

    settings = jax.tree.map(
        lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, jnp.asarray(new, old.dtype), row, axis=0),
        rows.sampling,
        how.sampling,
    )
    return rows._replace(
        slot=put(rows.slot, how.slot),
        latest_R=put(rows.latest_R, how.token),
        drawn_R=put(rows.drawn_R, 0),
        stopped_R=put(rows.stopped_R, False),
        seen_RV=put(rows.seen_RV, how.seen_V),
        keys_R=jax.lax.dynamic_update_slice_in_dim(rows.keys_R, how.key[None], row, axis=0),
        sampling=settings,
        adapters_R=None if rows.adapters_R is None else put(rows.adapters_R, how.adapter),
    )


def stop(rows: Rows, row: Int[Array, ""]) -> Rows:
    """Rows of which one answers no longer. Until it reads a prompt again, its steps write the last slot, which no
    answer needs."""
    last = rows.caches[0].slots - 1
    return rows._replace(slot=rows.slot.at[row].set(last), stopped_R=rows.stopped_R.at[row].set(True))


def take_out(rows: Rows, row: Int[Array, ""]) -> Rows:
    """A copy of one row, as a batch of one. `rows.insert` puts it back, in any place."""
    R = len(rows.latest_R)

    def own(x: Array) -> Array:
        size = x.shape[0] // R
        return jax.lax.dynamic_slice_in_dim(x, row * size, size, axis=0)

    return jax.tree.map(own, rows)


def forward(decoder: Decoder, rows: Rows) -> tuple[Rows, Float[Array, "R V"]]:
    """Runs the network over the latest token of each row. Returns the rows, and logits of the tokens that follow."""
    filled_R = jnp.where(rows.stopped_R, 0, rows.slot + 1)
    filled = xla_cpu.each_or_most(filled_R)
    starts_R, adapters_R = rows.starts_R, rows.adapters_R
    logits_R1V, caches = decoder(rows.latest_R[:, None], rows.slot, starts_R, rows.caches, filled, adapters_R)
    return rows._replace(caches=caches), constrain(logits_R1V[:, 0], None, None)


def draw_next(
    tables: TokenTables,
    rows: Rows,
    logits_RV: Float[Array, "R V"],
    offsets_RV: Float[Array, "R V"],
    has_offsets: Bool[Array, ""],
    wants_top: Bool[Array, ""],
) -> tuple[Rows, Found]:
    """Draws one more token for each row that answers.

    Args:
        tables: the tokens that are never drawn.
        rows: the rows after `forward`.
        logits_RV: its logits.
        offsets_RV: numbers that are added to the logits that tokens are drawn by: biases, and -inf for what a grammar
            does not allow. They do not count in log-probabilities.
        has_offsets: whether any of them is not 0; they are not read otherwise.
        wants_top: whether the likeliest tokens are asked for.
    """
    R, N = len(rows.latest_R), _most_top(logits_RV)
    keys_R = jax.vmap(jax.random.fold_in)(rows.keys_R, rows.drawn_R)
    by_RV = jax.lax.cond(has_offsets, lambda: logits_RV + offsets_RV, lambda: logits_RV)
    tokens_R, *_ = draw(rows.sampling, keys_R, by_RV, rows.seen_RV, tables.is_unused_V)
    log_z_R = jax.nn.logsumexp(logits_RV, axis=-1)
    logprobs_R = jnp.take_along_axis(logits_RV, tokens_R[:, None], axis=-1)[:, 0] - log_z_R

    def likeliest():
        top_RN, ids_RN = jax.lax.top_k(logits_RV, N)
        return ids_RN, top_RN - log_z_R[:, None]

    none = (jnp.zeros((R, N), jnp.int32), jnp.zeros((R, N)))
    top_RN, top_logprobs_RN = jax.lax.cond(wants_top, likeliest, lambda: none)
    answers_R = ~rows.stopped_R
    rows = rows._replace(
        slot=rows.slot + answers_R,
        latest_R=jnp.where(answers_R, tokens_R, rows.latest_R),
        drawn_R=rows.drawn_R + answers_R,
        seen_RV=rows.seen_RV.at[jnp.arange(R), tokens_R].max(answers_R),
    )
    return rows, Found(tokens_R, logprobs_R, top_RN, top_logprobs_RN)


def forward_alone(decoder: Decoder, rows: Rows, row: Int[Array, ""]) -> tuple[Rows, Float[Array, "R V"]]:
    """`forward` for a single row, by a program that computes this row only.

    Its logits differ from those of `forward` by rounding; those of the other rows are 0.
    """
    token, slot = rows.latest_R[row], rows.slot[row]
    one = None if rows.adapters_R is None else rows.adapters_R[row][None]
    logits_11V, caches = decoder(token[None, None], slot, rows.starts_R[:1], rows.caches, slot + 1, one, row=row)
    logits_RV = jnp.zeros((len(rows.latest_R), logits_11V.shape[-1]), logits_11V.dtype).at[row].set(logits_11V[0, 0])
    return rows._replace(caches=caches), constrain(logits_RV, None, None)
