"""Encodes text and conversations as tokens, with a mask of the tokens that are trained on."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UserError
from .encoding import LeftOut
from .templates import ChatTemplate, Encoded, encode_text
from .tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """Encodes text and chat records for a token cache. A sample without a trained token is left out."""

    tokenizer: Tokenizer
    template: ChatTemplate | None = None  # writes conversations; not needed for plain text

    reasons = ("empty",)
    empty_message = "nothing to train on"

    @property
    def cache_key(self) -> dict[str, Any]:
        """Everything that decides the tokens and the mask of a record, as values that JSON can hold."""
        template = self.template
        return {
            "tokenizer": self.tokenizer.cache_key(template.source if template else ""),
            "template": template.fingerprint if template else None,
        }

    @property
    def dtype(self) -> type:
        """The smaller of uint16 and uint32 that holds every id of the vocabulary."""
        return np.uint16 if self.tokenizer.vocab_size <= 2**16 else np.uint32

    def encode(self, record: dict) -> Encoded:
        """Tokens and mask of a record. Raises LeftOut if no token is trained on, UserError as `encode_record` does."""
        sample = encode_record(record, self.tokenizer, self.template)
        if not sample.mask[1:].any():
            raise LeftOut("empty")
        return sample


def encode_record(record: dict, tokenizer: Tokenizer, template: ChatTemplate | None) -> Encoded:
    """Tokens and mask of a record.

    Args:
      record: a text or chat record, or a prompt record in which the assistant has answered before.
      tokenizer: the tokenizer.
      template: writes conversations; None allows text records only.

    Raises:
      UserError: the record holds no answer to learn, or a conversation comes without a template.
    """
    match record["kind"]:
        case "text":
            return encode_text(record["text"], tokenizer)
        case "chat" if record.get("label") is False:
            raise UserError(
                "the answer is labelled bad (label, kto_tag or score), and only dpo.kind=kto learns from bad answers: "
                "remove the record"
            )
        case "chat" | "prompt" if template is not None and _is_answered(record):
            return template.encode(
                record["messages"], tokenizer, tools=record.get("tools"), documents=record.get("documents")
            )
        case "chat":
            raise UserError("a conversation needs a chat template, and the model has none: set `template`")
        case kind:
            raise UserError(f"a {kind} record has no answer to train on: give text, or conversations with an answer")


def _is_answered(record: dict) -> bool:
    """Whether a conversation holds a turn of the assistant. The last turn may be the user's."""
    return any(message["role"] == "assistant" for message in record["messages"])
