"""The requests of lm-evaluation-harness 0.4 to a server, as `local-completions` and `local-chat-completions`."""

import pytest

from camelid.checkpoints.scoring import likelihoods
from camelid.model.sampling import Sampling
from camelid.serve.requests import Request
from camelid.tests.serve.plain_requests import ASKED, ask


@pytest.fixture
def post(url):
    def post(path, body):
        status, _, found = ask(url, path, body)
        assert status == 200, found
        return found

    return post


def encode(post, text):
    return post("/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]


def logprobs_of(model, tokens):
    """Log-probability of each token but the first, by the network on the whole text at once."""
    return likelihoods(model, [(tokens[:1], tokens[1:])])[0].logp


def scored(post, inputs, context_sizes):
    """What `parse_logprobs` reads: the sum over a continuation, and whether each of its tokens is the likeliest."""
    asked = {"prompt": inputs, "model": "nano", "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234}
    choices = sorted(post("/v1/completions", asked | {"echo": True})["choices"], key=lambda choice: choice["index"])
    found = []
    for choice, size in zip(choices, context_sizes, strict=True):
        logprobs = choice["logprobs"]["token_logprobs"][size:-1]
        tops = choice["logprobs"]["top_logprobs"][size:-1]
        found.append((sum(logprobs), all(x == max(top.values()) for x, top in zip(logprobs, tops, strict=True))))
    return found


def test_a_continuation_of_token_ids_is_scored_as_by_the_network(post, served):
    pairs = [("Question: the red fox\nAnswer:", " It is red, fox."), ("the owl", " sees 狐狸"), ("a", " b")]
    wholes, contexts = [encode(post, a + b) for a, b in pairs], [encode(post, a) for a, _ in pairs]
    for (told, _), whole, context in zip(scored(post, wholes, map(len, contexts)), wholes, contexts, strict=True):
        expected = logprobs_of(served.model, whole)[len(context) - 1 :]
        assert len(expected) and told == pytest.approx(expected.sum(), abs=1e-4)


def test_a_continuation_is_greedy_where_the_server_would_write_it(post, served):
    begin = encode(post, "the red fox")
    (answer,) = served.engine.generate([Request(begin, Sampling(max_tokens=4, temperature=0))])[0]
    written = [token.id for token in answer.tokens]
    other = [*written[:-1], (written[-1] + 1) % 352]
    (_, greedy), (_, changed) = scored(post, [begin + written, begin + other], [len(begin)] * 2)
    assert greedy and not changed


def test_a_text_is_scored_from_its_beginning_after_the_token_that_begins_texts(post, url, served):
    info = ask(url, "/tokenizer_info")[2]
    (bos,), (eos,) = encode(post, info["bos_token"]), encode(post, info["eos_token"])
    assert (bos, eos) == (served.model.tokenizer.bos_id, served.model.tokenizer.eos_id)
    tokens = encode(post, "the red fox sees the blue owl")
    ((told, _),) = scored(post, [[bos, *tokens]], [1])
    assert told == pytest.approx(logprobs_of(served.model, [bos, *tokens]).sum(), abs=1e-4)


def test_prompts_are_answered_up_to_a_string_in_the_order_asked(post, served):
    texts = ["the red fox", "the blue owl sees", "a wolf"]
    how = {"model": "nano", "max_tokens": 16, "temperature": 0, "stop": ["\n", "</s>"], "seed": 1234}
    found = post("/v1/completions", {"prompt": [encode(post, text) for text in texts], **how})["choices"]
    for choice, text in zip(found, texts, strict=True):
        (alone,) = post("/v1/completions", {"prompt": [encode(post, text)], **how})["choices"]
        assert choice["text"] == alone["text"] and "\n" not in alone["text"]
    assert len({choice["text"] for choice in found}) > 1
    message = post("/v1/chat/completions", {"messages": ASKED, **how, "max_tokens": 12})["choices"][0]["message"]
    assert message["role"] == "assistant" and isinstance(message["content"], str)
