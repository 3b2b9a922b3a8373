"""How the next token is chosen: settings, the distribution that they make of the model's, and the draw itself.

People write a `Sampling`. Compiled functions take a `RowSampling`, the same settings as arrays with an entry for each
row, so that rows with different settings stand in one batch and another number compiles nothing. Two parts of it may be
absent, and a program without them is a smaller one: temperatures, where all rows are greedy, and `Filters`.
"""

import dataclasses
import numbers
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from .stopping import Stops, join_tables

Ranges = tuple[tuple[int, int], ...]

GREEDY_BELOW = 1e-5
"""Smaller temperatures take the likeliest token: logits divided by them would leave float32's range."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings of an answer, checked when they are made; a wrong one raises ValueError.

    The distribution is reshaped in the order of Hugging Face's generate, and renormalised after: repetition_penalty,
    temperature, top_k, top_p, min_p.
    """

    max_tokens: int = 128
    """The most tokens of an answer."""

    temperature: float = 1.0
    """Divisor of the logits. Below `GREEDY_BELOW`, as at 0, the likeliest token after the penalty is taken, and top_k,
    top_p and min_p are ignored."""

    top_k: int = 0
    """The k likeliest tokens are kept, and those as likely as the last of them; 0 keeps all."""

    top_p: float = 1.0
    """Of the tokens kept so far, the fewest whose probability reaches top_p are kept, and those as likely as the last
    of them (arXiv:1904.09751); 1 keeps all."""

    min_p: float = 0.0
    """Of the tokens kept so far, those at least min_p times as likely as the likeliest are kept (arXiv:2407.01082)."""

    repetition_penalty: float = 1.0
    """Logits of tokens that stand in the prompt or in the answer so far are divided by it where positive, else
    multiplied (CTRL, arXiv:1909.05858, section 4.1); 1 changes nothing."""

    stop_ids: tuple[int, ...] = ()
    """An answer ends with the first of these token ids."""

    pad_id: int = 0
    """Token id that fills the places after an answer's end."""

    n: int = 1
    """Answers to each prompt."""

    stops: Stops | None = None
    """Strings that end an answer, with the token that completes the first of them."""

    unused: Ranges = ()
    """Ids without a token, as ranges (first, one past the last); they have probability 0."""

    def __post_init__(self):
        try:
            object.__setattr__(self, "stop_ids", tuple(map(operator.index, self.stop_ids)))
        except TypeError:
            raise ValueError(f"sampling stop_ids {self.stop_ids!r}: give a list of token ids") from None
        if not all(0 <= i < 2**31 for i in self.stop_ids):
            raise ValueError(f"sampling stop_ids {self.stop_ids!r}: token ids are from 0 to 2**31 - 1")
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, bool) or not abs(value) < 2**31:
                said = "a whole number" if kind is numbers.Integral else "a number"
                raise ValueError(f"sampling {name} {value!r}: give {said}")
        bounds = {
            "max_tokens": (self.max_tokens >= 1, "give 1 or more"),
            "temperature": (self.temperature >= 0, "give 0 (greedy) or more"),
            "top_k": (self.top_k >= 0, "give 0 (off) or more"),
            "top_p": (0 < self.top_p <= 1, "give more than 0, at most 1 (off)"),
            "min_p": (0 <= self.min_p <= 1, "give 0 (off) to 1"),
            "repetition_penalty": (1e-6 <= self.repetition_penalty <= 1e6, "give 1e-6 to 1e6; 1 is off"),
            "n": (self.n >= 1, "give 1 or more"),
        }
        for name, (holds, advice) in bounds.items():
            if not holds:
                raise ValueError(f"sampling {name} {getattr(self, name)}: {advice}")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature < GREEDY_BELOW


_KINDS = dict.fromkeys(("max_tokens", "top_k", "pad_id", "n"), numbers.Integral) | dict.fromkeys(
    ("temperature", "top_p", "min_p", "repetition_penalty"), numbers.Real
)


