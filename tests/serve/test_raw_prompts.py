"""Prompts of tokens are continued as they are, control tokens among them, in memory and over HTTP."""

import pytest

from camelid.checkpoints.decoding import text_of
from camelid.curate.teachers.magpie import Magpie
from camelid.data.user_turns import user_turn
from camelid.errors import UserError
from camelid.serve.endpoint import Endpoint, Limits, reply_of
from camelid.serve.journal import Journal, Reply, Request, key_of
from camelid.serve.local import Local
from camelid.settings.sections import read
from camelid.tests.curate.asking import bytes_of, reasons

SETTINGS = {"max_tokens": 12, "temperature": 0.9, "seed": 3}


def local(model, journal=None, **more):
    return Local(model, "nano", ["hash"], journal=journal or Journal(None), batch_size=4, **more)


def continued(model, prompts, stop_ids=(), seed=3):
    """The texts of `LanguageModel.complete` with the settings of SETTINGS."""
    sampling = model._sampling((model.tokenizer.eos_id, *stop_ids), (), {"max_tokens": 12, "temperature": 0.9})
    found = model.complete(prompts, sampling, seed=seed, batch_size=4)
    return [text_of(model.tokenizer, ids, sampling).strip() for ids in found]


def test_the_key_of_a_conversation_is_what_it_was_before_there_were_prompts():
    asked = Request([{"role": "user", "content": "hello"}], {"temperature": 0.0}, 2)
    assert key_of("m", asked) == "faf4eecda7dc57f5161b33f367dfa6132fdd8c36-2"
    assert key_of("m", Request(prompt=[1, 2])) != key_of("m", Request(prompt=[1, 3]))


def test_a_request_has_messages_or_a_prompt():
    for wrong in ({}, {"messages": [{"role": "user", "content": "x"}], "prompt": [1]}, {"prompt": []}):
        with pytest.raises(UserError, match="either messages or a prompt"):
            Request(**wrong)
    with pytest.raises(UserError, match="settings have 'prompt'"):
        Request(prompt=[1], settings={"prompt": "x"})


def test_a_model_in_memory_continues_tokens_and_ends_at_further_ids(served):
    model = served.model
    prompts = [user_turn(model.template, model.tokenizer).prefix, [5, 6, 7]]
    replies = local(model).ask([Request(prompt=prompt, settings=SETTINGS) for prompt in prompts])
    assert [reply.text for reply in replies] == continued(model, prompts)
    assert [reply.prompt_tokens for reply in replies] == [len(prompt) for prompt in prompts]
    every = {**SETTINGS, "stop_token_ids": list(range(model.config.vocab_size))}
    assert [reply.completion_tokens for reply in local(model).ask([Request(prompt=[5], settings=every)])] == [1]
    with pytest.raises(UserError, match="token id 100000"):
        local(model).ask([Request(prompt=[100000])])


def test_samples_of_a_prompt_share_a_batch_differ_and_do_not_depend_on_replies_that_are_there(served, tmp_path):
    asked = [Request(prompt=[5, 6], settings=SETTINGS, sample=sample) for sample in range(10)]
    with Journal(tmp_path / "whole") as journal:
        batches = []
        whole = local(served.model, journal, report=lambda done, all: batches.append(done)).ask(asked)
    assert batches == [4, 8, 10] and len({reply.text for reply in whole}) == 10
    for sample in (0, 5, 9):
        assert [whole[sample].text] == continued(served.model, [[5, 6]], seed=3 + sample)
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    for kept in (2, 5, 13):
        (tmp_path / "cut").write_bytes(b"".join(lines[:kept]))
        with Journal(tmp_path / "cut") as journal:
            assert local(served.model, journal).ask(asked) == whole


def test_a_server_continues_tokens_as_the_model_in_memory_does(served, url, tmp_path):
    model = served.model
    prefix = user_turn(model.template, model.tokenizer).prefix
    settings = {"max_tokens": 12, "temperature": 0.0}
    asked = [Request(prompt=prefix, settings=settings), Request([{"role": "user", "content": "the fox"}], settings)]
    with Journal(tmp_path / "j") as journal:
        endpoint = Endpoint(url, "nano", journal=journal, key="secret", limits=Limits(retries=0))
        found = endpoint.ask(asked)
        assert [journal.reply(endpoint.key(request)) for request in asked] == found
    expected = local(model).ask(asked)
    assert [(r.text.strip(), r.prompt_tokens, r.completion_tokens) for r in found] == [
        (r.text, r.prompt_tokens, r.completion_tokens) for r in expected
    ]


@pytest.mark.parametrize("address", ["", "/v1", "/v1/chat/completions"])
def test_prompts_go_to_completions_beside_the_conversations(address, url, tmp_path):
    endpoint = Endpoint(url + address, "nano", journal=Journal(None), key="secret", limits=Limits(retries=0))
    (reply,) = endpoint.ask([Request(prompt=[5, 6], settings={"max_tokens": 2, "temperature": 0.0})])
    assert (reply.prompt_tokens, reply.completion_tokens, reply.model) == (2, 2, "nano")


def test_a_completion_without_usage_is_a_reply():
    assert reply_of(b'{"choices": [{"text": "a", "finish_reason": "length"}]}') == Reply("a", "length")


def test_magpie_makes_the_same_of_a_server_and_of_its_model_in_memory(served, url, tmp_path):
    """The model is untrained: what it writes is noise, which the server and the memory have to agree on."""
    loose = {"least_words": 0, "other_script": 1.0}
    settings = dict(rows=2, samples=6, temperatures=[0.0], instruction_tokens=8, max_tokens=8, threshold=1.0)
    settings = read(settings | {"filters": loose}, Magpie)
    template, tokenizer = served.model.template, served.model.tokenizer
    with Journal(tmp_path / "j") as journal:
        endpoint = Endpoint(url, "nano", journal=journal, key="secret", limits=Limits(retries=0))
        over_http = settings(endpoint, template, tokenizer)
        size = (tmp_path / "j").stat().st_size
        assert bytes_of(settings(endpoint, template, tokenizer)) == bytes_of(over_http)
        assert (tmp_path / "j").stat().st_size == size  # all replies were in the journal
    in_memory = settings(Local(served.model, "nano", ["x"], journal=Journal(None)), template, tokenizer)
    assert reasons(over_http) == reasons(in_memory)
    assert len(over_http.rejected) + len(over_http.rows) == 6
