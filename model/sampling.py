"""How the next token is chosen: what reshapes the model's distribution, in which order, and the draw itself."""

import dataclasses
import numbers

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from .stopping import Stops

Ranges = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. Hashable: a compiled decoding loop belongs to one of these, whatever its stop strings.

    The distribution is reshaped in the order of Hugging Face's generate, and renormalised after: repetition_penalty,
    temperature, top_k, top_p, min_p. max_tokens: the most tokens of an answer. n: answers per prompt.
    temperature: logits are divided by it; 0 takes the likeliest token, after the penalty, and asks nothing else.
    top_k: keep the k likeliest tokens, ties with the last included; 0 keeps all. top_p: of those, keep the fewest whose
    probability reaches top_p, ties included (arXiv:1904.09751). min_p: of those, keep tokens at least min_p times as
    likely as the likeliest (arXiv:2407.01082). repetition_penalty: logits of tokens that stand in the prompt or in the
    answer so far are divided by it where positive, else multiplied (CTRL, arXiv:1909.05858, section 4.1).
    stop_ids: an answer ends with the first of these; pad_id fills the places after it. stops: strings that end an
    answer as well, with the token that completes the first of them. unused: ids without a token, as ranges
    (first, one past the last); they have probability 0.
    """

    max_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop_ids: tuple[int, ...] = ()
    pad_id: int = 0
    n: int = 1
    stops: Stops | None = None
    unused: Ranges = ()

    def __post_init__(self):
        object.__setattr__(self, "stop_ids", tuple(int(i) for i in self.stop_ids))
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
            "repetition_penalty": (self.repetition_penalty > 0, "give more than 0; 1 is off"),
            "n": (self.n >= 1, "give 1 or more"),
        }
        for name, (holds, advice) in bounds.items():
            if not holds:
                raise ValueError(f"sampling {name} {getattr(self, name)}: {advice}")


_KINDS = dict.fromkeys(("max_tokens", "top_k", "pad_id", "n"), numbers.Integral) | dict.fromkeys(
    ("temperature", "top_p", "min_p", "repetition_penalty"), numbers.Real
)


def without_unused(unused: Ranges, logits: Float[Array, "*shape V"]) -> Float[Array, "*shape V"]:
    """Logits in which the ids of `unused` have probability 0: the least float, as 0 times it is 0 in an entropy."""
    if not unused:
        return logits
    is_unused_V = np.zeros(logits.shape[-1], bool)
    for first, end in unused:
        is_unused_V[first:end] = True
    return jnp.where(jnp.broadcast_to(is_unused_V, logits.shape), jnp.finfo(logits.dtype).min, logits)


def reshape_distribution(
    sampling: Sampling, logits_RV: Float[Array, "R V"], seen_RV: Bool[Array, "R V"] | None
) -> Float[Array, "R V"]:
    """The logits of the distribution that tokens are drawn from: float32, -inf where a token was filtered out.

    `seen_RV` marks the tokens of prompt and answer so far, None where there is no repetition penalty. At temperature
    0 only the penalty acts. Filters are thresholds on the logits, so equal logits are kept or dropped together.
    """
    logits_RV = without_unused(sampling.unused, logits_RV.astype(jnp.float32))
    if sampling.repetition_penalty != 1:
        penalty = sampling.repetition_penalty
        penalised_RV = jnp.where(logits_RV > 0, logits_RV / penalty, logits_RV * penalty)
        logits_RV = jnp.where(seen_RV, penalised_RV, logits_RV)
    if sampling.temperature == 0:
        return logits_RV
    logits_RV = logits_RV / sampling.temperature
    if 0 < sampling.top_k < logits_RV.shape[-1]:
        least_R1 = jax.lax.top_k(logits_RV, sampling.top_k)[0][:, -1:]
        logits_RV = jnp.where(logits_RV >= least_R1, logits_RV, -jnp.inf)
    if sampling.top_p < 1:
        probs_RV = jax.nn.softmax(logits_RV, axis=-1)
        logits_RV = jnp.where(probs_RV >= _nucleus_edge(probs_RV, sampling.top_p), logits_RV, -jnp.inf)
    if sampling.min_p > 0:
        least_R1 = jnp.max(logits_RV, axis=-1, keepdims=True) + jnp.log(sampling.min_p)
        logits_RV = jnp.where(logits_RV >= least_R1, logits_RV, -jnp.inf)
    return logits_RV


def _nucleus_edge(probs_RV: Float[Array, "R V"], top_p: float) -> Float[Array, "R 1"]:
    """The largest probability for which the tokens at least that likely hold `top_p` together; 0 if none.

    By bisection and not by sorting, which costs more than a layer of the network. Positive floats are ordered as their
    bits are, so 30 halvings of the bits of [0, 1] end at the exact edge.
    """

    def halve(_, bounds):
        low_R1, high_R1 = bounds
        middle_R1 = (low_R1 + high_R1) // 2
        kept_RV = probs_RV >= jax.lax.bitcast_convert_type(middle_R1, jnp.float32)
        enough_R1 = jnp.sum(jnp.where(kept_RV, probs_RV, 0), axis=-1, keepdims=True) >= top_p
        return jnp.where(enough_R1, middle_R1, low_R1), jnp.where(enough_R1, high_R1, middle_R1)

    high_R1 = jax.lax.bitcast_convert_type(jnp.max(probs_RV, axis=-1, keepdims=True), jnp.int32) + 1
    low_R1, _ = jax.lax.fori_loop(0, 30, halve, (jnp.zeros_like(high_R1), high_R1))
    return jax.lax.bitcast_convert_type(low_R1, jnp.float32)


def draw(
    sampling: Sampling,
    keys_R: Key[Array, " R"],
    logits_RV: Float[Array, "R V"],
    seen_RV: Bool[Array, "R V"] | None = None,
) -> tuple[Int[Array, " R"], Float[Array, " R"], Float[Array, " R"]]:
    """One token per row from its own key, so that a row's token does not depend on the rows around it.

    Returns the tokens, their log-probability under the model (a log-softmax of `logits_RV` as given, over all ids that
    the network has) and their log-probability under the distribution they were drawn from (0 at temperature 0: it holds
    one token).
    """
    model_RV = logits_RV.astype(jnp.float32)
    drawn_RV = reshape_distribution(sampling, logits_RV, seen_RV)
    if sampling.temperature == 0:
        tokens_R = jnp.argmax(drawn_RV, axis=-1).astype(jnp.int32)
        return tokens_R, _log_prob(model_RV, tokens_R), jnp.zeros(tokens_R.shape, jnp.float32)
    tokens_R = jax.vmap(_categorical)(keys_R, drawn_RV)
    return tokens_R, _log_prob(model_RV, tokens_R), _log_prob(drawn_RV, tokens_R)


def _log_prob(logits_RV: jax.Array, tokens_R: jax.Array) -> jax.Array:
    chosen_R = jnp.take_along_axis(logits_RV, tokens_R[:, None], axis=-1)[:, 0]
    return chosen_R - jax.nn.logsumexp(logits_RV, axis=-1)


def _categorical(key: jax.Array, logits_V: Float[Array, " V"]) -> Int[Array, ""]:
    """A token by Gumbel-max in two steps, a block of the vocabulary and a token in it: the same distribution for about
    2 sqrt(V) random numbers instead of V, which on a CPU cost as much as the network.
    """
    (vocab,) = logits_V.shape
    width = 1 << (max(vocab - 1, 1).bit_length() + 1) // 2
    padded_V = jnp.pad(logits_V, (0, -vocab % width), constant_values=-jnp.inf)
    blocks_CW = padded_V.reshape(-1, width)
    key_block, key_token = jax.random.split(key)
    block = jax.random.categorical(key_block, jax.nn.logsumexp(blocks_CW, axis=-1))
    return (block * width + jax.random.categorical(key_token, blocks_CW[block])).astype(jnp.int32)
