"""Answers that must fit a JSON schema, beside others that need not."""

import json

import jax
import numpy as np
import pytest

from camelid.checkpoints.language_model import LanguageModel
from camelid.errors import UserError
from camelid.model import llama
from camelid.model.config import LlamaConfig
from camelid.model.sampling import Sampling
from camelid.model.sharding import make_mesh
from camelid.serve.engine import Engine
from camelid.serve.grammar import Grammars
from camelid.serve.requests import Request

END = 256


class Bytes:
    """A tokenizer whose tokens are bytes, and one that ends answers."""

    token_bytes = [bytes([i]) for i in range(256)] + [b""]

    def encode(self, text, *, continues=False):
        return list(text.encode())

    def decode(self, ids):
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")


OBJECT = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "ok": {"type": "boolean"}, "name": {"enum": ["red", "狐狸"]}},
    "required": ["ok", "n", "name"],
    "additionalProperties": False,
}
SCHEMAS = {
    "object": (OBJECT, lambda x: type(x["ok"]) is bool and type(x["n"]) is int and x["name"] in ("red", "狐狸")),
    "enum": ({"enum": ["blue", 7, None]}, lambda x: x in ("blue", 7, None)),
    "array": (
        {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
        lambda x: 2 <= len(x) <= 4 and all(type(each) is bool for each in x),
    ),
    "number": ({"type": "integer", "minimum": 5, "maximum": 12}, lambda x: 5 <= x <= 12),
    "any object": ({}, lambda x: isinstance(x, dict)),
}


@pytest.fixture(scope="module")
def grammars():
    return Grammars(Bytes(), 260, [END])


@pytest.fixture(scope="module")
def engine():
    config = LlamaConfig.from_dict(
        dict(vocab_size=260, dim=32, n_layers=1, n_heads=4, n_kv_heads=2, ffn_dim=64, max_len=256, tied=True)
    )
    model = llama.build(config)
    params = jax.jit(model.init)(jax.random.key(0))
    mesh = make_mesh({}, jax.devices()[:1])
    with Engine(LanguageModel(model, params, None, None, mesh), rows=4, chunk=8) as found:
        yield found


def test_finished_answers_fit_and_their_neighbours_do_not_notice(grammars, engine):
    settings = Sampling(max_tokens=200, stop_ids=(END,), n=2)
    plain = Request([1, 2, 3], Sampling(max_tokens=60), seed=3)
    alone = engine.generate([plain])[0][0].tokens
    finished = 0
    for name, (schema, fits) in SCHEMAS.items():
        grammar = grammars.of_schema(schema)
        requests = [plain, *(Request([5, 6], settings, seed=seed, grammar=grammar) for seed in range(4))]
        first, *others = engine.generate(requests)
        assert first[0].tokens == alone
        for answer in (answer for answers in others for answer in answers):
            if answer.finish_reason == "stop":
                text = Bytes().decode(token.id for token in answer.tokens)
                assert fits(json.loads(text)), (name, text)
                finished += 1
    assert finished > 20


def test_log_probabilities_are_the_models_own(grammars, engine):
    request = Request([5], Sampling(max_tokens=4, temperature=0), grammar=grammars.of_schema({"enum": ["abc"]}), top=1)
    answer = engine.generate([request])[0][0]
    assert Bytes().decode(token.id for token in answer.tokens) == '"abc'
    logits_TV = engine.model.logits(np.array([[5, *b'"ab']]))[0]
    expected = [float(jax.nn.log_softmax(logits_TV[i])[byte]) for i, byte in enumerate(b'"abc')]
    np.testing.assert_allclose([token.logprob for token in answer.tokens], expected, atol=1e-4)


@pytest.mark.parametrize("schema", [{"type": "nothing"}, {"$ref": "#/nowhere"}, {"type": "string", "pattern": "(?<x"}])
def test_schemas_that_are_not_supported_are_told(grammars, schema):
    with pytest.raises(UserError, match="JSON schema is not"):
        grammars.of_schema(schema)
