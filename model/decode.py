"""Answers from a model: prefill the prompts, then one compiled loop of cached steps until every row has stopped.

Inside, prompts are shifted so that all of them end at the same slot: every row then writes the same slot of the cache
at every step, at its own position. Each row has its own limit, so a prompt that leaves little room in the model's
context takes none from the others. A token is drawn from a key derived from (key, prompt, sample, position), so a
prompt's answers are the same alone, in any batch, under any padding and on any mesh, up to the rounding of logits.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int16, Key, UInt32

from .cache import Cache, Decoder, keep, make_cache
from .config import LlamaConfig
from .llama import Model, Params, build
from .sampling import Sampling, draw
from .sharding import BATCH, constrain
from .stopping import follow
from .weights import CODE_PARTS


class Generation(NamedTuple):
    """B prompts, n answers to each, of at most M tokens.

    tokens: the stop token included, pad_id after it. lengths: tokens of each answer, the stop token included.
    logprobs: of each token under the model, at temperature 1 and before any filter. sampling_logprobs: under the
    distribution it was drawn from. Both are 0 after the stop. stopped: whether a stop token ended the answer, or the
    last of the tokens that a stop string was written with.
    """

    tokens: Int[Array, "B n M"]
    lengths: Int[Array, "B n"]
    logprobs: Float[Array, "B n M"]
    sampling_logprobs: Float[Array, "B n M"]
    stopped: Bool[Array, "B n"]


class _State(NamedTuple):
    """What a step hands to the next; R = B n rows, all of which have drawn `step` tokens (or stopped before)."""

    step: Int[Array, ""]
    caches: list[Cache]
    answer: Generation  # its fields by row: [R, M] and [R]
    latest_R: Int[Array, " R"]
    seen_RV: Bool[Array, "R V"] | None
    keys_R: Key[Array, " R"]
    starts_R: Int[Array, " R"]  # the slot of each prompt's first token
    limits_R: Int[Array, " R"]  # the most tokens of each answer
    stops: "Matching | None"


class Matching(NamedTuple):
    """How far each row is in writing a stop string (`stopping.Stops`)."""

    table_SV: Int16[Array, "S V"]
    states_R: Int[Array, " R"]


def prompt_ids(tokens_BP: Int[np.ndarray, "B P"], lengths_B: Int[np.ndarray, " B"]) -> UInt32[np.ndarray, " B"]:
    """A number for each prompt's content (crc32 of its int32 tokens), from which its randomness derives."""
    rows = zip(np.asarray(tokens_BP, np.int32), np.asarray(lengths_B), strict=True)
    return np.array([zlib.crc32(row[:length].tobytes()) for row, length in rows], np.uint32)


def ids_of_contents(tokens_BP: Int[Array, "B P"], lengths_B: Int[Array, " B"]) -> UInt32[np.ndarray, " B"]:
    """`prompt_ids` of what may be given to `generate`. Raises ValueError where contents are not known or empty."""
    if isinstance(tokens_BP, jax.core.Tracer):
        raise ValueError("generate inside jax.jit: give prompt_ids_B, the contents of prompts cannot be read there")
    if np.min(np.asarray(lengths_B)) < 1:
        raise ValueError(f"an empty prompt (lengths {np.asarray(lengths_B).tolist()}): give each a token, as bos")
    return prompt_ids(tokens_BP, lengths_B)


def generate(
    model: Model,
    params: Params,
    tokens_BP: Int[Array, "B P"],
    lengths_B: Int[Array, " B"],
    key: Key[Array, ""],
    sampling: Sampling,
    prompt_ids_B: UInt32[Array, " B"] | None = None,
    limits_B: Int[Array, " B"] | None = None,
) -> Generation:
    """`sampling.n` answers to each prompt, prompts padded on the right, `lengths_B` of 1 or more tokens.

    Compiled once per shape and `sampling`; under `jax.set_mesh` rows are split over data and fsdp, heads over tensor.
    `prompt_ids_B` tells prompts apart in the randomness, by default `prompt_ids`; inside another `jax.jit`, where
    contents cannot be read, it must be given. `limits_B`: the most tokens of an answer to each prompt, at most
    `sampling.max_tokens`, which is the default; 0 gives an empty answer. Raises ValueError for an empty prompt.
    """
    if prompt_ids_B is None:
        prompt_ids_B = ids_of_contents(tokens_BP, lengths_B)
    options = compiler_options(params)
    run = compiled(_generate, options, static_argnums=(0, 1, 2))
    sampling, table_SV = without_table(sampling)
    return run(
        model.config, sampling, bool(options), params, tokens_BP, lengths_B, key, prompt_ids_B, limits_B, table_SV
    )


