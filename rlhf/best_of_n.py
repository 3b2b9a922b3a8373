"""Best-of-n sampling: draw n answers and give the one that the reward model scores highest. It needs no training."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def best_of_n(proxy: Float[np.ndarray, "B N"], values: Float[np.ndarray, "B N"], n: int) -> float:
    """The expected value of best-of-n sampling, the mean over prompts, estimated from N >= n answers to each prompt.

    It is the exact average over all subsets of n of the N answers (Nakano et al., arXiv:2112.09332, appendix I).
    Sorted by proxy score, answer i (from 0) is the best in C(i, n - 1) of the C(N, n) subsets.

    Args:
      proxy: the scores by which the best answer is chosen. The order of equal scores is arbitrary.
      values: the values of the answers that are averaged.
      n: answers of a subset. Raises ValueError unless it is 1 to N.
    """
    N = proxy.shape[1]
    if not 1 <= n <= N:
        raise ValueError(f"best of {n} from {N} answers: give an n from 1 to {N}")
    order = np.argsort(proxy, axis=1, kind="stable")
    ranked = np.take_along_axis(values, order, axis=1)
    shares = np.array([math.comb(i, n - 1) / math.comb(N, n) for i in range(N)])
    return float((ranked @ shares).mean())


def kl_of_best_of_n(n: int) -> float:
    """KL(best of n || policy) in nats, log n - (n - 1) / n (Stiennon et al., arXiv:2009.01325, appendix G.3)."""
    return math.log(n) - (n - 1) / n


def curve(proxy: Float[np.ndarray, "B N"], gold: Float[np.ndarray, "B N"], ns: Sequence[int]) -> list[dict[str, float]]:
    """For each n of `ns` a row {"n", "kl" in nats, "proxy", "gold"}: the mean scores of the best of n answers by proxy.

    proxy, gold: both scores of N answers to each prompt.
    """
    return [
        {"n": n, "kl": kl_of_best_of_n(n), "proxy": best_of_n(proxy, proxy, n), "gold": best_of_n(proxy, gold, n)}
        for n in ns
    ]
