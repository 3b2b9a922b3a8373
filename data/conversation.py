"""A checked conversation as a chat template sees it: messages, tools and documents, with or without traces."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..errors import UserError
from .template_tracing import CompiledTemplate
from .tokenizer import Tokenizer
from .traced_text import FIRST_TURN, WORDS, from_source

ROLES = ("system", "user", "assistant", "tool")
_ASSISTANT_KEYS = ("content", "tool_calls", "reasoning_content", "thinking")
_TEMPLATE_KEYS = ("role", "content", "input", "tool_calls", "reasoning_content", "name", "tool_call_id")


class Conversation(NamedTuple):
    """The checked messages and other inputs of a chat template. Made by `Conversation.from_messages`."""

    messages: Sequence[dict]  # at least one; blank system messages are left out
    tools: Sequence[dict] | None  # JSON schemas of functions
    documents: Sequence[dict] | None
    generation_prompt: bool  # whether the template writes the beginning of the assistant's next turn
    reads_input: bool  # whether the template reads the key "input" of a message
    characters: int  # number of characters in messages, tools and documents

    @classmethod
    def from_messages(
        cls,
        messages: Sequence[dict],
        tools: Sequence[dict] | None,
        documents: Sequence[dict] | None,
        generation_prompt: bool,
        compiled: CompiledTemplate,
    ) -> "Conversation":
        """Checks the inputs of a template. Blank system messages are left out.

        Args:
            messages: the messages.
            tools: JSON schemas of functions, or None.
            documents: objects with the text of documents, or None.
            generation_prompt: whether the template writes the beginning of the assistant's next turn.
            compiled: the template.

        Raises:
            UserError: a message is malformed, or holds something that the template does not write.
        """
        messages = [m for m in messages if m.get("role") != "system" or m.get("content") is None or not _blank(m)]
        if not messages:
            raise UserError("the conversation has no messages: give at least one that is not blank")
        characters = _characters([tools, documents]) if tools or documents else 0
        for number, message in enumerate(messages, 1):
            characters += _check(message, number, compiled)
        if generation_prompt and messages[-1]["role"] == "assistant":
            raise UserError(f"message {len(messages)}, the last one, is the assistant's: end with one to be answered")
        for name, given in (("tools", tools), ("documents", documents)):
            if given and name not in compiled.variables:
                raise UserError(
                    f"the record has {name}, but chat template {compiled.name} does not read them: use a template that "
                    f"reads {name}, or remove them from the record"
                )
        return cls(messages, tools, documents, generation_prompt, "input" in compiled.keys, characters)

    def prompt_for(self, k: int) -> "Conversation":
        """The conversation before message `k`, with the generation prompt that asks for it."""
        return self._replace(messages=self.messages[:k], generation_prompt=True)

    def up_to(self, k: int) -> "Conversation":
        """The conversation that ends with message `k`, without a generation prompt."""
        return self._replace(messages=self.messages[: k + 1], generation_prompt=False)

    def assistant_turns(self) -> list[int]:
        """The indices of the assistant's messages."""
        return [k for k, message in enumerate(self.messages) if message["role"] == "assistant"]

    def is_plain(self, k: int) -> bool:
        """Whether message `k` has content only: no tool calls and no reasoning."""
        return not (self.messages[k].get("tool_calls") or self.messages[k].get("reasoning_content"))

    def has_words(self, k: int) -> bool:
        """Whether message `k` has tool calls, reasoning, or content that is not blank."""
        return not (self.is_plain(k) and _blank(self.messages[k]))

    def variables(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """The template's variables, under the names that transformers gives them."""
        return tokenizer.named | {
            "messages": [_as_template_sees(message, self.reads_input) for message in self.messages],
            "tools": self.tools,
            "documents": self.documents,
            "add_generation_prompt": self.generation_prompt,
        }

    def traced(self, variables: dict[str, Any]) -> dict[str, Any]:
        """`variables` with the origin of every character in the text of messages, tools and documents."""
        messages = []
        for k, message in enumerate(variables["messages"]):
            source = FIRST_TURN + k if message["role"] == "assistant" else WORDS
            messages.append(
                {
                    key: value if key == "role" else _traced(value, source if key in _ASSISTANT_KEYS else WORDS)
                    for key, value in message.items()
                }
            )
        others = {name: _traced(variables[name], WORDS) for name in ("tools", "documents")}
        return variables | others | {"messages": messages}


def _blank(message: dict) -> bool:
    return isinstance(message["content"], str) and not message["content"].strip()


def _check(message: dict, number: int, compiled: CompiledTemplate) -> int:
    """Raises UserError for a malformed message; returns the number of characters in it."""
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise UserError(f"message {number} has role {role!r}: give one of {', '.join(ROLES)}")
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise UserError(f"message {number}, of the {role}, has no content: give a string")
    if len(message) == 2 and content is not None:
        return len(content)
    if not isinstance(message.get("input", ""), str):
        raise UserError(f"message {number}, of the {role}, has an input that is not a string: give a string")
    for key, names in (("tool_calls", {"tool_calls"}), ("reasoning_content", {"reasoning_content", "thinking"})):
        if message.get(key) and not names & compiled.keys:
            raise UserError(
                f"message {number} has {key}, but chat template {compiled.name} does not read it: use a template that "
                f"reads {key}, or remove it from the record"
            )
    return _characters([message.get(key) for key in _TEMPLATE_KEYS])


def _characters(value: Any) -> int:
    """The number of characters in all strings of a JSON value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_characters, value.keys())) + sum(map(_characters, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_characters, value))
    return 0


def _as_template_sees(message: dict, reads_input: bool) -> dict:
    """The message without keys that templates do not know, and without keys whose value is None.

    "input" is appended to the content if the template does not read it.
    """
    if len(message) == 2:
        return message
    seen = {key: value for key, value in message.items() if key in _TEMPLATE_KEYS and value is not None}
    more = seen.get("input")
    if more is not None and not (more and reads_input):
        del seen["input"]
        seen["content"] += f"\n\n{more}" if more else ""
    if "reasoning_content" in seen:  # some templates read the key "thinking"
        seen = {"thinking": seen["reasoning_content"], **seen}
    return seen


def _traced(value: Any, source: int) -> Any:
    """A copy of a JSON value in which every string is traced to `source`."""
    if isinstance(value, str):
        return from_source(value, source)
    if isinstance(value, dict):
        return {_traced(key, source): _traced(item, source) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_traced(item, source) for item in value]
    return value
