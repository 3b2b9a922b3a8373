"""Losses of reinforcement learning and of preference learning, as pure functions over arrays.

Each loss returns a float32 scalar to minimise and a dict of statistics. Masked entries have no influence, even if they
are nan or inf.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..model.logprobs import masked_mean

Stats = dict[str, Float[Array, ""]]
KL_KINDS = ("k1", "k2", "k3")
AGGREGATES = ("token", "sequence", "constant")


def kl_estimate(logp: Float[Array, "..."], ref_logp: Float[Array, "..."], kind: str) -> Float[Array, "..."]:
    """Estimates KL(policy || reference) at tokens that the policy drew, in nats.

    Args:
      logp: the policy's log-probabilities of the tokens.
      ref_logp: the reference's log-probabilities of the tokens.
      kind: the estimator (Schulman, "Approximating KL divergence", 2020). With d = logp - ref_logp, k1 is d, unbiased;
        k2 is d^2 / 2, biased but of low variance; k3 is exp(-d) - 1 + d, unbiased and never negative.
    """
    d = logp.astype(jnp.float32) - ref_logp.astype(jnp.float32)
    if kind == "k1":
        return d
    if kind == "k2":
        return 0.5 * d**2
    if kind == "k3":
        return jnp.expm1(-d) + d
    raise ValueError(f"KL estimator {kind!r}: give one of {', '.join(KL_KINDS)}")


def policy_loss(
    logp: Float[Array, "B T"],
    old_logp: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    mask: Float[Array, "B T"],
    *,
    clip: float,
    clip_high: float | None = None,
    aggregate: str = "token",
) -> tuple[Float[Array, ""], Stats]:
    """PPO's clipped surrogate objective (arXiv:1707.06347, equation 7), negated.

    Args:
      logp: log-probability of each token under the policy that is updated.
      old_logp: log-probability of each token under the policy that drew it.
      advantages: advantage of each token.
      mask: 1 for real tokens.
      clip: the probability ratio is clipped to [1 - clip, 1 + clip].
      clip_high: the upper limit is 1 + clip_high instead (DAPO, arXiv:2503.14476, section 3.1). None: clip.
      aggregate: see `aggregated`.

    Returns:
      The loss, and statistics, each the mean over real tokens: ratio; ratio_error, |ratio - 1|; clip_fraction, the
      share of tokens whose clipped ratio counts; approx_kl, the k3 estimate of KL(old || new) in nats.
    """
    real = mask > 0
    log_ratio = jnp.where(real, logp.astype(jnp.float32) - old_logp.astype(jnp.float32), 0.0)
    advantages = jnp.where(real, advantages.astype(jnp.float32), 0.0)
    ratio = jnp.exp(log_ratio)
    low, high = 1.0 - clip, 1.0 + (clip if clip_high is None else clip_high)
    clipped = jnp.where(advantages > 0, ratio > high, (advantages < 0) & (ratio < low))
    # The exponential of a clipped token is not taken: it may be inf, and its gradient 0 * inf would be nan.
    counted = jnp.where(clipped, jnp.where(advantages > 0, high, low), jnp.exp(jnp.where(clipped, 0.0, log_ratio)))
    loss = -advantages * counted
    stats = {
        "ratio": ratio,
        "ratio_error": jnp.abs(ratio - 1.0),
        "clip_fraction": clipped.astype(jnp.float32),
        "approx_kl": jnp.expm1(log_ratio) - log_ratio,
    }
    return aggregated(loss, mask, aggregate), {name: masked_mean(value, mask) for name, value in stats.items()}


def aggregated(loss: Float[Array, "B T"], mask: Float[Array, "B T"], aggregate: str) -> Float[Array, ""]:
    """Averages the losses of the tokens whose mask is 1. Rows without such a token are not counted.

    aggregate: "token", the mean over all real tokens (DAPO, arXiv:2503.14476, section 3.3); "sequence", the mean over
    rows of each row's mean (GRPO); "constant", the sum divided by B T (Dr. GRPO, arXiv:2503.20783, section 3.1).
    """
    if aggregate == "token":
        return masked_mean(loss, mask)
    rows = jnp.maximum(real_rows(mask), 1.0)
    if aggregate == "sequence":
        return jnp.sum(jax.vmap(masked_mean)(loss, mask)) / rows
    if aggregate == "constant":
        return jnp.sum(jnp.where(mask > 0, loss, 0.0)) / (rows * mask.shape[1])
    raise ValueError(f"aggregate {aggregate!r}: give one of {', '.join(AGGREGATES)}")


def real_rows(mask: Float[Array, "B T"]) -> Float[Array, ""]:
    """The number of rows with at least one real token."""
    return jnp.sum(jnp.any(mask > 0, axis=1).astype(jnp.float32))


def value_loss(
    values: Float[Array, "B T"],
    old_values: Float[Array, "B T"],
    returns: Float[Array, "B T"],
    mask: Float[Array, "B T"],
    *,
    clip: float | None,
) -> tuple[Float[Array, ""], Stats]:
    """PPO's clipped value loss: half the mean over real tokens of the larger of two squared errors.

    One is the error of the value, the other that of the value clipped to within `clip` of its old value.

    Args:
      values: values of the critic that is updated.
      old_values: values at the rollout.
      returns: the targets.
      mask: 1 for real tokens.
      clip: the largest distance from the old value. None: the plain squared error.

    Returns:
      The loss, and statistics: clip_fraction, the share of tokens whose clipped error counts, and error, the mean
      absolute error.
    """
    real = mask > 0
    values, old_values, returns = (jnp.where(real, x.astype(jnp.float32), 0.0) for x in (values, old_values, returns))
    square = (values - returns) ** 2
    largest, clipped = square, jnp.zeros(square.shape, bool)
    if clip is not None:
        moved = values - old_values
        held = (old_values + jnp.clip(moved, -clip, clip) - returns) ** 2
        # Within the clip both errors are equal up to rounding, which would count as clipped half of the time.
        clipped = (jnp.abs(moved) > clip) & (held > square)
        largest = jnp.where(clipped, held, square)
    stats = {"clip_fraction": clipped.astype(jnp.float32), "error": jnp.abs(values - returns)}
    return 0.5 * masked_mean(largest, mask), {name: masked_mean(value, mask) for name, value in stats.items()}


def ranking_loss(
    chosen: Float[Array, " B"],
    rejected: Float[Array, " B"],
    margin: float | Float[Array, " B"] = 0.0,
    *,
    kind: str = "log_sigmoid",
    centering: float = 0.0,
    weights: Float[Array, " B"] | None = None,
) -> tuple[Float[Array, ""], Stats]:
    """The Bradley-Terry loss -log sigmoid(chosen - rejected - margin), the mean over pairs (arXiv:2203.02155, equation
    1).

    Args:
      chosen: scores of the better answers.
      rejected: scores of the worse answers.
      margin: by how much the better answer should score more (Llama 2, arXiv:2307.09288, section 3.2.2).
      kind: "log_sigmoid", by softplus, or "log_exp", by logaddexp, as ColossalChat's LogExpLoss; both are the same
        function.
      centering: weight of the mean of (chosen + rejected)^2, which keeps scores near 0 (arXiv:2312.09244, section 2.3).
      weights: weight of each pair. None: 1.

    Returns:
      The loss, and statistics, weighted means over pairs: accuracy (a tie counts half), gap, chosen, rejected.
    """
    weights = jnp.ones(chosen.shape, jnp.float32) if weights is None else weights
    chosen, rejected, margin = (_zero_unweighted(x, weights) for x in (chosen, rejected, margin))
    gap = chosen - rejected
    forms: dict[str, Callable] = {
        "log_sigmoid": lambda x: jax.nn.softplus(-x),
        "log_exp": lambda x: jnp.logaddexp(0.0, -x),
    }
    if kind not in forms:
        raise ValueError(f"ranking loss {kind!r}: give one of {', '.join(forms)}")
    losses = forms[kind](gap - margin) + centering * (chosen + rejected) ** 2
    stats = {"accuracy": _wins(gap), "gap": gap, "chosen": chosen, "rejected": rejected}
    return weighted_mean(losses, weights), {name: weighted_mean(value, weights) for name, value in stats.items()}


def weighted_mean(x: Float[Array, " B"], weights: Float[Array, " B"]) -> Float[Array, ""]:
    """The weighted mean. Where a weight is 0, x has no influence, even if it is nan or inf; all weights 0 give 0."""
    return jnp.sum(jnp.where(weights > 0, x, 0.0) * weights) / jnp.maximum(jnp.sum(weights), 1e-9)


def _zero_unweighted(x: Float[Array, " B"] | float, weights: Float[Array, " B"]) -> Float[Array, " B"]:
    """x in float32, and 0 where the weight is 0: x may be nan there, and 0 times its gradient would be nan too."""
    return jnp.where(weights > 0, jnp.asarray(x, jnp.float32), 0.0)


def _wins(gap: Float[Array, " B"]) -> Float[Array, " B"]:
    """1 where a gap is above 0, 1/2 where it is 0, 0 where it is below."""
    return jnp.where(gap == 0, 0.5, (gap > 0).astype(jnp.float32))


def best_of_k_loss(
    scores: Float[Array, "B k"],
    best: Int[Array, " B"],
    mask: Float[Array, "B k"] | None = None,
    *,
    weights: Float[Array, " B"] | None = None,
) -> tuple[Float[Array, ""], Stats]:
    """The loss -log softmax(scores)[best] of the best of k answers against all others (arXiv:1909.08593, equation 1).

    Args:
      scores: scores of the k answers to each prompt.
      best: index of the best answer to each prompt.
      mask: 1 for real answers, 0 for padding. None: all are real.
      weights: weight of each prompt. None: 1.

    Returns:
      The loss, and the statistic accuracy, the share of prompts whose best answer has the highest score.
    """
    scores = scores.astype(jnp.float32)
    if mask is not None:
        scores = jnp.where(mask > 0, scores, -jnp.inf)
    chosen = jnp.take_along_axis(scores, best[:, None], axis=1)[:, 0]
    losses = jax.nn.logsumexp(scores, axis=1) - chosen
    weights = jnp.ones(losses.shape, jnp.float32) if weights is None else weights
    accuracy = (jnp.argmax(scores, axis=1) == best).astype(jnp.float32)
    return weighted_mean(losses, weights), {"accuracy": weighted_mean(accuracy, weights)}


def cost_loss(
    scores: Float[Array, "B 2"],
    safer: Float[Array, " B"],
    safe: Float[Array, "B 2"],
    weights: Float[Array, " B"] | None = None,
) -> tuple[Float[Array, ""], Stats]:
    """The loss of a cost model (Safe RLHF, arXiv:2310.12773, equation 7).

    It teaches that the less safe answer costs more, and that the cost of an answer is above 0 if and only if it is
    unsafe.

    Args:
      scores: costs of both answers.
      safer: 1 if answer 0 is the safer one, -1 if answer 1 is, 0 if it is not known.
      safe: for each answer 1 if it is safe, -1 if it is unsafe, 0 if it is not known.
      weights: weight of each pair. None: 1.

    Returns:
      The loss, and statistics: accuracy, the share of pairs in the right order (a tie counts half), and sign_accuracy,
      the share of answers whose cost has the right sign.
    """
    weights = jnp.ones(safer.shape, jnp.float32) if weights is None else weights
    scores = _zero_unweighted(scores, weights[:, None])
    gap = (scores[:, 1] - scores[:, 0]) * safer
    ranked, labelled = jnp.abs(safer), jnp.abs(safe)
    losses = jax.nn.softplus(-gap) * ranked + jnp.sum(jax.nn.softplus(scores * safe) * labelled, axis=1)
    stats = {
        "accuracy": weighted_mean(_wins(gap), weights * ranked),
        "sign_accuracy": weighted_mean(_wins(-scores * safe), weights[:, None] * labelled),
    }
    return weighted_mean(losses, weights), stats


# Direct preference losses, over log-probabilities [B] of whole answers ------------------------------------------------


def dpo_loss(
    policy_chosen: Float[Array, " B"],
    policy_rejected: Float[Array, " B"],
    ref_chosen: Float[Array, " B"],
    ref_rejected: Float[Array, " B"],
    *,
    beta: float,
    kind: str = "sigmoid",
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, ""], Stats]:
    """Direct preference optimisation: losses of the log-ratio h, the mean over pairs.

    h = log(policy / reference)(chosen) - log(policy / reference)(rejected). The kinds:
      sigmoid: -log sigmoid(beta h) (arXiv:2305.18290, equation 7). `label_smoothing` e makes it conservative DPO,
        -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h).
      robust: an unbiased estimate of the sigmoid loss if a share e of labels is wrong (arXiv:2403.00409, equation 12).
      hinge: max(0, 1 - beta h) (arXiv:2309.06657).
      ipo: (h - 1 / (2 beta))^2 (arXiv:2310.12036, equation 17). TRL takes means over tokens, which need another beta.

    Args:
      policy_chosen: the policy's sum of log-probabilities of the better answer.
      policy_rejected: the policy's sum of log-probabilities of the worse answer.
      ref_chosen: the reference's sum of log-probabilities of the better answer.
      ref_rejected: the reference's sum of log-probabilities of the worse answer.
      beta: factor of h.
      kind: the loss.
      label_smoothing: e, the assumed share of wrong labels, for sigmoid and robust.

    Raises ValueError for another kind, and for label smoothing outside [0, 0.5) or with hinge or ipo.
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing {label_smoothing}: give 0 or more, less than 0.5")
    if label_smoothing and kind in ("hinge", "ipo"):
        raise ValueError(f"label_smoothing {label_smoothing}: the DPO loss {kind!r} has none; give 0")
    chosen, rejected = _log_ratio(policy_chosen, ref_chosen), _log_ratio(policy_rejected, ref_rejected)
    h = chosen - rejected
    right, wrong = jax.nn.softplus(-beta * h), jax.nn.softplus(beta * h)
    e = label_smoothing
    if kind == "sigmoid":
        losses = (1.0 - e) * right + e * wrong
    elif kind == "robust":
        losses = ((1.0 - e) * right - e * wrong) / (1.0 - 2.0 * e)
    elif kind == "hinge":
        losses = jnp.maximum(0.0, 1.0 - beta * h)
    elif kind == "ipo":
        losses = (h - 0.5 / beta) ** 2
    else:
        raise ValueError(f"DPO loss {kind!r}: give sigmoid, robust, hinge or ipo")
    return jnp.mean(losses), implicit_rewards(beta * chosen, beta * rejected)


