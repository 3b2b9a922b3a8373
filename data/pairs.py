"""Preference pairs: two answers to one prompt. Side 0 is the chosen answer and side 1 the rejected one.

A batch is a dict of arrays over B pairs, S = 2 sides (or more, see `PairEncoder.sides`) and T positions:

    tokens       int32 [B, S, T]     prompt and answer up to its stop token, padded on the right with 0
    answer_mask  float32 [B, S, T]   1 where the token itself is one that the assistant writes in the answer
    lengths      int32 [B, S]        number of tokens without padding
    side_weight  float32 [B, S]      1, or 0 for a copy that fills the row of a record with fewer answers
    margin       float32 [B]         how much better the chosen answer is, 0 if the record does not say
    weight       float32 [B]         1, or 0 for a copy that fills the last batch of a pass
    safer        float32 [B]         1 if the chosen answer is safer, -1 if the rejected one is, 0 if unknown
    safe         float32 [B, 2]      1 for a safe answer, -1 for an unsafe one, 0 if unknown
    index        int32 [B]           index of the pair in `records`

`records[i]` is {"language": "zh" or "en", "margin": a number or None, "meta": the record's other fields, "flipped"}.

Each side is one tokenisation of the whole conversation. What a template writes after the stop token (ChatML's newline)
is cut off, since a policy never generates it.
"""

import functools
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from ..errors import UserError
from .encoding import LeftOut
from .mixture import Shapes
from .samples import Sample, language_of
from .templates import ChatTemplate, Encoded
from .tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class PairEncoder:
    """Encodes preference records as pairs."""

    tokenizer: Tokenizer
    template: ChatTemplate  # writes conversations
    length: int  # T; a pair with a longer side is counted and left out, never cut
    noise: float = 0.0  # share of pairs, chosen by a hash, whose sides are swapped to imitate wrong labels
    sides: int = 2  # S; sides above 2 are further rejected answers, the texts in meta.others

    reasons = ("too_long", "same_tokens")
    empty_message = "no preference pair is left"

    @property
    def shapes(self) -> Shapes:
        """Shape and dtype of each array of a pair in a batch."""
        return {
            "tokens": ((self.sides, self.length), np.int32),
            "answer_mask": ((self.sides, self.length), np.float32),
            "lengths": ((self.sides,), np.int32),
            "side_weight": ((self.sides,), np.float32),
            "margin": ((), np.float32),
            "weight": ((), np.float32),
            "safer": ((), np.float32),
            "safe": ((2,), np.float32),
        }

    def encode(self, record: dict) -> Sample:
        """The pair of a record.

        Raises:
          LeftOut: a side is too long, or the two sides have the same tokens.
          UserError: the record is no preference, or an error of `encode_pair`.
        """
        if record["kind"] != "preference":
            raise UserError(
                f"a {record['kind']} record has no two answers to compare: give preferences, or set dpo.kind=kto for "
                "single answers with labels"
            )
        flipped = _is_flipped(record, self.noise)
        if flipped:
            record = flip_pair(record)
        answers = list(encode_pair(record, self.tokenizer, self.template))
        for other in _further_rejected(record)[: self.sides - 2] if self.sides > 2 and not flipped else ():
            worse = record | {"rejected": [{"role": "assistant", "content": other}]}
            answers.append(encode_pair(worse, self.tokenizer, self.template)[1])
        there = len(answers)
        answers += [answers[1]] * (self.sides - there)  # copies, with side_weight 0
        lengths = np.array([len(side.tokens) for side in answers], np.int32)
        if lengths.max() > self.length:
            found = " and ".join(f"{n:,}" for n in lengths[:there].tolist())
            raise LeftOut("too_long", f"its answers have {found} tokens with the prompt, more than {self.length:,}")
        if np.array_equal(answers[0].tokens, answers[1].tokens):
            raise LeftOut("same_tokens", "chosen and rejected are the same tokens")
        tokens, mask = np.zeros((self.sides, lengths.max()), np.int32), np.zeros((self.sides, lengths.max()), bool)
        for side, encoded in enumerate(answers):
            tokens[side, : lengths[side]], mask[side, : lengths[side]] = encoded
        language = language_of(record, record["messages"] + record["chosen"] + record["rejected"])
        kept = {"language": language, "margin": record.get("margin"), "meta": record.get("meta", {})}
        arrays = {"tokens": tokens, "answer_mask": mask, "lengths": lengths, "weight": np.float32(1)}
        arrays["side_weight"] = (np.arange(self.sides) < there).astype(np.float32)
        arrays["margin"] = np.float32(record.get("margin", 0))
        return Sample(kept | {"flipped": flipped}, arrays | _safety(record))


def _further_rejected(record: dict) -> list[str]:
    """The texts in `meta.others`: further answers to the prompt, each worse than the chosen one."""
    others = record.get("meta", {}).get("others", [])
    if not isinstance(others, list) or not all(isinstance(text, str) for text in others):
        raise UserError("meta.others is not a list of strings")
    return others


