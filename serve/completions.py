"""Answers in OpenAI's objects: chat completions and completions, whole or as the events of a stream."""

import asyncio
import dataclasses
import functools
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from ..checkpoints import scoring
from ..checkpoints.decoding import sampling_of, strings_of
from ..checkpoints.language_model import LanguageModel
from ..data.tokenizer import Tokenizer
from ..errors import TooLong, UserError
from .engine import Engine
from .grammar import Grammar, Grammars
from .protocol import ApiError, ChatRequest, CompletionRequest, Message, ResponseFormat, Settings, TokenizeRequest
from .requests import Answer, Busy, Ended, Request, Scored, Token
from .texts import TextOf

TOO_LONG = "context_length_exceeded"
"""OpenAI's code of the error."""


@functools.lru_cache(maxsize=64)
def _longest(tokenizer: Tokenizer) -> int:
    return max(map(len, tokenizer.token_bytes))


class Served(NamedTuple):
    """A model that is served."""

    name: str
    model: LanguageModel
    engine: Engine

    grammars: dict[tuple[int, ...], Grammars]
    """Grammars by the ids that end answers, made when the first is asked for."""

    parent: str | None = None
    """Name of the model that this one is adapters of, in the same engine; None for a model of its own."""

    @property
    def adapter(self) -> str | None:
        """Name of the engine's adapters that answer."""
        return None if self.parent is None else self.name

    @property
    def longest_token(self) -> int:
        """The most bytes of a token."""
        return _longest(self.model.tokenizer)

    def grammar(self, wanted: ResponseFormat | None, ends: Sequence[int]) -> Grammar | None:
        """What answers may be; None for anything. Raises UserError for a schema that is not supported."""
        if wanted is None or wanted.type == "text":
            return None
        if wanted.type == "json_schema" and wanted.json_schema is None:
            raise UserError("response_format.json_schema is missing")
        key = tuple(ends)
        if key not in self.grammars:
            self.grammars[key] = Grammars(self.model.tokenizer, self.model.config.vocab_size, key)
        return self.grammars[key].of_schema(wanted.json_schema.schema_ if wanted.json_schema is not None else {})


class Job:
    """The answers to one HTTP request, which may have several prompts.

    Args:
      served: the model.
      requests: a request for each prompt.
      continues: whether answers go on from the text of their prompts.

    Raises ApiError where the engine refuses one of them.
    """

    def __init__(self, served: Served, requests: Sequence[Request], *, continues: bool):
        loop, self._told = asyncio.get_running_loop(), asyncio.Event()
        self.served, self.answers = served, []

        def notify() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._told.set)

        try:
            for request in requests:
                self.answers += served.engine.submit(request, notify)
        except UserError as error:
            self.cancel()
            raise ApiError(400, str(error), code=TOO_LONG if isinstance(error, TooLong) else None) from None
        except Busy as error:
            self.cancel()
            raise ApiError(429, str(error), code="queue_full") from None
        except Ended as error:
            self.cancel()
            raise ApiError(500, str(error)) from None
        tokenizer = served.model.tokenizer
        self.texts = [TextOf(answer, tokenizer, continues=continues) for answer in self.answers]

    def cancel(self) -> None:
        """Ends the answers."""
        for answer in self.answers:
            answer.cancel()

    async def pieces(self) -> AsyncIterator[tuple[int, str, list[Token]]]:
        """The number of an answer, further text of it, and the tokens of the text, as they come."""
        left = set(range(len(self.answers)))
        try:
            while left:
                self._told.clear()
                for i in sorted(left):
                    ended = self.answers[i].finish_reason is not None  # before the tokens are taken
                    text, tokens = self.texts[i].push(self.answers[i].poll())
                    error = self.answers[i].error if ended else None
                    if ended and error is None:
                        left.discard(i)
                        text += self.texts[i].end()
                    if tokens or text or self.texts[i].ended:
                        yield i, text, tokens
                    if error is not None:
                        kind = 400 if isinstance(error, UserError) else 500
                        raise ApiError(kind, " ".join(str(error).split()))
                if left:
                    await self._told.wait()
        finally:
            self.cancel()

    def usage(self) -> dict[str, Any]:
        """The numbers of tokens."""
        requests = {id(answer.request): answer for answer in reversed(self.answers)}  # the first answer to each
        read = sum(len(answer.request.prompt) for answer in requests.values())
        written = sum(len(answer.tokens) for answer in self.answers)
        cached = sum(answer.cached for answer in requests.values())
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


