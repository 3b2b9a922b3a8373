"""The reward model: a tuned LLaMA that learns from comparisons which answer people, or a gold score, prefer.

Bradley-Terry on the score at the last token (arXiv:2203.02155, section 3.5), one head or an ensemble of them. After the
last step its scores are shifted and scaled so that the reference policy's own answers score mean 0 and deviation 1
(arXiv:1909.08593, section 2.2): a reward then says how much better than usual an answer is.

With `config.objective = "cost"` it learns costs instead, from which answer is safer and which are unsafe (Safe RLHF,
arXiv:2310.12773, equation 7). Costs are not shifted: above 0 is unsafe.
"""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from ..data.mixture import EvalPass, Mixture
from ..data.pairs import PairEncoder
from ..data.prefetch import device_batch
from ..data.prompts import PromptEncoder, heldout_prompts
from ..data.templates import ChatTemplate
from ..data.tokenizer import Tokenizer
from ..data.values import shown
from ..errors import UserError
from ..model.sharding import BATCH
from ..train import setup as train_setup
from ..train.adapters import Adapters
from ..train.fit import Evaluator, Finish, Job, compile_update, data_tables, fit, update_settings
from ..train.leaves import NotNegative, OneOf, Only, read
from ..train.loop import Evaluation, check_streak
from ..train.optimizer import split_frozen
from ..train.randomness import purpose_key
from ..train.settings import Settings
from ..train.state import make_update
from . import scalar
from .losses import best_of_k_loss, cost_loss, ranking_loss
from .rollout import at_last_token, roll_out
from .setup import load_reference, samples_of, sampling_of

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
    """The loss of a batch of pairs as `train.state.make_update` takes it: sums over comparisons, means over heads."""

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


def describe_ranking(gaps: np.ndarray, records: list[Mapping]) -> dict[str, float]:
    """Metrics of the gaps, the score of the side that should win minus the other's, of some pairs; see
    `heldout_ranking`."""
    right = np.where(gaps == 0, 0.5, gaps > 0)
    metrics = {
        "accuracy": right.mean(),
        "loss": np.logaddexp(0.0, -gaps).mean(),
        "calibration_error": calibration_error(gaps),
        "gap": gaps.mean(),
    }
    languages = np.array([record["language"] for record in records])
    metrics |= {f"accuracy/{language}": right[languages == language].mean() for language in np.unique(languages)}
    margins = np.array([np.nan if r["margin"] is None else r["margin"] for r in records], float)
    if np.isfinite(margins).all():
        low, high = np.quantile(margins, [1 / 3, 2 / 3])
        bins = {"small": margins <= low, "middle": (margins > low) & (margins <= high), "large": margins > high}
        metrics |= {f"accuracy/{name}_margin": right[chosen].mean() for name, chosen in bins.items() if chosen.any()}
    return {name: float(value) for name, value in metrics.items()}


