"""The HTTP server, as the official client of OpenAI's protocol and plain requests see it."""

import ast
import asyncio
import concurrent.futures
import json
import types
import urllib.request

import openai
import pytest

from camelid.checkpoints.scoring import continued
from camelid.model.sampling import Sampling
from camelid.serve.completions import Chat, Job
from camelid.serve.protocol import ApiError
from camelid.serve.requests import Ended, Request, Token
from camelid.tests.serve.plain_requests import ASKED, ask, counters, wait_until_free


def test_models_are_listed_and_found(client):
    assert [(model.id, model.parent) for model in client.models.list()] == [("nano", None), ("poet", "nano")]
    assert client.models.retrieve("nano").owned_by == "camelid"
    with pytest.raises(openai.NotFoundError, match="there is no model 'other', only nano, poet"):
        client.models.retrieve("other")


def test_a_chat_whole_or_streamed_is_the_same_bits_as_from_the_engine(client, served):
    how = dict(model="nano", messages=ASKED, max_tokens=20, temperature=0.9, seed=5, logprobs=True, top_logprobs=3)
    whole = client.chat.completions.create(**how, n=2)
    model = served.model
    stop_ids = model.template.stop_ids(model.tokenizer)
    prompt = model.prompt(ASKED)
    sampling = Sampling(max_tokens=20, temperature=0.9, stop_ids=stop_ids, n=2)
    expected = served.engine.generate([Request(prompt, sampling, seed=5, top=3)])[0]
    for choice, answer in zip(whole.choices, expected, strict=True):
        assert [entry.logprob for entry in choice.logprobs.content] == [token.logprob for token in answer.tokens]
        told = [token for token in answer.tokens if token.id not in stop_ids]
        assert choice.message.content == model.tokenizer.decode([token.id for token in told])
        assert choice.finish_reason == answer.finish_reason
        assert all(len(entry.top_logprobs) == 3 for entry in choice.logprobs.content)
    said, logprobs, reasons = ["", ""], [[], []], [None, None]
    for chunk in client.chat.completions.create(**how, n=2, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
            logprobs[choice.index] += [] if choice.logprobs is None else choice.logprobs.content
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
        usage = chunk.usage
    assert said == [choice.message.content for choice in whole.choices]
    assert logprobs == [choice.logprobs.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage.prompt_tokens == whole.usage.prompt_tokens == len(prompt)
    assert usage.completion_tokens == whole.usage.completion_tokens == sum(len(a.tokens) for a in expected)
    assert usage.prompt_tokens_details.cached_tokens == (len(prompt) - 1) // 16 * 16


def test_adapters_answer_by_their_name_with_a_template_of_their_own(client, models):
    base, poet = models
    how = dict(messages=ASKED, max_tokens=12, temperature=0, logprobs=True)
    found = {name: client.chat.completions.create(model=name, **how) for name in ("nano", "poet")}
    prompts = {"nano": base.model.prompt(ASKED), "poet": poet.prompt(ASKED)}
    assert {name: whole.usage.prompt_tokens for name, whole in found.items()} == {n: len(x) for n, x in prompts.items()}
    request = Request(prompts["poet"], Sampling(max_tokens=12, temperature=0), adapter="poet")
    expected = base.engine.generate([request])[0][0].tokens
    told = [entry.logprob for entry in found["poet"].choices[0].logprobs.content]
    assert told == [token.logprob for token in expected][: len(told)]
    assert found["poet"].model == "poet" and found["poet"].choices != found["nano"].choices


def test_texts_and_token_ids_are_continued_with_the_prompt_in_front_and_its_scores(client, served):
    tokenizer = served.model.tokenizer
    texts = ["the red fox", "the blue owl sees"]
    how = dict(model="nano", temperature=0, logprobs=2, echo=True)
    found = client.completions.create(prompt=texts, max_tokens=6, **how)
    ids = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in texts]
    again = client.completions.create(prompt=ids, max_tokens=6, **how)
    assert [choice.to_dict() for choice in found.choices] == [choice.to_dict() for choice in again.choices]
    for text, choice in zip(texts, found.choices, strict=True):
        assert choice.text.startswith(text)
        assert choice.logprobs.token_logprobs[0] is None and len(choice.logprobs.token_logprobs) > 6
        assert all(len(top) == 2 for top in choice.logprobs.top_logprobs[1:])
    scored = client.completions.create(prompt=texts[0], max_tokens=0, **how).choices[0]
    assert scored.text == texts[0]
    size = len(scored.logprobs.token_logprobs)
    assert scored.logprobs.token_logprobs == found.choices[0].logprobs.token_logprobs[:size]
    streamed = list(client.completions.create(prompt=texts[0], max_tokens=6, stream=True, **how))
    assert "".join(chunk.choices[0].text for chunk in streamed) == found.choices[0].text
    assert streamed[-1].choices[0].finish_reason == found.choices[0].finish_reason


def test_stop_strings_end_an_answer_and_are_not_told(client):
    how = dict(model="nano", prompt="the red fox", temperature=1.0, seed=3)
    whole = client.completions.create(**how, max_tokens=40).choices[0].text
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    ended = client.completions.create(**how, max_tokens=40, stop=[stop]).choices[0]
    assert (ended.text, ended.finish_reason) == (whole[: whole.index(stop)], "stop")
    streamed = client.completions.create(**how, max_tokens=40, stop=stop, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == ended.text


def test_an_answer_fits_a_json_schema(client):
    schema = {"type": "array", "items": {"enum": ["red", "狐狸"]}, "minItems": 1, "maxItems": 2}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    how = dict(model="nano", messages=ASKED, max_tokens=60, temperature=1.0, seed=2)
    found = client.chat.completions.create(**how, n=3, response_format=wanted)
    finished = [choice.message.content for choice in found.choices if choice.finish_reason == "stop"]
    assert finished and all({*json.loads(text)} <= {"red", "狐狸"} for text in finished)
    wanted["json_schema"]["schema"] = {"type": "nothing"}
    with pytest.raises(openai.BadRequestError, match="JSON schema is not"):
        client.chat.completions.create(**how, response_format=wanted)


def test_an_assistants_last_turn_is_continued(client, served):
    model = served.model
    prefilled = [*ASKED, {"role": "assistant", "content": "It is red, fox"}]
    prompt, begun = continued(model, prefilled), model.prompt(ASKED)
    assert prompt[: len(begun)] == begun
    assert model.tokenizer.decode(prompt[len(begun) :]).strip() == "It is red, fox"
    found = client.chat.completions.create(model="nano", messages=prefilled, max_tokens=5, temperature=0, logprobs=True)
    (answer,) = served.engine.generate([Request(prompt, Sampling(max_tokens=5, temperature=0))])[0]
    assert [x.logprob for x in found.choices[0].logprobs.content] == [token.logprob for token in answer.tokens]
    assert found.usage.prompt_tokens == len(prompt)
    word = model.tokenizer.encode("fox")[0]
    assert model.tokenizer.token_bytes[word].startswith(b" ")
    told = client.chat.completions.create(model="nano", messages=prefilled, max_tokens=1, logit_bias={word: 100})
    assert told.choices[0].message.content == model.tokenizer.token_bytes[word].decode()


def test_penalties_lower_what_was_said(client):
    how = dict(model="nano", prompt="the red fox", max_tokens=30, temperature=0, logprobs=0)

    def tokens(**penalties):
        return client.completions.create(**how, **penalties).choices[0].logprobs.tokens

    plain = tokens()
    assert len(set(plain)) < len(plain)
    assert len(set(tokens(presence_penalty=2.0, frequency_penalty=2.0))) > len(set(plain))
    assert tokens(presence_penalty=0.0) == plain


def test_responses_are_chat_completions_in_other_words(client):
    how = dict(model="nano", temperature=0, instructions="Be short.", max_output_tokens=12)
    whole = client.responses.create(input=ASKED[0]["content"], **how)
    messages = [{"role": "system", "content": "Be short."}, *ASKED]
    chat = client.chat.completions.create(model="nano", messages=messages, temperature=0, max_tokens=12)
    assert whole.output_text == chat.choices[0].message.content
    assert whole.usage.output_tokens == chat.usage.completion_tokens
    assert whole.status == ("incomplete" if chat.choices[0].finish_reason == "length" else "completed")
    parts = [{"role": "user", "content": [{"type": "input_text", "text": ASKED[0]["content"]}]}]
    events = list(client.responses.create(input=parts, stream=True, **how))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created" and events[-1].type in ("response.completed", "response.incomplete")
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text == events[-1].response.output_text
    with pytest.raises(openai.BadRequestError, match="previous_response_id: this field is not supported"):
        client.responses.create(input="x", model="nano", previous_response_id="resp_1")


def test_a_bias_forbids_a_token(client):
    first = client.chat.completions.create(model="nano", messages=ASKED, max_tokens=1, temperature=0, logprobs=True)
    token = first.choices[0].logprobs.content[0]
    top = client.chat.completions.create(
        model="nano", messages=ASKED, max_tokens=1, temperature=0, logprobs=True, top_logprobs=2,
        logit_bias={i: -100 for i in range(352) if i != 40},
    ).choices[0].logprobs.content[0]  # fmt: skip
    assert top.token != token.token and top.top_logprobs[0].logprob == token.logprob


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"model": "other"}, openai.NotFoundError, "there is no model 'other'"),
        ({"messages": []}, openai.BadRequestError, "messages: .*at least 1"),
        ({"messages": [{"role": "boss", "content": "x"}]}, openai.BadRequestError, "boss"),
        ({"temperature": -1}, openai.BadRequestError, "temperature: .*greater than or equal to 0"),
        ({"max_tokens": 500}, openai.BadRequestError, "max_tokens is 500, together more than the context of 128"),
        (
            {"messages": [{"role": "user", "content": "fox " * 500}]},
            openai.BadRequestError,
            "2,000 characters are more than",
        ),
        ({"messages": [{"role": "user", "content": "fox " * 140}]}, openai.BadRequestError, "no room for an answer"),
        ({"extra_body": {"temprature": 1}}, openai.BadRequestError, "temprature: there is no such field"),
        ({"top_logprobs": 2}, openai.BadRequestError, "top_logprobs needs logprobs"),
        ({"stop": [""]}, openai.BadRequestError, "empty"),
        ({"logit_bias": {"9999": 1}}, openai.BadRequestError, "token id 9999"),
        ({"store": True}, openai.BadRequestError, "store: nothing is kept here"),
        ({"store": 0}, openai.BadRequestError, "store: Input should be a valid boolean"),
        ({"logit_bias": {"a": 1}}, openai.BadRequestError, "logit_bias.a: Input should be a valid integer"),
        ({"reasoning_effort": "low"}, openai.BadRequestError, "reasoning_effort: this field is not supported"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, openai.BadRequestError, "0.type: Input"),
    ],
    ids=str,
)
def test_a_wrong_request_gets_an_error_of_its_kind_before_any_answer(client, changes, kind, message):
    for stream in (False, True):
        with pytest.raises(kind, match=message):
            client.chat.completions.create(**{"model": "nano", "messages": ASKED, "stream": stream} | changes)


