"""Kahneman-Tversky optimisation (arXiv:2402.01306): its data, its point of reference, and how it is measured.

KTO learns from single answers that are called good or bad (`data.labelled_answers`), or pairs, each of which is one of
either. Its point of reference is the divergence of policy and reference on answers to other prompts.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int

from ..data.labelled_answers import AnswerEncoder
from ..data.mixture import EvalPass, Mixture
from ..data.prefetch import device_batch
from ..data.sources import read
from ..data.templates import ChatTemplate
from ..data.tokenizer import Tokenizer
from ..errors import UserError
from ..train.batches import sources_of
from .pair_batches import PairDataSettings, samples_of

_MULTIPLIER = 0x9E3779B1  # odd, so that its powers never become 0 in 32 bits


def is_labelled(settings: PairDataSettings) -> bool:
    """Whether `config.data.mixture` holds single answers with labels rather than pairs, by each source's first record.

    Raises UserError for a mixture of both.
    """
    kinds = {}
    for source in sources_of(settings.mixture, settings):
        first = next(read(source), {"kind": "nothing"})
        kinds.setdefault(first["kind"] != "preference", source.name)
    if len(kinds) > 1:
        raise UserError(
            f"config.data.mixture: {kinds[True]} holds single answers and {kinds[False]} pairs: a run of KTO learns "
            "from one kind only"
        )
    return True in kinds


def answers_of(
    settings: PairDataSettings, tokenizer: Tokenizer, template: ChatTemplate, seed: int
) -> tuple[Mixture, dict[str, EvalPass]]:
    """The labelled answers of `config.data.mixture` to train on, and one pass over those that each source holds out."""
    if settings.noise:
        raise UserError("config.data.noise exchanges the sides of pairs: set it to 0 for single answers")
    encoder = AnswerEncoder(tokenizer, template, settings.seq_len)
    return samples_of(settings, encoder, seed, heldout=encoder)


def mismatched(batch: Mapping[str, Array]) -> tuple[dict[str, Array], Float[Array, " B"]]:
    """Each prompt with the next answer of the batch that replies to another prompt: what the point of reference is
    measured on (section 4.1); of a pair, the chosen answer.

    Returns rows as `dpo.score_pairs` takes them, of one side, an answer cut where the row ends; and the weight of
    each: 0 where all prompts of the batch are the same, and there is no other answer.
    """
    tokens_BT, mask_BT = batch["tokens"][:, 0], batch["answer_mask"][:, 0]
    T = tokens_BT.shape[1]
    begin_B, length_B = jnp.argmax(mask_BT, axis=1), batch["lengths"][:, 0]
    in_prompt_BT = jnp.arange(T)[None] < begin_B[:, None]
    other_B, there_B = _answer_to_another(tokens_BT, in_prompt_BT)
    shift_B = begin_B - begin_B[other_B]
    source_BT = jnp.clip(jnp.arange(T)[None] - shift_B[:, None], 0, T - 1)
    length_B = jnp.minimum(length_B[other_B] + shift_B, T)
    real_BT = jnp.arange(T)[None] < length_B[:, None]
    taken_BT, taken_mask_BT = (jnp.take_along_axis(x[other_B], source_BT, axis=1) for x in (tokens_BT, mask_BT))
    tokens_BT = jnp.where(in_prompt_BT, tokens_BT, taken_BT) * real_BT
    mask_BT = jnp.where(in_prompt_BT, 0.0, taken_mask_BT) * real_BT
    rows = {"tokens": tokens_BT[:, None], "answer_mask": mask_BT[:, None], "lengths": length_B[:, None]}
    return rows, there_B.astype(jnp.float32)


def _answer_to_another(
    tokens_BT: Int[Array, "B T"], in_prompt_BT: Bool[Array, "B T"]
) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
    """Of each row the next one, going round, whose prompt is another; and whether there is one."""
    B, T = tokens_BT.shape
    powers_T = np.cumprod(np.full(T, _MULTIPLIER, np.uint32), dtype=np.uint32)
    spelled_BT = jnp.where(in_prompt_BT, tokens_BT + 1, 0).astype(jnp.uint32)
    hash_B = jnp.sum(spelled_BT * powers_T[None], axis=1, dtype=jnp.uint32)  # prompts of different hashes differ
    after_BR = (jnp.arange(B)[:, None] + jnp.arange(1, B)[None]) % B
    differs_BR = hash_B[after_BR] != hash_B[:, None]
    return after_BR[jnp.arange(B), jnp.argmax(differs_BR, axis=1)], jnp.any(differs_BR, axis=1)


def heldout_answers(
    rewards: Callable[[Any, Any, Mapping[str, Array]], Float[Array, "B 1"]],
    reference: Any,
    sources: Mapping[str, EvalPass],
    where: NamedSharding,
    max_batches: int,
) -> Callable[[Any], tuple[dict[str, float], list]]:
    """The evaluation `run(params)`: the implicit reward of held-out answers by label, and how well it tells them apart.

    rewards(params, reference, batch): of each answer. Metrics of each source: reward/good and reward/bad, the means;
    auc, the share of pairs of a good and a bad answer in which the good one has more (a tie counts half).
    """

    def run(params: Any) -> tuple[dict[str, float], list]:
        metrics = {}
        for name, answers in sources.items():
            found, is_good = [], []
            for step in range(min(len(answers), max_batches)):
                real = answers.real(step)
                found.append(np.asarray(rewards(params, reference, device_batch(answers, step, where)))[:real, 0])
                is_good.append(answers[step]["desirable"][:real, 0] > 0)
            metrics |= {
                f"{name}/{key}": value for key, value in tell_apart(*map(np.concatenate, (found, is_good))).items()
            }
        return metrics, []

    return run


def tell_apart(rewards: np.ndarray, is_good: np.ndarray) -> dict[str, float]:
    """Metrics of `heldout_answers`; those of a label that no answer has are left out."""
    good, bad = rewards[is_good], rewards[~is_good]
    metrics = {f"reward/{name}": float(of.mean()) for name, of in (("good", good), ("bad", bad)) if len(of)}
    if len(good) and len(bad):
        gaps = good[:, None] - bad[None]
        metrics["auc"] = float(np.where(gaps == 0, 0.5, gaps > 0).mean())
    return metrics
