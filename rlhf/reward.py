"""The reward model: a tuned LLaMA that learns from comparisons which of several answers is preferred.

It learns Bradley-Terry scores, read at an answer's last token (arXiv:2203.02155, section 3.5), by one head or an
ensemble. After the last step, scores are shifted and scaled so that the answers of `config.init_from` itself have mean
0 and deviation 1 (arXiv:1909.08593, section 2.2): a score then says how much better than usual an answer is.

With `config.objective.kind = "cost"` it is a cost model, which learns from labels of safety (Safe RLHF,
arXiv:2310.12773, equation 7). A cost above 0 means unsafe, so set `config.calibrate.prompts = 0` to keep the sign.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from ..data.mixture import EvalPass, Mixture
from ..data.prefetch import device_batch
from ..data.prompts import PromptEncoder, heldout_prompts
from ..data.templates import ChatTemplate
from ..data.tokenizer import Tokenizer
from ..errors import UserError, shown
from ..model.sharding import BATCH, on_host
from ..settings.leaves import Count, NotNegative, OneOf, Only, Range, Whole
from ..train.batches import check_rows, data_tables, sources_of
from ..train.finish import Finish
from ..train.lengths import lengths_of
from ..train.loop import Evaluation, check_streak
from ..train.randomness import purpose_key
from ..train.run import Result, Run
from . import scalar
from .losses import best_of_k_loss, cost_loss, ranking_loss
from .pair_batches import PairDataSettings, PairsConfig, describe_ranking, pairs_of
from .prompt_batches import sampling_of
from .reward_model import RewardModel
from .rollout import at_last_token, roll_out

HEADLINE = {"train/loss": "loss", "train/accuracy": "accuracy"}
FORMS = ("log_sigmoid", "log_exp", "best_of_k")


@dataclass(frozen=True)
class Objective:
    """The section `config.objective`: what a comparison teaches."""

    kind: Annotated[str, OneOf("reward", "cost")] = "reward"
    """reward learns which answer is better; cost learns which is safer and which are unsafe (arXiv:2310.12773, equation
    7)."""

    form: Annotated[str, OneOf(*FORMS), Only("kind", "reward", default="log_sigmoid")] = "log_sigmoid"
    """The loss: log_sigmoid, or log_exp as ColossalChat writes it, compares the chosen answer with each other one;
    best_of_k compares it with all others at once."""

    margin: Annotated[NotNegative, Only("kind", "reward", default=0.0)] = 0.0
    """Factor of the margins in the records, which the loss demands between scores (Llama 2, arXiv:2307.09288, section
    3.2.2: 1)."""

    centering: Annotated[NotNegative, Only("kind", "reward", default=0.0)] = 0.0
    """Weight of the penalty on scores away from 0 (arXiv:2312.09244: 0.01)."""

    bootstrap: bool = False
    """Whether each head of an ensemble gives pairs random weights of its own, drawn from an exponential distribution
    (the Bayesian bootstrap, Rubin 1981)."""

    def check(self, where: str) -> None:
        for name in ("margin", "centering") if self.form == "best_of_k" else ():
            if value := getattr(self, name):
                raise UserError(f"{where}.{name} = {shown(value)} does nothing where form is 'best_of_k': set it to 0")


@dataclass(frozen=True)
class CalibrationSettings:
    """The section `config.calibrate`: after the last step, scores are shifted and scaled to mean 0 and deviation 1 over
    answers that `config.init_from` gives to held-out prompts (arXiv:1909.08593, section 2.2)."""

    prompts: Whole = 512
    """Number of held-out prompts. 0: scores are not shifted or scaled."""

    max_tokens: Count = 128
    """The most tokens of an answer."""

    temperature: NotNegative = 1.0
    """Divisor of the logits that answers are drawn from."""


@dataclass(frozen=True)
class ComparisonDataSettings(PairDataSettings):
    """The section `config.data` of comparisons between two or more answers to a prompt."""

    answers_per_prompt: Annotated[int, Range(least=2, most=1000)] = 2
    """Number of answers to a prompt. Above 2, worse answers are taken from meta.others of the records."""


@dataclass(frozen=True)
class RewardConfig(PairsConfig):
    """The config of a reward or cost model."""

    recipe: str = "reward"
    """Name of the recipe: reward, or a function train(run) of one's own."""

    data: ComparisonDataSettings = ComparisonDataSettings()
    """Comparisons of answers."""

    heads: Annotated[int, Range(least=1, most=1000)] = 1
    """Number of heads; more than one are an ensemble."""

    pessimism: NotNegative = 0.0
    """In evaluations, the score of an ensemble is mean - pessimism * deviation over its heads (arXiv:2310.02743)."""

    objective: Objective = Objective()
    """What a comparison teaches."""

    calibrate: CalibrationSettings = CalibrationSettings()
    """How scores are shifted and scaled after the last step."""

    def check(self, where: str) -> None:
        super().check(where)
        of_ensembles = {"pessimism": self.pessimism, "objective.bootstrap": self.objective.bootstrap}
        for name, value in of_ensembles.items() if self.heads == 1 else ():
            if value:
                raise UserError(
                    f"{where}.{name} = {shown(value)} does nothing where {where}.heads is 1: set heads above 1"
                )
        room, most = self.data.seq_len, self.calibrate.max_tokens
        if self.calibrate.prompts and most >= room:
            raise UserError(
                f"{where}.calibrate.max_tokens = {most}: prompt and answer share a row of {room} tokens "
                f"({where}.data.seq_len); give less"
            )
        if self.calibrate.prompts and self.objective.kind == "cost":
            raise UserError(
                f"{where}.calibrate.prompts = {self.calibrate.prompts}: calibration would shift costs, of which those "
                "above 0 are unsafe; set it to 0"
            )
        if self.calibrate.prompts and not self.data.heldout:
            raise UserError(
                f"{where}.calibrate.prompts = {self.calibrate.prompts}: prompts are taken from held-out records; set "
                f"{where}.data.heldout above 0, or prompts to 0"
            )
        if self.evals:
            raise UserError(
                f"{where}.evals: {', '.join(self.evals)} needs a model that answers, and a reward model only "
                "scores; leave it out"
            )


