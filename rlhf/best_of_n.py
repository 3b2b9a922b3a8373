"""Best-of-n sampling: n answers, of which the reward model's favourite is given. The baseline without any training."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def best_of_n(proxy: Float[np.ndarray, "B N"], values: Float[np.ndarray, "B N"], n: int) -> float:
    """The mean over prompts of `values` of the best of n answers by `proxy`, estimated from N >= n answers to each.

    It averages over all choices of n of the N, without drawing any (Nakano et al., arXiv:2112.09332, appendix I):
    sorted by proxy, answer i is the best of those chosen in C(i, n - 1) of C(N, n) cases, i from 0. Where proxies are
    equal the order is arbitrary. Raises ValueError for an n that is not among 1 to N.
    """
    N = proxy.shape[1]
    if not 1 <= n <= N:
        raise ValueError(f"best of {n} from {N} answers: n is 1 to {N}")
    order = np.argsort(proxy, axis=1, kind="stable")
    ranked = np.take_along_axis(values, order, axis=1)
    shares = np.array([math.comb(i, n - 1) / math.comb(N, n) for i in range(N)])
    return float((ranked @ shares).mean())


def kl_of_best_of_n(n: int) -> float:
    """KL(best of n || policy) in nats, log n - (n - 1) / n (Stiennon et al., arXiv:2009.01325, appendix G.3)."""
    return math.log(n) - (n - 1) / n


def curve(proxy: Float[np.ndarray, "B N"], gold: Float[np.ndarray, "B N"], ns: Sequence[int]) -> list[dict[str, float]]:
    """For each n: "n", "kl", and the mean "proxy" and "gold" of the best of n by proxy."""
    return [
        {"n": n, "kl": kl_of_best_of_n(n), "proxy": best_of_n(proxy, proxy, n), "gold": best_of_n(proxy, gold, n)}
        for n in ns
    ]
