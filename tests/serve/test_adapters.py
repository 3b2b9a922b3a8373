"""Adapters that each request chooses: their own numbers, in any company, and the model's own where none is chosen."""

import dataclasses

import jax
import numpy as np
import pytest

from camelid.checkpoints.language_model import LanguageModel
from camelid.errors import UserError
from camelid.model import lora
from camelid.model.lora import Lora
from camelid.model.sampling import Sampling
from camelid.model.weights import is_weight
from camelid.serve.engine import Engine
from camelid.serve.requests import Request
from camelid.tests.serve.test_engine import V, bits, language_model

KINDS = {
    "all": Lora(targets=((r"layers/(attention|mlp)/.*|head/kernel", 4),)),
    "some": Lora(targets=((r"layers/attention/[qv]|layers/mlp/down", 2),), alpha=8.0, rank_stabilized=True),
    "dora": Lora(targets=((r"layers/(attention|mlp)/.*", 3),), dora=True),
    "pissa": Lora(targets=((r"layers/(attention|mlp)/.*", 4),), init="pissa"),
}


def adapted(base: LanguageModel, kind: Lora, seed: int) -> LanguageModel:
    """The model with trained adapters: random ones."""
    keys = iter(jax.random.split(jax.random.key(seed), 100))

    def train(name, x):
        return x + 0.1 * jax.random.normal(next(keys), x.shape) if name in ("a", "b", "magnitude") else x

    put = lora.adapt(kind, base.params, base.model.abstract_params, jax.random.key(seed))
    nodes, tree = jax.tree.flatten(put, is_leaf=is_weight)
    trained = [
        {n: x if n == "base" else train(n, x) for n, x in node.items()} if is_weight(node) and "gain" in node else node
        for node in nodes
    ]
    return LanguageModel(base.model, jax.tree.unflatten(tree, trained), None, None, base.mesh)


def some_requests() -> list[Request]:
    """Requests of every adapter and of none, with prompts in common."""
    rng = np.random.default_rng(0)
    shared, found = rng.integers(1, V, 20).tolist(), []
    for i, adapter in enumerate([*KINDS, None] * 3):
        prompt = [*shared, *rng.integers(1, V, 1 + i % 7).tolist()] if i < 10 else rng.integers(1, V, 5).tolist()
        sampling = Sampling(max_tokens=8, temperature=0.0 if i % 2 else 0.9, n=1 + (i % 4 == 3))
        found.append(Request(prompt, sampling, seed=i, top=2, score_prompt=i % 3 == 0, adapter=adapter))
    return found


def is_near(found, expected) -> bool:
    """Whether answers have the same tokens and nearly the same log-probabilities."""
    for (tokens, prompt, _), (known, known_prompt, _) in zip(found, expected, strict=True):
        if [token.id for token in tokens] != [token.id for token in known]:
            return False
        for mine, other in ((tokens, known), (prompt[1:], known_prompt[1:])):
            close = np.allclose([each.logprob for each in mine], [each.logprob for each in other], atol=3e-4)
            if not close:
                return False
    return True


@pytest.mark.parametrize(
    "how", [{}, dict(quantize="int8"), dict(axes={"data": 1, "tensor": 4}), dict(tied=True)], ids=str
)
def test_each_answer_has_the_bits_of_its_adapters_alone_and_their_numbers(how):
    base = language_model(**how)
    kinds = {name: kind for name, kind in KINDS.items() if not (how.get("tied") and name == "all")}
    models = {name: adapted(base, kind, seed) for seed, (name, kind) in enumerate(kinds.items())}
    requests = [request for request in some_requests() if request.adapter in (None, *kinds)]
    with Engine(base, rows=3, chunk=8, adapters=models) as engine:
        alone = [bits(engine.generate([request])[0]) for request in requests]
    with Engine(base, rows=3, chunk=8, adapters=models) as engine:
        assert [bits(answers) for answers in engine.generate(requests)] == alone
    for name, model in {None: base, **models}.items():
        with Engine(model, rows=3, chunk=8) as engine:
            for request, expected in zip(requests, alone, strict=True):
                if request.adapter == name:
                    found = bits(engine.generate([dataclasses.replace(request, adapter=None)])[0])
                    assert found == expected if name is None else is_near(found, expected)
    different = {str([token.id for token in answers[0][0]]) for answers in alone}
    assert len(different) > len(alone) // 2


def test_prompts_are_read_by_each_adapter_itself_and_an_answer_alone_has_its_own_program():
    base = language_model()
    models = {"some": adapted(base, KINDS["some"], seed=0)}
    prompt = np.random.default_rng(1).integers(1, V, 30).tolist()
    with Engine(base, rows=2, chunk=8, adapters=models) as engine:
        for adapter in (None, "some"):
            request = Request(prompt, Sampling(max_tokens=2), adapter=adapter)
            assert [engine.generate([request])[0][0].cached for _ in range(2)] == [0, 24]
        asked = {name: Request(prompt, Sampling(), adapter=name) for name in models}
        exact = {name: bits(engine.generate([request])[0]) for name, request in asked.items()}
        with pytest.raises(UserError, match="adapters 'other': give one of some"):
            engine.submit(Request(prompt, Sampling(), adapter="other"))
    with Engine(base, rows=2, chunk=8, adapters=models, exact=False) as engine:
        for name, expected in exact.items():
            assert is_near(bits(engine.generate([asked[name]])[0]), expected)


def test_adapters_that_change_more_than_their_matrices_are_refused():
    base = language_model()
    other = adapted(base, KINDS["some"], 0)
    other.params = other.params | {"norm": {"scale": base.params["norm"]["scale"] * 2}}
    with pytest.raises(UserError, match=r"adapters mine: norm/scale was trained whole, .*: serve them alone"):
        Engine(base, rows=2, chunk=8, adapters={"mine": other})