def _log_ratio(policy: Float[Array, " B"], ref: Float[Array, " B"]) -> Float[Array, " B"]:
    """log(policy / reference) of each answer, subtracted in float32 whatever the dtype of the log-probabilities."""
    return policy.astype(jnp.float32) - ref.astype(jnp.float32)


def kto_loss(
    policy: Float[Array, " B"],
    ref: Float[Array, " B"],
    desirable: Float[Array, " B"],
    kl: Float[Array, ""],
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> tuple[Float[Array, ""], Stats]:
    """Kahneman-Tversky optimisation of labelled answers, the mean over answers (arXiv:2402.01306, equation 8).

    Args:
      policy: the policy's sum of log-probabilities of each answer.
      ref: the reference's sum of log-probabilities of each answer.
      desirable: 1 for a good answer, 0 for a bad one.
      kl: the reference point, an estimate of KL(policy || reference), below 0 taken as 0. No gradient flows through it.
      beta: factor of the log-ratio.
      desirable_weight: weight of the loss of good answers.
      undesirable_weight: weight of the loss of bad answers.
    """
    reward = beta * _log_ratio(policy, ref)
    point = jax.lax.stop_gradient(beta * jnp.maximum(jnp.float32(kl), 0.0))
    good, bad = jax.nn.sigmoid(reward - point), jax.nn.sigmoid(point - reward)
    losses = jnp.where(desirable > 0, desirable_weight * (1.0 - good), undesirable_weight * (1.0 - bad))
    is_good = (desirable > 0).astype(jnp.float32)
    stats = {"rewards/chosen": weighted_mean(reward, is_good), "rewards/rejected": weighted_mean(reward, 1.0 - is_good)}
    return jnp.mean(losses), stats | {"kl": jnp.float32(kl)}


def simpo_loss(
    mean_chosen: Float[Array, " B"], mean_rejected: Float[Array, " B"], *, beta: float, gamma: float
) -> tuple[Float[Array, ""], Stats]:
    """SimPO (arXiv:2405.14734, equation 6): -log sigmoid(beta (mean_chosen - mean_rejected) - gamma), the mean over
    pairs, where mean_chosen and mean_rejected are the mean log-probabilities of the answers' tokens."""
    chosen, rejected = beta * mean_chosen.astype(jnp.float32), beta * mean_rejected.astype(jnp.float32)
    return jnp.mean(jax.nn.softplus(gamma - (chosen - rejected))), implicit_rewards(chosen, rejected)


def orpo_loss(
    mean_chosen: Float[Array, " B"], mean_rejected: Float[Array, " B"], *, beta: float
) -> tuple[Float[Array, ""], Stats]:
    """ORPO's odds-ratio term (arXiv:2403.07691, equation 7), without the chosen answer's negative log-likelihood.

    It is -beta log sigmoid(log odds(chosen) - log odds(rejected)), the mean over pairs, where odds(p) = p / (1 - p) and
    log p is the mean log-probability of the answer's tokens.
    """
    chosen, rejected = _log_odds(mean_chosen.astype(jnp.float32)), _log_odds(mean_rejected.astype(jnp.float32))
    return beta * jnp.mean(jax.nn.softplus(rejected - chosen)), implicit_rewards(beta * chosen, beta * rejected)


def _log_odds(logp: Float[Array, " B"]) -> Float[Array, " B"]:
    """log(p / (1 - p)) for p = exp(logp); logp is at most -1e-6 in 1 - p, which keeps the result finite."""
    return logp - jnp.log(-jnp.expm1(jnp.minimum(logp, -1e-6)))


def implicit_rewards(chosen: Float[Array, " B"], rejected: Float[Array, " B"]) -> Stats:
    """Statistics "rewards/..." of the implicit rewards of both answers, means over pairs."""
    gap = chosen - rejected
    stats = {"chosen": chosen, "rejected": rejected, "accuracy": _wins(gap), "margin": gap}
    return {f"rewards/{name}": jnp.mean(value) for name, value in stats.items()}