def requests_of(
    served: Served,
    settings: Settings,
    prompts: Sequence[Sequence[int]],
    max_tokens: int | None,
    stop_ids: Sequence[int],
    **more: Any,
) -> list[Request]:
    """The engine's requests for prompts and the settings of a body. Raises ApiError for settings that do not fit."""
    model = served.model
    generation, names = model.generation, ("temperature", "top_p", "min_p", "repetition_penalty")
    fields = generation.sampling() | {n: x for n in names if (x := getattr(settings, n)) is not None}
    if settings.top_k is not None:
        fields["top_k"] = max(settings.top_k, 0)
    limit = fields.pop("max_tokens", None)
    try:
        strings = strings_of(() if settings.stop is None else settings.stop, generation)
        ids = (*stop_ids, *generation.stop_ids, *(settings.stop_token_ids or ()))
        sampling = sampling_of(
            model.tokenizer, model.config.vocab_size, stop_ids=ids, stop=strings, n=settings.n, **fields
        )
        grammar = served.grammar(settings.response_format, ids)
    except UserError as error:
        raise ApiError(400, str(error)) from None
    more |= dict(presence_penalty=settings.presence_penalty, frequency_penalty=settings.frequency_penalty)
    more |= dict(bias=settings.logit_bias or {}, grammar=grammar, adapter=served.adapter)
    seed = secrets.randbits(32) if settings.seed is None else settings.seed % 2**32

    def one(prompt: Sequence[int]) -> Request:
        room = served.engine.max_len - len(prompt) + more.get("only_score", False)  # the last token is not read
        if max_tokens is not None and max_tokens > room:
            said = f"the prompt has {len(prompt):,} tokens and max_tokens is {max_tokens:,}, together more than"
            said = f"{said} the context of {served.engine.max_len:,}"
            raise ApiError(400, said, param="max_tokens", code=TOO_LONG)
        most = max(min(limit or room, room) if max_tokens is None else max_tokens, 1)
        return Request(prompt, dataclasses.replace(sampling, max_tokens=most), seed, **more)

    return [one(prompt) for prompt in prompts]


def chat_requests(served: Served, body: ChatRequest) -> list[Request]:
    """The engine's request for a conversation. Raises ApiError for what does not fit."""
    model = served.model
    if body.store:
        raise ApiError(400, "store: nothing is kept here; leave it out, or give false", param="store")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise ApiError(400, "max_tokens and max_completion_tokens are the same: give one", param="max_tokens")
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    prompt = conversation_tokens(served, body.messages, goes_on=body.goes_on)
    most = body.max_completion_tokens or body.max_tokens
    stop_ids = model.template.stop_ids(model.tokenizer)
    return requests_of(served, body, [prompt], most, stop_ids, top=body.top_logprobs)


def tokens_of(served: Served, body: TokenizeRequest) -> list[int]:
    """The tokens of a text or of a conversation. Raises ApiError for what does not fit."""
    tokenizer = served.model.tokenizer
    if body.messages is not None:
        goes_on = body.messages[-1].role == "assistant"
        return conversation_tokens(served, body.messages, goes_on=goes_on)
    begin = [tokenizer.bos_id] if body.add_special_tokens and tokenizer.adds_bos else []
    special = body.parse_special or body.prompt in tokenizer.special  # lm-eval finds the ids of bos and eos so
    return begin + (tokenizer.encode_special if special else tokenizer.encode)(body.prompt)


