"""Direct preference optimisation: a policy learns from pairs themselves, without a reward model or rollouts.

DPO (arXiv:2305.18290) and the losses that came after it, by `config.dpo.kind`: sigmoid, robust, hinge, ipo, kto, simpo,
orpo (`losses.py` has each with its source). The reference is `config.init_from`, frozen.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from ..data.pairs import EvalPairs
from ..data.prefetch import device_batch
from ..model import llama
from ..model.sharding import BATCH
from ..train import origin
from ..train import setup as train_setup
from ..train.adapters import Adapters
from ..train.bundle import Llama
from ..train.fit import Evaluator, Job, compile_update, data_tables, fit, further_evaluations, update_settings
from ..train.leaves import NotNegative, OneOf, Only, Positive, Range, read
from ..train.loop import Evaluation, check_streak
from ..train.losses import token_logprobs
from ..train.optimizer import split_frozen
from ..train.settings import Settings
from ..train.state import make_update
from . import setup
from .losses import dpo_loss, kto_loss, orpo_loss, simpo_loss
from .reward import describe_ranking, pairs_of

PAIRWISE = ("sigmoid", "robust", "hinge", "ipo")
KINDS = (*PAIRWISE, "kto", "simpo", "orpo")
HEADLINE = {"train/loss": "loss", "rewards/accuracy": "accuracy", "train/tokens_per_second": "tokens/s"}


class Hyper(NamedTuple):
    """The section `config.dpo`. kind: of the loss. beta: how dear distance from the reference is (ORPO: the weight of
    its odds-ratio term). label_smoothing: sigmoid and robust. gamma: SimPO's margin. desirable_weight,
    undesirable_weight: KTO."""

    kind: Annotated[str, OneOf(*KINDS)]
    beta: Positive
    label_smoothing: Annotated[float, Range(least=0, below=0.5), Only("kind", "sigmoid", "robust", default=0.0)]
    gamma: Annotated[NotNegative, Only("kind", "simpo", default=0.5)]
    desirable_weight: Annotated[NotNegative, Only("kind", "kto", default=1.0)]
    undesirable_weight: Annotated[NotNegative, Only("kind", "kto", default=1.0)]

    @property
    def has_reference(self) -> bool:
        return self.kind not in ("simpo", "orpo")


class AnswerScores(NamedTuple):
    """Of each side of each pair, [B, 2]: the sum of the answer's log-probabilities, and its tokens."""

    logp: Float[Array, "B 2"]
    tokens: Float[Array, "B 2"]

    @property
    def mean(self) -> Float[Array, "B 2"]:
        return self.logp / jnp.maximum(self.tokens, 1.0)


def score_pairs(model: llama.Model, params: llama.Params, batch: Mapping[str, Array]) -> AnswerScores:
    """Log-probabilities of both answers of each pair, given their prompt."""
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


def mismatched(batch: Mapping[str, Array]) -> dict[str, Array]:
    """Each prompt with the chosen answer to the next pair's prompt, as one side: what KTO's reference point is
    measured on (arXiv:2402.01306, section 4.1). An answer is cut where the row ends."""
    tokens_BT, mask_BT = batch["tokens"][:, 0], batch["answer_mask"][:, 0]
    T = tokens_BT.shape[1]
    begin_B, length_B = jnp.argmax(mask_BT, axis=1), batch["lengths"][:, 0]
    other = {name: jnp.roll(x, -1, axis=0) for name, x in (("tokens", tokens_BT), ("mask", mask_BT))}
    shift_B = begin_B - jnp.roll(begin_B, -1)
    source_BT = jnp.clip(jnp.arange(T)[None] - shift_B[:, None], 0, T - 1)
    in_prompt_BT = jnp.arange(T)[None] < begin_B[:, None]
    length_B = jnp.minimum(jnp.roll(length_B, -1) + shift_B, T)
    real_BT = jnp.arange(T)[None] < length_B[:, None]
    taken = {name: jnp.take_along_axis(x, source_BT, axis=1) for name, x in other.items()}
    tokens_BT = jnp.where(in_prompt_BT, tokens_BT, taken["tokens"]) * real_BT
    mask_BT = jnp.where(in_prompt_BT, 0.0, taken["mask"]) * real_BT
    return {"tokens": tokens_BT[:, None], "answer_mask": mask_BT[:, None], "lengths": length_B[:, None]}


def make_loss(model: llama.Model, hyper: Hyper) -> Callable:
    """The loss of a batch of pairs, "reference" [B, 2] and "kl" [B] in it, as `train.state.make_update` takes it."""

    def loss_fn(params, batch):
        own = score_pairs(model, params, batch)
        chosen_B, rejected_B = own.logp[:, 0], own.logp[:, 1]
        ref_B2 = batch["reference"]
        if hyper.kind in PAIRWISE:
            loss, stats = dpo_loss(
                chosen_B,
                rejected_B,
                ref_B2[:, 0],
                ref_B2[:, 1],
                beta=hyper.beta,
                kind=hyper.kind,
                label_smoothing=hyper.label_smoothing,
            )
        elif hyper.kind == "kto":
            desirable_B2 = jnp.broadcast_to(jnp.array([[1.0, 0.0]]), own.logp.shape)
            loss, stats = kto_loss(
                own.logp.reshape(-1),
                ref_B2.reshape(-1),
                desirable_B2.reshape(-1),
                batch["kl"][0],
                beta=hyper.beta,
                desirable_weight=hyper.desirable_weight,
                undesirable_weight=hyper.undesirable_weight,
            )
        elif hyper.kind == "simpo":
            loss, stats = simpo_loss(own.mean[:, 0], own.mean[:, 1], beta=hyper.beta, gamma=hyper.gamma)
        else:
            loss, stats = orpo_loss(own.mean[:, 0], own.mean[:, 1], beta=hyper.beta)
            loss -= jnp.mean(own.mean[:, 0])
        stats |= {"logps/chosen": jnp.mean(chosen_B), "logps/rejected": jnp.mean(rejected_B)}
        all_pairs = jnp.float32(len(chosen_B))
        sums = {name: value * all_pairs for name, value in stats.items()}
        pairs = jnp.sum(jnp.any(own.tokens > 0, axis=1).astype(jnp.float32))  # others have no gradient
        return loss * all_pairs, pairs, sums

    return loss_fn


