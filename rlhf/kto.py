"""Kahneman-Tversky optimisation (KTO, arXiv:2402.01306): its data, its reference point, and its evaluation.

KTO learns from single answers labelled good or bad (`data.labelled_answers`), or from pairs, as a good and a bad one.
Its reference point is the divergence of the policy from the reference on answers to other prompts.
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
from ..model.sharding import on_host
from ..train.batches import check_system, sources_of
from .pair_batches import PairDataSettings, pairs_of, samples_of

_MULTIPLIER = 0x9E3779B1  # of the hash; odd, so that its powers never become 0 in 32 bits


def is_labelled(settings: PairDataSettings) -> bool:
    """Whether `config.data.mixture` holds labelled answers (True) or pairs (False), by the first record of each source.

    Raises UserError for a mixture of both.
    """
    kinds = {}
    for source in sources_of(settings.mixture, settings):
        first = next(read(source), {"kind": "nothing"})
        kinds.setdefault(first["kind"] != "preference", source.name)
    if len(kinds) > 1:
        raise UserError(
            f"config.data.mixture: {kinds[True]} holds labelled answers and {kinds[False]} pairs: leave one out, since "
            "a run of KTO learns from one kind only"
        )
    return True in kinds


def answers_of(
    settings: PairDataSettings, tokenizer: Tokenizer, template: ChatTemplate, seed: int
) -> tuple[Mixture, dict[str, EvalPass]]:
    """Endless batches of the labelled answers of `config.data.mixture`, and one pass over each source's held-out part.

    Args:
      settings: `config.data`.
      tokenizer: the run's tokenizer.
      template: the run's chat template.
      seed: seed of the order of records.
    """
    if settings.noise:
        raise UserError(
            f"config.data.noise = {settings.noise:g} exchanges the sides of pairs: set it to 0 for labelled answers"
        )
    check_system(settings.system, template, tokenizer)
    encoder = AnswerEncoder(tokenizer, template, settings.seq_len)
    return samples_of(settings, encoder, seed, heldout=encoder)


def answers_or_pairs_of(
    settings: PairDataSettings, tokenizer: Tokenizer, template: ChatTemplate, seed: int
) -> tuple[Mixture, dict[str, EvalPass]]:
    """`answers_of` where the mixture holds labelled answers, `pairs_of` where it holds pairs; same arguments."""
    return (answers_of if is_labelled(settings) else pairs_of)(settings, tokenizer, template, seed)


def mismatch_answers(batch: Mapping[str, Array]) -> tuple[dict[str, Array], Float[Array, " B"]]:
    """Joins each prompt with the answer to another prompt of the batch, for KTO's reference point (section 4.1).

    The answer is that of the next row with another prompt; of a pair it is the chosen one.

    Returns:
      Rows of S = 1 side for `dpo.score_pairs`, an answer cut where its row ends, and the weight of each row: 1, or 0 if
      all prompts of the batch are the same.
    """
    tokens_BT, mask_BT = batch["tokens"][:, 0], batch["answer_mask"][:, 0]
    T = tokens_BT.shape[1]
    begin_B, length_B = jnp.argmax(mask_BT, axis=1), batch["lengths"][:, 0]
    in_prompt_BT = jnp.arange(T)[None] < begin_B[:, None]
    other_B, exists_B = _row_of_another_prompt(tokens_BT, in_prompt_BT)
    shift_B = begin_B - begin_B[other_B]
    source_BT = jnp.clip(jnp.arange(T)[None] - shift_B[:, None], 0, T - 1)
    length_B = jnp.minimum(length_B[other_B] + shift_B, T)
    real_BT = jnp.arange(T)[None] < length_B[:, None]
    taken_BT, taken_mask_BT = (jnp.take_along_axis(x[other_B], source_BT, axis=1) for x in (tokens_BT, mask_BT))
    tokens_BT = jnp.where(in_prompt_BT, tokens_BT, taken_BT) * real_BT
    mask_BT = jnp.where(in_prompt_BT, 0.0, taken_mask_BT) * real_BT
    rows = {"tokens": tokens_BT[:, None], "answer_mask": mask_BT[:, None], "lengths": length_B[:, None]}
    return rows, exists_B.astype(jnp.float32)


def _row_of_another_prompt(
    tokens_BT: Int[Array, "B T"], in_prompt_BT: Bool[Array, "B T"]
) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
    """For each row the next row with a different prompt, cyclically, and whether there is such a row."""
    B, T = tokens_BT.shape
    powers_T = np.cumprod(np.full(T, _MULTIPLIER, np.uint32), dtype=np.uint32)
    digits_BT = jnp.where(in_prompt_BT, tokens_BT + 1, 0).astype(jnp.uint32)
    hash_B = jnp.sum(digits_BT * powers_T[None], axis=1, dtype=jnp.uint32)  # prompts of different hashes differ
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
    """Makes the evaluation of implicit rewards on held-out labelled answers.

    Args:
      rewards: rewards(params, reference, batch) -> the implicit reward of each answer.
      reference: the reference's parameters.
      sources: one pass over the held-out answers of each source.
      where: the sharding of rows.
      max_batches: the most batches of each source.

    Returns:
      run(params) -> (metrics, []), the metrics of `label_metrics` as "<source>/<metric>".
    """

    def run(params: Any) -> tuple[dict[str, float], list]:
        metrics = {}
        for name, answers in sources.items():
            found, is_good = [], []
            for step in range(min(len(answers), max_batches)):
                real = answers.real(step)
                found.append(on_host(rewards(params, reference, device_batch(answers, step, where)))[:real, 0])
                is_good.append(answers[step]["desirable"][:real, 0] > 0)
            metrics |= {
                f"{name}/{key}": value for key, value in label_metrics(*map(np.concatenate, (found, is_good))).items()
            }
        return metrics, []

    return run


def label_metrics(rewards: np.ndarray, is_good: np.ndarray) -> dict[str, float]:
    """How well rewards [R] separate good from bad answers.

    "reward/good" and "reward/bad" are their means. "auc" is the share of pairs of a good and a bad answer in which the
    good one has the higher reward; a tie counts half. Metrics of a label that no answer has are left out.
    """
    good, bad = rewards[is_good], rewards[~is_good]
    metrics = {f"reward/{name}": float(of.mean()) for name, of in (("good", good), ("bad", bad)) if len(of)}
    if len(good) and len(bad):
        gaps = good[:, None] - bad[None]
        metrics["auc"] = float(np.where(gaps == 0, 0.5, gaps > 0).mean())
    return metrics
