"""Text and conversations as tokens, with a mask of the tokens that are trained on."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UserError
from .encoding import LeftOut
from .templates import ChatTemplate, Encoded, encode_text
from .tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """Encodes records of text and of conversations for a token cache. A sample without a trained token is left out."""

    tokenizer: Tokenizer
    template: ChatTemplate | None = None  # how a conversation becomes tokens; plain text needs none

    reasons = ("empty",)
    nothing = "nothing to train on"

    @property
    def cache_key(self) -> dict[str, Any]:
        """All that the tokens and the mask of a record depend on, as JSON."""
        template = self.template
        return {
            "tokenizer": self.tokenizer.cache_key(template.source if template else ""),
            "template": template.fingerprint if template else None,
        }

    @property
    def dtype(self) -> type:
        """The smallest type that holds every id of the vocabulary."""
        return np.uint16 if self.tokenizer.vocab_size <= 2**16 else np.uint32

    def encode(self, record: dict) -> Encoded:
        """Tokens and mask of a record. LeftOut where nothing is trained on, UserError as of `encode_record`."""
        sample = encode_record(record, self.tokenizer, self.template)
        if not sample.mask[1:].any():
            raise LeftOut("empty")
        return sample


def encode_record(record: dict, tokenizer: Tokenizer, template: ChatTemplate | None) -> Encoded:
    """Tokens and mask of one text or chat record; UserError for what cannot be trained on."""
    match record["kind"]:
        case "text":
            return encode_text(record["text"], tokenizer)
        case "chat" if record.get("label") is False:
            raise UserError(
                "the record calls its answer bad (label, kto_tag or score): only dpo.kind=kto learns from it"
            )
        case "chat" | "prompt" if template is not None and _is_answered(record):
            return template.encode(
                record["messages"], tokenizer, tools=record.get("tools"), documents=record.get("documents")
            )
        case "chat":
            raise UserError("a conversation needs a chat template, and the model brings none: name one (`template`)")
        case kind:
            raise UserError(f"a {kind} record holds no answer to train on: give text or conversations")


def _is_answered(record: dict) -> bool:
    """Whether the assistant speaks in a conversation, which may end with a user who says goodbye."""
    return any(message["role"] == "assistant" for message in record["messages"])