class Filters(NamedTuple):
    """Filters and penalties of R rows as arrays."""

    top_k_R: Int[Array, " R"]
    """Number of likeliest tokens that are kept; 0 keeps all."""

    top_p_R: Float[Array, " R"]
    """Probability that the kept tokens reach together; 1 keeps all."""

    log_min_p_R: Float[Array, " R"]
    """Logarithm of the least probability of a kept token, as a part of the likeliest token's; -inf keeps all."""

    penalty_R: Float[Array, " R"]
    """Factor of the negative logits of tokens seen before; 1 changes nothing."""

    inverse_penalty_R: Float[Array, " R"]
    """1 / penalty, the factor of the positive logits of tokens seen before."""


class RowSampling(NamedTuple):
    """The settings of R rows as arrays, made by `row_sampling`."""

    inverse_temperature_R: Float[Array, " R"] | None
    """1 / temperature, the factor of the logits; 0 in greedy rows. None where all rows are greedy."""

    filters: Filters | None
    """Filters and penalties; None where no row has any."""

    max_tokens_R: Int[Array, " R"]
    """The most tokens of the answer; 0 gives an empty answer."""

    stop_ids_RI: Int[Array, "R I"]
    """Token ids that end the answer, filled up with -1 to 8 places or the next power of two."""

    stop_state_R: Int[Array, " R"]
    """State of `TokenTables.stops_SV` in which the answer begins; `stopping.NO_STRINGS` without stop strings."""

    def repeat(self, times: int) -> "RowSampling":
        """The settings with `times` consecutive rows for each row."""
        return jax.tree.map(lambda x_R: jnp.repeat(x_R, times, axis=0), self)


class TokenTables(NamedTuple):
    """What is known of each token of the vocabulary, for all rows, made by `row_sampling`."""

    is_unused_V: Bool[Array, " V"] | None
    """Ids that are never drawn; None where there are none."""

    stops_SV: Int[Array, "S V"] | None
    """The automaton of all rows' stop strings (`stopping.join_tables`); None where no row has any."""


def row_sampling(
    settings: Sequence[Sampling],
    vocab_size: int,
    limits_R: Int[Array, " R"] | None = None,
    *,
    for_any: bool = False,
) -> tuple[RowSampling, TokenTables]:
    """Settings as arrays of numpy, and the tables of tokens that belong to them.

    Args:
        settings: those of each row.
        vocab_size: rows of the network's embedding.
        limits_R: the most tokens of each row's answer, where that is less than the settings' `max_tokens`.
        for_any: whether temperatures and filters are given also where these rows do without, so that rows with any
            settings may take these rows' places.

    Raises:
        ValueError: the rows differ in `unused`.
    """
    if len({s.unused for s in settings}) > 1:
        raise ValueError("sampling unused: rows of one batch have one vocabulary, give them the same ranges")
    max_tokens_R = np.array([s.max_tokens for s in settings], np.int32)
    if limits_R is not None:
        minimum = jnp.minimum if isinstance(limits_R, jax.Array) else np.minimum
        max_tokens_R = minimum(max_tokens_R, limits_R)
    temperature_R = np.array([0.0 if s.is_greedy else s.temperature for s in settings], np.float32)
    inverse_R = np.divide(np.float32(1), temperature_R, out=np.zeros_like(temperature_R), where=temperature_R > 0)
    stops_SV, stop_state_R = join_tables([s.stops for s in settings])
    rows = RowSampling(
        inverse_temperature_R=inverse_R if for_any or inverse_R.any() else None,
        filters=_filters(settings) if for_any or any(map(_is_filtered, settings)) else None,
        max_tokens_R=max_tokens_R,
        stop_ids_RI=_stop_ids(settings),
        stop_state_R=stop_state_R,
    )
    unused = settings[0].unused
    return rows, TokenTables(unused_mask(unused, vocab_size) if unused else None, stops_SV)


def _is_filtered(s: Sampling) -> bool:
    """Whether the settings have a penalty, or a filter that counts: temperature 0 ignores filters."""
    return s.repetition_penalty != 1 or (not s.is_greedy and (s.top_k > 0 or s.top_p < 1 or s.min_p > 0))


