"""The focal loss (arXiv:1708.02002, equation 4): tokens that the model already knows weigh less."""

import jax.numpy as jnp

from camelid.model.logprobs import token_logprobs

GAMMA = 2.0
"""0 is the cross-entropy. A token of probability p weighs (1 - p)^GAMMA."""


def make_loss(model, config):
    """The loss that `config.loss` names. model: the network's functions; config: the run's settings."""

    def loss_fn(params, rows):
        """Sums over the tokens of `rows`, [B, T] each: the loss, the number of tokens, and statistics to report."""
        logp_BT, mask_BT = token_logprobs(model, params, rows).logp, rows["loss_mask"]
        p_BT = jnp.exp(logp_BT)
        focal_BT = -((1 - p_BT) ** GAMMA) * logp_BT
        tokens = jnp.sum(mask_BT)
        statistics = {
            "cross_entropy": -jnp.sum(logp_BT * mask_BT),
            "sure": jnp.sum((p_BT > 0.9) * mask_BT),  # per token: the share of tokens with a probability above 0.9
        }
        return jnp.sum(focal_BT * mask_BT), tokens, statistics

    return loss_fn
