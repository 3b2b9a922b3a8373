"""Direct preference optimisation: a policy learns from preference pairs, without a reward model and without rollouts.

`config.dpo.kind` names the loss: DPO (arXiv:2305.18290) or one of its successors, which `losses.py` describes with
their sources. The reference is the model `config.init_from`, frozen.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from ..data.mixture import EvalPass
from ..data.prefetch import device_batch
from ..errors import UserError
from ..model import llama
from ..model.logprobs import token_logprobs
from ..model.sharding import BATCH, on_host
from ..settings.functions import find_function
from ..settings.leaves import NotNegative, OneOf, Only, Positive, Range
from ..settings.length import Length
from ..train.batches import check_rows, data_tables
from ..train.lengths import lengths_of
from ..train.loop import Evaluation, check_streak
from ..train.losses import call
from ..train.optimizer import OptimSettings, ScheduleSettings
from ..train.run import Result, Run
from . import kto
from .losses import dpo_loss, implicit_rewards, kto_loss, orpo_loss, simpo_loss, weighted_mean
from .pair_batches import PairsConfig, describe_ranking, pairs_of

PAIRWISE = ("sigmoid", "robust", "hinge", "ipo")
KINDS = (*PAIRWISE, "kto", "simpo", "orpo")
HEADLINE = {"train/loss": "loss", "rewards/accuracy": "accuracy", "train/tokens_per_second": "tokens/s"}


@dataclass(frozen=True)
class DPOSettings:
    """The section `config.dpo`."""

    kind: Annotated[str, OneOf(*KINDS, or_function=True)] = "sigmoid"
    """The loss: sigmoid (DPO), robust, hinge, ipo, kto, simpo or orpo. kto learns from labelled answers or pairs, the
    others from pairs. A loss of one's own is a function loss(policy, reference, settings) (`PreferenceLoss`), named
    "package.module:name" or "file.py:name"."""

    beta: Positive = 0.1
    """Factor of the log-ratio of policy and reference (arXiv:2305.18290, appendix B: 0.1). simpo: factor of the mean
    log-probability (2 to 10). orpo: weight of the odds-ratio term (0.1)."""

    label_smoothing: Annotated[float, Range(least=0, below=0.5), Only("kind", "sigmoid", "robust", default=0.0)] = 0.0
    """sigmoid, robust: assumed probability that a pair's label is wrong."""

    gamma: Annotated[NotNegative, Only("kind", "simpo", default=0.5)] = 0.5
    """simpo: the reward margin between the chosen and the rejected answer (arXiv:2405.14734: 0.3 to 1.6)."""

    desirable_weight: Annotated[NotNegative, Only("kind", "kto", default=1.0)] = 1.0
    """kto: weight of the loss of good answers."""

    undesirable_weight: Annotated[NotNegative, Only("kind", "kto", default=1.0)] = 1.0
    """kto: weight of the loss of bad answers."""

    @property
    def has_reference(self) -> bool:
        """Whether the loss compares the policy with a reference; simpo and orpo do not."""
        return self.kind not in ("simpo", "orpo")

    def check(self, where: str) -> None:
        if self.kind not in KINDS:
            find_preference_loss(self.kind, f"{where}.kind")


@dataclass(frozen=True)
class DPOConfig(PairsConfig):
    """The config of direct preference optimisation."""

    recipe: str = "dpo"
    """Name of the recipe: dpo, or a function train(run) of one's own."""

    optim: OptimSettings = OptimSettings(lr=1e-6, weight_decay=0.0)
    """The optimiser (learning rate: arXiv:2305.18290, appendix B)."""

    schedule: ScheduleSettings = ScheduleSettings(name="linear", warmup=Length(3.0, "percent"), final=0.0)
    """The learning rate over the run."""

    dpo: DPOSettings = DPOSettings()
    """The loss."""

    def check(self, where: str) -> None:
        super().check(where)
        if self.dpo.kind == "kto" and self.data.batch_size < 2:
            raise UserError(
                f"{where}.data.batch_size = 1: KTO estimates its reference point from the answers to other prompts of "
                "the batch; give 2 or more"
            )


class AnswerScores(NamedTuple):
    """Log-probabilities of whole answers: S = 2 sides of each pair, or S = 1 for labelled answers."""

    logp: Float[Array, "B S"]
    """Sum of the log-probabilities of an answer's tokens, given its prompt."""
    tokens: Float[Array, "B S"]
    """Number of an answer's tokens."""

    @property
    def mean(self) -> Float[Array, "B S"]:
        """The mean log-probability of an answer's tokens."""
        return self.logp / jnp.maximum(self.tokens, 1.0)


PreferenceLoss = Callable[[AnswerScores, AnswerScores, DPOSettings], tuple[Array, dict[str, Array]]]
"""loss(policy, reference, settings) -> (mean loss over pairs, means of statistics by name). `config.dpo.kind` may name
such a function. Scores are [B, 2]: column 0 is of the chosen answers, column 1 of the rejected ones."""


