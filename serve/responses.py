"""OpenAI's responses: an answer to a text or a conversation as one object, or as the events of a stream.

The server keeps nothing: `previous_response_id` and `store: true` are refused, and a conversation is sent whole.
"""

import secrets
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from pydantic import Field

from .completions import Job, Served, chat_requests
from .protocol import WHOLE, ApiError, ChatRequest, JsonSchema, Message, ResponseFormat, Strict, Text
from .requests import Request


class InputText(Strict):
    """A part of a message."""

    type: Literal["input_text", "output_text"]
    text: Text
    annotations: list[Any] = []


class InputMessage(Strict):
    """A message of the input."""

    type: Literal["message"] = "message"
    role: Text
    content: Text | list[InputText]
    id: Text | None = None
    status: Text | None = None


class Format(JsonSchema):
    """What the text must be: a schema stands beside its type."""

    type: Literal["text", "json_object", "json_schema"] = "text"


class TextOptions(Strict):
    """How the text must be."""

    format: Format = Format()


class ResponsesRequest(Strict):
    """The body of `POST /v1/responses`."""

    model: Text | None = None
    input: Text | Annotated[list[InputMessage], Field(min_length=1)]
    instructions: Text | None = None
    max_output_tokens: Annotated[int, Field(ge=1), WHOLE] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    text: TextOptions = TextOptions()
    stream: bool = False
    store: bool | None = None
    metadata: dict[Text, Text] | None = None
    user: Text | None = None

    def chat(self) -> ChatRequest:
        """The same request as a chat completion."""
        told = [Message(role="system", content=self.instructions)] if self.instructions else []
        if isinstance(self.input, str):
            told.append(Message(role="user", content=self.input))
        else:
            for each in self.input:
                whole = each.content if isinstance(each.content, str) else "".join(part.text for part in each.content)
                told.append(Message(role=each.role, content=whole))
        wanted = self.text.format
        schema = JsonSchema(name=wanted.name, schema=wanted.schema_) if wanted.type == "json_schema" else None
        return ChatRequest(
            model=self.model,
            store=self.store,
            messages=told,
            max_completion_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            response_format=ResponseFormat(type=wanted.type, json_schema=schema),
        )


class Answered:
    """The objects of a response."""

    def __init__(self, job: Job, body: ResponsesRequest):
        self.job, self.body = job, body
        self._id, self._item = f"resp_{secrets.token_hex(16)}", f"msg_{secrets.token_hex(16)}"
        self._created = time.time()

    def _object(self, status: str, text: str | None) -> dict[str, Any]:
        """The response so far. text: the whole text, once the answer has ended."""
        (answer,) = self.job.answers
        cut = status == "completed" and answer.finish_reason == "length"
        usage = self.job.usage()
        told = {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": "incomplete" if cut else status,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "error": None,
            "model": self.job.served.name,
            "instructions": self.body.instructions,
            "max_output_tokens": self.body.max_output_tokens,
            "metadata": self.body.metadata or {},
            "output": [] if text is None else [self._message("incomplete" if cut else "completed", text)],
            "parallel_tool_calls": False,
            "temperature": self.body.temperature,
            "tool_choice": "none",
            "tools": [],
            "top_p": self.body.top_p,
            "usage": None if text is None else told,
        }

    def _message(self, status: str, text: str | None) -> dict[str, Any]:
        content = [] if text is None else [self._part(text)]
        return {"type": "message", "id": self._item, "status": status, "role": "assistant", "content": content}

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": []}

    async def whole(self) -> dict[str, Any]:
        """The response."""
        return self._object("completed", "".join([text async for _, text, _ in self.job.pieces()]))

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The events of a stream."""
        number, said = 0, []

        def event(kind: str, **more: Any) -> dict[str, Any]:
            nonlocal number
            number += 1
            return {"type": f"response.{kind}", "sequence_number": number - 1} | more

        place = dict(item_id=self._item, output_index=0, content_index=0)
        yield event("created", response=self._object("in_progress", None))
        yield event("in_progress", response=self._object("in_progress", None))
        yield event("output_item.added", output_index=0, item=self._message("in_progress", None))
        yield event("content_part.added", **place, part=self._part(""))
        async for _, text, _ in self.job.pieces():
            if text:
                said.append(text)
                yield event("output_text.delta", **place, delta=text, logprobs=[])
        whole = "".join(said)
        done = self._object("completed", whole)
        yield event("output_text.done", **place, text=whole, logprobs=[])
        yield event("content_part.done", **place, part=self._part(whole))
        yield event("output_item.done", output_index=0, item=done["output"][0])
        yield event("incomplete" if done["status"] == "incomplete" else "completed", response=done)


def response_requests(served: Served, body: ResponsesRequest) -> list[Request]:
    """The engine's request for a response. Raises ApiError for what does not fit."""
    if body.text.format.type != "json_schema" and body.text.format.schema_:
        raise ApiError(400, "text.format.schema needs the type json_schema", param="text.format.schema")
    return chat_requests(served, body.chat())
