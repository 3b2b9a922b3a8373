"""The reward model: a tuned LLaMA that learns from comparisons which answer people, or a gold score, prefer.

Bradley-Terry on the score at the last token (arXiv:2203.02155, section 3.5), one head or an ensemble of them. After the
last step its scores are shifted and scaled so that the reference policy's own answers score mean 0 and deviation 1
(arXiv:1909.08593, section 2.2): a reward then says how much better than usual an answer is.

With `config.objective = "cost"` it learns costs instead, from which answer is safer and which are unsafe (Safe RLHF,
arXiv:2310.12773, equation 7). Costs are not shifted: above 0 is unsafe.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from ..data.json_values import shown
from ..data.mixture import EvalPass, Mixture
from ..data.prefetch import device_batch
from ..data.prompts import PromptEncoder, heldout_prompts
from ..errors import UserError
from ..model.sharding import BATCH
from ..train.finish import Finish
from ..train.leaves import NotNegative, OneOf, Only, read
from ..train.lengths import lengths_of
from ..train.loop import Evaluation, check_streak
from ..train.randomness import purpose_key
from ..train.run import Result, Run
from ..train.setup import check_rows, data_tables, sources_of
from . import scalar
from .losses import best_of_k_loss, cost_loss, ranking_loss
from .pairs import describe_ranking, pairs_of
from .rollout import at_last_token, roll_out
from .setup import sampling_of

HEADLINE = {"train/loss": "loss", "train/accuracy": "accuracy"}
FORMS = ("log_sigmoid", "log_exp", "best_of_k")


class RewardModel(NamedTuple):
    """What `run` returns. step: how often its parameters were moved."""

    model: scalar.ScalarModel
    params: scalar.Params
    step: int


class Objective(NamedTuple):
    """What is learnt. kind: "reward" or "cost". form: "log_sigmoid" or "log_exp" (`losses.ranking_loss`), the chosen
    answer against each other one, or "best_of_k", against all others at once (`losses.best_of_k_loss`). margin: times
    the pairs' own margins. centering: of the penalty on scores away from 0. bootstrap: whether each head of an ensemble
    weighs pairs by weights of its own, exponentially distributed (the Bayesian bootstrap, Rubin 1981)."""

    kind: Annotated[str, OneOf("reward", "cost")]
    form: Annotated[str, OneOf(*FORMS), Only("kind", "reward", default="log_sigmoid")]
    margin: Annotated[NotNegative, Only("kind", "reward", default=0.0)]
    centering: Annotated[NotNegative, Only("kind", "reward", default=0.0)]
    bootstrap: bool

    @staticmethod
    def check(where: str, values: Mapping[str, Any]) -> None:
        for name in ("margin", "centering") if values["form"] == "best_of_k" else ():
            if values[name]:
                raise UserError(
                    f"{where}.{name} = {shown(values[name])} does nothing where form is 'best_of_k': leave it 0"
                )


def pair_scores(model: scalar.ScalarModel, params: scalar.Params, batch: Mapping[str, Array]) -> Float[Array, "B S H"]:
    """Scores of all sides of each pair, read at the last real token."""
    B, sides, T = batch["tokens"].shape
    scores_RH = scalar.last_scores(model, params, batch["tokens"].reshape(-1, T), batch["lengths"].reshape(-1))
    return scores_RH.reshape(B, sides, -1)


def make_loss(model: scalar.ScalarModel, objective: Objective, seed: int):
    """The loss of a batch of pairs as `train.update.make_update` takes it: sums over comparisons, means over heads."""

    def weights_of(batch) -> Float[Array, "H B"]:
        weight_HB = jnp.broadcast_to(batch["weight"][None], (model.heads, *batch["weight"].shape))
        if not objective.bootstrap:
            return weight_HB
        keys_B = jax.vmap(jax.random.fold_in, (None, 0))(purpose_key(seed, "bootstrap"), batch["index"])
        return weight_HB * jax.vmap(lambda key: jax.random.exponential(key, (model.heads,)))(keys_B).T

    def of_head(scores_BS, weight_B, batch):
        """Loss and statistics of one head, means over comparisons, and how much those weigh together."""
        if objective.kind == "cost":
            return *cost_loss(scores_BS[:, :2], batch["safer"], batch["safe"], weight_B), jnp.sum(weight_B)
        if objective.form == "best_of_k":
            first_B = jnp.zeros(len(scores_BS), jnp.int32)
            return *best_of_k_loss(scores_BS, first_B, batch["side_weight"], weights=weight_B), jnp.sum(weight_B)
        rejected = scores_BS[:, 1:]
        chosen = jnp.broadcast_to(scores_BS[:, :1], rejected.shape)
        margin = jnp.zeros_like(rejected).at[:, 0].set(objective.margin * batch["margin"])
        weights = weight_B[:, None] * batch["side_weight"][:, 1:]
        loss, stats = ranking_loss(
            *(x.reshape(-1) for x in (chosen, rejected, margin)),
            kind=objective.form,
            centering=objective.centering,
            weights=weights.reshape(-1),
        )
        return loss, stats, jnp.sum(weights)

    def loss_fn(params, batch):
        scores_HBS = jnp.moveaxis(pair_scores(model, params, batch), -1, 0)
        loss_H, stats_H, total_H = jax.vmap(of_head, (0, 0, None))(scores_HBS, weights_of(batch), dict(batch))
        sums = {name: jnp.mean(value_H * total_H) for name, value_H in stats_H.items()}
        return jnp.mean(loss_H * total_H), jnp.mean(total_H), sums

    return loss_fn


def heldout_ranking(
    model: scalar.ScalarModel,
    sources: Mapping[str, EvalPass],
    where: NamedSharding,
    max_batches: int,
    pessimism: float = 0.0,
    kind: str = "reward",
):
    """The evaluation `run(params)` of held-out pairs: accuracy and calibration, over all, per language and per margin.

    A tie counts half. Margins are cut at their terciles. calibration_error: the mean distance, over ten equal bins of
    predicted probability that the chosen side wins, of the prediction from the share that won, each bin by its size
    (expected calibration error, arXiv:1706.04599); every pair is seen from both sides.

    With kind "cost" the side that should win is the less safe one, pairs of which nobody said are left out, and
    sign_accuracy is the share of labelled answers that cost more than 0 if unsafe and less if safe.
    """
    score = jax.jit(lambda params, batch: scalar.combine(pair_scores(model, params, batch), pessimism))

    def measure(params: Any, pairs: EvalPass) -> dict[str, float]:
        gaps, records, signs = [], [], []
        for step in range(min(len(pairs), max_batches)):
            scores_B2, batch = np.asarray(score(params, device_batch(pairs, step, where))), pairs[step]
            wins_B = -batch["safer"] if kind == "cost" else np.ones_like(batch["weight"])
            real_B = (batch["weight"] > 0) & (wins_B != 0)
            gaps.append((wins_B * (scores_B2[:, 0] - scores_B2[:, 1]))[real_B])
            records += [pairs.records[i] for i in batch["index"][real_B]]
            labelled_B2 = (batch["weight"] > 0)[:, None] & (batch["safe"] != 0)
            signs.append((scores_B2 * batch["safe"] < 0)[labelled_B2])
        found = describe_ranking(np.concatenate(gaps), records) if records else {}
        signs = np.concatenate(signs)
        return found | ({"sign_accuracy": float(np.mean(signs))} if kind == "cost" and signs.size else {})

    def run(params: Any) -> tuple[dict[str, float], list]:
        metrics = {name: measure(params, pairs) for name, pairs in sources.items()}
        return {f"{name}/{key}": value for name, found in metrics.items() for key, value in found.items()}, []

    return run


def train(run: Run) -> Result:
    """Trains on the pairs of `config.data.mixture`, from the model `config.init_from`. Returns a `RewardModel`."""
    config, policy = run.config, run.model
    with jax.set_mesh(run.mesh):
        # Data: answers to a prompt, the preferred one first.
        template, objective = run.need_template(), read(config, "objective", Objective)
        check_rows(config, run.mesh, policy.config.max_len)
        batches, heldout = pairs_of(config, run.tokenizer, template, sides=config.data.sides)
        check_labels(objective, batches, config.data.sides)
        rows = NamedSharding(run.mesh, PartitionSpec(BATCH))

        # Network: the policy's layers under a fresh head of one number, or of several for an ensemble.
        model = scalar.build(policy.config, config.heads)
        fresh_head = scalar.head_maker(jax.random.key(config.seed), model.config, model.heads)
        load = scalar.trunk_loader(run.start, fresh_head)
        lengths = lengths_of(config, batches)
        initial = run.initial(model.init, run.start, load=load, fresh_head=fresh_head)
        network = run.network(initial, lengths)

        # Loss and step.
        loss_fn = make_loss(model, objective, config.seed)
        step = network.compile(run.update(network, loss_fn))

        # Evaluations: accuracy and calibration on held-out pairs.
        measure = heldout_ranking(model, heldout, rows, config.eval_batches, config.pessimism, objective.kind)

        # Loop; after the last step the scores of the reference's own answers are shifted and scaled.
        calibrate = make_calibration(run, model, rows)
        with run.loop(
            network,
            batches,
            rows,
            lengths,
            evaluations=[Evaluation("heldout", lengths.evaluate, measure)] if heldout else [],
            check=check_streak(config.guard.max_streak),
            flops_per_token=model.config.flops_per_token(batches.length),
            manifest={"kind": "scalar", "heads": model.heads, "objective": objective.kind}
            | {"model": dataclasses.asdict(model.config)},
            tables=data_tables(batches, heldout),
            headline=HEADLINE,
            finish=calibrate and Finish(("score",), calibrate),
        ) as loop:
            for batch in loop:
                loop.state, loop.metrics = step(loop.state, batch)
        return Result(RewardModel(model, loop.state["params"], int(loop.state["step"])), run.last_metrics())


def check_labels(objective: Objective, batches: Mixture, sides: int) -> None:
    """Raises UserError where no pair says what the objective learns from."""
    if objective.kind == "cost" and not (_any_says(batches, "safer") or _any_says(batches, "safe")):
        raise UserError(
            "config.objective.kind = 'cost': no pair of config.data.mixture says which answer is safer, or whether one "
            "is safe; a reward model learns from what is better alone"
        )
    if objective.margin and not _any_says(batches, "margin"):
        raise UserError(
            f"config.objective.margin = {shown(objective.margin)} does nothing: no pair of config.data.mixture has a "
            "margin; leave it 0"
        )
    if sides > 2 and not _any_says(batches, "side_weight", first=2):
        raise UserError(
            f"config.data.sides = {sides}: no pair of config.data.mixture has answers beside its two (meta.others); "
            "leave it 2"
        )


def _any_says(batches: Mixture, name: str, first: int = 0) -> bool:
    """Whether any pair's array of that name has a number other than 0, from the entry `first` on."""
    arrays = (sample.arrays[name] for part in batches.parts for sample in part.samples)
    return any(np.any(np.atleast_1d(array)[first:]) for array in arrays)