def make_prepare(model: llama.Model, hyper: Hyper) -> Callable:
    """The function that gives a batch what does not depend on the gradient: the reference's scores, KTO's KL."""

    def prepare(params: Any, reference: Any, batch: Mapping[str, Array]) -> dict[str, Array]:
        B = batch["tokens"].shape[0]
        rows = dict(batch) | {"reference": jnp.zeros((B, 2)), "kl": jnp.zeros(B)}
        if hyper.has_reference:
            rows["reference"] = score_pairs(model, reference, batch).logp
        if hyper.kind == "kto":
            apart = mismatched(batch)
            gap_B1 = score_pairs(model, params, apart).logp - score_pairs(model, reference, apart).logp
            rows["kl"] = jnp.broadcast_to(jnp.maximum(jnp.mean(gap_B1), 0.0), (B,))
        return rows

    return prepare


def heldout_pairs(
    model: llama.Model,
    hyper: Hyper,
    reference: Any,
    sources: Mapping[str, EvalPairs],
    where: NamedSharding,
    max_batches: int,
) -> Callable[[Any], tuple[dict[str, float], list]]:
    """The evaluation `run(params)`: how the implicit reward, beta log(policy / reference), ranks held-out pairs; for
    losses without a reference beta times the mean log-probability."""

    @jax.jit
    def rewards(params, reference, batch):
        own = score_pairs(model, params, batch)
        if not hyper.has_reference:
            return hyper.beta * own.mean
        return hyper.beta * (own.logp - score_pairs(model, reference, batch).logp)

    def run(params: Any) -> tuple[dict[str, float], list]:
        metrics = {}
        for name, pairs in sources.items():
            gaps, records = [], []
            for step in range(min(len(pairs), max_batches)):
                rewards_B2 = np.asarray(rewards(params, reference, device_batch(pairs, step, where)))
                real = pairs.real(step)
                gaps.append((rewards_B2[:, 0] - rewards_B2[:, 1])[:real])
                records += [pairs.records[i] for i in pairs[step]["index"][:real]]
            found = describe_ranking(np.concatenate(gaps), records)
            metrics |= {f"{name}/{key}": value for key, value in found.items()}
        return metrics, []

    return run


def run(settings: Settings, workdir: epath.Path, evaluators: Mapping[str, Evaluator]) -> Llama:
    """Tunes `config.init_from` on the pairs of `config.data.mixture`, and returns the policy."""
    mesh = train_setup.mesh_of(settings)
    with jax.set_mesh(mesh):
        tokenizer, template = train_setup.tokenizer_of(settings), train_setup.template_of(settings)
        model = train_setup.model_of(settings, tokenizer)
        hyper = read(settings, "dpo", Hyper)
        adapters = Adapters(settings, mesh, may_drop=True)
        part = adapters.part(model.init, settings.init_from, train_setup.loader(settings))
        reference = setup.load_reference(settings, model, adapters) if hyper.has_reference else {}
        train_setup.check_rows(settings, mesh, model.config.max_len)
        _, batches, heldout = pairs_of(settings, tokenizer, template)
        where = NamedSharding(mesh, PartitionSpec(BATCH))
        lengths = train_setup.lengths_of(settings, batches)
        everything = jax.eval_shape(part.init, jax.random.key(0))
        frozen = adapters.frozen(everything, part.base)
        trainable, _ = split_frozen(everything, frozen)
        optimizer, schedule = train_setup.optimizer_of(settings, trainable, lengths, batches)
        update = make_update(
            make_loss(model, hyper),
            optimizer,
            schedule,
            frozen=frozen,
            perturb=adapters.perturb(),
            **update_settings(settings),
        )
        prepare = make_prepare(model, hyper)
        measure = heldout_pairs(model, hyper, reference, heldout, where, settings.eval_batches)

        def make_step(where):
            def step(state, batch):
                reference, pairs = batch
                return update(state, prepare(state["params"], reference, pairs))

            compiled = compile_update(step, part.base, where)
            return lambda state, batch: compiled(state, (reference, batch))

        def bundle(params, step=None) -> Llama:
            return Llama(model, params, tokenizer, template, mesh, step=step)

        job = Job(
            model=model,
            tokenizer=tokenizer,
            template=template,
            batches=batches,
            sharding=where,
            lengths=lengths,
            start=train_setup.Start(optimizer, *part, frozen, settings.ema_decay is not None),
            make_step=make_step,
            evaluations=[
                *([Evaluation("heldout", lengths.evaluate, measure)] if heldout else []),
                *further_evaluations(settings, lengths, evaluators, bundle),
            ],
            flops_per_token=model.config.flops_per_token(batches.length),
            check=check_streak(settings.guard.max_streak),
            manifest={"frozen": {"reference": origin.identity(settings.init_from)}} | adapters.manifest(),
            tables=data_tables(batches, heldout),
            headline=HEADLINE,
        )
        state = fit(settings, workdir, mesh, job)
        return bundle(state.get("ema", state["params"]), step=int(state["step"]))
