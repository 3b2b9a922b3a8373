"""Prompts, for reinforcement learning: conversations up to where the assistant answers.

Of a conversation that ends with an answer the prompt is what comes before it, and the answer's words are kept as the
reference. Of a preference it is what both answers reply to. A batch is a dict of arrays over B prompts of at most P
tokens:

    tokens    int32 [B, P]    ends with the template's generation prompt, padded on the right with 0
    lengths   int32 [B]       real tokens
    ids       uint32 [B]      a number for the prompt's content, from which the randomness of its answers derives
    index     int32 [B]       its place in `records`

`records[i]` is {"messages": the prompt, "reference": an answer or None, "language": "zh" or "en" or what meta says,
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
    """Encodes conversations, prompts and preferences as prompts; one that a source repeats is left out."""

    tokenizer: Tokenizer
    template: ChatTemplate  # how a prompt becomes tokens
    max_tokens: int  # P; a longer prompt is left out and counted

    reasons = ("too_long", REPEATED)
    nothing = "no prompt is left"

    @property
    def shapes(self) -> Shapes:
        """Shape and dtype of each array of a prompt in a batch."""
        return {"tokens": ((self.max_tokens,), np.int32), "lengths": ((), np.int32), "ids": ((), np.uint32)}

    def encode(self, record: dict) -> Sample:
        """The prompt of a record. LeftOut for a prompt that is too long, UserError for a record without one."""
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
    """`n` held-out prompts, sources taking turns, evenly spaced over each; fewer where there are no more."""
    parts = [read_samples(source, "heldout", encoder).spread(n) for source in sources]
    turns = chain.from_iterable(zip_longest(*(part.samples for part in parts)))
    found = list(islice((sample for sample in turns if sample is not None), n))
    return Samples(found, encoder.shapes, sum((part.tally for part in parts), Tally()))


def prompt_of(record: dict) -> tuple[list[dict], str | None]:
    """The messages to answer in a record, and the words that it answers them with, unless it calls its answer bad."""
    match record["kind"]:
        case "chat":
            is_good = record.get("label") is not False
            return record["messages"][:-1], (record["messages"][-1]["content"] or None) if is_good else None
        case "prompt" | "preference":
            return record["messages"], None
        case kind:
            raise UserError(f"a {kind} record holds no prompt: give conversations, prompts or preferences")