def pair_scores(model: scalar.ScalarModel, params: scalar.Params, batch: Mapping[str, Array]) -> Float[Array, "B S H"]:
    """Scores the S answers to each prompt of a batch (`data.pairs`) by all H heads, at an answer's last real token."""
    B, sides, T = batch["tokens"].shape
    scores_RH = scalar.last_scores(model, params, batch["tokens"].reshape(-1, T), batch["lengths"].reshape(-1))
    return scores_RH.reshape(B, sides, -1)


def make_loss(model: scalar.ScalarModel, objective: Objective, seed: int):
    """Makes the loss of a batch of pairs (`data.pairs`).

    Args:
      model: the scalar model.
      objective: `config.objective`.
      seed: seed of the bootstrap's weights.

    Returns:
      loss_fn(params, batch) -> (loss, weight, statistics), for `train.update.make_update`: sums over comparisons, means
      over heads.
    """

    def weights_of(batch) -> Float[Array, "H B"]:
        weight_HB = jnp.broadcast_to(batch["weight"][None], (model.heads, *batch["weight"].shape))
        if not objective.bootstrap:
            return weight_HB
        keys_B = jax.vmap(jax.random.fold_in, (None, 0))(purpose_key(seed, "bootstrap"), batch["index"])
        return weight_HB * jax.vmap(lambda key: jax.random.exponential(key, (model.heads,)))(keys_B).T

    def of_head(scores_BS, weight_B, batch):
        """Loss and statistics of one head, as means over comparisons, and the sum of the comparisons' weights."""
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
    """Makes the evaluation of scores on held-out pairs.

    Args:
      model: the scalar model.
      sources: one pass over the held-out pairs of each source.
      where: the sharding of rows.
      max_batches: the most batches of each source.
      pessimism: see `scalar.combine`.
      kind: `config.objective.kind`. For "cost", the answer that should score more is the less safe one; pairs without
        that label are left out.

    Returns:
      run(params) -> (metrics, []), the metrics of `describe_ranking` as "<source>/<metric>". For "cost", also
      sign_accuracy: the share of labelled answers whose cost is above 0 if unsafe and below 0 if safe.
    """
    score = jax.jit(lambda params, batch: scalar.combine(pair_scores(model, params, batch), pessimism))

    def measure(params: Any, pairs: EvalPass) -> dict[str, float]:
        gaps, records, signs = [], [], []
        for step in range(min(len(pairs), max_batches)):
            scores_B2, batch = on_host(score(params, device_batch(pairs, step, where))), pairs[step]
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


def train(run: Run[RewardConfig]) -> Result:
    """Trains a reward or cost model on `config.data.mixture`, from `config.init_from`, and returns a `RewardModel`."""
    config, data, objective, policy = run.config, run.config.data, run.config.objective, run.model
    with run.on_mesh():
        # Data: answers to a prompt, the preferred one first.
        template = run.need_template()
        check_rows(data.batch_size, data.seq_len, config.optim.accumulate, run.mesh, policy.config.max_len)
        batches, heldout = run.read(comparisons_of, objective=objective)
        rows = NamedSharding(run.mesh, PartitionSpec(BATCH))

        # Network: the layers of config.init_from, with new heads that give a score each instead of the output head.
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

        # Loop; after the last step the heads are shifted and scaled (config.calibrate).
        calibrate = make_calibration(run, model, rows)
        with run.loop(
            network,
            batches,
            rows,
            lengths,
            evaluations=[Evaluation("heldout", lengths.evaluate, measure)] if heldout else [],
            check=check_streak(config.guard.max_streak),
            flops_per_token=run.flops_per_token(batches.length, model.config, head=False),
            manifest={"kind": "scalar", "heads": model.heads, "objective": objective.kind}
            | {"model": dataclasses.asdict(model.config)},
            tables=data_tables(batches, heldout),
            headline=HEADLINE,
            finish=calibrate and Finish(("score",), calibrate),
        ) as loop:
            for batch in loop:
                loop.state, loop.metrics = step(loop.state, batch)
        params, steps = loop.state["params"], int(loop.state["step"])
        return Result(RewardModel(model, params, run.tokenizer, template, run.mesh, steps), run.last_metrics())