def find_preference_loss(name: str, where: str) -> PreferenceLoss:
    """The loss of the user's own called `name`. Raises UserError, which begins with `where`."""
    return find_function(name, where, "loss(policy, reference, settings)", None, None, None)


def score_pairs(model: llama.Model, params: llama.Params, batch: Mapping[str, Array]) -> AnswerScores:
    """Scores the answers of a batch with a network and its parameters.

    batch: pairs (`data.pairs`, S = 2) or labelled answers (`data.labelled`, S = 1).
    """
    B, sides, T = batch["tokens"].shape
    tokens_RT, mask_RT = batch["tokens"].reshape(-1, T), batch["answer_mask"].reshape(-1, T)
    lengths_R = batch["lengths"].reshape(-1)
    rows = {
        "tokens": tokens_RT,
        "targets": jnp.roll(tokens_RT, -1, axis=1),
        "segment_ids": (jnp.arange(T)[None] < lengths_R[:, None]).astype(jnp.int32),
        "positions": jnp.broadcast_to(jnp.arange(T)[None], tokens_RT.shape),
    }
    mask_RT = jnp.roll(mask_RT, -1, axis=1).at[:, -1].set(0.0)
    logp_RT = jnp.where(mask_RT > 0, token_logprobs(model, params, rows).logp, 0.0)
    return AnswerScores(jnp.sum(logp_RT, axis=1).reshape(B, sides), jnp.sum(mask_RT, axis=1).reshape(B, sides))


def make_loss(model: llama.Model, settings: DPOSettings) -> Callable:
    """Makes the loss that `settings.kind` names.

    It returns loss_fn(params, batch) -> (loss, pairs, statistics), for `train.update.make_update`: means over the batch
    times its size, and the number of pairs with an answer. Beside pairs, or labelled answers with "desirable" [B, 1], a
    batch holds what `make_prepare` adds: "reference" [B, S] and "kl" [B].
    """
    own_loss = None if settings.kind in KINDS else find_preference_loss(settings.kind, "config.dpo.kind")

    def loss_fn(params, batch):
        own = score_pairs(model, params, batch)
        ref_B2 = batch["reference"]
        if "desirable" in batch:
            desirable_BS = batch["desirable"]
        else:
            desirable_BS = jnp.broadcast_to(jnp.array([[1.0, 0.0]]), own.logp.shape)
        chosen_B, rejected_B = own.logp[:, 0], own.logp[:, -1]  # one and the same for labelled answers
        if settings.kind in PAIRWISE:
            loss, stats = dpo_loss(
                chosen_B,
                rejected_B,
                ref_B2[:, 0],
                ref_B2[:, 1],
                beta=settings.beta,
                kind=settings.kind,
                label_smoothing=settings.label_smoothing,
            )
        elif settings.kind == "kto":
            loss, stats = kto_loss(
                own.logp.reshape(-1),
                ref_B2.reshape(-1),
                desirable_BS.reshape(-1),
                batch["kl"][0],
                beta=settings.beta,
                desirable_weight=settings.desirable_weight,
                undesirable_weight=settings.undesirable_weight,
            )
        elif own_loss is not None:
            loss, stats = call_loss(own_loss, own, AnswerScores(ref_B2, own.tokens), settings)
        elif settings.kind == "simpo":
            loss, stats = simpo_loss(own.mean[:, 0], own.mean[:, 1], beta=settings.beta, gamma=settings.gamma)
        else:
            loss, stats = orpo_loss(own.mean[:, 0], own.mean[:, 1], beta=settings.beta)
            loss -= jnp.mean(own.mean[:, 0])
        for name, of_BS in (("chosen", desirable_BS), ("rejected", 1.0 - desirable_BS)):
            stats[f"logps/{name}"] = weighted_mean(own.logp.reshape(-1), of_BS.reshape(-1))
        all_pairs = jnp.float32(len(chosen_B))
        sums = {name: value * all_pairs for name, value in stats.items()}
        pairs = jnp.sum(jnp.any(own.tokens > 0, axis=1).astype(jnp.float32))  # a pair without tokens has no gradient
        return loss * all_pairs, pairs, sums

    return loss_fn


def call_loss(
    loss: PreferenceLoss, policy: AnswerScores, reference: AnswerScores, settings: DPOSettings
) -> tuple[Array, dict[str, Array]]:
    """The loss and the statistics of a loss of the user's own, with those of DPO's implicit rewards under names that it
    does not use itself. Raises UserError where it fails, or returns anything else."""
    where = f"config.dpo.kind = {settings.kind!r}"
    found = call(where, loss, policy, reference, settings)
    if not (isinstance(found, tuple | list) and len(found) == 2 and isinstance(found[1], Mapping)):
        raise UserError(f"{where}: return the mean loss over pairs, a scalar, and a dict of statistics")
    for name, value in {"the loss": found[0], **found[1]}.items():
        if jnp.shape(value) != ():
            raise UserError(f"{where}: {name} has the shape {list(value.shape)}: return a scalar, the mean over pairs")
    rewards_B2 = settings.beta * jax.lax.stop_gradient(policy.logp - reference.logp)
    return found[0], implicit_rewards(rewards_B2[:, 0], rewards_B2[:, 1]) | dict(found[1])