def test_null_stands_for_a_field_that_is_left_out_and_fields_without_effect_are_taken(client):
    how = dict(model="nano", messages=ASKED, max_tokens=4, temperature=0)
    nothing = dict(
        n=None, stream=None, logprobs=None, presence_penalty=None, stop=None, store=False, metadata={"a": "b"}
    )
    found = client.chat.completions.create(**how, extra_body=nothing)
    assert found.choices == client.chat.completions.create(**how).choices
    developer = [{"role": "developer", "content": "Be brief."}, *ASKED]
    system = [{"role": "system", "content": "Be brief."}, *ASKED]
    both = [client.chat.completions.create(**how | {"messages": each}).usage for each in (developer, system)]
    assert both[0].prompt_tokens == both[1].prompt_tokens


@pytest.mark.parametrize("blank", ["", " \n "])
def test_an_answer_that_goes_on_from_nothing_is_a_new_one(client, blank):
    how = dict(model="nano", max_tokens=6, temperature=0)
    answered = [{"role": "assistant", "content": "red"}, *ASKED]
    for turns in (ASKED, [*ASKED, *answered]):
        found = client.chat.completions.create(**how, messages=[*turns, {"role": "assistant", "content": blank}])
        assert found.choices == client.chat.completions.create(**how, messages=turns).choices


