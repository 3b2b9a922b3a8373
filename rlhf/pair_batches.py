"""Preference pairs: the settings that runs on them share, their batches, and metrics of how well scores rank them."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from ..data.mixture import EvalPass, Mixture
from ..data.pairs import PairEncoder
from ..data.samples import SampleEncoder, read_samples
from ..data.templates import ChatTemplate
from ..data.tokenizer import Tokenizer
from ..errors import UserError
from ..settings.leaves import Count, Range, Share, Units
from ..settings.length import Length
from ..train.batches import BatchSize, ReadingSettings, RowLength, check_system, sources_of
from ..train.optimizer import OptimSettings, ScheduleSettings
from ..train.run_config import RunConfig


@dataclass(frozen=True)
class PairDataSettings(ReadingSettings):
    """The section `config.data` of preference pairs."""

    batch_size: BatchSize = 64
    """Number of pairs of a batch (InstructGPT, arXiv:2203.02155, appendix C.2)."""

    heldout: Annotated[float, Range(least=0, below=1)] = 0.05
    """Share of each source's records that is held out for evaluation."""

    seq_len: RowLength = 512
    """The most tokens of a prompt with its answer. A pair with a longer side is left out and counted, never cut."""

    noise: Share = 0.0
    """Share of the training pairs whose sides are exchanged, to simulate errors of labelling."""

    max_pairs: Count | None = None
    """The most training pairs of each source, the first of its records. None: all."""


@dataclass(frozen=True)
class PairsConfig(RunConfig):
    """The settings that reward models and direct preference optimisation share."""

    data: PairDataSettings = PairDataSettings()
    """Preference pairs, and how they are read."""

    total: Annotated[Length, Units("steps", "epochs", "tokens", least=1)] = Length(1.0, "epochs")
    """Length of the run. More than one epoch overfits (InstructGPT, appendix C.2)."""

    optim: OptimSettings = OptimSettings(lr=9e-6, weight_decay=0.0)
    """The optimiser, with InstructGPT's learning rate for 6B (appendix C.2)."""

    schedule: ScheduleSettings = ScheduleSettings(warmup=Length(3.0, "percent"))
    """The learning rate over the run."""

    eval_batches: Count = 16
    """The most held-out batches of each source that an evaluation reads."""

    def check(self, where: str) -> None:
        if self.init_from is None:
            raise UserError(f"{where}.init_from = None: give the path of the tuned model that the run starts from")
        super().check(where)


def samples_of(
    settings: PairDataSettings, encoder: SampleEncoder, seed: int, *, heldout: SampleEncoder
) -> tuple[Mixture, dict[str, EvalPass]]:
    """Endless training batches of `config.data.mixture`, and one pass over each source's held-out part.

    Args:
      settings: `config.data`.
      encoder: encoder of the training samples.
      seed: seed of the order of samples.
      heldout: encoder of the held-out samples.
    """
    sources = sources_of(settings.mixture, settings)
    train = functools.partial(read_samples, split="train", encoder=encoder, limit=settings.max_pairs)
    batches = Mixture(sources, train, settings.batch_size, seed)
    measured = {source.name: read_samples(source, "heldout", heldout) for source in sources if source.heldout}
    return batches, {name: EvalPass(samples, settings.batch_size) for name, samples in measured.items()}


def pairs_of(
    settings: PairDataSettings, tokenizer: Tokenizer, template: ChatTemplate, seed: int, *, answers_per_prompt: int = 2
) -> tuple[Mixture, dict[str, EvalPass]]:
    """Endless batches of the pairs of `config.data.mixture`, and one pass over each source's held-out pairs.

    Args:
      settings: `config.data`.
      tokenizer: the run's tokenizer.
      template: the run's chat template.
      seed: seed of the order of pairs.
      answers_per_prompt: number of sides of a training pair; held-out pairs have 2.
    """
    check_system(settings.system, template, tokenizer)
    encoder = PairEncoder(tokenizer, template, settings.seq_len, settings.noise, answers_per_prompt)
    return samples_of(settings, encoder, seed, heldout=PairEncoder(tokenizer, template, settings.seq_len))


def describe_ranking(gaps: np.ndarray, records: list[Mapping]) -> dict[str, float]:
    """Metrics of how well scores rank pairs.

    Args:
      gaps: for each pair, the score of the answer that should win minus the score of the other one.
      records: the records of the pairs (`data.pairs`), with their language and margin.

    Returns:
      accuracy, the share of positive gaps (a tie counts half); loss, the Bradley-Terry loss; calibration_error; gap,
      the mean; accuracy by language; and, if all pairs have margins, accuracy by terciles of the margin.
    """
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
    """Expected calibration error (arXiv:1706.04599) of the Bradley-Terry probabilities sigmoid(gap).

    Each pair counts twice, once from each side. Probabilities fall into equal bins. The error is the mean distance of
    predicted and observed share of wins, each bin weighted by its number of entries.
    """
    gaps, won = np.concatenate([gaps, -gaps]), np.repeat([1.0, 0.0], len(gaps))
    probability = np.exp(-np.logaddexp(0.0, -gaps))
    place = np.minimum((probability * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    distance = np.abs(np.bincount(place, probability - won, minlength=bins))
    return float(distance[counts > 0].sum() / counts.sum())
