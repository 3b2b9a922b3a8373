"""A model behind a server, as evaluations ask it, beside the same model in memory."""

import json

import pytest

from camelid.errors import UserError
from camelid.evals.choices import choices
from camelid.evals.exact import exact
from camelid.evals.lm import LocalLM, ServedLM, encode_pair

CONVERSATION = [{"role": "user", "content": "Which colour?"}]


@pytest.fixture(scope="module")
def both(url, served):
    return LocalLM(served.model), ServedLM(url, "nano", key="secret")


def test_texts_and_conversations_are_the_same_tokens(both):
    local, remote = both
    for text in ("the red fox", " sees", "狐狸", "a <|im_end|> b", ""):
        assert remote.encode(text) == local.encode(text)
        assert remote.encode(text, special=True) == local.encode(text, special=True)
    assert remote.encode("a <|im_end|>", special=True) != remote.encode("a <|im_end|>")
    assert (remote.begin, remote.eos_id, remote.max_len) == (local.begin, local.eos_id, 128)
    assert remote.chat_ids(CONVERSATION) == local.chat_ids(CONVERSATION)
    assert remote.chat_pair(CONVERSATION, "It is red.") == local.chat_pair(CONVERSATION, "It is red.")
    assert remote.decode(local.encode("the red fox")) == "the red fox"


def test_likelihoods_and_greedy_flags_are_the_same(both):
    local, remote = both
    pairs = [encode_pair(local, "the red", " fox"), encode_pair(local, "the red fox sees", " the blue whale.")]
    best = [int(x) for x in local.model.logits([[*pairs[0][0]]])[0, -1:].argmax(-1)]
    pairs.append((pairs[0][0], best))
    found = remote.loglikelihoods(pairs)
    for mine, theirs in zip(local.loglikelihoods(pairs), found, strict=True):
        assert theirs.logp == pytest.approx(mine.logp, abs=1e-4) and theirs.is_greedy == mine.is_greedy
    assert found[2].is_greedy and not found[1].is_greedy


def test_answers_are_the_same(both):
    local, remote = both
    prompts = [local.encode("the red fox"), local.chat_ids(CONVERSATION)]
    how = dict(max_tokens=9, stop=["owl"])
    assert remote.generate(prompts, **how) == local.generate(prompts, **how)
    several = remote.generate(prompts, max_tokens=5, n=3, temperature=1.0, seed=7)
    assert [len(texts) for texts in several] == [3, 3]
    assert several == remote.generate(prompts, max_tokens=5, n=3, temperature=1.0, seed=7)


def test_evaluations_find_the_same(both, tmp_path):
    path = tmp_path / "asked.jsonl"
    lines = [{"question": f"Who sees {n}?", "choices": ["red", "the owl", "狐狸"], "answer": "red"} for n in range(5)]
    path.write_text("\n".join(map(json.dumps, lines)))
    answers = tmp_path / "answers.jsonl"
    answers.write_text("\n".join(json.dumps({"question": f"Who sees {n}?", "answer": "red"}) for n in range(5)))
    for chat in (False, True):
        mine, theirs = (choices(lm, file=str(path), chat=chat) for lm in both)
        assert [item.scores for item in theirs] == [item.scores for item in mine]
        mine, theirs = (exact(lm, file=str(answers), chat=chat, max_tokens=6, metric="f1") for lm in both)
        assert [(item.scores, item.shown) for item in theirs] == [(item.scores, item.shown) for item in mine]


def test_an_answer_ends_where_that_of_the_model_in_memory_ends(both):
    local, remote = both
    prompts = [local.chat_ids([{"role": "user", "content": f"Which colour {n}?"}]) for n in range(6)]
    how = dict(max_tokens=40, temperature=1.0, seed=3)
    assert any(len(text) for texts in remote.generate(prompts, **how) for text in texts)
    assert remote.describe()["stop_tokens"] == list(local.stop_ids)
    for mine, theirs in zip(local.generate(prompts, **how), remote.generate(prompts, **how), strict=True):
        assert [text.strip() for text in theirs] == [text.strip() for text in mine]


@pytest.mark.parametrize(
    ("name", "key", "message"),
    [
        ("nano", "wrong", r"refused \(401\): give the API key"),
        ("other", "secret", "has no model 'other', only nano, poet"),
    ],
)
def test_a_server_that_refuses_is_told(url, name, key, message):
    with pytest.raises(UserError, match=message):
        ServedLM(url, name, key=key)


def test_an_address_without_a_server_is_told():
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/v1/models: "):
        ServedLM("http://127.0.0.1:9")
