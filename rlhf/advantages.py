"""Advantages: generalised advantage estimates of tokens, and advantages of answers over others to the same prompt."""

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

    Args:
      rewards: the reward of each token.
      values: the value of the state before each token.
      mask: 1 for real tokens. Masked tokens are skipped: a token's successor is the next real token of its row, and
        the value after the last real token is 0.
      gamma: the discount.
      lam: lambda, the decay of the estimate.

    Returns:
      Advantages, and returns (advantages + values); both float32, and 0 where masked.
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
    """Shifts and scales x to mean 0 and standard deviation 1 over all entries of the array whose mask is 1.

    The variance is the population variance. `shift_mean=False` keeps the mean. Masked entries become 0.
    """
    real = mask > 0
    x = jnp.where(real, x.astype(jnp.float32), 0.0)
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    white = (x - mean) * jax.lax.rsqrt(variance + 1e-8)
    return jnp.where(real, white if shift_mean else white + mean, 0.0)


def group_advantages(scores: Float[Array, "B n"], *, kind: str) -> Float[Array, "B n"]:
    """The advantage of each of the n answers to a prompt over the other answers to it.

    kind:
      grpo: (score - mean) / deviation (DeepSeekMath, arXiv:2402.03300, section 4.1). The paper leaves the variance's
        divisor open; it is n - 1, as in verl, TRL and Tunix.
      dr_grpo: score - mean. The division favours prompts whose answers hardly differ (arXiv:2503.20783, section 3.1).
      rloo: score - mean of the other answers (arXiv:2402.14740, section 2.2).

    Raises ValueError for another kind, and for n = 1.
    """
    if kind not in GROUP_KINDS:
        raise ValueError(f"group advantage {kind!r}: give one of {', '.join(GROUP_KINDS)}")
    n = scores.shape[1]
    if n < 2:
        raise ValueError(f"scores of {n} answer to a prompt: a group advantage needs 2 answers or more")
    scores = scores.astype(jnp.float32)
    # Only differences count. Subtracting the first score before the mean avoids a large mean's rounding, and makes the
    # differences of equal scores exactly 0.
    scores = scores - scores[:, :1]
    centred = scores - jnp.mean(scores, axis=1, keepdims=True)
    if kind == "rloo":
        return centred * n / (n - 1)
    if kind == "dr_grpo":
        return centred
    variance = jnp.sum(centred**2, axis=1, keepdims=True) / (n - 1)
    varies = variance > 0
    return centred / (jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1.0)), 0.0) + 1e-4)
