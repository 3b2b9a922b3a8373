"""Preference pairs of a run: where they come from, and how well something ranks their sides."""

from collections.abc import Mapping

import numpy as np

from ..data.mixture import EvalPass, Mixture
from ..data.pairs import PairEncoder
from ..data.templates import ChatTemplate
from ..data.tokenizer import Tokenizer
from ..train.settings import Settings
from .setup import samples_of


def pairs_of(
    settings: Settings, tokenizer: Tokenizer, template: ChatTemplate, *, sides: int = 2
) -> tuple[Mixture, dict[str, EvalPass]]:
    """The pairs of `config.data.mixture` to train on, and one pass over those that each source holds out."""
    data = settings.data
    encoder = PairEncoder(tokenizer, template, data.seq_len, data.noise, sides)
    return samples_of(settings, encoder, heldout=PairEncoder(tokenizer, template, data.seq_len))


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
