"""Pretraining: the next token of raw text (LLaMA, arXiv:2302.13971, section 2)."""

from collections.abc import Mapping

import jax
from etils import epath

from ..checkpoints.language_model import Llama
from . import setup
from .fit import Evaluator, check_network, supervise
from .losses import next_token_loss
from .settings import Settings


def run(settings: Settings, workdir: epath.Path, evaluators: Mapping[str, Evaluator]) -> Llama:
    """Pretrains as `settings` say (`configs/base.py` names every setting) and returns the model.

    Conversations may stand in the mixture too, where `config.template` or that of `config.init_from` says how they
    become text.
    """
    mesh = setup.mesh_of(settings)
    with jax.set_mesh(mesh):
        tokenizer = setup.tokenizer_of(settings)
        template = setup.template_of(settings, needed=False)
        model = setup.model_of(settings, tokenizer)
        check_network(settings, mesh, model)
        batches, heldout = setup.data_of(settings, tokenizer, template)
        loss_fn = next_token_loss(model, settings.z_loss)
        return supervise(settings, workdir, mesh, model, tokenizer, template, batches, heldout, loss_fn, evaluators)