def without_table(sampling: Sampling) -> tuple[Sampling, Int16[np.ndarray, "S V"] | None]:
    """What a compiled loop belongs to, and the table of stop strings, an argument that may change from call to call."""
    return dataclasses.replace(sampling, stops=None), None if sampling.stops is None else sampling.stops.table_SV


BY_BLOCKS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
    "xla_cpu_prefer_vector_width": 512,
}
"""What XLA's CPU backend must be told to make one loop of a product by blocks (`quantization.product`)."""


def compiler_options(params: Params) -> tuple[tuple[str, Any], ...]:
    """`BY_BLOCKS` where it is for a network with these parameters, and where this is the outermost compiled function,
    the only one that may have options."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    quantized = any(path[-1].key in CODE_PARTS for path, _ in leaves)
    traced = any(isinstance(leaf, jax.core.Tracer) for _, leaf in leaves)
    return tuple(BY_BLOCKS.items()) if quantized and not traced and jax.default_backend() == "cpu" else ()


@functools.cache
def compiled(function: Callable, options: tuple[tuple[str, Any], ...], **arguments: Any) -> Callable:
    return jax.jit(function, compiler_options=dict(options) or None, **arguments)


def _generate(config: LlamaConfig, sampling: Sampling, by_blocks: bool, *arrays) -> Generation:
    decoder, state = start(config, sampling, by_blocks, *arrays)
    answer = _continue(sampling, decoder, state, sampling.max_tokens).answer
    return Generation(*(x.reshape(-1, sampling.n, *x.shape[1:]) for x in answer))


def start(
    config: LlamaConfig,
    sampling: Sampling,
    by_blocks: bool,
    params,
    tokens_BP,
    lengths_B,
    key,
    prompt_ids_B,
    limits_B=None,
    table_SV=None,
    *,
    positions: int = 1,
) -> tuple[Decoder, _State]:
    """Runs the prompts, each once for all its answers, and draws the first token of every answer.

    by_blocks: of quantised matrices, see `quantization.product`. positions: of a row that the decoder will take in a
    pass.
    """
    B, P = tokens_BP.shape
    n = sampling.n
    llama = build(config).bind(params)
    positions_BP = jnp.maximum(_offsets(tokens_BP, lengths_B), 0)
    tokens_BP, real_BP = align_right(tokens_BP, lengths_B)
    # Kept layer by layer: in floats, those of all layers would take what codes are to save.
    kept_by = functools.partial(keep, config)
    hidden_BPD, kept_N = llama(tokens_BP, real_BP.astype(jnp.int32), positions_BP, keep=kept_by)
    layers = [jax.tree.map(lambda x, i=i: x[i], kept_N) for i in range(config.n_layers)]
    caches = [make_cache(kept, n, P + sampling.max_tokens) for kept in layers]
    decoder = Decoder(llama, B * n * positions, by_blocks)
    logits_BV = decoder.logits(hidden_BPD[:, -1])
    state = _State(
        step=jnp.int32(0),
        caches=caches,
        answer=_blank(sampling, B * n),
        latest_R=jnp.zeros(B * n, jnp.int32),
        seen_RV=_prompt_tokens(tokens_BP, real_BP, config.vocab_size, n) if sampling.repetition_penalty != 1 else None,
        keys_R=_row_keys(key, prompt_ids_B, n),
        starts_R=jnp.repeat(P - lengths_B, n),
        limits_R=jnp.full(B * n, sampling.max_tokens) if limits_B is None else jnp.repeat(limits_B, n),
        stops=None if table_SV is None else Matching(jnp.asarray(table_SV), jnp.zeros(B * n, jnp.int32)),
    )
    return decoder, _record(sampling, state, jnp.repeat(logits_BV, n, axis=0))


def _blank(sampling: Sampling, rows: int) -> Generation:
    shape = (rows, sampling.max_tokens)
    return Generation(
        tokens=jnp.full(shape, sampling.pad_id, jnp.int32),
        lengths=jnp.zeros(rows, jnp.int32),
        logprobs=jnp.zeros(shape),
        sampling_logprobs=jnp.zeros(shape),
        stopped=jnp.zeros(rows, bool),
    )


def _prompt_tokens(tokens_BP: jax.Array, real_BP: jax.Array, vocab: int, n: int) -> Bool[Array, "R V"]:
    """Which tokens stand in each row's prompt."""
    rows_B1 = jnp.arange(len(tokens_BP))[:, None]
    seen_BV = jnp.zeros((len(tokens_BP), vocab), bool).at[rows_B1, tokens_BP].max(real_BP)
    return jnp.repeat(seen_BV, n, axis=0)