def _filters(settings: Sequence[Sampling]) -> Filters:
    """Filters and penalties as arrays of numpy. Filters of a greedy row are switched off."""
    drawn = [Sampling() if s.is_greedy else s for s in settings]
    penalty_R = np.array([s.repetition_penalty for s in settings], np.float32)
    with np.errstate(divide="ignore"):
        log_min_p_R = np.log(np.array([np.float32(s.min_p) for s in drawn], np.float64)).astype(np.float32)
    return Filters(
        top_k_R=np.array([s.top_k for s in drawn], np.int32),
        top_p_R=np.array([s.top_p for s in drawn], np.float32),
        log_min_p_R=log_min_p_R,
        penalty_R=penalty_R,
        inverse_penalty_R=np.float32(1) / penalty_R,
    )


def _stop_ids(settings: Sequence[Sampling]) -> Int[np.ndarray, "R I"]:
    places = max(8, 1 << (max(len(s.stop_ids) for s in settings) - 1).bit_length())
    stop_ids_RI = np.full((len(settings), places), -1, np.int32)
    for row_I, s in zip(stop_ids_RI, settings, strict=True):
        row_I[: len(s.stop_ids)] = s.stop_ids
    return stop_ids_RI


def unused_mask(unused: Ranges, vocab_size: int) -> Bool[np.ndarray, " V"]:
    """Which ids of a vocabulary lie in the ranges of `unused`."""
    is_unused_V = np.zeros(vocab_size, bool)
    for first, end in unused:
        is_unused_V[first:end] = True
    return is_unused_V


def mask_unused(is_unused_V: Bool[Array, " V"], logits: Float[Array, "*shape V"]) -> Float[Array, "*shape V"]:
    """Logits in which unused ids have probability 0: the least float, since 0 times it is 0 in an entropy."""
    return jnp.where(jnp.broadcast_to(is_unused_V, logits.shape), jnp.finfo(logits.dtype).min, logits)


def without_unused(unused: Ranges, logits: Float[Array, "*shape V"]) -> Float[Array, "*shape V"]:
    """Logits in which the ids of `unused` have probability 0; `logits` where there are no such ids."""
    return mask_unused(unused_mask(unused, logits.shape[-1]), logits) if unused else logits


def reshape_distribution(
    sampling: RowSampling,
    logits_RV: Float[Array, "R V"],
    seen_RV: Bool[Array, "R V"] | None = None,
    is_unused_V: Bool[Array, " V"] | None = None,
) -> Float[Array, "R V"]:
    """The logits of the distribution that tokens are drawn from.

    Filters are thresholds on the logits, so equal logits are kept or dropped together. An edge that no row asks for is
    not looked for.

    Args:
        sampling: settings of the rows.
        logits_RV: the model's logits.
        seen_RV: the tokens of prompt and answer so far; None where no row has a repetition penalty.
        is_unused_V: ids that are never drawn; None for none.

    Returns:
        Float32 logits, -inf where a token was filtered out. In greedy rows only the penalty and unused ids count.
    """
    logits_RV = logits_RV.astype(jnp.float32)
    if is_unused_V is not None:
        logits_RV = mask_unused(is_unused_V, logits_RV)
    filters = sampling.filters
    if filters is not None and seen_RV is not None:
        inverse_R1, penalty_R1 = filters.inverse_penalty_R[:, None], filters.penalty_R[:, None]
        penalised_RV = jnp.where(logits_RV > 0, logits_RV * inverse_R1, logits_RV * penalty_R1)
        logits_RV = jnp.where(seen_RV, penalised_RV, logits_RV)
    if sampling.inverse_temperature_R is None:
        return logits_RV
    factor_R = jnp.where(greedy_rows(sampling), 1, sampling.inverse_temperature_R)
    logits_RV = logits_RV * factor_R[:, None]
    return logits_RV if filters is None else _filtered(filters, logits_RV)


def greedy_rows(sampling: RowSampling) -> Bool[Array, " R"]:
    """Which of the rows take the likeliest token."""
    if sampling.inverse_temperature_R is None:
        return jnp.ones(sampling.max_tokens_R.shape, bool)
    return sampling.inverse_temperature_R == 0