def test_likeliest_tokens_that_the_tokenizer_lacks_have_no_bytes(served):
    job = types.SimpleNamespace(served=served)
    (entry,) = Chat(job, types.SimpleNamespace(logprobs=True)).logprobs([Token(40, -1.0, [(9999, -0.5)])])["content"]
    assert entry["bytes"] == list(served.model.tokenizer.token_bytes[40]) and entry["top_logprobs"][0]["bytes"] == []


def test_an_engine_that_has_failed_is_a_failure_of_the_server(served):
    def submit(*_):
        raise Ended("the engine has failed: device lost")

    async def ask():
        Job(served._replace(engine=types.SimpleNamespace(submit=submit)), [Request([1], Sampling())], continues=False)

    with pytest.raises(ApiError, match="engine has failed: device lost") as caught:
        asyncio.run(ask())
    assert caught.value.status == 500


def test_keys_bodies_and_paths_are_checked(url):
    body = {"messages": ASKED}
    status, _, found = ask(url, "/v1/chat/completions", body, Authorization="Bearer wrong")
    assert status == 401 and found["error"]["code"] == "invalid_api_key"
    assert ask(url, "/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 30_000}]})[0] == 413
    status, _, found = ask(url, "/v1/chat/completions", b"{not json")
    assert status == 400 and found["error"]["message"].startswith("the body is no JSON: Expecting property name")
    status, _, found = ask(url, "/v1/chat/completions", body, **{"Content-Type": "application/x-www-form-urlencoded"})
    assert status == 400 and "with the header `Content-Type: application/json`" in found["error"]["message"]
    found = ask(url, "/v1/completions", {"prompt": [1, 2, True]})[2]["error"]
    assert (found["message"], found["param"]) == ("prompt.2: Input should be a valid integer", "prompt.2")
    found = ask(url, "/v1/responses", {"input": "a", "metadata": {"\ud800": "a"}})[2]["error"]
    assert found["message"].startswith("metadata.") and "half of a surrogate pair" in found["message"]
    many = {"prompt": ["the"] * 17, "max_tokens": 1, "response_format": {"type": "json_schema"}}  # no schema is made
    assert (
        ask(url, "/v1/completions", many)[2]["error"]["message"]
        == "17 answers are asked for at once: ask for at most 16"
    )
    assert ask(url, "/v1/nothing")[0] == 404 and ask(url, "/health", Authorization="")[0] == 200
    _, headers, _ = ask(url, "/health")
    assert headers["Content-Security-Policy"].startswith("default-src 'self'; base-uri 'none'")


def test_the_schema_documents_errors_of_every_path_and_the_events_of_streams(url):
    paths = ask(url, "/openapi.json")[2]["paths"]
    for path, methods in paths.items():
        for method in methods.values():
            assert set(method["responses"]) == {"200", "4XX", "5XX"}, path
            reference = method["responses"]["4XX"]["content"]["application/json"]["schema"]["$ref"]
            assert reference == "#/components/schemas/Failure"
    for name in ("chat/completions", "completions", "responses"):
        assert "text/event-stream" in paths[f"/v1/{name}"]["post"]["responses"]["200"]["content"]


def test_an_error_of_the_server_s_own_is_an_object_too(url, server, monkeypatch, caplog):
    monkeypatch.setattr(server, "find", lambda name: 1 / 0)
    status, _, found = ask(url, "/tokenize", {"prompt": "x"})
    assert (status, found["error"]["type"]) == (500, "server_error") and "division" not in str(found)


def test_the_page_and_its_files_are_served_without_a_key(url):
    for path, kind in {"/": "text/html", "/page/main.js": "javascript", "/page/favicon.svg": "image/svg+xml"}.items():
        with urllib.request.urlopen(url + path) as response:
            assert kind in response.headers["Content-Type"] and response.read()
    assert ask(url, "/page/nothing.js")[0] == 404


def test_texts_become_tokens_and_tokens_texts(url, served):
    tokenizer = served.model.tokenizer
    status, _, found = ask(url, "/tokenize", {"prompt": "the fox 狐狸", "add_special_tokens": False})
    assert status == 200 and found["tokens"] == tokenizer.encode("the fox 狐狸")
    assert ask(url, "/detokenize", {"tokens": found["tokens"]})[2] == {"prompt": "the fox 狐狸"}
    names = ask(url, "/tokenizer_info")[2]
    assert names["bos_token"] == "<s>"
    for name, i in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id)):
        plain = {"prompt": names[name], "add_special_tokens": False}
        assert ask(url, "/tokenize", plain)[2]["tokens"] == [i]
    within = ask(url, "/tokenize", {"prompt": "the <s> fox", "add_special_tokens": False})[2]["tokens"]
    assert tokenizer.bos_id not in within


