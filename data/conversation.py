"""A conversation as a chat template sees it: messages, tools and documents, checked, plain and traced."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..errors import UserError
from .template_following import CompiledTemplate
from .tokenizer import Tokenizer
from .traced_text import FIRST_TURN, WORDS, from_source

ROLES = ("system", "user", "assistant", "tool")
_SAID_BY_ASSISTANT = ("content", "tool_calls", "reasoning_content", "thinking")
_SEEN = ("role", "content", "input", "tool_calls", "reasoning_content", "name", "tool_call_id")


class Conversation(NamedTuple):
    """Messages that were checked, and what else a template is given. Made by `of`."""

    messages: Sequence[dict]
    tools: Sequence[dict] | None
    documents: Sequence[dict] | None
    generation_prompt: bool
    reads_input: bool
    characters: int  # in messages, tools and documents

    @classmethod
    def of(
        cls,
        messages: Sequence[dict],
        tools: Sequence[dict] | None,
        documents: Sequence[dict] | None,
        generation_prompt: bool,
        compiled: CompiledTemplate,
    ) -> "Conversation":
        """Check what a template is to write. A system message that says nothing is left out.

        Raises:
            UserError: a message is malformed, or the template would leave out what messages hold.
        """
        messages = [m for m in messages if m.get("role") != "system" or m.get("content") is None or not _blank(m)]
        if not messages:
            raise UserError("a conversation has no messages")
        characters = _characters([tools, documents]) if tools or documents else 0
        for number, message in enumerate(messages, 1):
            characters += _check(message, number, compiled)
        if generation_prompt and messages[-1]["role"] == "assistant":
            raise UserError(f"message {len(messages)} is the assistant's: there is nothing to answer after it")
        for name, given in (("tools", tools), ("documents", documents)):
            if given and name not in compiled.variables:
                raise UserError(
                    f"a record has {name}, of which chat template {compiled.name} writes nothing: take a template that "
                    f"reads {name}, or leave them out of the record"
                )
        return cls(messages, tools, documents, generation_prompt, "input" in compiled.keys, characters)

    def before(self, k: int) -> "Conversation":
        """What asks for message `k`."""
        return self._replace(messages=self.messages[:k], generation_prompt=True)

    def until(self, k: int) -> "Conversation":
        """The conversation that ends with message `k`."""
        return self._replace(messages=self.messages[: k + 1], generation_prompt=False)

    def turns(self) -> list[int]:
        """The assistant's messages, by their index."""
        return [k for k, message in enumerate(self.messages) if message["role"] == "assistant"]

    def is_plain(self, k: int) -> bool:
        """Whether message `k` says nothing but its content."""
        return not (self.messages[k].get("tool_calls") or self.messages[k].get("reasoning_content"))

    def says_something(self, k: int) -> bool:
        """Whether message `k` is more than blank."""
        return not (self.is_plain(k) and _blank(self.messages[k]))

    def variables(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """What the template finds, as transformers gives it."""
        return tokenizer.named | {
            "messages": [_seen(message, self.reads_input) for message in self.messages],
            "tools": self.tools,
            "documents": self.documents,
            "add_generation_prompt": self.generation_prompt,
        }

    def traced(self, variables: dict[str, Any]) -> dict[str, Any]:
        """The same variables, with every text of the messages, tools and documents traced."""
        messages = []
        for k, message in enumerate(variables["messages"]):
            said = FIRST_TURN + k if message["role"] == "assistant" else WORDS
            messages.append(
                {
                    key: value if key == "role" else _traced(value, said if key in _SAID_BY_ASSISTANT else WORDS)
                    for key, value in message.items()
                }
            )
        others = {name: _traced(variables[name], WORDS) for name in ("tools", "documents")}
        return variables | others | {"messages": messages}


def _blank(message: dict) -> bool:
    return isinstance(message["content"], str) and not message["content"].strip()


def _check(message: dict, number: int, compiled: CompiledTemplate) -> int:
    """How many characters a message says, once it is found to be in order."""
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise UserError(f"message {number} has role {role!r}: expected one of {', '.join(ROLES)}")
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise UserError(f"message {number}, from the {role}, has no text as its content or input")
    if len(message) == 2 and content is not None:
        return len(content)
    if not isinstance(message.get("input", ""), str):
        raise UserError(f"message {number}, from the {role}, has no text as its content or input")
    for key, names in (("tool_calls", {"tool_calls"}), ("reasoning_content", {"reasoning_content", "thinking"})):
        if message.get(key) and not names & compiled.keys:
            raise UserError(
                f"message {number} has {key}, of which chat template {compiled.name} writes nothing: take a template "
                f"that reads {key}, or leave them out of the record"
            )
    return _characters([message.get(key) for key in _SEEN])


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_characters, value.keys())) + sum(map(_characters, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_characters, value))
    return 0


def _seen(message: dict, reads_input: bool) -> dict:
    """The message as the template sees it: without keys of ours, and without those that are None."""
    if len(message) == 2:
        return message
    seen = {key: value for key, value in message.items() if key in _SEEN and value is not None}
    more = seen.get("input")
    if more is not None and not (more and reads_input):
        del seen["input"]
        seen["content"] += f"\n\n{more}" if more else ""
    if "reasoning_content" in seen:  # templates know it by either name
        seen = {"thinking": seen["reasoning_content"], **seen}
    return seen


def _traced(value: Any, source: int) -> Any:
    if isinstance(value, str):
        return from_source(value, source)
    if isinstance(value, dict):
        return {_traced(key, source): _traced(item, source) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_traced(item, source) for item in value]
    return value
