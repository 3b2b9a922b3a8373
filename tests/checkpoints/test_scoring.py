"""Likelihoods of continuations that share rows and contexts, beside one text at a time."""

import jax
import numpy as np
import pytest

from camelid.checkpoints import scoring
from camelid.checkpoints.language_model import LanguageModel
from camelid.model import llama
from camelid.model.config import LlamaConfig
from camelid.model.sharding import make_mesh


def make(axes=None, **changes) -> LanguageModel:
    """A random network."""
    config = LlamaConfig.preset("nano-test", vocab_size=96, max_len=1024).replace(**changes)
    model = llama.build(config)
    params = jax.tree.map(lambda x: 2 * x, jax.jit(model.init)(jax.random.key(0)))
    return LanguageModel(model, params, None, None, make_mesh(axes or {}, jax.devices()[: 8 if axes else 1]))


def requests():
    """Contexts with many, some and one continuation; of one token, of none that differ, longer than a row."""
    rng = np.random.default_rng(0)

    def some(n):
        return rng.integers(1, 96, n).tolist()

    few, letters, begin = some(40), some(25), [1]
    found = [(few, some(n)) for n in (1, 7, 7, 30)] + [(letters, [n]) for n in (5, 6, 7, 5)]
    found += [(begin, some(n)) for n in (3, 90, 200, 300, 17)] + [(some(n), some(4)) for n in (2, 130, 510)]
    found += [(few[:20], few[20:]), (few, found[1][1][:4]), (some(600), some(9)), (few, some(480))]
    return found


def expected(model, context, continuation):
    logits = np.asarray(model.logits([[*context, *continuation]]), np.float64)[0]
    logp = (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )
    places = np.arange(len(context) - 1, len(context) + len(continuation) - 1)
    return logp[places, continuation], logits[places].argmax(-1) == continuation


@pytest.mark.parametrize(
    "changes",
    [{}, {"attention": "xla"}, {"window": 64}, {"axes": {"data": 2, "fsdp": 2, "tensor": 2}}],
    ids=["shared", "xla", "window: not shared", "mesh"],
)
def test_each_continuation_has_its_likelihood_alone(changes):
    model, asked = make(**changes), requests()
    for (context, continuation), found in zip(asked, scoring.likelihoods(model, asked), strict=True):
        logp, is_greedy = expected(model, context, continuation)
        np.testing.assert_allclose(found.logp, logp, atol=2e-4)
        np.testing.assert_array_equal(found.is_greedy, is_greedy)


def test_a_context_is_computed_once_for_all_its_continuations():
    asked = [([1] * 100, [n, n + 1, n + 2]) for n in range(20)]
    shared, _ = scoring._texts(asked, shares=True)
    alone, _ = scoring._texts(asked, shares=False)
    assert [len(text.tokens) for text in shared] == [100 + 20 * 2]
    assert [len(text.tokens) for text in alone] == [102] * 20
    letters, _ = scoring._texts([([1] * 100, [n]) for n in range(20)], shares=False)
    assert [len(text.tokens) for text in letters] == [100]
