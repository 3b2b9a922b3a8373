"""Embeddings: the network's own states over whole texts, the same bits in any company, and OpenAI's objects of them."""

import dataclasses

import jax
import numpy as np
import openai
import pytest

from camelid.errors import UserError
from camelid.model.sampling import Sampling
from camelid.serve.embeddings import embedding_of
from camelid.serve.engine import Engine
from camelid.serve.requests import Request
from camelid.tests.serve.plain_requests import ask, counters
from camelid.tests.serve.test_adapters import KINDS, adapted
from camelid.tests.serve.test_engine import CONFIG, V, bits, language_model, some_requests

SIZES = (1, 7, 8, 9, 33, 63, 64)
"""Numbers of tokens around the ends of chunks of 8, up to the context."""
TEXTS = ["the red fox", "狐狸", "the blue owl sees the green wolf and the black bee. " * 2, "a"]


def texts_to_embed(adapter=None) -> list[Request]:
    rng = np.random.default_rng(0)
    return [
        Request(rng.integers(1, V, size).tolist(), Sampling(max_tokens=1), embed=True, adapter=adapter)
        for size in SIZES
    ]


def states(model, tokens) -> np.ndarray:
    """The states that the output head reads, by the network over the whole text."""
    padded_1T = np.zeros((1, 128), np.int32)
    padded_1T[0, : len(tokens)] = tokens
    with jax.set_mesh(model.mesh):
        return np.asarray(jax.jit(model.model.hidden)(model.params, padded_1T)[0, : len(tokens)], np.float64)


def same_bits(found, expected) -> bool:
    return all(
        np.array_equal(a, b) for one, two in zip(found, expected, strict=True) for a, b in zip(one, two, strict=True)
    )


@pytest.mark.parametrize("how", [{}, dict(tied=True, window=20), dict(axes={"data": 1, "tensor": 4})], ids=str)
def test_states_are_those_of_the_network_over_the_whole_text_also_with_adapters(how):
    base = language_model(**how)
    poet = adapted(base, KINDS["some"], seed=0)
    with Engine(base, rows=3, chunk=8, adapters={"poet": poet}) as engine:
        for name, model in ((None, base), ("poet", poet)):
            for (answer,) in engine.generate(texts_to_embed(name)):
                expected_TD = states(model, answer.request.prompt)
                pooled = {"mean": expected_TD.mean(axis=0), "last": expected_TD[-1]}
                for pooling, expected_D in pooled.items():
                    found_D = embedding_of(answer, pooling)
                    assert found_D.dtype == np.float32 and np.linalg.norm(found_D) == pytest.approx(1, abs=1e-6)
                    np.testing.assert_allclose(found_D, expected_D / np.linalg.norm(expected_D), atol=1e-5)
                assert (answer.finish_reason, answer.tokens, answer.cached) == ("stop", [], 0)


def test_embeddings_are_the_same_bits_beside_answers_that_are_written_and_leave_theirs_alone():
    model = language_model()
    texts, others = texts_to_embed(), some_requests()
    with Engine(model, rows=4, chunk=8) as engine:
        alone = [engine.generate([text])[0][0].hidden for text in texts]
        assert engine.kept_blocks == 0
        expected = [bits(engine.generate([other])[0]) for other in others]
    with Engine(model, rows=4, chunk=8) as engine:
        order = np.random.default_rng(2).permutation(len(others))
        submitted, embedded = {}, []
        for number, i in enumerate(order):
            submitted[i] = engine.submit(others[i])
            embedded.append(engine.submit(texts[number % len(texts)])[0])
        engine.submit(texts[-1])[0].cancel()
        found = [answer.wait().hidden for answer in embedded]
        assert same_bits(found, [alone[number % len(texts)] for number in range(len(order))])
        for i, answers in submitted.items():
            assert bits([answer.wait() for answer in answers]) == expected[i]
        assert engine.running == engine.waiting == 0


