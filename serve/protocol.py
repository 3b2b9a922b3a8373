"""Requests of OpenAI's protocol, with the further fields of vLLM's: what they may hold, and the errors they get.

A field that is not listed is refused by its name, so that no setting is ignored in silence, and so is a value of
another type: "0" is no number and 1 no boolean.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MOST_STOPS, MOST_ANSWERS, MOST_TOP = 16, 128, 20


UNSUPPORTED = frozenset(
    {
        "audio",
        "background",
        "best_of",
        "conversation",
        "function_call",
        "functions",
        "include",
        "max_tool_calls",
        "modalities",
        "parallel_tool_calls",
        "prediction",
        "previous_response_id",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "suffix",
        "tool_choice",
        "tools",
        "truncation",
        "verbosity",
        "web_search_options",
    }
)
"""Fields of OpenAI's that are not supported."""


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("has half of a surrogate pair, which is no character") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
"""A text that can be written in UTF-8."""


class Strict(BaseModel):
    """An object without further fields, whose values have the types that are written, as JSON has them.

    null stands for a field that is left out.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, given: Any) -> Any:
        return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given


def _whole(value: Any) -> Any:
    """1.0 is an integer in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _ids_as_keys(value: Any) -> Any:
    """JSON's keys are strings, also where they are token ids."""
    if not isinstance(value, dict):
        return value
    return {int(key) if isinstance(key, str) and key.isdecimal() else key: bias for key, bias in value.items()}


WHOLE = BeforeValidator(_whole)
Biases = Annotated[dict[int, Annotated[float, Field(ge=-100, le=100)]], BeforeValidator(_ids_as_keys)]


class TextPart(Strict):
    """A part of a message that is text."""

    type: Literal["text"]
    text: Text


class Message(Strict):
    """A message of a conversation."""

    role: Text
    content: Text | list[TextPart]
    name: Text | None = None

    @property
    def text(self) -> str:
        """The whole text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(Strict):
    """How an answer is streamed."""

    include_usage: bool = False


class JsonSchema(Strict):
    """A schema that an answer must fit."""

    name: Text = "answer"
    description: Text | None = None
    schema_: Annotated[dict[Text, Any], Field(alias="schema")] = {}
    strict: bool | None = None


class ResponseFormat(Strict):
    """What an answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Settings(Strict):
    """How answers are drawn. None leaves a setting to the model's recommendation."""

    model: Text | None = None
    n: Annotated[int, Field(ge=1, le=MOST_ANSWERS), WHOLE] = 1
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1), WHOLE] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=1e-6, le=1e6)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63), WHOLE] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=MOST_STOPS)] | None = None
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0, lt=2**31), WHOLE]], Field(max_length=128)] | None = None
    logit_bias: Biases | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: Text | None = None


class ChatRequest(Settings):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    store: bool | None = None
    metadata: dict[Text, Text] | None = None
    max_tokens: Annotated[int, Field(ge=1), WHOLE] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1), WHOLE] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP), WHOLE] = 0

    @property
    def goes_on(self) -> bool:
        """Whether the answer goes on from the last word of the assistant's."""
        return self.messages[-1].role == "assistant"


class CompletionRequest(Settings):
    """The body of `POST /v1/completions`."""

    prompt: Text | list[Text] | list[int] | list[list[int]]
    max_tokens: Annotated[int, Field(ge=0), WHOLE] = 16
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP), WHOLE] | None = None
    echo: bool = False


class TokenizeRequest(Strict):
    """The body of `POST /tokenize`."""

    model: Text | None = None
    prompt: Text | None = None
    """A text, or else `messages`."""

    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    """A conversation: its tokens up to the beginning of the assistant's next turn, or where the assistant has the last
    turn, up to that turn's last word."""

    add_special_tokens: bool = True
    """Whether a text begins with bos, if the tokenizer puts it before texts."""

    parse_special: bool = False
    """Whether the spellings of control tokens in a text become these tokens."""

    @model_validator(mode="after")
    def _one(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give one of prompt and messages")
        return self


class DetokenizeRequest(Strict):
    """The body of `POST /detokenize`."""

    model: Text | None = None
    tokens: list[int]


class Failed(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    """The field that is wrong."""
    code: str | None


class Failure(BaseModel):
    """The body of every answer whose status is 400 or more."""

    error: Failed


class ApiError(Exception):
    """An error that the client gets as OpenAI's object."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """The object."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