def _is_flipped(record: dict, noise: float) -> bool:
    """Whether the pair is in the share `noise` whose sides are swapped, by a hash of its text alone.

    A pair with an empty rejected answer is never swapped: the chosen answer must not be empty.
    """
    if not record["rejected"][-1]["content"].strip():
        return False
    words = "\n".join(m["content"] for part in ("messages", "chosen", "rejected") for m in record[part])
    return int.from_bytes(blake2b(words.encode(), digest_size=8).digest()) < noise * 2**64


def flip_pair(record: dict) -> dict:
    """The preference record with chosen and rejected swapped, also in its labels."""
    other = {"chosen": "rejected", "rejected": "chosen"}
    turned = record | {"chosen": record["rejected"], "rejected": record["chosen"]}
    if "margin" in record:
        turned["margin"] = -record["margin"]
    if "safer" in record:
        turned["safer"] = other[record["safer"]]
    return turned | {f"{side}_safe": record[f"{other[side]}_safe"] for side in other if f"{other[side]}_safe" in record}


def _safety(record: dict) -> dict[str, np.ndarray]:
    """The arrays `safer` and `safe` of a pair, from the labels of its record."""
    sign = {True: 1, False: -1, "chosen": 1, "rejected": -1, None: 0}
    safe = [sign[record.get(f"{side}_safe")] for side in ("chosen", "rejected")]
    return {"safer": np.float32(sign[record.get("safer")]), "safe": np.array(safe, np.float32)}


def encode_pair(record: dict, tokenizer: Tokenizer, template: ChatTemplate) -> tuple[Encoded, Encoded]:
    """Tokens of the chosen and of the rejected conversation, each with the mask of its answer.

    An empty rejected answer becomes the stop token of the chosen answer, directly after the prompt.

    Args:
      record: the preference record.
      tokenizer: the tokenizer.
      template: writes the conversations.

    Raises:
      UserError: the template refuses the conversation, or its output does not show where the answers begin.
    """
    chosen = encode_answer(record, record["chosen"], tokenizer, template)
    return chosen, encode_answer(record, record["rejected"], tokenizer, template, stop=int(chosen.tokens[-1]))


def encode_answer(
    record: dict, answer: list[dict], tokenizer: Tokenizer, template: ChatTemplate, *, stop: int | None = None
) -> Encoded:
    """Tokens of a prompt and an answer up to the last trained token, with the mask of the answer.

    Args:
      record: its `messages` are the prompt; its `tools` and `documents` are given to the template.
      answer: the messages of the answer.
      tokenizer: the tokenizer.
      template: writes the conversation.
      stop: the stop token that stands for an answer whose last turn is blank; None refuses such an answer.

    Raises:
      UserError: as `encode_pair`, or a blank answer without `stop`.
    """
    messages = record["messages"]
    conversation = messages + answer
    encode = functools.partial(
        template.encode, tokenizer=tokenizer, tools=record.get("tools"), documents=record.get("documents")
    )
    prompt = encode(messages, generation_prompt=True).tokens
    if answer[-1]["content"].strip() or answer[-1].get("tool_calls"):
        tokens, mask = encode(conversation)
        end = len(mask) - int(mask[::-1].argmax())
        tokens, mask = tokens[:end], mask[:end]
    elif stop is None:
        raise UserError("the chosen answer is empty: only a rejected answer may be")
    else:
        tokens, mask = encode(conversation[:-1], generation_prompt=True)
        tokens, mask = np.append(tokens, np.int32(stop)), np.append(mask, True)
    mask = mask & (np.arange(len(mask)) >= _begin(tokens, mask, prompt, messages, conversation))
    if not mask.any():
        raise UserError("the chat template does not write the answer: use another template")
    return Encoded(tokens, mask)


def _begin(tokens: np.ndarray, mask: np.ndarray, prompt: np.ndarray, messages: list[dict], whole: list[dict]) -> int:
    """The index of the answer's first token.

    It follows the prompt. If the template writes the prompt differently before an answer, the answer is the first turn
    of the assistant after those in the prompt.

    Args:
      tokens: int32 [n], the whole conversation.
      mask: bool [n], true for tokens of the assistant.
      prompt: int32 [m], the prompt alone.
      messages: the messages of the prompt.
      whole: the messages of the whole conversation.
    """
    if np.array_equal(tokens[: len(prompt)], prompt):
        return len(prompt)
    begins = np.flatnonzero(mask & ~np.append(False, mask[:-1]))
    before, turns = (sum(message["role"] == "assistant" for message in part) for part in (messages, whole))
    if len(begins) != turns:
        raise UserError(
            "the chat template changes the prompt when an answer follows, and joins turns of the assistant, so the "
            "tokens of the answer are unknown: use another template"
        )
    return int(begins[before])
