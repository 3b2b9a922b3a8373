"""Preference pairs of a run: where they come from, and how well something ranks their sides."""

from collections.abc import Mapping

import numpy as np

from ..data.pairs import PairBatches, pair_pass
from ..data.samples import SourcePart, SourcePass
from ..data.templates import ChatTemplate
from ..data.tokenizer import Tokenizer
from ..train.settings import Settings


def pairs_of(
    settings: Settings, tokenizer: Tokenizer, template: ChatTemplate, *, sides: int = 2
) -> tuple[list[SourcePart], PairBatches, dict[str, SourcePass]]:
    """The sources of `config.data.mixture`, their pairs to train on, and those held out."""
    data = settings.data
    parts = [SourcePart(name, s.source, s.format, s.weight) for name, s in data.mixture.items()]
    common = dict(
        tokenizer=tokenizer,
        template=template,
        batch_size=data.batch_size,
        length=data.seq_len,
        heldout=data.heldout,
        on_error=data.on_error,
        max_record_bytes=data.max_record_bytes,
    )
    chosen = dict(max_pairs=data.max_pairs, noise=data.noise, sides=sides)
    batches = PairBatches(parts, **common, **chosen, seed=settings.seed)
    if not data.heldout:
        return parts, batches, {}
    return parts, batches, {part.name: pair_pass(part.source, format=part.format, **common) for part in parts}


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