def calibration_error(gaps: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error of the Bradley-Terry probabilities sigmoid(gap), each pair seen from both sides."""
    gaps, won = np.concatenate([gaps, -gaps]), np.repeat([1.0, 0.0], len(gaps))
    probability = np.exp(-np.logaddexp(0.0, -gaps))
    place = np.minimum((probability * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    distance = np.abs(np.bincount(place, probability - won, minlength=bins))
    return float(distance[counts > 0].sum() / counts.sum())


def run(settings: Settings, workdir: epath.Path, evaluators: Mapping[str, Evaluator]) -> RewardModel:
    """Trains on the pairs of `config.data.mixture`, from the tuned model `config.init_from`."""
    mesh = train_setup.mesh_of(settings)
    with jax.set_mesh(mesh):
        tokenizer, template = train_setup.tokenizer_of(settings), train_setup.template_of(settings)
        policy = train_setup.model_of(settings, tokenizer)
        objective = read(settings, "objective", Objective)
        model = scalar.build(policy.config, settings.heads)
        train_setup.check_rows(settings, mesh, policy.config.max_len)
        batches, heldout = pairs_of(settings, tokenizer, template, sides=settings.data.sides)
        check_labels(objective, batches, settings.data.sides)
        where = NamedSharding(mesh, PartitionSpec(BATCH))
        lengths = train_setup.lengths_of(settings, batches)

        def fresh_head(abstract):
            head = scalar.init_head(jax.random.key(settings.seed), model.config, model.heads)
            return jax.device_put(head, jax.tree.map(lambda x: x.sharding, abstract))

        def load(abstract):
            trunk = scalar.load_trunk(settings.init_from, abstract, train_setup.weights_of(settings))
            return trunk | {"score": fresh_head(abstract["score"])}

        adapters = Adapters(settings, mesh, may_drop=True)
        part = adapters.part(model.init, settings.init_from, load, fresh_head)
        everything = jax.eval_shape(part.init, jax.random.key(0))
        frozen = adapters.frozen(everything, part.base)
        trainable, _ = split_frozen(everything, frozen)
        optimizer, schedule = train_setup.optimizer_of(settings, trainable, lengths, batches)
        loss_fn = make_loss(model, objective, settings.seed)
        update = make_update(
            loss_fn, optimizer, schedule, frozen=frozen, perturb=adapters.perturb(), **update_settings(settings)
        )
        measure = heldout_ranking(model, heldout, where, settings.eval_batches, settings.pessimism, objective.kind)
        normalise = _normaliser(settings, tokenizer, template, policy, model, where, adapters)

        job = Job(
            model=policy._replace(config=model.config),
            tokenizer=tokenizer,
            template=template,
            batches=batches,
            sharding=where,
            lengths=lengths,
            start=train_setup.Start(optimizer, *part, frozen, settings.ema_decay is not None),
            make_step=lambda where: compile_update(update, part.base, where),
            evaluations=[Evaluation("heldout", lengths.evaluate, measure)] if heldout else [],
            flops_per_token=model.config.flops_per_token(batches.length),
            check=check_streak(settings.guard.max_streak),
            manifest={"kind": "scalar", "heads": model.heads, "objective": objective.kind} | adapters.manifest(),
            tables=data_tables(batches, heldout),
            headline=HEADLINE,
            finish=normalise and Finish(("score",), normalise),
        )
        state = fit(settings, workdir, mesh, job)
        return RewardModel(model, state["params"], int(state["step"]))


def pairs_of(
    settings: Settings, tokenizer: Tokenizer, template: ChatTemplate, *, sides: int = 2
) -> tuple[Mixture, dict[str, EvalPass]]:
    """The pairs of `config.data.mixture` to train on, and one pass over those that each source holds out."""
    data = settings.data
    encoder = PairEncoder(tokenizer, template, data.seq_len, data.noise, sides)
    return samples_of(settings, encoder, heldout=PairEncoder(tokenizer, template, data.seq_len))


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


def _normaliser(
    settings: Settings,
    tokenizer,
    template,
    policy,
    model: scalar.ScalarModel,
    where: NamedSharding,
    adapters: Adapters,
):
    """The function from parameters to those whose scores of `config.init_from`'s answers to `config.normalise.prompts`
    held-out prompts have mean 0 and deviation 1, head by head; None for 0 prompts."""
    section = settings.normalise
    count, batch_size = section.prompts, settings.data.batch_size
    sampling = sampling_of(settings, "normalise", policy, tokenizer, template)
    if not count:
        return None
    room = settings.data.seq_len - sampling.max_tokens
    sources = train_setup.sources_of(settings.data.mixture, settings.data)
    batches = EvalPass(heldout_prompts(sources, count, PromptEncoder(tokenizer, template, room)), batch_size)
    reference = load_reference(settings, policy, adapters)

    @jax.jit
    def score(params, reference, batch):
        rows = roll_out(policy, reference, batch, purpose_key(settings.seed, "normalise"), sampling)
        scores_RTH = model.apply(params, rows.tokens_RT, rows.segment_ids_RT, rows.positions_RT)
        return jax.vmap(at_last_token, (-1, None), -1)(scores_RTH, rows)

    def normalise(params):
        found = [
            np.asarray(score(params, reference, device_batch(batches, number, where)))[: batches.real(number)]
            for number in range(len(batches))
        ]
        scores_RH = np.concatenate(found)
        gain_H = 1.0 / np.maximum(scores_RH.std(axis=0), 1e-6)
        return jax.jit(scalar.rescale)(params, gain_H, -scores_RH.mean(axis=0) * gain_H)

    return normalise
