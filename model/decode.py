"""Whole answers from a model: `generate` in one compiled loop, `stream` token by token; both step rows (`rows.py`)."""

import functools
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from . import xla_cpu
from .config import LlamaConfig
from .decoder import Decoder
from .llama import Model, Params
from .rows import Drawn, Rows, make_decoder, prefill, prompt_keys, step
from .sampling import Sampling, row_sampling
from .sharding import on_host


class Generation(NamedTuple):
    """n answers to each of B prompts, of at most M tokens."""

    tokens: Int[Array, "B n M"]
    """Tokens of the answers, the stop token included; pad_id after the end."""

    lengths: Int[Array, "B n"]
    """Number of tokens of each answer, the stop token included."""

    logprobs: Float[Array, "B n M"]
    """Log-probability of each token under the model, at temperature 1 and before any filter; 0 after the end."""

    sampling_logprobs: Float[Array, "B n M"]
    """Log-probability of each token under the distribution that it was drawn from; 0 after the end."""

    stopped: Bool[Array, "B n"]
    """Whether a stop token ended the answer, or the token that completed a stop string."""


class Answers(NamedTuple):
    """The tokens of R answers so far, and their log-probabilities; 0 in the places that are not reached yet."""

    tokens_RM: Int[Array, "R M"]
    """Tokens."""

    logprobs_RM: Float[Array, "R M"]
    """Log-probabilities as in `Generation.logprobs`."""

    sampling_logprobs_RM: Float[Array, "R M"]
    """Log-probabilities as in `Generation.sampling_logprobs`."""

    def write(self, place: Int[Array, ""] | Int[Array, " R"], drawn: Drawn) -> "Answers":
        """The answers with what a step drew. place: of the first drawn token, one for all rows or one for each."""
        new = Answers(drawn.tokens_RT, drawn.logprobs_RT, drawn.sampling_logprobs_RT)
        T, M = drawn.tokens_RT.shape[1], self.tokens_RM.shape[1]
        if place.ndim == 0:
            is_new_RT = jnp.arange(T)[None] < drawn.counts_R[:, None]

            def put(old_RM, new_RT):
                return jax.lax.dynamic_update_slice_in_dim(old_RM, jnp.where(is_new_RT, new_RT, 0), place, axis=1)

            return jax.tree.map(put, self, new)
        offsets_RM = jnp.arange(M)[None] - place[:, None]
        is_new_RM = (offsets_RM >= 0) & (offsets_RM < drawn.counts_R[:, None])

        def choose(old_RM, new_RT):
            new_RM = jnp.take_along_axis(new_RT, jnp.clip(offsets_RM, 0, T - 1), axis=1)
            return jnp.where(is_new_RM, new_RM, old_RM)

        return jax.tree.map(choose, self, new)

    def finish(self, rows: Rows, n: int, pad_id: Int[Array, ""]) -> Generation:
        """The answers as a `Generation`, with `pad_id` after the end of each."""
        is_answer_RM = jnp.arange(self.tokens_RM.shape[1])[None] < rows.drawn_R[:, None]
        tokens_RM = jnp.where(is_answer_RM, self.tokens_RM, pad_id)
        found = Generation(tokens_RM, rows.drawn_R, self.logprobs_RM, self.sampling_logprobs_RM, rows.stopped_R)
        return Generation(*(x.reshape(-1, n, *x.shape[1:]) for x in found))


def no_answers(rows: int, width: int) -> Answers:
    """Empty answers of at most `width` tokens."""
    return Answers(jnp.zeros((rows, width), jnp.int32), jnp.zeros((rows, width)), jnp.zeros((rows, width)))


def generate(
    model: Model,
    params: Params,
    tokens_BP: Int[Array, "B P"],
    lengths_B: Int[Array, " B"],
    key: Key[Array, ""] | Key[Array, " B"],
    sampling: Sampling | Sequence[Sampling],
    prompt_ids_B: UInt32[Array, " B"] | None = None,
    limits_B: Int[Array, " B"] | None = None,
) -> Generation:
    """Draws `sampling.n` answers to each prompt.

    Compiled once for each shape, and for settings with and without temperatures and filters (`sampling.RowSampling`);
    the largest `max_tokens` is part of the shape, `limits_B` is not. Under `jax.set_mesh` rows are split over data and
    fsdp, heads over tensor.

    Args:
        model: the network.
        params: its parameters.
        tokens_BP: prompts, padded on the right.
        lengths_B: number of tokens of each prompt, 1 or more.
        key: one key for all prompts, or one for each.
        sampling: settings of all prompts, or a list with those of each; `n` and `pad_id` must be equal.
        prompt_ids_B: numbers that tell prompts apart in the randomness (None: `prompt_ids`). They must be given inside
            another `jax.jit`, where contents cannot be read.
        limits_B: the most tokens of an answer to each prompt, where that is less than `max_tokens`; 0 gives an empty
            answer.

    Raises:
        ValueError: an empty prompt, or settings that do not fit together.
    """
    request = make_request(model.config, params, tokens_BP, lengths_B, key, sampling, prompt_ids_B, limits_B)
    options = xla_cpu.compiler_options(params)
    run = compiled(_generate, options, static_argnums=(0, 1))
    return run(model.config, request.sizes(options), params, *request.arrays)