def align_right(
    tokens_BP: Int[Array, "B P"], lengths_B: Int[Array, " B"]
) -> tuple[Int[Array, "B P"], Bool[Array, "B P"]]:
    """Prompts shifted to end at the last slot, token 0 before them, and which slots they fill."""
    offsets_BP = _offsets(tokens_BP, lengths_B)
    shifted_BP = jnp.take_along_axis(tokens_BP, jnp.maximum(offsets_BP, 0), axis=1)
    return constrain(jnp.where(offsets_BP >= 0, shifted_BP, 0), BATCH, None), offsets_BP >= 0


def _offsets(tokens_BP: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """The position of each slot in a prompt that ends at the last; < 0 before it."""
    P = tokens_BP.shape[1]
    return jnp.arange(P)[None] - (P - lengths_B)[:, None]


def _row_keys(key: jax.Array, prompt_ids_B: jax.Array, n: int) -> Key[Array, " R"]:
    prompt_keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, prompt_ids_B)
    fold_samples = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(fold_samples, (0, None))(prompt_keys_B, jnp.arange(n)).reshape(-1)


def _record(sampling: Sampling, state: _State, logits_RV: jax.Array) -> _State:
    """Draws a token for every row and writes it down where the row has not stopped."""
    keys_R = jax.vmap(jax.random.fold_in, (0, None))(state.keys_R, state.step)
    tokens_R, logprobs_R, sampling_logprobs_R = draw(sampling, keys_R, logits_RV, state.seen_RV)
    old, stops = state.answer, state.stops
    running_R = _running(state)

    def write(into_RM, new_R, pad):
        new_R1 = jnp.where(running_R, new_R, pad)[:, None]
        return jax.lax.dynamic_update_slice_in_dim(into_RM, new_R1, state.step, axis=1)

    ends_R = jnp.isin(tokens_R, jnp.array(sampling.stop_ids, jnp.int32))
    if stops is not None:
        states_R, complete_R = follow(stops.table_SV, stops.states_R, tokens_R)
        stops, ends_R = stops._replace(states_R=states_R), ends_R | complete_R
    answer = Generation(
        tokens=write(old.tokens, tokens_R, sampling.pad_id),
        lengths=old.lengths + running_R,
        logprobs=write(old.logprobs, logprobs_R, 0.0),
        sampling_logprobs=write(old.sampling_logprobs, sampling_logprobs_R, 0.0),
        stopped=old.stopped | (running_R & ends_R),
    )
    seen_RV = state.seen_RV
    if seen_RV is not None:
        seen_RV = seen_RV.at[jnp.arange(len(tokens_R)), tokens_R].set(True)
    return state._replace(step=state.step + 1, answer=answer, latest_R=tokens_R, seen_RV=seen_RV, stops=stops)


def _running(state: _State) -> Bool[Array, " R"]:
    return ~state.answer.stopped & (state.answer.lengths < state.limits_R)


