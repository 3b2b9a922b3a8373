"""Single answers, each labelled good or bad. KTO learns from them without pairs.

A batch is a dict of arrays over B answers and T positions, with the shapes of `pairs` for one side:

    tokens       int32 [B, 1, T]     prompt and answer up to its stop token, padded on the right with 0
    answer_mask  float32 [B, 1, T]   1 where the token itself is one that the assistant writes in the answer
    lengths      int32 [B, 1]        number of tokens without padding
    desirable    float32 [B, 1]      1 for a good answer, 0 for a bad one
    weight       float32 [B]         1, or 0 for a copy that fills the last batch of a pass
    index        int32 [B]           index of the answer in `records`

`records[i]` is {"language": "zh" or "en", "label": True or False, "meta": the record's other fields}.

The answer is everything after the last user turn of a conversation.
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
    template: ChatTemplate  # writes conversations
    length: int  # T; a longer conversation is counted and left out, never cut

    reasons = ("too_long",)
    empty_message = "no labelled answer is left"

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
        """The labelled answer of a record.

        Raises:
          LeftOut: the answer and its prompt are too long.
          UserError: the record has no label, a good answer has train false, or an error of `pairs.encode_answer`.
        """
        if "label" not in record:
            raise UserError(
                f"the {record['kind']} record has no label: give each answer a `label` or `kto_tag`, true or false"
            )
        prompt, answer = split_answer(record["messages"])
        if record["label"] and any(message.get("train") is False for message in record["messages"][len(prompt) :]):
            raise UserError("an answer labelled good has train false, but whole answers are learnt: remove train")
        asked = record | {"messages": prompt}
        encode = functools.partial(encode_answer, asked, tokenizer=self.tokenizer, template=self.template)
        stop = None
        if not (answer[-1]["content"].strip() or answer[-1].get("tool_calls")):
            stop = int(encode([{"role": "assistant", "content": "a"}]).tokens[-1])  # the token that ends every answer
        tokens, mask = encode(answer, stop=stop)
        if len(tokens) > self.length:
            found = f"its answer has {len(tokens):,} tokens with the prompt"
            raise LeftOut("too_long", f"{found}, more than {self.length:,}")
        kept = {"language": language_of(record, record["messages"]), "label": record["label"]}
        arrays = {"tokens": tokens[None], "answer_mask": mask[None], "lengths": np.array([len(tokens)], np.int32)}
        arrays |= {"desirable": np.array([record["label"]], np.float32), "weight": np.float32(1)}
        return Sample(kept | {"meta": record.get("meta", {})}, arrays)


def split_answer(messages: list[dict]) -> tuple[list[dict], list[dict]]:
    """A conversation as (turns up to the last user turn, turns after it), both without the field `train`."""
    last = max(i for i, message in enumerate(messages) if message["role"] == "user")
    turns = [{name: value for name, value in message.items() if name != "train"} for message in messages]
    return turns[: last + 1], turns[last + 1 :]
