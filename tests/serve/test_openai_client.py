"""The official client of OpenAI's protocol: errors by their types, streams, helpers and parsed answers."""

import asyncio
import concurrent.futures
import json
from typing import Literal

import openai
import pydantic
import pytest

from camelid.tests.serve.plain_requests import ASKED, ask, wait_until_free


class Owner(pydantic.BaseModel, extra="forbid"):
    name: Literal["Mia", "狐狸"]
    grown: bool


class Fox(pydantic.BaseModel):
    colour: Literal["red", "blue"]
    tame: bool | None
    owners: list[Owner] = pydantic.Field(max_length=1)


# Errors


WRONG = "invalid_request_error"


@pytest.mark.parametrize(
    ("changes", "kind", "status", "told"),
    [
        ({"temperature": 101}, openai.BadRequestError, 400, (WRONG, "temperature", None)),
        ({"messages": [{"role": "user"}]}, openai.BadRequestError, 400, (WRONG, "messages.0.content", None)),
        ({"max_tokens": 128}, openai.BadRequestError, 400, (WRONG, "max_tokens", "context_length_exceeded")),
        ({"model": "other"}, openai.NotFoundError, 404, ("not_found_error", "model", "model_not_found")),
        ({"user": "x" * 20_000}, openai.APIStatusError, 413, (WRONG, None, None)),
    ],
    ids=["field", "message", "context", "model", "body"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_have_the_types_of_their_status_and_name_the_field(client, changes, kind, status, told, stream):
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": "nano", "messages": ASKED, "stream": stream} | changes)
    error = caught.value
    assert error.status_code == status and (error.type, error.param, error.code) == told
    assert error.message and error.response.headers["content-type"] == "application/json"


def test_a_wrong_key_is_an_authentication_error(client):
    with pytest.raises(openai.AuthenticationError) as caught:
        client.with_options(api_key="wrong").models.list()
    assert (caught.value.status_code, caught.value.code) == (401, "invalid_api_key")


def test_a_server_that_ends_or_fails_is_an_internal_server_error(client, server, monkeypatch):
    how = dict(model="nano", messages=ASKED, max_tokens=1)
    monkeypatch.setattr(server, "draining", True)
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(**how)
    assert (caught.value.status_code, caught.value.code) == (503, "draining")
    monkeypatch.setattr(server, "draining", False)
    monkeypatch.setattr(server, "find", lambda name: 1 / 0)
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(**how)
    assert (caught.value.status_code, caught.value.type) == (500, "server_error")


def test_a_client_that_may_retry_waits_for_room_and_one_that_may_not_gets_a_rate_limit_error(url, client):
    how = dict(model="nano", messages=ASKED, max_tokens=20, temperature=1.0, n=8)

    def one(retries):
        try:
            return len(client.with_options(max_retries=retries).chat.completions.create(**how).choices)
        except openai.RateLimitError as error:
            return error.code

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        once, patient = (list(pool.map(one, [retries] * 8)) for retries in (0, 20))
    assert set(once) == {8, "queue_full"} and patient == [8] * 8
    wait_until_free(url)


# Streams


def test_the_events_of_a_response_come_in_openai_s_order(client):
    how = dict(model="nano", input=ASKED[0]["content"], temperature=0)
    schema = {"type": "json_schema", "name": "owner", "schema": Owner.model_json_schema()}
    with client.responses.stream(**how, text={"format": schema}) as stream:
        events = list(stream)
        whole = stream.get_final_response()
    cut = list(client.responses.create(**how, max_output_tokens=10, stream=True))
    for told, last in ((events, "completed"), (cut, "incomplete")):
        kinds = [event.type.removeprefix("response.") for event in told]
        assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
        assert set(kinds[4:-4]) == {"output_text.delta"}
        assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", last]
        assert [event.sequence_number for event in told] == list(range(len(told)))
        deltas = "".join(event.delta for event in told if event.type == "response.output_text.delta")
        assert deltas == told[-1].response.output_text
    assert whole.output_text == client.responses.create(**how, text={"format": schema}).output_text
    assert cut[-1].response.incomplete_details.reason == "max_output_tokens"


def test_the_helper_of_chat_streams_puts_the_answer_together(client):
    how = dict(model="nano", messages=ASKED, temperature=0.5, max_tokens=90, logprobs=True, top_logprobs=1, seed=1)
    how["response_format"] = {"type": "json_schema", "json_schema": {"name": "x", "schema": Owner.model_json_schema()}}
    whole = client.chat.completions.create(**how)
    with client.chat.completions.stream(**how, stream_options={"include_usage": True}) as stream:
        kinds = [event.type for event in stream]
        found = stream.get_final_completion()
    assert found.choices[0].message.content == whole.choices[0].message.content
    assert found.choices[0].logprobs.content == whole.choices[0].logprobs.content
    assert found.choices[0].finish_reason == whole.choices[0].finish_reason == "stop"
    assert found.usage == whole.usage and "content.done" in kinds


def test_several_prompts_with_several_answers_are_streamed_beside_each_other(client):
    how = dict(model="nano", prompt=["the red fox", "the blue owl"], n=3, max_tokens=8, temperature=1.0, seed=4)
    whole = client.completions.create(**how)
    texts, reasons = [""] * 6, [None] * 6
    for chunk in client.completions.create(**how, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.text for choice in whole.choices] and len(set(texts)) > 3
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert chunk.usage == whole.usage and chunk.choices == []


def test_stop_strings_hold_for_each_of_several_streamed_answers(client):
    how = dict(model="nano", messages=ASKED, temperature=1.0, seed=6, max_tokens=40, n=3)
    plain = [choice.message.content for choice in client.chat.completions.create(**how).choices]
    stops = [next(text[i : i + 2] for i in range(3, 30) if text[i : i + 2].isascii()) for text in plain[:2]]
    cut = [min((text.index(stop) for stop in stops if stop in text), default=len(text)) for text in plain]
    texts, reasons = [""] * 3, [None] * 3
    for chunk in client.chat.completions.create(**how, stop=stops, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [text[:end] for text, end in zip(plain, cut, strict=True)]
    assert reasons[:2] == ["stop", "stop"]


def test_a_bias_holds_for_every_token_of_every_answer(client, served):
    tokenizer = served.model.tokenizer
    allowed = tokenizer.encode("fox")[-1]
    bias = {str(i): -100 for i in range(served.model.config.vocab_size) if i != allowed}
    how = dict(model="nano", messages=ASKED, max_tokens=5, n=2, logprobs=True, logit_bias=bias)
    for stream in (False, True):
        found = client.chat.completions.create(**how, stream=stream)
        for chunk in found if stream else [found]:
            for choice in chunk.choices:
                pieces = [entry.token for entry in choice.logprobs.content] if choice.logprobs else []
                assert set(pieces) <= {tokenizer.piece(allowed)}


# Other ways to call


def test_the_asynchronous_client_gets_what_the_other_one_gets(url, client):
    asked = [dict(model="nano", messages=ASKED, temperature=0.8, max_tokens=10, seed=seed) for seed in range(6)]

    async def everything():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="secret") as other:
            whole = await asyncio.gather(*[other.chat.completions.create(**how) for how in asked])
            text = ""
            async for chunk in await other.chat.completions.create(**asked[0], stream=True):
                text += chunk.choices[0].delta.content or ""
            models = [model.id async for model in other.models.list()]
            return [found.choices[0].message.content for found in whole], text, models

    texts, streamed, models = asyncio.run(everything())
    assert texts == [client.chat.completions.create(**how).choices[0].message.content for how in asked]
    assert streamed == texts[0] and models == ["nano", "poet"]


def test_raw_responses_have_status_headers_and_the_body(client, url):
    how = dict(model="nano", messages=ASKED, temperature=0, max_tokens=4)
    raw = client.chat.completions.with_raw_response.create(**how)
    assert raw.status_code == 200 and raw.headers["content-type"] == "application/json"
    plain = ask(url, "/v1/chat/completions", how)[2]["choices"]
    assert raw.parse().choices[0].message.content == plain[0]["message"]["content"]
    with client.chat.completions.with_streaming_response.create(**how, stream=True) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
    assert (
        "".join(json.loads(line[6:])["choices"][0]["delta"].get("content", "") for line in lines[:-1])
        == (plain[0]["message"]["content"])
    )


# Answers that fit a schema


def test_an_answer_is_parsed_as_a_pydantic_model(client):
    how = dict(model="nano", messages=ASKED, temperature=1.0, max_tokens=95)
    parsed = []
    for seed in range(10):
        try:
            found = client.chat.completions.parse(**how, seed=seed, response_format=Fox)
        except openai.LengthFinishReasonError:
            continue
        parsed.append(found.choices[0].message.parsed)
        assert json.loads(found.choices[0].message.content) == parsed[-1].model_dump()
    assert len(parsed) >= 3 and all(isinstance(fox, Fox) for fox in parsed)
    assert len({fox.model_dump_json() for fox in parsed}) > 1


def test_a_response_and_a_stream_are_parsed_as_a_pydantic_model(client):
    how = dict(model="nano", temperature=0)
    found = client.responses.parse(input=ASKED[0]["content"], text_format=Owner, max_output_tokens=90, **how)
    assert isinstance(found.output_parsed, Owner) and found.status == "completed"
    with client.chat.completions.stream(messages=ASKED, response_format=Owner, max_tokens=90, **how) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == found.output_parsed


def test_any_object_is_json(client):
    how = dict(model="nano", messages=ASKED, temperature=1.0, max_tokens=95, response_format={"type": "json_object"})
    found = [client.chat.completions.create(**how, seed=seed).choices[0] for seed in range(8)]
    finished = [json.loads(choice.message.content) for choice in found if choice.finish_reason == "stop"]
    assert finished and all(isinstance(answer, dict) for answer in finished)