def _continue(sampling: Sampling, decoder: Decoder, state: _State, until: Int[Array, ""]) -> _State:
    """Steps until every row has drawn `until` tokens, stopped or reached its limit."""
    slots = state.caches[0].keys_LSE.shape[-2]
    prompt_slots = slots - sampling.max_tokens

    def step(state: _State) -> _State:
        slot = prompt_slots + state.step - 1  # of the latest token, whose successor is sought
        valid_RS = (jnp.arange(slots)[None] >= state.starts_R[:, None]) & (jnp.arange(slots)[None] <= slot)
        logits_RV, caches = decoder(state.latest_R, slot - state.starts_R, state.caches, slot, valid_RS)
        return _record(sampling, state._replace(caches=caches), logits_RV)

    def unfinished(state: _State):
        return (state.step < until) & jnp.any(_running(state))

    return jax.lax.while_loop(unfinished, step, state)


def stream(
    model: Model,
    params: Params,
    prompt: Sequence[int],
    key: Key[Array, ""],
    sampling: Sampling,
    limit: int | None = None,
) -> Iterator[int]:
    """The tokens of one answer as they are drawn: those of `generate` for the same key and prompt. limit: the most of
    them, 1 or more, where that is less than `sampling.max_tokens`."""
    if sampling.n != 1:
        raise ValueError(f"a stream is one answer, sampling.n is {sampling.n}")
    tokens_1P, lengths_1 = pad_prompts([prompt])
    ids_1 = prompt_ids(tokens_1P, lengths_1)
    options = compiler_options(params)
    begin = compiled(start, options, static_argnums=(0, 1, 2))
    go_on = compiled(_continue, options, static_argnums=0, donate_argnums=2)
    most = sampling.max_tokens if limit is None else min(limit, sampling.max_tokens)
    sampling, table_SV = without_table(sampling)
    arrays = tokens_1P, lengths_1, key, ids_1, np.array([most], np.int32), table_SV
    decoder, state = begin(model.config, sampling, bool(options), params, *arrays)
    yield int(state.latest_R[0])
    for drawn in range(2, most + 1):
        if state.answer.stopped[0]:
            return
        state = go_on(sampling, decoder, state, drawn)
        yield int(state.latest_R[0])


def pad_prompts(prompts: Sequence[Sequence[int]]) -> tuple[Int[np.ndarray, "B P"], Int[np.ndarray, " B"]]:
    """Prompts as a batch padded on the right, and their lengths. P is a power of two, 32 at least, so that few shapes
    are compiled. Raises ValueError for an empty prompt."""
    lengths_B = np.array([len(prompt) for prompt in prompts], np.int32)
    if not lengths_B.all():
        raise ValueError(f"prompt {int(np.argmin(lengths_B))} is empty: give it a token, as bos")
    width = max(32, 1 << int(lengths_B.max() - 1).bit_length())
    tokens_BP = np.zeros((len(prompts), width), np.int32)
    for row_P, prompt in zip(tokens_BP, prompts, strict=True):
        row_P[: len(prompt)] = prompt
    return tokens_BP, lengths_B


def generate_batch(
    answer: Callable[..., Generation],
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    seed: int = 0,
    batch_size: int = 8,
    mesh: jax.sharding.Mesh | None = None,
    limits: Sequence[int] | None = None,
) -> list[list[list[int]]]:
    """For each prompt its `sampling.n` answers, lists of token ids, in batches of prompts of like length.

    answer(tokens, lengths, key, sampling, limits_B=): `generate` for a model and its parameters, or a draft's help
    beside. limits: the most tokens of an answer to each prompt, at most `sampling.max_tokens`, which is the default.
    The last batch is filled up with its last prompt, which stops when that stops. An empty prompt raises ValueError.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    limits = [sampling.max_tokens] * len(prompts) if limits is None else limits
    answers: list[list[list[int]]] = [[] for _ in prompts]
    with jax.set_mesh(mesh) if mesh is not None else nullcontext():
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            filled = chosen + chosen[-1:] * (batch_size - len(chosen))
            tokens_BP, lengths_B = pad_prompts([prompts[i] for i in filled])
            limits_B = np.array([limits[i] for i in filled], np.int32)
            out = jax.device_get(answer(tokens_BP, lengths_B, jax.random.key(seed), sampling, limits_B=limits_B))
            for row, i in enumerate(chosen):
                pairs = zip(out.tokens[row], out.lengths[row], strict=True)
                answers[i] = [tokens[:length].tolist() for tokens, length in pairs]
    return answers
