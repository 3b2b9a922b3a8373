"""Instruction tuning: the assistant's words and the end of its turn, given the conversation so far.

Alpaca and Vicuna by other data: the loss covers the tokens that the chat template marks as the assistant's, and every
one of them weighs the same, however conversations are packed into rows.
"""

from collections.abc import Mapping

import jax
from etils import epath

from ..checkpoints.language_model import Llama
from . import setup
from .fit import Evaluator, check_network, supervise
from .losses import next_token_loss
from .settings import Settings


def run(settings: Settings, workdir: epath.Path, evaluators: Mapping[str, Evaluator]) -> Llama:
    """Tunes as `settings` say, from `config.init_from`'s parameters or from nothing, and returns the model."""
    mesh = setup.mesh_of(settings)
    with jax.set_mesh(mesh):
        tokenizer = setup.tokenizer_of(settings)
        template = setup.template_of(settings)
        model = setup.model_of(settings, tokenizer)
        check_network(settings, mesh, model)
        batches, heldout = setup.data_of(settings, tokenizer, template)
        loss_fn = next_token_loss(model, settings.z_loss)
        return supervise(settings, workdir, mesh, model, tokenizer, template, batches, heldout, loss_fn, evaluators)