class Sizes(NamedTuple):
    """The static arguments of a compiled `generate`."""

    n: int
    """Answers to each prompt."""

    max_tokens: int
    """The most tokens of any answer."""

    by_blocks: bool
    """Whether the program is compiled with `xla_cpu.compiler_options`."""


class Request(NamedTuple):
    """Prompts and settings in the form that compiled functions take."""

    n: int
    """Answers to each prompt."""

    max_tokens: int
    """The most tokens of any answer."""

    arrays: tuple[Any, ...]
    """Prompts, their lengths, their keys, settings, tables of tokens and pad_id."""

    def sizes(self, options: tuple) -> Sizes:
        """The static arguments of a program that is compiled with these options."""
        return Sizes(self.n, self.max_tokens, bool(options))


def make_request(
    config: LlamaConfig,
    params: Params,
    tokens_BP: Int[Array, "B P"],
    lengths_B: Int[Array, " B"],
    key: Key[Array, ""] | Key[Array, " B"],
    sampling: Sampling | Sequence[Sampling],
    prompt_ids_B: UInt32[Array, " B"] | None,
    limits_B: Int[Array, " B"] | None,
) -> Request:
    """The arguments of `generate` in the form that compiled functions take."""
    if prompt_ids_B is None:
        prompt_ids_B = ids_of_contents(tokens_BP, lengths_B)
    B = len(tokens_BP)
    settings = [sampling] * B if isinstance(sampling, Sampling) else list(sampling)
    if len(settings) != B:
        raise ValueError(f"sampling: {len(settings)} settings for {B} prompts: give one, or one for each")
    for name in ("n", "pad_id"):
        if len({getattr(s, name) for s in settings}) > 1:
            raise ValueError(f"sampling {name}: give all prompts of a batch the same")
    rows, tables = row_sampling(settings, config.vocab_size, limits_B)
    arrays = tokens_BP, lengths_B, key, prompt_ids_B, rows, tables, np.int32(settings[0].pad_id)
    return Request(settings[0].n, max(s.max_tokens for s in settings), arrays)


@functools.cache
def compiled(function: Callable, options: tuple[tuple[str, Any], ...], **arguments: Any) -> Callable:
    """`jax.jit(function, **arguments)` with compiler options, the same object whenever it is asked for."""
    return jax.jit(function, compiler_options=dict(options) or None, **arguments)


def _generate(config: LlamaConfig, sizes: Sizes, params: Params, *arrays) -> Generation:
    decoder, rows, drawn = _start(config, sizes, params, *arrays)
    tables, pad_id = arrays[-2:]

    def unfinished(carry):
        return jnp.any(carry[1].running_R)

    def body(carry):
        place, rows, answers = carry
        rows, drawn = step(decoder, tables, rows)
        return place + 1, rows, answers.write(place, drawn)

    answers = no_answers(len(rows.latest_R), sizes.max_tokens).write(jnp.int32(0), drawn)
    _, rows, answers = jax.lax.while_loop(unfinished, body, (jnp.int32(1), rows, answers))
    return answers.finish(rows, sizes.n, pad_id)


def _start(config: LlamaConfig, sizes: Sizes, params: Params, *arrays) -> tuple[Decoder, Rows, Drawn]:
    """The decoder, and rows whose prompts are read, with their first tokens. arrays: `Request.arrays`."""
    tokens_BP, lengths_B, key, prompt_ids_B, sampling, tables, _ = arrays
    B, P = tokens_BP.shape
    decoder = make_decoder(config, B * sizes.n, sizes.by_blocks, params)
    keys_B, slots = prompt_keys(key, prompt_ids_B), P + sizes.max_tokens
    rows, drawn = prefill(params, decoder, tables, tokens_BP, lengths_B, keys_B, sampling, n=sizes.n, slots=slots)
    return decoder, rows, drawn