def conversation_tokens(served: Served, given: Sequence[Message], *, goes_on: bool = False) -> list[int]:
    """The tokens of a conversation, up to the beginning of the assistant's next turn.

    goes_on: up to the last word of its last turn instead. Raises ApiError for what does not fit.
    """
    model = served.model
    if model.template is None:
        raise ApiError(400, f"{served.name} has no chat template: use /v1/completions, or serve it with --template")
    roles = {"developer": "system"}  # OpenAI's newer name
    messages = [{"role": roles.get(each.role, each.role), "content": each.text} for each in given]
    check_size(served, sum(len(each["content"]) for each in messages), "messages")
    try:
        return scoring.continued(model, messages) if goes_on else model.prompt(messages)
    except UserError as error:
        raise ApiError(400, str(error), param="messages") from None


def prompts_of(served: Served, given: str | Sequence, param: str, n: int = 1) -> list[list[int]]:
    """The tokens of a text or token ids, or of each of several.

    Texts begin with the token that the tokenizer puts before them, if it does.

    Args:
      served: the model.
      given: the text or texts, or ids.
      param: the field's name, for errors.
      n: number of answers to each.

    Raises ApiError for none, for more than may wait, and for texts that are too long in any case.
    """
    tokenizer, most = served.model.tokenizer, served.engine.most_waiting
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]
    if not given:
        raise ApiError(400, f"{param} is empty: give a text, a list of texts or lists of token ids", param=param)
    if len(given) * n > most:
        raise ApiError(400, f"{len(given) * n} answers are asked for at once: ask for at most {most}", param=param)
    for each in given:
        check_size(served, len(each) if isinstance(each, str) else 0, param)
    begin = [tokenizer.bos_id] if tokenizer.adds_bos else []
    return [begin + tokenizer.encode(each) if isinstance(each, str) else list(each) for each in given]


def check_size(served: Served, characters: int, param: str) -> None:
    """Raises ApiError for a text that would not fit the context if all its tokens were the longest of all."""
    if characters > served.engine.max_len * served.longest_token:
        said = f"{param}: {characters:,} characters are more than the context of {served.engine.max_len:,} tokens holds"
        raise ApiError(400, f"{said}: shorten it", param=param, code=TOO_LONG)


def completion_requests(served: Served, body: CompletionRequest) -> list[Request]:
    """The engine's requests for one prompt or several. Raises ApiError for what does not fit."""
    prompts = prompts_of(served, body.prompt, "prompt", body.n)
    if body.max_tokens == 0 and not body.echo:
        raise ApiError(400, "max_tokens 0 needs echo: true", param="max_tokens")
    more = dict(
        top=body.logprobs or 0, score_prompt=body.echo and body.logprobs is not None, only_score=body.max_tokens == 0
    )
    stop_ids = (served.model.tokenizer.eos_id,)
    return requests_of(served, body, prompts, body.max_tokens, stop_ids, **more)


