"""Preference pairs: two answers to one prompt, side 0 the chosen and side 1 the rejected one.

A batch is a dict of arrays over B pairs, S = 2 sides (or more, see `PairEncoder`) and T positions:

    tokens       int32 [B, S, T]     prompt and answer up to its stop token, padded on the right with 0
    answer_mask  float32 [B, S, T]   1 where the token itself is one that the assistant says in the answer
    lengths      int32 [B, S]        real tokens
    side_weight  float32 [B, S]      1, or 0 for a side that only fills up a row of fewer answers
    margin       float32 [B]         by how much the chosen answer is better, 0 where the record does not say
    weight       float32 [B]         1, or 0 for a pair that only fills up the last batch of a pass
    safer        float32 [B]         1: the chosen answer is safer, -1: the rejected one, 0: not known
    safe         float32 [B, 2]      1: safe, -1: unsafe, 0: not known
    index        int32 [B]           the pair's place in `records`

`records[i]` is {"language": "zh" or "en", "margin": a number or None, "meta": the record's other fields, "flipped"}.

Each side is one tokenisation of the whole conversation. What a template writes after the stop token (ChatML's newline)
is cut off: a policy never says it.
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
    template: ChatTemplate  # how a conversation becomes tokens
    length: int  # T; a pair with a longer side is left out and counted, never cut
    noise: float = 0.0  # share of pairs, by a hash of each, whose sides are exchanged, as people err
    sides: int = 2  # S; above 2 further answers that are worse than the chosen one: texts `others` in the record's meta

    reasons = ("too_long", "same_tokens")
    nothing = "no preference pair is left"

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
          LeftOut: a side that is too long, or two sides of the same tokens.
          UserError: a record that is no preference, or as of `encode_pair`.
        """
        if record["kind"] != "preference":
            raise UserError(
                f"a {record['kind']} record holds no two answers to compare: give preferences (single answers with "
                "labels are for dpo.kind=kto)"
            )
        flipped = _is_flipped(record, self.noise)
        if flipped:
            record = turned_round(record)
        answers = list(encode_pair(record, self.tokenizer, self.template))
        for other in _others(record)[: self.sides - 2] if self.sides > 2 and not flipped else ():
            worse = record | {"rejected": [{"role": "assistant", "content": other}]}
            answers.append(encode_pair(worse, self.tokenizer, self.template)[1])
        there = len(answers)
        answers += [answers[1]] * (self.sides - there)  # copies, at weight 0
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


def _others(record: dict) -> list[str]:
    """Further answers to the prompt, each worse than the chosen one. (Of a pair turned round none is known to be.)"""
    others = record.get("meta", {}).get("others", [])
    if not isinstance(others, list) or not all(isinstance(text, str) for text in others):
        raise UserError("meta.others is not a list of texts")
    return others


def _is_flipped(record: dict, noise: float) -> bool:
    """Whether the pair is among the share `noise`, by its words alone; one that would leave an empty answer chosen
    never is."""
    if not record["rejected"][-1]["content"].strip():
        return False
    words = "\n".join(m["content"] for part in ("messages", "chosen", "rejected") for m in record[part])
    return int.from_bytes(blake2b(words.encode(), digest_size=8).digest()) < noise * 2**64


def turned_round(record: dict) -> dict:
    """The preference with chosen and rejected exchanged, in its labels too."""
    other = {"chosen": "rejected", "rejected": "chosen"}
    turned = record | {"chosen": record["rejected"], "rejected": record["chosen"]}
    if "margin" in record:
        turned["margin"] = -record["margin"]
    if "safer" in record:
        turned["safer"] = other[record["safer"]]
    return turned | {f"{side}_safe": record[f"{other[side]}_safe"] for side in other if f"{other[side]}_safe" in record}


def _safety(record: dict) -> dict[str, np.ndarray]:
    """`safer` and `safe` of a pair, from the labels of its record."""
    sign = {True: 1, False: -1, "chosen": 1, "rejected": -1, None: 0}
    safe = [sign[record.get(f"{side}_safe")] for side in ("chosen", "rejected")]
    return {"safer": np.float32(sign[record.get("safer")]), "safe": np.array(safe, np.float32)}


def encode_pair(record: dict, tokenizer: Tokenizer, template: ChatTemplate) -> tuple[Encoded, Encoded]:
    """Tokens of the chosen and of the rejected conversation, and the mask of the answers in them.

    An answer that says nothing is the token that stops the chosen one, right after the prompt.

    Raises:
      UserError: what the template refuses, or it writes the prompt in such a way that the answers cannot be told apart.
    """
    chosen = encode_answer(record, record["chosen"], tokenizer, template)
    return chosen, encode_answer(record, record["rejected"], tokenizer, template, stop=int(chosen.tokens[-1]))


def encode_answer(
    record: dict, answer: list[dict], tokenizer: Tokenizer, template: ChatTemplate, *, stop: int | None = None
) -> Encoded:
    """The record's `messages` and an answer to them, up to its last trained token; the mask is of the answer alone.

    stop: the token that is the whole of an answer whose last turn is blank. UserError as of `encode_pair`.
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
        raise UserError("the chosen answer says nothing: only a rejected one may be empty")
    else:
        tokens, mask = encode(conversation[:-1], generation_prompt=True)
        tokens, mask = np.append(tokens, np.int32(stop)), np.append(mask, True)
    mask = mask & (np.arange(len(mask)) >= _begin(tokens, mask, prompt, messages, conversation))
    if not mask.any():
        raise UserError("the chat template leaves the answer out")
    return Encoded(tokens, mask)


def _begin(tokens: np.ndarray, mask: np.ndarray, prompt: np.ndarray, messages: list[dict], whole: list[dict]) -> int:
    """Where the answer begins: after the prompt, or, if the template has written that differently here, at the first
    turn of the assistant beyond those of the prompt."""
    if np.array_equal(tokens[: len(prompt)], prompt):
        return len(prompt)
    begins = np.flatnonzero(mask & ~np.append(False, mask[:-1]))
    before, turns = (sum(message["role"] == "assistant" for message in part) for part in (messages, whole))
    if len(begins) != turns:
        raise UserError(
            "the chat template writes the prompt differently once there is an answer, and not a stretch of tokens for "
            "each of the assistant's turns, so that the answer's are not known: use another template"
        )
    return int(begins[before])
