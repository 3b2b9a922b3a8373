"""Prompts for reinforcement learning: conversations up to the point where the assistant answers.

If a conversation ends with an answer, the prompt is everything before it, and the text of the answer is kept as the
reference. The prompt of a preference is what both answers reply to. A batch is a dict of arrays over B prompts of at
most P tokens:

    tokens    int32 [B, P]    ends with the template's generation prompt, padded on the right with 0
    lengths   int32 [B]       number of tokens without padding
    ids       uint32 [B]      a hash of the prompt's tokens, which seeds the sampling of its answers
    index     int32 [B]       index of the prompt in `records`

`records[i]` is {"messages": the prompt, "reference": an answer or None, "language": "zh", "en" or what meta says,
"meta": the record's other fields, "tools"?, "documents"?}.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest

import numpy as np

from ..errors import UserError
from .encoding import LeftOut
from .mixture import Shapes
from .samples import REPEATED, Sample, Samples, language_of, read_samples
from .sources import Source
from .tally import Tally
from .templates import ChatTemplate
from .tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class PromptEncoder:
    """Encodes chat, prompt and preference records as prompts. A prompt that a source repeats is left out."""

    tokenizer: Tokenizer
    template: ChatTemplate  # writes prompts
    max_tokens: int  # P; a longer prompt is counted and left out

    reasons = ("too_long", REPEATED)
    empty_message = "no prompt is left"

    @property
    def shapes(self) -> Shapes:
        """Shape and dtype of each array of a prompt in a batch."""
        return {"tokens": ((self.max_tokens,), np.int32), "lengths": ((), np.int32), "ids": ((), np.uint32)}

    def encode(self, record: dict) -> Sample:
        """The prompt of a record. Raises LeftOut if it is too long, UserError if the record has none."""
        messages, reference = prompt_of(record)
        around = {name: record[name] for name in ("tools", "documents") if name in record}
        tokens = self.template.encode(messages, self.tokenizer, generation_prompt=True, **around).tokens
        if len(tokens) > self.max_tokens:
            raise LeftOut("too_long", f"the prompt has {len(tokens):,} tokens, more than {self.max_tokens:,}")
        kept = {"messages": messages, "reference": reference, "language": language_of(record, messages)}
        ids = np.uint32(zlib.crc32(tokens.tobytes()))
        arrays = {"tokens": tokens, "lengths": np.int32(len(tokens)), "ids": ids}
        return Sample(kept | {"meta": record.get("meta", {})} | around, arrays)


def heldout_prompts(sources: Sequence[Source], n: int, encoder: PromptEncoder) -> Samples:
    """`n` held-out prompts, from all sources in turn, evenly spaced over each; fewer if there are not that many.

    Args:
      sources: the sources.
      n: the number of prompts.
      encoder: the encoder of prompts.
    """
    parts = [read_samples(source, "heldout", encoder).spread(n) for source in sources]
    turns = chain.from_iterable(zip_longest(*(part.samples for part in parts)))
    found = list(islice((sample for sample in turns if sample is not None), n))
    return Samples(found, encoder.shapes, sum((part.tally for part in parts), Tally()))


def prompt_of(record: dict) -> tuple[list[dict], str | None]:
    """The messages of a record that are to be answered, and the text of its answer.

    The text is None if the record has no answer, or labels its answer bad. Raises UserError for a text record.
    """
    match record["kind"]:
        case "chat":
            is_good = record.get("label") is not False
            return record["messages"][:-1], (record["messages"][-1]["content"] or None) if is_good else None
        case "prompt" | "preference":
            return record["messages"], None
        case kind:
            raise UserError(f"a {kind} record has no prompt: give conversations, prompts or preferences")