class Chat:
    """The objects of a chat completion."""

    def __init__(self, job: Job, body: ChatRequest):
        self.job, self.body = job, body
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": job.served.name}

    def logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        """The object "logprobs" of some tokens."""
        if not self.body.logprobs:
            return None
        tokenizer = self.job.served.model.tokenizer

        def entry(i: int, logprob: float) -> dict[str, Any]:
            data = tokenizer.token_bytes[i] if i < len(tokenizer.token_bytes) else b""  # the network may have more ids
            return {"token": tokenizer.piece(i), "logprob": logprob, "bytes": list(data)}

        content = [
            entry(token.id, token.logprob) | {"top_logprobs": [entry(i, logprob) for i, logprob in token.top]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    async def whole(self) -> dict[str, Any]:
        """The completion."""
        texts: list[list[str]] = [[] for _ in self.job.answers]
        async for i, text, _ in self.job.pieces():
            texts[i].append(text)
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": "".join(texts[i]), "refusal": None},
                "logprobs": self.logprobs(answer.tokens),
                "finish_reason": answer.finish_reason,
            }
            for i, answer in enumerate(self.job.answers)
        ]
        return self._head | {"object": "chat.completion", "choices": choices, "usage": self.job.usage()}

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The chunks of a stream."""
        head = self._head | {"object": "chat.completion.chunk"}
        usage = self.body.stream_options is not None and self.body.stream_options.include_usage

        def chunk(i: int, delta: dict[str, Any], tokens: Sequence[Token] = (), reason: str | None = None) -> dict:
            choice = {"index": i, "delta": delta, "logprobs": self.logprobs(tokens), "finish_reason": reason}
            return head | {"choices": [choice]} | ({"usage": None} if usage else {})

        for i in range(len(self.job.answers)):
            yield chunk(i, {"role": "assistant", "content": ""})
        async for i, text, tokens in self.job.pieces():
            if text or tokens:
                yield chunk(i, {"content": text}, tokens)
            if self.job.texts[i].ended:
                yield chunk(i, {}, reason=self.job.answers[i].finish_reason)
        if usage:
            yield head | {"choices": [], "usage": self.job.usage()}


class Completion:
    """The objects of a completion."""

    def __init__(self, job: Job, body: CompletionRequest):
        self.job, self.body = job, body
        head = {"id": f"cmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": job.served.name}
        self._head = head | {"object": "text_completion"}
        self._offsets = [0] * len(job.answers)

    def _said(self, answer: Answer) -> str:
        """The text of the prompt, for `echo`."""
        return self.job.served.model.tokenizer.decode(answer.request.prompt) if self.body.echo else ""

    def logprobs(self, i: int, tokens: Sequence[Token | Scored]) -> dict[str, Any] | None:
        """The object "logprobs" of further tokens of an answer."""
        if self.body.logprobs is None:
            return None
        piece, offsets = self.job.served.model.tokenizer.piece, []
        for token in tokens:
            offsets.append(self._offsets[i])
            self._offsets[i] += len(piece(token.id))
        return {
            "tokens": [piece(token.id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [
                None if token.logprob is None else {piece(j): logprob for j, logprob in reversed(token.top)}
                for token in tokens
            ],
            "text_offset": offsets,
        }

    async def whole(self) -> dict[str, Any]:
        """The completion."""
        texts = [[self._said(answer)] for answer in self.job.answers]
        async for i, text, _ in self.job.pieces():
            texts[i].append(text)
        choices = [
            {
                "index": i,
                "text": "".join(texts[i]),
                "logprobs": self.logprobs(i, [*self._prompt(answer), *answer.tokens]),
                "finish_reason": answer.finish_reason,
            }
            for i, answer in enumerate(self.job.answers)
        ]
        return self._head | {"choices": choices, "usage": self.job.usage()}

    def _prompt(self, answer: Answer) -> list[Scored]:
        leader = answer if answer.leader is None else answer.leader
        return leader.prompt if self.body.echo else []

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The chunks of a stream."""
        usage = self.body.stream_options is not None and self.body.stream_options.include_usage
        begun = set()
        async for i, text, tokens in self.job.pieces():
            answer = self.job.answers[i]
            if i not in begun:
                text, tokens = self._said(answer) + text, [*self._prompt(answer), *tokens]
                begun.add(i)
            reason = answer.finish_reason if self.job.texts[i].ended else None
            choice = {"index": i, "text": text, "logprobs": self.logprobs(i, tokens), "finish_reason": reason}
            yield self._head | {"choices": [choice]} | ({"usage": None} if usage else {})
        if usage:
            yield self._head | {"choices": [], "usage": self.job.usage()}


async def lines_of(objects: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    """Server-sent events of a stream of objects; an error in the middle is the last of them.

    Events of responses have a name, and no mark of the end.
    """
    named = False
    try:
        async for each in objects:
            named = "type" in each
            name = f"event: {each['type']}\n" if named else ""
            yield f"{name}data: {json.dumps(each, ensure_ascii=False)}\n\n"
    except ApiError as error:
        yield f"data: {json.dumps(error.body())}\n\n"
    if not named:
        yield "data: [DONE]\n\n"