def test_texts_beyond_the_context_and_several_embeddings_of_one_are_refused():
    with Engine(language_model(), rows=2, chunk=8) as engine:
        with pytest.raises(UserError, match="the text has 65 tokens, more than the context of 64"):
            engine.submit(Request([1] * 65, Sampling(max_tokens=1), embed=True))
        with pytest.raises(UserError, match="n 2: a text has one embedding"):
            engine.submit(dataclasses.replace(texts_to_embed()[0], sampling=Sampling(max_tokens=1, n=2)))
        with pytest.raises(UserError, match="the prompt is empty"):
            engine.submit(Request([], Sampling(max_tokens=1), embed=True))
        assert engine.generate([Request([1], Sampling(max_tokens=1), embed=True)])[0][0].hidden.sum_D.shape == (
            CONFIG.dim,
        )


# OpenAI's objects


@pytest.mark.parametrize("name", ["nano", "poet"])
def test_texts_and_token_ids_are_embedded_in_their_order(client, models, name):
    model = models[0].model if name == "nano" else models[1]
    tokenizer = model.tokenizer
    ids = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in TEXTS]
    found = client.embeddings.create(model=name, input=TEXTS)  # as base64, which the client asks for by itself
    assert [each.index for each in found.data] == list(range(len(TEXTS))) and found.model == name
    for tokens, each in zip(ids, found.data, strict=True):
        mean_D = states(model, tokens).mean(axis=0)
        np.testing.assert_allclose(each.embedding, mean_D / np.linalg.norm(mean_D), atol=1e-5)
    assert found.usage.prompt_tokens == found.usage.total_tokens == sum(map(len, ids))
    vectors = [each.embedding for each in found.data]
    for given in (TEXTS, ids):
        plain = client.embeddings.create(model=name, input=given, encoding_format="float")
        assert [each.embedding for each in plain.data] == vectors
        alone = client.embeddings.create(model=name, input=given[2], dimensions=model.config.dim)
        assert alone.data[0].embedding == vectors[2] and alone.usage.prompt_tokens == len(ids[2])
    assert len({tuple(vector) for vector in vectors}) == len(TEXTS)


def test_the_server_may_pool_the_last_token_s_state(client, server, served, monkeypatch):
    monkeypatch.setattr(server, "pooling", "last")
    found = np.array(client.embeddings.create(model="nano", input=TEXTS[0]).data[0].embedding)
    tokenizer = served.model.tokenizer
    last_D = states(served.model, [tokenizer.bos_id, *tokenizer.encode(TEXTS[0])])[-1]
    np.testing.assert_allclose(found, last_D / np.linalg.norm(last_D), atol=1e-5)


@pytest.mark.parametrize(
    ("given", "param", "said"),
    [
        ({"input": []}, "input", "input is empty"),
        ({"input": [[]]}, None, "the prompt is empty"),
        ({"input": [352]}, None, "token id 352"),
        ({"input": ["a"] * 17}, "input", "17 answers are asked for at once"),
        ({"input": "a", "dimensions": 7}, "dimensions", "dimensions 7: embeddings of nano have"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "'float' or 'base64'"),
        ({"input": "a", "extra_body": {"pooling": "mean"}}, "pooling", "there is no such field"),
    ],
    ids=["none", "empty", "id", "many", "dimensions", "format", "field"],
)
def test_what_cannot_be_embedded_is_told(client, given, param, said):
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="nano", **given)
    assert caught.value.param == param and said in caught.value.message


def test_a_text_beyond_the_context_is_told_and_nothing_is_compiled(url, client):
    before = counters(url)["camelid:compilations_total"]
    status, _, found = ask(url, "/v1/embeddings", {"input": "fox " * 300})
    assert (status, found["error"]["code"]) == (400, "context_length_exceeded")
    client.embeddings.create(model="nano", input=TEXTS)
    assert counters(url)["camelid:compilations_total"] == before
