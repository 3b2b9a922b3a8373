"""Batches of single answers, each called good or bad: what KTO learns from without pairs.

A batch is a dict of arrays over B answers and T positions, in the shape of pairs (`pairs`) of one side:

    tokens       int32 [B, 1, T]     prompt and answer up to its stop token, padded on the right with 0
    answer_mask  float32 [B, 1, T]   1 where the token itself is one that the assistant says in the answer
    lengths      int32 [B, 1]        real tokens
    desirable    float32 [B, 1]      1 for a good answer, 0 for a bad one
    weight       float32 [B]         1, or 0 for an answer that only fills up the last batch of a pass
    index        int32 [B]           the answer's place in `records`

The answer is what follows the last user turn of a conversation.
"""

import functools
from collections.abc import Sequence

import numpy as np

from ..errors import UserError
from .batches import Shapes
from .pairs import encode_answer
from .samples import LeftOut, Sample, SampleBatches, Samples, SourcePart, SourcePass, collect, language_of
from .templates import ChatTemplate
from .tokenizer import Tokenizer


class LabelledBatches(SampleBatches):
    """The endless batches of labelled answers of a mixture, a function of (seed, step).

    `records[i]` is {"language": "zh" or "en", "label": True or False, "meta": the record's other fields}.
    """

    def __init__(
        self,
        parts: Sequence[SourcePart],
        *,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        batch_size: int,
        length: int,
        seed: int,
        max_answers: int | None = None,
        **how,
    ):
        """
        Args:
          parts: the mixture, all of conversations with a label.
          tokenizer, template: how a conversation becomes tokens.
          batch_size: answers in a batch, over all hosts.
          length: T; a longer conversation is left out and counted, never cut.
          seed: of the order of answers.
          max_answers: read only the first so many answers of each source.
          how: `split`, `heldout`, `on_error` and `max_record_bytes`, as `sources.read` takes them.

        Raises:
          UserError: a mixture or a record that will not do, or a source in which no answer is left.
        """
        how |= dict(tokenizer=tokenizer, template=template, length=length, limit=max_answers)

        def read(part: SourcePart) -> Samples:
            return read_labelled(part.source, format=part.format, **how)

        super().__init__(parts, read, row_shapes=_row_shapes(length), batch_size=batch_size, length=length, seed=seed)


def labelled_pass(source: str, *, batch_size: int, length: int, split: str | None = "heldout", **how) -> SourcePass:
    """One pass over the labelled answers of one split of a source, in batches of [batch_size, 1, length]. how: as
    `read_labelled` takes it. UserError for records without a label, and where no answer is left."""
    answers = read_labelled(source, length=length, split=split, **how)
    return SourcePass(answers, row_shapes=_row_shapes(length), batch_size=batch_size)


def _row_shapes(length: int) -> Shapes:
    return {
        "tokens": ((1, length), np.int32),
        "answer_mask": ((1, length), np.float32),
        "lengths": ((1,), np.int32),
        "desirable": ((1,), np.float32),
        "weight": ((), np.float32),
    }


def read_labelled(source: str, *, tokenizer: Tokenizer, template: ChatTemplate, length: int, **how) -> Samples:
    """The labelled answers of one split of a source, in its order. how: as `samples.collect` takes it."""
    make = functools.partial(_make, tokenizer=tokenizer, template=template, length=length)
    return collect(source, make, what="labelled answer is left", reasons=("too_long",), **how)


def _make(record: dict, *, tokenizer: Tokenizer, template: ChatTemplate, length: int) -> Sample:
    if "label" not in record:
        raise UserError(
            f"a {record['kind']} record without a label: give each answer a `label` or `kto_tag`, true or false"
        )
    prompt, answer = split_answer(record["messages"])
    if record["label"] and any(message.get("train") is False for message in record["messages"][len(prompt) :]):
        raise UserError("an answer called good has train false: all that an answer says is learnt")
    asked = record | {"messages": prompt}
    encode = functools.partial(encode_answer, asked, tokenizer=tokenizer, template=template)
    stop = None
    if not (answer[-1]["content"].strip() or answer[-1].get("tool_calls")):
        stop = int(encode([{"role": "assistant", "content": "a"}]).tokens[-1])  # what ends any answer
    tokens, mask = encode(answer, stop=stop)
    if len(tokens) > length:
        raise LeftOut("too_long", f"its answer has {len(tokens):,} tokens with the prompt, more than {length:,}")
    kept = {"language": language_of(record, record["messages"]), "label": record["label"]}
    arrays = {"tokens": tokens[None], "answer_mask": mask[None], "lengths": np.array([len(tokens)], np.int32)}
    arrays |= {"desirable": np.array([record["label"]], np.float32), "weight": np.float32(1)}
    return Sample(kept | {"meta": record.get("meta", {})}, arrays)


def split_answer(messages: list[dict]) -> tuple[list[dict], list[dict]]:
    """A conversation up to its last user turn, and the turns after it, whose switches `train` say nothing here."""
    last = max(i for i, message in enumerate(messages) if message["role"] == "user")
    turns = [{name: value for name, value in message.items() if name != "train"} for message in messages]
    return turns[: last + 1], turns[last + 1 :]
