"""Where a chat template begins and ends the turn of a user, so that a chat model can be asked to write it.

A chat model has learnt from whole conversations. Given the tokens up to the first word of a user, it goes on with what
users say (Magpie, arXiv:2406.08464, section 2).
"""

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import NamedTuple

from ..errors import UserError
from .templates import ChatTemplate
from .tokenizer import Tokenizer

WORDS = ("What", "Explain", "如何")
"""What a user may say. The tokens that a conversation has with each of them are the template's."""


class UserTurn(NamedTuple):
    """The next turn of the user in a conversation."""

    prefix: list[int]
    """Tokens up to the first word of the user."""

    stop_ids: tuple[int, ...]
    """The id of the token with which the template ends the turn; () if it writes text there."""

    stop: tuple[str, ...]
    """The text with which the template ends the turn; () if it writes a token there."""


def user_turn(template: ChatTemplate, tokenizer: Tokenizer, messages: Sequence[dict] = ()) -> UserTurn:
    """How a template begins and ends the next turn of the user.

    Spaces in front of the user's first word are left to the model, since tokenizers join them to words.

    Args:
      template: the chat template.
      tokenizer: its tokenizer.
      messages: the conversation so far: nothing, a system message, or turns up to an answer of the assistant.

    Raises:
      UserError: the template refuses the conversation, or nothing follows the user's words in it.
    """
    said = [[*messages, {"role": "user", "content": words}] for words in WORDS]
    tokens = [template.encode(each, tokenizer, generation_prompt=True).tokens.tolist() for each in said]
    prefix, rest = _shared(zip(*tokens, strict=False)), _shared(zip(*map(reversed, tokens), strict=False))[::-1]
    while prefix and set(tokenizer.token_bytes[prefix[-1]]) == {ord(" ")}:
        prefix.pop()
    if not prefix or not rest or len(prefix) == len(tokens[0]):
        raise UserError(
            f"chat template {template.name} does not write a user's words between other tokens, so where they begin "
            "and end is unknown: use another template"
        )
    control = {token.id for token in tokenizer.added.values()}
    if rest[0] in control:
        return UserTurn(prefix, (rest[0],), ())
    text = rest[: next((i for i, token in enumerate(rest) if token in control), None)]
    return UserTurn(prefix, (), (tokenizer.decode(text).strip().splitlines()[0],))


def _shared(places: Iterable[tuple[int, ...]]) -> list[int]:
    """The tokens of all conversations up to the first place where they differ."""
    return [ids[0] for ids in takewhile(lambda ids: len(set(ids)) == 1, places)]
