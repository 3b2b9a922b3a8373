"""How much better than expected each token, or each answer of a group, has turned out."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..model.logprobs import masked_mean

GROUP_KINDS = ("grpo", "dr_grpo", "rloo")


def gae(
    rewards: Float[Array, "B T"],
    values: Float[Array, "B T"],
    mask: Float[Array, "B T"],
    *,
    gamma: float,
    lam: float,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Generalised advantage estimates and returns (Schulman et al., arXiv:1506.02438, equation 16).

    rewards: of each token. values: of the state before it. mask: 1 for real tokens; others are skipped, so that the
    successor of a token is the next real one, wherever it stands, and after the last comes nothing (value 0).

    Returns advantages and, as advantages + values, returns; both float32 and 0 where masked.
    """
    real = mask > 0
    rewards = jnp.where(real, rewards.astype(jnp.float32), 0.0)
    values = jnp.where(real, values.astype(jnp.float32), 0.0)

    def back(following, now):
        next_advantage_B, next_value_B = following
        reward_B, value_B, real_B = now
        delta_B = reward_B + gamma * next_value_B - value_B
        advantage_B = jnp.where(real_B, delta_B + gamma * lam * next_advantage_B, next_advantage_B)
        return (advantage_B, jnp.where(real_B, value_B, next_value_B)), jnp.where(real_B, advantage_B, 0.0)

    zeros_B = jnp.zeros(rewards.shape[0], jnp.float32)
    _, advantages_TB = jax.lax.scan(back, (zeros_B, zeros_B), (rewards.T, values.T, real.T), reverse=True)
    advantages = advantages_TB.T
    return advantages, jnp.where(real, advantages + values, 0.0)


def whiten(x: Float[Array, "B T"], mask: Float[Array, "B T"], *, shift_mean: bool = True) -> Float[Array, "B T"]:
    """x to mean 0 and deviation 1, by the mean and population variance of all real entries of the whole array.

    With `shift_mean` false the mean stays what it was. Masked entries become 0.
    """
    real = mask > 0
    x = jnp.where(real, x.astype(jnp.float32), 0.0)
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    white = (x - mean) * jax.lax.rsqrt(variance + 1e-8)
    return jnp.where(real, white if shift_mean else white + mean, 0.0)


def group_advantages(scores: Float[Array, "B n"], *, kind: str) -> Float[Array, "B n"]:
    """The advantage of each of a prompt's n answers over the others.

    kind: grpo, (score - mean) / deviation (DeepSeekMath, arXiv:2402.03300, section 4.1), whose variance is over n - 1
    as in verl, TRL and Tunix, the paper leaving it open; dr_grpo, without the division,
    which favours prompts whose answers hardly differ (arXiv:2503.20783, section 3.1); rloo, score - mean of the others
    (arXiv:2402.14740, section 2.2). Raises ValueError for another kind, or for one answer, which has no others.
    """
    if kind not in GROUP_KINDS:
        raise ValueError(f"group advantage {kind!r}: give one of {', '.join(GROUP_KINDS)}")
    n = scores.shape[1]
    if n < 2:
        raise ValueError("an advantage within the group needs 2 answers to a prompt or more")
    scores = scores.astype(jnp.float32)
    # Only differences count. Taken from one of the scores first, they are free of a large mean's rounding, and those of
    # equal scores are exactly 0.
    scores = scores - scores[:, :1]
    centred = scores - jnp.mean(scores, axis=1, keepdims=True)
    if kind == "rloo":
        return centred * n / (n - 1)
    if kind == "dr_grpo":
        return centred
    variance = jnp.sum(centred**2, axis=1, keepdims=True) / (n - 1)
    varies = variance > 0
    return centred / (jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1.0)), 0.0) + 1e-4)