def comparisons_of(
    settings: ComparisonDataSettings, tokenizer: Tokenizer, template: ChatTemplate, seed: int, *, objective: Objective
) -> tuple[Mixture, dict[str, EvalPass]]:
    """Endless batches of the comparisons of `config.data.mixture`, and one pass over each source's held-out pairs.

    Args:
      settings: `config.data`.
      tokenizer: the run's tokenizer.
      template: the run's chat template.
      seed: seed of the order of comparisons.
      objective: `config.objective`. UserError if no training pair has the labels that it asks for.
    """
    sides = settings.answers_per_prompt
    batches, heldout = pairs_of(settings, tokenizer, template, seed, answers_per_prompt=sides)
    check_labels(objective, batches, sides)
    return batches, heldout


def check_labels(objective: Objective, batches: Mixture, answers_per_prompt: int) -> None:
    """Raises UserError if no training pair has the labels, margins or further answers that the settings ask for.

    Args:
      objective: `config.objective`.
      batches: the training pairs.
      answers_per_prompt: `config.data.answers_per_prompt`.
    """
    if objective.kind == "cost" and not (_any_nonzero(batches, "safer") or _any_nonzero(batches, "safe")):
        raise UserError(
            "config.objective.kind = 'cost': no pair of config.data.mixture says which answer is safer, or whether one "
            "is safe; give pairs with such labels, or set it to 'reward'"
        )
    if objective.margin and not _any_nonzero(batches, "margin"):
        raise UserError(
            f"config.objective.margin = {shown(objective.margin)} does nothing: no pair of config.data.mixture has a "
            "margin; set it to 0"
        )
    if answers_per_prompt > 2 and not _any_nonzero(batches, "side_weight", first=2):
        raise UserError(
            f"config.data.answers_per_prompt = {answers_per_prompt}: no pair of config.data.mixture has answers beside "
            "its two (meta.others); set it to 2"
        )


def _any_nonzero(batches: Mixture, name: str, first: int = 0) -> bool:
    """Whether the array `name` of any pair has a nonzero entry, from the entry `first` on."""
    arrays = (sample.arrays[name] for part in batches.parts for sample in part.samples)
    return any(np.any(np.atleast_1d(array)[first:]) for array in arrays)


def calibration_prompts(
    settings: ComparisonDataSettings,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    seed: int,
    *,
    count: int,
    max_tokens: int,
) -> EvalPass:
    """One pass over `count` held-out prompts of at most `max_tokens` tokens; the seed is not used."""
    sources, encoder = sources_of(settings.mixture, settings), PromptEncoder(tokenizer, template, max_tokens)
    return EvalPass(heldout_prompts(sources, count, encoder), settings.batch_size)


def make_calibration(run: Run, model: scalar.ScalarModel, rows: NamedSharding) -> Callable[[Any], Any] | None:
    """Makes the function that shifts and scales the heads of a reward model (`config.calibrate`).

    Args:
      run: the run.
      model: the scalar model.
      rows: the sharding of rows.

    Returns:
      calibrate(params) -> params, with which each head gives the answers of `config.init_from` to held-out prompts
      scores of mean 0 and deviation 1; None if `config.calibrate.prompts` is 0.
    """
    config, settings, policy = run.config, run.config.calibrate, run.model
    if not settings.prompts:
        return None
    given = dict(max_tokens=settings.max_tokens, temperature=settings.temperature)
    sampling = sampling_of(run, "config.calibrate", **given)
    room = config.data.seq_len - sampling.max_tokens
    batches = run.read(calibration_prompts, count=settings.prompts, max_tokens=room)
    reference = run.reference()

    @jax.jit
    def score(params, reference, batch):
        rows = roll_out(policy, reference, batch, purpose_key(config.seed, "normalise"), sampling)
        scores_RTH = model.apply(params, rows.tokens_RT, rows.segment_ids_RT, rows.positions_RT)
        return jax.vmap(at_last_token, (-1, None), -1)(scores_RTH, rows)

    def calibrate(params):
        found = [
            on_host(score(params, reference, device_batch(batches, number, rows)))[: batches.real(number)]
            for number in range(len(batches))
        ]
        scores_RH = np.concatenate(found)
        gain_H = 1.0 / np.maximum(scores_RH.std(axis=0), 1e-6)
        return jax.jit(scalar.rescale)(params, gain_H, -scores_RH.mean(axis=0) * gain_H)

    return calibrate