def _filtered(filters: Filters, logits_RV: Float[Array, "R V"]) -> Float[Array, "R V"]:
    """The logits with -inf where a filter drops a token."""

    def edge_of_top_k():
        edge_R1 = _kth_largest(logits_RV, filters.top_k_R)
        return jnp.where(filters.top_k_R[:, None] > 0, edge_R1, -jnp.inf)

    no_edge_R1 = jnp.full((len(logits_RV), 1), -jnp.inf)
    edge_R1 = jax.lax.cond(jnp.any(filters.top_k_R > 0), edge_of_top_k, lambda: no_edge_R1)
    logits_RV = jnp.where(logits_RV >= edge_R1, logits_RV, -jnp.inf)

    def nucleus():
        probs_RV = jax.nn.softmax(logits_RV, axis=-1)
        return (probs_RV >= _nucleus_edge(probs_RV, filters.top_p_R)) | (filters.top_p_R[:, None] == 1)

    kept_RV = jax.lax.cond(jnp.any(filters.top_p_R < 1), nucleus, lambda: jnp.ones(logits_RV.shape, bool))
    logits_RV = jnp.where(kept_RV, logits_RV, -jnp.inf)
    least_R1 = jnp.max(logits_RV, axis=-1, keepdims=True) + filters.log_min_p_R[:, None]
    return jnp.where(logits_RV >= least_R1, logits_RV, -jnp.inf)


def _kth_largest(logits_RV: Float[Array, "R V"], k_R: Int[Array, " R"]) -> Float[Array, "R 1"]:
    """The k-th largest logit of each row; the least where a row has fewer than k."""
    k_R1 = jnp.minimum(k_R, logits_RV.shape[-1])[:, None]
    highest_R1 = _ordered(jnp.max(logits_RV, axis=-1, keepdims=True)) + 1
    lowest_R1 = jnp.full_like(highest_R1, _ordered(jnp.float32(-jnp.inf)))

    def reaches(edge_R1):
        return jnp.sum(logits_RV >= _float_of(edge_R1), axis=-1, keepdims=True) >= k_R1

    return _float_of(_last_that_holds(reaches, lowest_R1, highest_R1, halvings=32))


def _nucleus_edge(probs_RV: Float[Array, "R V"], top_p_R: Float[Array, " R"]) -> Float[Array, "R 1"]:
    """The largest probability for which the tokens at least that likely hold `top_p` together; 0 if none."""
    highest_R1 = _ordered(jnp.max(probs_RV, axis=-1, keepdims=True)) + 1

    def reaches(edge_R1):
        kept_RV = probs_RV >= _float_of(edge_R1)
        return jnp.sum(jnp.where(kept_RV, probs_RV, 0), axis=-1, keepdims=True) >= top_p_R[:, None]

    return _float_of(_last_that_holds(reaches, jnp.zeros_like(highest_R1), highest_R1, halvings=30))


def _last_that_holds(holds: Callable, low: Int[Array, "R 1"], high: Int[Array, "R 1"], halvings: int) -> jax.Array:
    """For each row, the largest integer from `low` to `high` - 1 for which `holds` is true, found by bisection.

    Callers pass floats as the integers of `_ordered`, so the result is exact to the last bit. Bisection replaces a sort
    of the vocabulary, which costs more than a layer of the network.

    Args:
      holds: holds(integers [R, 1]) -> bool [R, 1], true up to some integer and false above it.
      low: smallest result, returned where `holds` is false everywhere.
      high: exclusive upper limit.
      halvings: number of bisection steps; 2**halvings must be at least high - low.
    """

    def halve(_, bounds):
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)  # without the overflow of low + high
        enough = holds(middle)
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    return jax.lax.fori_loop(0, halvings, halve, (low, high))[0]


def _ordered(x: Float[Array, "*shape"]) -> Int[Array, "*shape"]:
    """Integers in the order of float32 numbers."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _float_of(ordered: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The inverse of `_ordered`."""
    return jax.lax.bitcast_convert_type(jnp.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered), jnp.float32)


