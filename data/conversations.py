"""Conversations of records as tokens: the chat template is handed all that a record gives it, and has to use it."""

from collections.abc import Mapping, Sequence

from .errors import UserError
from .templates import ChatTemplate, Encoded
from .tokenizer import Tokenizer

_AROUND = ("tools", "documents")
_OF_TURNS = ("tool_calls", "reasoning_content")


def encode_conversation(
    messages: Sequence[dict],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    *,
    around: Mapping,
    generation_prompt: bool = False,
) -> Encoded:
    """Tokens and mask of a conversation, see `ChatTemplate.encode`.

    around: the record that it is from, for its tools and documents.

    Raises:
      UserError: what the template refuses, or it does not write tools, tool calls or thoughts that the record has.
    """
    there = {
        *(name for name in _OF_TURNS if any(m.get(name) for m in messages)),
        *(["tools"] if around.get("tools") else []),
    }
    for name in sorted(there):
        if name not in template.source:
            raise UserError(
                f"the record has {name}, which chat template {template.name} does not write: use a template that does"
            )
    given = {name: around[name] for name in _AROUND if around.get(name) and name in template.source}
    given |= {"generation_prompt": True} if generation_prompt else {}
    return template.encode(messages, tokenizer, **given)
