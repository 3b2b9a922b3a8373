"""Batches of prompts, for reinforcement learning: conversations up to where the assistant answers.

Of a conversation that ends with an answer the prompt is what comes before it, and the answer's words are kept as the
reference. Of a preference it is what both answers reply to. A batch is a dict of arrays over B prompts of at most P
tokens:

    tokens    int32 [B, P]    ends with the template's generation prompt, padded on the right with 0
    lengths   int32 [B]       real tokens
    ids       uint32 [B]      a number for the prompt's content, from which the randomness of its answers derives
    index     int32 [B]       its place in `records`
"""

import zlib
from collections.abc import Callable, Sequence
from itertools import chain, islice, zip_longest

import numpy as np

from ..errors import UserError
from .batches import Shapes
from .samples import LeftOut, Sample, SampleBatches, Samples, SourcePart, collect, language_of
from .templates import ChatTemplate
from .tokenizer import Tokenizer


class PromptBatches(SampleBatches):
    """The endless batches of prompts of a mixture, a function of (seed, step).

    `records[i]` is {"messages": the prompt, "reference": an answer or None, "language": "zh" or "en" or what meta
    says, "meta": the record's other fields, "tools"?, "documents"?}.
    """

    def __init__(
        self,
        parts: Sequence[SourcePart],
        *,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        batch_size: int,
        max_tokens: int,
        seed: int,
        **how,
    ):
        """
        Args:
          parts: the mixture: conversations, prompts or preferences.
          tokenizer, template: how a prompt becomes tokens.
          batch_size: prompts in a batch, over all hosts.
          max_tokens: P; longer prompts are left out and counted, and so are repeated ones within a source.
          seed: of the order of prompts.
          how: `split`, `heldout`, `on_error` and `max_record_bytes`, as `sources.read` takes them.

        Raises:
          UserError: a mixture or a record that will not do, or a source in which no prompt is left.
        """
        how |= dict(tokenizer=tokenizer, template=template, max_tokens=max_tokens)

        def read(part: SourcePart) -> Samples:
            return read_prompts(part.source, format=part.format, **how)

        super().__init__(
            parts, read, row_shapes=prompt_shapes(max_tokens), batch_size=batch_size, length=max_tokens, seed=seed
        )


def prompt_shapes(max_tokens: int) -> Shapes:
    """Shape and dtype of each array of a prompt in a batch."""
    return {"tokens": ((max_tokens,), np.int32), "lengths": ((), np.int32), "ids": ((), np.uint32)}


def heldout_prompts(parts: Sequence[SourcePart], n: int, **how) -> list[Sample]:
    """`n` held-out prompts, sources taking turns, evenly spaced over each; fewer where there are no more.

    `sample.record` is as in `PromptBatches.records`; `sample.arrays["tokens"]` is int32 [length]. how: as
    `read_prompts` takes it.
    """
    read = (read_prompts(part.source, format=part.format, split="heldout", **how).samples for part in parts)
    columns = [spread(samples, n) for samples in read]
    turns = chain.from_iterable(zip_longest(*columns))
    return list(islice((sample for sample in turns if sample is not None), n))


def spread(samples: list[Sample], n: int) -> list[Sample]:
    """`n` of the samples, evenly spaced; all of them where there are fewer."""
    places = np.linspace(0, len(samples), min(n, len(samples)), endpoint=False).astype(int)
    return [samples[i] for i in places]


def read_prompts(source: str, *, tokenizer: Tokenizer, template: ChatTemplate, max_tokens: int, **how) -> Samples:
    """The prompts of one split of a source, in its order; see `PromptBatches` for arguments and errors. how: `limit`
    too, as `samples.collect` takes it."""
    make = _maker(tokenizer, template, max_tokens)
    return collect(source, make, what="prompt is left", reasons=("too_long", "repeated"), **how)


def _maker(tokenizer: Tokenizer, template: ChatTemplate, max_tokens: int) -> Callable[[dict], Sample]:
    """The function that makes a record's sample and remembers which prompts there have been."""
    seen = set()

    def make(record: dict) -> Sample:
        messages, reference = prompt_of(record)
        tokens = template.encode(
            messages, tokenizer, generation_prompt=True, tools=record.get("tools"), documents=record.get("documents")
        ).tokens
        if len(tokens) > max_tokens:
            raise LeftOut("too_long", f"the prompt has {len(tokens):,} tokens, more than {max_tokens:,}")
        content = tokens.tobytes()
        if content in seen:
            raise LeftOut("repeated")
        seen.add(content)
        kept = {"messages": messages, "reference": reference, "language": language_of(record, messages)}
        kept["meta"] = record.get("meta", {})
        kept |= {name: record[name] for name in ("tools", "documents") if name in record}
        ids = np.uint32(zlib.crc32(content))
        return Sample(kept, {"tokens": tokens, "lengths": np.int32(len(tokens)), "ids": ids})

    return make


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