def draw(
    sampling: RowSampling,
    keys_R: Key[Array, " R"],
    logits_RV: Float[Array, "R V"],
    seen_RV: Bool[Array, "R V"] | None = None,
    is_unused_V: Bool[Array, " V"] | None = None,
) -> tuple[Int[Array, " R"], Float[Array, " R"], Float[Array, " R"]]:
    """Draws one token for each row from the row's own key, so that it does not depend on the rows around it.

    Args:
        sampling: settings of the rows.
        keys_R: keys of the draws.
        logits_RV: the model's logits.
        seen_RV: see `reshape_distribution`.
        is_unused_V: see `reshape_distribution`.

    Returns:
        The tokens, their log-probabilities under the model (a log-softmax of `logits_RV` as given, over all ids that
        the network has), and their log-probabilities under the distribution that they were drawn from (0 in greedy
        rows, whose distribution holds one token).
    """
    model_RV = logits_RV.astype(jnp.float32)
    drawn_RV = reshape_distribution(sampling, logits_RV, seen_RV, is_unused_V)

    def likeliest_R():
        return jnp.argmax(drawn_RV, axis=-1).astype(jnp.int32)

    if sampling.inverse_temperature_R is None:
        tokens_R = likeliest_R()
        return tokens_R, _log_prob(model_RV, tokens_R), jnp.zeros(tokens_R.shape)
    # A pass over the vocabulary that no row asks for is skipped: on a CPU each costs a part of a small network's step.
    greedy_R = greedy_rows(sampling)
    tokens_R = draw_from(keys_R, drawn_RV)
    tokens_R = jax.lax.cond(jnp.any(greedy_R), lambda: jnp.where(greedy_R, likeliest_R(), tokens_R), lambda: tokens_R)
    logprobs_R = _log_prob(model_RV, tokens_R)
    if sampling.filters is None and is_unused_V is None:  # the distribution differs from the model's by temperature
        sampling_logprobs_R = jax.lax.cond(
            jnp.any(sampling.inverse_temperature_R != 1),
            lambda: _log_prob(reshape_distribution(sampling, logits_RV), tokens_R),
            lambda: logprobs_R,
        )
    else:
        sampling_logprobs_R = _log_prob(drawn_RV, tokens_R)
    return tokens_R, logprobs_R, jnp.where(greedy_R, 0.0, sampling_logprobs_R)


def log_distribution(sampling: RowSampling, shaped_RV: Float[Array, "R V"]) -> Float[Array, "R V"]:
    """The logarithm of the distribution that `draw` draws from; a greedy row's likeliest token has probability 1.

    Args:
        sampling: settings of the rows.
        shaped_RV: the logits that `reshape_distribution` returns.
    """
    likeliest_R1 = jnp.argmax(shaped_RV, axis=-1, keepdims=True)
    greedy_RV = jnp.where(jnp.arange(shaped_RV.shape[-1])[None] == likeliest_R1, 0.0, -jnp.inf)
    if sampling.inverse_temperature_R is None:
        return greedy_RV
    return jnp.where(greedy_rows(sampling)[:, None], greedy_RV, jax.nn.log_softmax(shaped_RV, axis=-1))


def _log_prob(logits_RV: jax.Array, tokens_R: jax.Array) -> jax.Array:
    chosen_R = jnp.take_along_axis(logits_RV, tokens_R[:, None], axis=-1)[:, 0]
    return chosen_R - jax.nn.logsumexp(logits_RV, axis=-1)


def draw_from(keys_R: Key[Array, " R"], logits_RV: Float[Array, "R V"]) -> Int[Array, " R"]:
    """Draws one token for each row from the softmax of the row's logits."""
    return jax.vmap(_categorical)(keys_R, logits_RV)


def _categorical(key: jax.Array, logits_V: Float[Array, " V"]) -> Int[Array, ""]:
    """A token by Gumbel-max in two steps: a block of the vocabulary, then a token in it.

    The distribution is that of one step, from about 2 sqrt(V) random numbers instead of V, which on a CPU cost as much
    as the network.
    """
    (vocab,) = logits_V.shape
    width = 1 << (max(vocab - 1, 1).bit_length() + 1) // 2
    padded_V = jnp.pad(logits_V, (0, -vocab % width), constant_values=-jnp.inf)
    blocks_CW = padded_V.reshape(-1, width)
    key_block, key_token = jax.random.split(key)
    block = jax.random.categorical(key_block, jax.nn.logsumexp(blocks_CW, axis=-1))
    return (block * width + jax.random.categorical(key_token, blocks_CW[block])).astype(jnp.int32)