def stream(
    model: Model,
    params: Params,
    prompt: Sequence[int],
    key: Key[Array, ""],
    sampling: Sampling,
    limit: int | None = None,
) -> Iterator[int]:
    """Yields the tokens of one answer as they are drawn: those of `generate` for the same key and prompt.

    Args:
        model: the network.
        params: its parameters.
        prompt: tokens of the prompt, 1 or more.
        key: key of the randomness.
        sampling: settings, with n = 1.
        limit: the most tokens of the answer, 1 or more, where that is less than `sampling.max_tokens`.
    """
    request = stream_request(model.config, params, prompt, key, sampling, limit)
    options = xla_cpu.compiler_options(params)
    begin = compiled(_start, options, static_argnums=(0, 1))
    go_on = compiled(step, options, donate_argnums=2)
    decoder, rows, drawn = begin(model.config, request.sizes(options), params, *request.arrays)
    tables = request.arrays[-2]
    while True:
        token, running = jax.device_get((drawn.tokens_RT[0, 0], rows.running_R[0]))
        yield int(token)
        if not running:
            return
        rows, drawn = go_on(decoder, tables, rows)


def stream_request(
    config: LlamaConfig,
    params: Params,
    prompt: Sequence[int],
    key: Key[Array, ""],
    sampling: Sampling,
    limit: int | None,
) -> Request:
    """The arguments of `stream` in the form that compiled functions take. Raises ValueError for several answers."""
    if sampling.n != 1:
        raise ValueError(f"a stream is one answer, sampling.n is {sampling.n}")
    tokens_1P, lengths_1 = pad_prompts([prompt])
    limits_1 = np.array([sampling.max_tokens if limit is None else limit], np.int32)
    return make_request(config, params, tokens_1P, lengths_1, key, sampling, None, limits_1)


# Prompts --------------------------------------------------------------------------------------------------------------


def prompt_ids(tokens_BP: Int[np.ndarray, "B P"], lengths_B: Int[np.ndarray, " B"]) -> UInt32[np.ndarray, " B"]:
    """A number for each prompt's content (crc32 of its int32 tokens), from which its randomness derives."""
    rows = zip(np.asarray(tokens_BP, np.int32), np.asarray(lengths_B), strict=True)
    return np.array([zlib.crc32(row[:length].tobytes()) for row, length in rows], np.uint32)


def ids_of_contents(tokens_BP: Int[Array, "B P"], lengths_B: Int[Array, " B"]) -> UInt32[np.ndarray, " B"]:
    """`prompt_ids` of the prompts of `generate`. Raises ValueError for an empty prompt, and inside `jax.jit`."""
    if isinstance(tokens_BP, jax.core.Tracer):
        raise ValueError("generate inside jax.jit: give prompt_ids_B, the contents of prompts cannot be read there")
    if np.min(np.asarray(lengths_B)) < 1:
        raise ValueError(f"an empty prompt (lengths {np.asarray(lengths_B).tolist()}): give each a token, as bos")
    return prompt_ids(tokens_BP, lengths_B)


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
    seed: int | Sequence[int] = 0,
    batch_size: int = 8,
    mesh: jax.sharding.Mesh | None = None,
    limits: Sequence[int] | None = None,
) -> list[list[list[int]]]:
    """Answers to any number of prompts, in batches of prompts of like length.

    The last batch is filled up with its last prompt. An empty prompt raises ValueError.

    Args:
        answer: answer(tokens, lengths, key, sampling, limits_B=) answers a batch, as `generate` does for a model and
            its parameters.
        prompts: tokens of the prompts.
        sampling: settings of all answers.
        seed: seed of the randomness, one for all prompts or one for each. Equal prompts with one seed have equal
            answers.
        batch_size: prompts of a batch.
        mesh: mesh that the answers are computed on; None for the one that is set.
        limits: the most tokens of an answer to each prompt, where that is less than `sampling.max_tokens`.

    Returns:
        For each prompt its `sampling.n` answers, as lists of token ids.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    limits = [sampling.max_tokens] * len(prompts) if limits is None else limits
    seeds = np.array(seed, np.uint32) if isinstance(seed, Sequence) else seed
    answers: list[list[list[int]]] = [[] for _ in prompts]
    with jax.set_mesh(mesh) if mesh is not None else nullcontext():
        # Keys are made on the mesh, as those of a caller on the mesh are: other places would compile another program.
        keys = jax.vmap(jax.random.key)(seeds) if np.ndim(seeds) else jax.random.key(seeds)
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            filled = chosen + chosen[-1:] * (batch_size - len(chosen))
            tokens_BP, lengths_B = pad_prompts([prompts[i] for i in filled])
            limits_B = np.array([limits[i] for i in filled], np.int32)
            key = keys[np.array(filled)] if keys.ndim else keys
            out = on_host(answer(tokens_BP, lengths_B, key, sampling, limits_B=limits_B))
            for row, i in enumerate(chosen):
                pairs = zip(out.tokens[row], out.lengths[row], strict=True)
                answers[i] = [tokens[:length].tolist() for tokens, length in pairs]
    return answers
