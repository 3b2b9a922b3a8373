"""Distillation: a small network, the student, learns from the whole distributions of a larger one, the teacher.

The loss of a token is (1 - weight) * cross-entropy + weight * KL(teacher || student), both over the assistant's tokens
(Hinton et al., arXiv:1503.02531, without their temperature).
"""

from dataclasses import dataclass
from typing import Annotated

import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

import camelid
from camelid.checkpoints.heldout_loss import heldout_loss
from camelid.errors import UserError
from camelid.model import llama
from camelid.model.logprobs import head_kl, head_logprobs
from camelid.model.sharding import BATCH
from camelid.settings.leaves import Path, Range
from camelid.train.batches import check_rows, data_of, data_tables
from camelid.train.lengths import lengths_of
from camelid.train.loop import Evaluation, check_streak
from camelid.train.run import Result, Run
from camelid.train.run_config import SupervisedConfig


@dataclass(frozen=True)
class DistillSettings:
    """The section `config.distill`."""

    teacher: Path | None = None
    """Path of the teacher, with the student's tokenizer."""

    weight: Annotated[float, Range(least=0, most=1)] = 0.5
    """Weight of the KL divergence in the loss; the rest is that of the cross-entropy."""

    def check(self, where: str) -> None:
        if self.teacher is None:
            raise UserError(f"{where}.teacher = None: give the path of a tuned model")


@dataclass(frozen=True)
class DistillConfig(SupervisedConfig):
    """The config of the recipe: that of instruction tuning, with one more section."""

    distill: DistillSettings = DistillSettings()
    """The teacher, and how much its word counts."""


def make_loss(student: llama.Model, teacher: llama.Model, teacher_params: llama.Params, weight: float):
    """The loss of a batch: loss_fn(params, rows) -> (sum over tokens, tokens, further sums)."""

    def loss_fn(params, rows):
        inputs = rows["tokens"], rows["segment_ids"], rows["positions"]
        states_BTD, teacher_states_BTD = student.hidden(params, *inputs), teacher.hidden(teacher_params, *inputs)
        kernel, teacher_kernel = llama.output_kernel(params), llama.output_kernel(teacher_params)

        mask_BT = rows["loss_mask"]
        logp_BT = head_logprobs(kernel, states_BTD, rows["targets"]).logp
        kl_BT = head_kl(teacher_kernel, teacher_states_BTD, kernel, states_BTD)
        nll, kl = -jnp.sum(logp_BT * mask_BT), jnp.sum(kl_BT * mask_BT)
        return (1 - weight) * nll + weight * kl, jnp.sum(mask_BT), {"nll": nll, "kl": kl}

    return loss_fn


def train(run: Run[DistillConfig]) -> Result:
    """Trains the student on conversations and on the teacher's distributions."""
    config, student = run.config, run.model
    with run.on_mesh():
        # Data: packed conversations, as in instruction tuning.
        run.need_template()
        check_rows(
            config.data.batch_size, config.data.seq_len, config.optim.accumulate, run.mesh, student.config.max_len
        )
        batches, heldout = run.read(data_of)
        lengths = lengths_of(config, batches)
        rows = NamedSharding(run.mesh, PartitionSpec(BATCH, "context"))

        # Networks: the student learns; the teacher's parameters are an argument of the step that nothing updates.
        network = run.network(run.initial(student.init, run.start), lengths, lisa=config.lisa)
        teacher = camelid.load(config.distill.teacher, mesh=run.mesh)
        if teacher.tokenizer.fingerprint != run.tokenizer.fingerprint:
            raise UserError(f"config.distill.teacher: {config.distill.teacher} has another tokenizer than the student")

        # Step: one update of the student.
        def update(state, teacher_params, batch):
            loss_fn = make_loss(student, teacher.model, teacher_params, config.distill.weight)
            return run.update(network, loss_fn)(state, batch)

        step = network.compile(update, teacher.params)

        # Evaluations: the loss on held-out conversations, and what config.evals names.
        measure = heldout_loss(student, heldout, run.tokenizer, rows, config.eval_batches)
        evaluations = [Evaluation("heldout", lengths.evaluate, measure)] if heldout else []
        evaluations += run.further_evaluations(lengths, run.language_model)

        # Loop.
        with run.loop(
            network,
            batches,
            rows,
            lengths,
            evaluations=evaluations,
            check=check_streak(config.guard.max_streak),
            flops_per_token=run.flops_per_token(batches.length),
            tables=data_tables(batches, heldout),
        ) as loop:
            for batch in loop:
                loop.state, loop.metrics = step(loop.state, batch)
        return run.result(loop.state.get("ema", loop.state["params"]), loop)
