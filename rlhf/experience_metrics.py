"""Metrics of a step's answers: scores, lengths, variety, and the policy's divergence from the reference."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..model.logprobs import masked_mean
from .losses import kl_estimate
from .rollout import Experience, Rollout


def experience_metrics(experience: Experience, score_R: Float[Array, " R"]) -> dict[str, Float[Array, ""]]:
    """All metrics of a step's answers by name. score_R: the weighted sum of each answer's scores."""
    rows = experience.rows
    metrics = rollout_metrics(rows, experience.logp_RM)
    metrics |= kl_metrics(experience.logp_RM, experience.ref_logp_RM, experience.kl_exact_RM, rows.mask_RM)
    metrics |= {f"objective/scores/{name}": jnp.mean(part_R) for name, part_R in experience.scores.items()}
    return metrics | {
        "objective/scores": jnp.mean(score_R),
        "objective/entropy": masked_mean(experience.entropy_RM, rows.mask_RM),
        "tokens": jnp.sum(rows.mask_RM),
    }


def rollout_metrics(rows: Rollout, logp_RM: Float[Array, "R M"]) -> dict[str, Float[Array, ""]]:
    """Metrics of the drawn tokens: length, share of ended answers, variety, and sampling/logprob_difference.

    logp_RM: the policy's log-probabilities of the tokens in the scoring pass. Their distance, in nats, from the
    log-probabilities at which the decoder drew the tokens is sampling/logprob_difference.
    """
    answers_RM, mask_RM = rows.answers_RM, rows.mask_RM
    difference_RM = jnp.abs(logp_RM - rows.sampling_logprobs_RM) * mask_RM
    return {
        "tokens/eos_rate": jnp.mean(rows.stopped_R),
        "tokens/length": jnp.mean(rows.lengths_R.astype(jnp.float32)),
        "tokens/length_max": jnp.max(rows.lengths_R).astype(jnp.float32),
        "diversity/distinct-1": distinct(answers_RM, mask_RM, 1),
        "diversity/distinct-2": distinct(answers_RM, mask_RM, 2),
        "diversity/repetition": repetition(answers_RM, mask_RM, 2),
        "sampling/logprob_difference": masked_mean(difference_RM, mask_RM),
        "sampling/logprob_difference_max": jnp.max(difference_RM),
    }


def kl_metrics(
    logp_RM: Float[Array, "R M"],
    ref_logp_RM: Float[Array, "R M"],
    kl_exact_RM: Float[Array, "R M"],
    mask_RM: Float[Array, "R M"],
) -> dict[str, Float[Array, ""]]:
    """The mean KL(policy || reference) of an answer in nats, by each estimator and over the whole vocabulary.

    Args:
      logp_RM: the policy's log-probability of each token.
      ref_logp_RM: the reference's log-probability of each token.
      kl_exact_RM: the KL divergence at each token over the whole vocabulary.
      mask_RM: 1 for the answers' tokens.
    """
    kinds = {"kl": "k1", "kl_k2": "k2", "kl_k3": "k3"}
    estimates = {name: kl_estimate(logp_RM, ref_logp_RM, kind) for name, kind in kinds.items()}
    estimates["kl_exact"] = kl_exact_RM
    return {f"objective/{name}": jnp.mean(jnp.sum(x * mask_RM, axis=1)) for name, x in estimates.items()}


def distinct(tokens_RM: Int[Array, "R M"], mask_RM: Float[Array, "R M"], n: int) -> Float[Array, ""]:
    """The share of different n-grams among all n-grams of the batch's answers (distinct-n, arXiv:1510.03055)."""
    grams, real = _grams(tokens_RM, mask_RM, n)
    different = _count_different([g.reshape(1, -1) for g in grams], real.reshape(1, -1))
    return jnp.sum(different) / jnp.maximum(jnp.sum(real), 1)


def repetition(tokens_RM: Int[Array, "R M"], mask_RM: Float[Array, "R M"], n: int) -> Float[Array, ""]:
    """The share of n-grams that occur earlier in the same answer (rep-n, Welleck et al., arXiv:1908.04319)."""
    grams, real = _grams(tokens_RM, mask_RM, n)
    return 1.0 - jnp.sum(_count_different(grams, real)) / jnp.maximum(jnp.sum(real), 1)


def explained_variance(
    values_RM: Float[Array, "R M"], returns_RM: Float[Array, "R M"], mask_RM: Float[Array, "R M"]
) -> Float[Array, ""]:
    """1 - var(returns - values) / var(returns) over tokens whose mask is 1; 0 if the returns do not vary."""

    def variance(x_RM):
        return masked_mean((x_RM - masked_mean(x_RM, mask_RM)) ** 2, mask_RM)

    total = variance(returns_RM)
    share = 1.0 - variance(returns_RM - values_RM) / jnp.where(total > 0, total, 1.0)
    return jnp.where(total > 0, share, 0.0)


def _grams(tokens_RM, mask_RM, n: int):
    """The n-grams of each row as n arrays [R, M - n + 1], one for each place, and which consist of real tokens."""
    width = tokens_RM.shape[1] - n + 1
    columns = [tokens_RM[:, i : i + width] for i in range(n)]
    return columns, mask_RM[:, n - 1 :] > 0


def _count_different(columns, real):
    """The number of different n-grams in each row: after sorting, those that differ from the n-gram before."""
    order = jnp.lexsort([*reversed(columns), ~real], axis=-1)
    columns = [jnp.take_along_axis(c, order, axis=-1) for c in columns]
    real = jnp.take_along_axis(real, order, axis=-1)
    changes = sum((c[:, 1:] != c[:, :-1]).astype(jnp.int32) for c in columns) > 0
    first = jnp.ones((len(real), 1), bool)
    return jnp.sum((jnp.concatenate([first, changes], axis=1) & real).astype(jnp.int32), axis=1)
