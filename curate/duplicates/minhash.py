"""MinHash and banding: sets that are similar share the key of a band with a chance that their Jaccard index sets.

Broder, "On the resemblance and containment of documents", 1997; Leskovec, Rajaraman and Ullman, "Mining of Massive
Datasets", section 3.4. Two sets of Jaccard index j share a given one of `bands` keys with the chance j^rows, so one or
more of them with 1 - (1 - j^rows)^bands.
"""

from typing import NamedTuple

import numpy as np

from .shingles import ShingleSets, mixed

RECALL = 0.99
"""Least chance that a pair just at the threshold shares the key of a band."""


class Banding(NamedTuple):
    """How the values of a signature are grouped."""

    bands: int
    """Keys of a set."""

    rows: int
    """Values of the signature that make up one key."""

    def recall(self, jaccard: float) -> float:
        """The chance that two sets of this Jaccard index share a key."""
        return 1 - (1 - jaccard**self.rows) ** self.bands


def banding(permutations: int, threshold: float) -> Banding | None:
    """The bands that a signature of `permutations` values is grouped into for pairs of Jaccard index `threshold` and
    above: those of most rows whose recall there is at least RECALL. None if no bands have that recall."""
    for rows in range(permutations, 0, -1):
        found = Banding(permutations // rows, rows)
        if found.recall(threshold) >= RECALL:
            return found
    return None


def band_keys(sets: ShingleSets, banding: Banding, salt: int) -> np.ndarray:
    """The keys of each set that is not empty, as uint64 of shape (bands, sets).

    A permutation of the hashes is x -> a x + b modulo 2^32, with a odd, over hashes that are well mixed before.

    Args:
      sets: the sets.
      banding: the bands.
      salt: sets with another salt share no key, unless by chance.
    """
    sizes = sets.sizes[sets.sizes > 0]
    keys = np.empty((banding.bands, len(sizes)), np.uint64)
    if not len(sizes):
        return keys
    starts = np.cumsum(sizes) - sizes
    hashes = (sets.hashes >> np.uint64(16)).astype(np.uint32)  # the high 32 of 48 bits
    coefficients = mixed(np.arange(1, 2 * banding.bands * banding.rows + 1, dtype=np.uint64) << np.uint64(20))
    factors, shifts = (coefficients.astype(np.uint32)).reshape(banding.bands, banding.rows, 2).transpose(2, 0, 1)
    permuted = np.empty_like(hashes)
    for band in range(banding.bands):
        key = mixed(np.full(len(sizes), salt * banding.bands + band + 1, np.uint64))
        for row in range(banding.rows):
            np.multiply(hashes, factors[band, row] | np.uint32(1), out=permuted)
            permuted += shifts[band, row]
            key = mixed(key + np.minimum.reduceat(permuted, starts))
        keys[band] = key
    return keys