def make_calibration(run: Run, model: scalar.ScalarModel, rows: NamedSharding) -> Callable[[Any], Any] | None:
    """The function from parameters to those whose scores of `config.init_from`'s answers to `config.normalise.prompts`
    held-out prompts have mean 0 and deviation 1, head by head; None for 0 prompts."""
    config, section, policy = run.config, run.config.normalise, run.model
    sampling = sampling_of(run, "normalise")
    if not section.prompts:
        return None
    room = config.data.seq_len - sampling.max_tokens
    sources, encoder = sources_of(config.data.mixture, config.data), PromptEncoder(run.tokenizer, run.template, room)
    batches = EvalPass(heldout_prompts(sources, section.prompts, encoder), config.data.batch_size)
    reference = run.reference()

    @jax.jit
    def score(params, reference, batch):
        rows = roll_out(policy, reference, batch, purpose_key(config.seed, "normalise"), sampling)
        scores_RTH = model.apply(params, rows.tokens_RT, rows.segment_ids_RT, rows.positions_RT)
        return jax.vmap(at_last_token, (-1, None), -1)(scores_RTH, rows)

    def calibrate(params):
        found = [
            np.asarray(score(params, reference, device_batch(batches, number, rows)))[: batches.real(number)]
            for number in range(len(batches))
        ]
        scores_RH = np.concatenate(found)
        gain_H = 1.0 / np.maximum(scores_RH.std(axis=0), 1e-6)
        return jax.jit(scalar.rescale)(params, gain_H, -scores_RH.mean(axis=0) * gain_H)

    return calibrate