def test_overload_is_told_and_clients_that_leave_free_their_rows(url, client):
    many = dict(model="nano", messages=ASKED, max_tokens=90, temperature=1.0)

    def one(_):
        try:
            return client.chat.completions.create(**many, n=3).usage.completion_tokens
        except openai.RateLimitError as error:
            assert error.response.headers["Retry-After"] == "1" and "wait already" in str(error)
            return None

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        results = list(pool.map(one, range(16)))
    assert None in results and any(results)
    for _ in range(3):
        stream = client.chat.completions.create(**many, stream=True)
        next(iter(stream))
        stream.close()
    wait_until_free(url)
    before = cancelled(url)
    with pytest.raises(openai.APITimeoutError):  # of 12 answers, 4 have a row
        client.with_options(timeout=0.1).chat.completions.create(**many, n=12)
    wait_until_free(url)
    assert cancelled(url) > before


def test_the_log_has_a_line_for_a_request_and_its_text_only_if_asked(client, server, caplog, monkeypatch):
    how = dict(model="nano", messages=ASKED, max_tokens=3, temperature=0)
    with caplog.at_level("INFO", "camelid.serve"):
        whole = client.chat.completions.create(**how)
        (line,) = caplog.messages
        assert line.startswith("POST /v1/chat/completions 200 prompt=") and "completion=3 seconds=" in line
        monkeypatch.setattr(server, "log_text", True)
        client.chat.completions.create(**how)
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(**how, top_p=2)
        assert len(caplog.messages) == 4 and "completions 400 top_p: Input should be less" in caplog.messages[3]
    asked, answered = caplog.messages[2].removeprefix("prompt ").split(" answer ")
    assert "Which colour has the fox? 狐狸" in asked and whole.choices[0].message.content in ast.literal_eval(answered)


def cancelled(url):
    """How many answers were cancelled."""
    reason = 'request_success_total{finished_reason="cancelled"'
    return sum(count for name, count in counters(url).items() if reason in name)


def test_counters_are_those_of_what_happened(url, client):
    before = counters(url)
    usage = client.chat.completions.create(model="nano", messages=ASKED, max_tokens=5, temperature=0).usage
    after = counters(url)
    for name, amount in {"prompt_tokens": usage.prompt_tokens, "generation_tokens": usage.completion_tokens}.items():
        place = f'camelid:{name}_total{{model_name="nano"}}'
        assert after[place] - before[place] == amount
    assert after["camelid:compilations_total"] == before["camelid:compilations_total"]
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=ASKED)
    place = 'camelid:request_failure_total{status="404"}'
    assert counters(url)[place] == before.get(place, 0) + 1


def test_a_server_that_drains_refuses_new_requests(url, server, client):
    server.draining = True
    try:
        with pytest.raises(openai.InternalServerError, match="about to end"):
            client.chat.completions.create(model="nano", messages=ASKED)
        assert ask(url, "/health")[0] == 503
    finally:
        server.draining = False
    assert ask(url, "/health")[0] == 200
