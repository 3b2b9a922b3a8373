"""The experience of a step: answers that the policy draws, scored by policy, reference, critics and reward models."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..model import llama
from ..model.logprobs import head_kl, head_logprobs
from ..model.sampling import Sampling
from ..train.randomness import purpose_key
from ..train.state import State
from .costs import Cost
from .critic import Critic
from .rewards import Rewards
from .rollout import Experience, Rollout, answer_states, in_parts, roll_out


def make_rollout(
    model: llama.Model,
    critics: Mapping[str, Critic],
    rewards: Rewards,
    cost: Cost | None,
    sampling: Sampling,
    *,
    seed: int,
    score_parts: int,
) -> Callable[[State, Mapping[str, Any], Mapping[str, Array]], Experience]:
    """Makes the function that draws answers to a batch of prompts and scores them on the device.

    Args:
      model: the policy's network.
      critics: the critics by their names in the parameters.
      rewards: the sources of scores. Models score answers here; Python functions score them later, on the host.
      cost: the cost, scored in the same way; None if the run has none.
      sampling: how answers are drawn.
      seed: seed of the answers' randomness.
      score_parts: number of equal parts in which rows are scored one after the other, to save memory.

    Returns:
      rollout(state, frozen, batch) -> Experience, where `frozen` holds the parameters that do not learn, {"reference",
      "rewards", "cost"}, and `batch` the prompts (`data.prompts`). Answers differ from step to step by `state["step"]`.
    """
    distribution = sampling.temperature, sampling.unused

    def score(params, frozen, rows: Rollout) -> Experience:
        """Scores rows by the code that the loss uses too: the first probability ratio is then 1 up to rounding."""
        states_RMD = answer_states(model, params["policy"], rows)
        ref_states_RMD = answer_states(model, frozen["reference"], rows)
        kernel, ref_kernel = llama.output_kernel(params["policy"]), llama.output_kernel(frozen["reference"])
        own = head_logprobs(kernel, states_RMD, rows.answers_RM, *distribution)
        ref = head_logprobs(ref_kernel, ref_states_RMD, rows.answers_RM, *distribution)
        scores = rewards.of_models(frozen["rewards"], rows)
        if cost is not None:
            scores |= cost.rewards.of_models(frozen["cost"], rows)
        kl_RM = head_kl(kernel, states_RMD, ref_kernel, ref_states_RMD, *distribution)
        logp_RM, ref_logp_RM, entropy_RM, kl_RM = (
            jnp.where(rows.mask_RM > 0, x_RM, 0.0) for x_RM in (own.logp, ref.logp, own.entropy, kl_RM)
        )
        return Experience(
            rows=rows,
            logp_RM=logp_RM,
            ref_logp_RM=ref_logp_RM,
            entropy_RM=entropy_RM,
            kl_exact_RM=kl_RM,
            values={name: c.values(params[name], rows, states_RMD) for name, c in critics.items()},
            scores=scores,
        )

    def rollout(state: State, frozen: Mapping[str, Any], batch: Mapping[str, Array]) -> Experience:
        params = state["params"]
        key = jax.random.fold_in(purpose_key(seed, "rollout"), state["step"])
        rows = roll_out(model, params["policy"], batch, key, sampling)
        return in_parts(lambda part: score(params, frozen, part), rows, score_parts)

    return rollout