def make_prepare(model: llama.Model, settings: DPOSettings) -> Callable:
    """Makes the function that adds arrays to a batch that no gradient flows through.

    It returns prepare(params, reference, batch) -> batch with two further arrays. "reference" [B, S] holds the
    reference's log-probabilities of the answers, 0 for a loss without a reference. "kl" [B] is KTO's reference point, 0
    for other losses.
    """

    def prepare(params: Any, reference: Any, batch: Mapping[str, Array]) -> dict[str, Array]:
        B, sides, _ = batch["tokens"].shape
        rows = dict(batch) | {"reference": jnp.zeros((B, sides)), "kl": jnp.zeros(B)}
        if settings.has_reference:
            rows["reference"] = score_pairs(model, reference, batch).logp
        if settings.kind == "kto":
            mismatched, weight_B = kto.mismatch_answers(batch)
            gap_B1 = score_pairs(model, params, mismatched).logp - score_pairs(model, reference, mismatched).logp
            rows["kl"] = jnp.broadcast_to(jnp.maximum(weighted_mean(gap_B1[:, 0], weight_B), 0.0), (B,))
        return rows

    return prepare


def make_rewards(model: llama.Model, settings: DPOSettings) -> Callable[[Any, Any, Mapping[str, Array]], Array]:
    """Makes the compiled function rewards(params, reference, batch) -> [B, S]: the implicit reward of each answer.

    It is beta log(policy / reference), or for a loss without a reference beta times the mean log-probability.
    """

    @jax.jit
    def rewards(params, reference, batch):
        own = score_pairs(model, params, batch)
        if not settings.has_reference:
            return settings.beta * own.mean
        return settings.beta * (own.logp - score_pairs(model, reference, batch).logp)

    return rewards


def heldout_pairs(
    rewards: Callable[[Any, Any, Mapping[str, Array]], Array],
    reference: Any,
    sources: Mapping[str, EvalPass],
    where: NamedSharding,
    max_batches: int,
) -> Callable[[Any], tuple[dict[str, float], list]]:
    """Makes the evaluation of implicit rewards on held-out pairs.

    Args:
      rewards: the function of `make_rewards`.
      reference: the reference's parameters.
      sources: one pass over the held-out pairs of each source.
      where: the sharding of rows.
      max_batches: the most batches of each source.

    Returns:
      run(params) -> (metrics, []), the metrics of `describe_ranking` as "<source>/<metric>".
    """

    def run(params: Any) -> tuple[dict[str, float], list]:
        metrics = {}
        for name, pairs in sources.items():
            gaps, records = [], []
            for step in range(min(len(pairs), max_batches)):
                rewards_B2 = on_host(rewards(params, reference, device_batch(pairs, step, where)))
                real = pairs.real(step)
                gaps.append((rewards_B2[:, 0] - rewards_B2[:, 1])[:real])
                records += [pairs.records[i] for i in pairs[step]["index"][:real]]
            found = describe_ranking(np.concatenate(gaps), records)
            metrics |= {f"{name}/{key}": value for key, value in found.items()}
        return metrics, []

    return run


def train(run: Run[DPOConfig]) -> Result:
    """Tunes the model `config.init_from` on the preferences of `config.data.mixture`, and returns the policy."""
    config, model, settings = run.config, run.model, run.config.dpo
    with run.on_mesh():
        # Data: pairs of a better and a worse answer, or, for KTO, single answers with labels.
        run.need_template()
        check_rows(config.data.batch_size, config.data.seq_len, config.optim.accumulate, run.mesh, model.config.max_len)
        run.check_rules()
        batches, heldout = run.read(kto.answers_or_pairs_of if settings.kind == "kto" else pairs_of)
        rows = NamedSharding(run.mesh, PartitionSpec(BATCH))

        # Networks: the policy is trained; the reference is the model that it starts from, frozen.
        lengths = lengths_of(config, batches)
        network = run.network(run.initial(model.init, run.start), lengths)
        reference = run.reference() if settings.has_reference else {}

        # Loss and step: the reference scores a batch within the step, without gradient.
        prepare, loss_fn = make_prepare(model, settings), make_loss(model, settings)
        update = run.update(network, loss_fn)

        step = network.compile(
            lambda state, reference, batch: update(state, prepare(state["params"], reference, batch)), reference
        )

        # Evaluations: how well the policy's implicit rewards rank held-out answers, and the tasks of config.evals.
        measurement = kto.heldout_answers if "desirable" in batches.shapes else heldout_pairs
        measure = measurement(make_rewards(model, settings), reference, heldout, rows, config.eval_batches)
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
            manifest={"frozen": {"reference": run.start.identity}},
            tables=data_tables(batches, heldout),
            headline=HEADLINE,
        ) as loop:
            for batch in loop:
                loop.state, loop.metrics = step(loop.state, batch)
        return run.result(loop.state.get("ema", loop.state["params"]), loop)
