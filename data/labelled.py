"""Single answers, each called good or bad: what KTO learns from without pairs.

A batch is a dict of arrays over B answers and T positions, in the shape of pairs (`pairs`) of one side:

    tokens       int32 [B, 1, T]     prompt and answer up to its stop token, padded on the right with 0
    answer_mask  float32 [B, 1, T]   1 where the token itself is one that the assistant says in the answer
    lengths      int32 [B, 1]        real tokens
    desirable    float32 [B, 1]      1 for a good answer, 0 for a bad one
    weight       float32 [B]         1, or 0 for an answer that only fills up the last batch of a pass
    index        int32 [B]           the answer's place in `records`

`records[i]` is {"language": "zh" or "en", "label": True or False, "meta": the record's other fields}.

The answer is what follows the last user turn of a conversation.
"""

import functools
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from .encoding import LeftOut
from .mixture import Shapes
from .pairs import encode_answer
from .samples import Sample, language_of
from .templates import ChatTemplate
from .tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class AnswerEncoder:
    """Encodes conversations with a label as labelled answers."""

    tokenizer: Tokenizer
    template: ChatTemplate  # how a conversation becomes tokens
    length: int  # T; a longer conversation is left out and counted, never cut

    reasons = ("too_long",)
    nothing = "no labelled answer is left"

    @property
    def shapes(self) -> Shapes:
        """Shape and dtype of each array of an answer in a batch."""
        return {
            "tokens": ((1, self.length), np.int32),
            "answer_mask": ((1, self.length), np.float32),
            "lengths": ((1,), np.int32),
            "desirable": ((1,), np.float32),
            "weight": ((), np.float32),
        }

    def encode(self, record: dict) -> Sample:
        """The answer of a record.

        Raises:
          LeftOut: an answer that is too long.
          UserError: no label, a good answer that is not trained on, or as of `pairs.encode_answer`.
        """
        if "label" not in record:
            raise UserError(
                f"a {record['kind']} record without a label: give each answer a `label` or `kto_tag`, true or false"
            )
        prompt, answer = split_answer(record["messages"])
        if record["label"] and any(message.get("train") is False for message in record["messages"][len(prompt) :]):
            raise UserError("an answer called good has train false: all that an answer says is learnt")
        asked = record | {"messages": prompt}
        encode = functools.partial(encode_answer, asked, tokenizer=self.tokenizer, template=self.template)
        stop = None
        if not (answer[-1]["content"].strip() or answer[-1].get("tool_calls")):
            stop = int(encode([{"role": "assistant", "content": "a"}]).tokens[-1])  # what ends any answer
        tokens, mask = encode(answer, stop=stop)
        if len(tokens) > self.length:
            found = f"its answer has {len(tokens):,} tokens with the prompt"
            raise LeftOut("too_long", f"{found}, more than {self.length:,}")
        kept = {"language": language_of(record, record["messages"]), "label": record["label"]}
        arrays = {"tokens": tokens[None], "answer_mask": mask[None], "lengths": np.array([len(tokens)], np.int32)}
        arrays |= {"desirable": np.array([record["label"]], np.float32), "weight": np.float32(1)}
        return Sample(kept | {"meta": record.get("meta", {})}, arrays)


def split_answer(messages: list[dict]) -> tuple[list[dict], list[dict]]:
    """A conversation up to its last user turn, and the turns after it, whose switches `train` say nothing here."""
    last = max(i for i, message in enumerate(messages) if message["role"] == "user")
    turns = [{name: value for name, value in message.items() if name != "train"} for message in messages]
    return turns[: last + 1], turns[last + 1 :]
