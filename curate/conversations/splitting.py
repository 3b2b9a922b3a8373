"""Splits long conversations into parts that fit a budget of tokens, between pairs of turns.

A pair of turns begins with a user turn and holds all that answers it: calls and results of tools too. Every part
begins with the system prompt, counts as the template of training writes it, and is as long as the budget allows. The
parts together have each turn of the conversation once, in order.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from ...data.messages import Message
from ...data.templates import ChatTemplate, encode_text, load_template
from ...data.tokenizer import Tokenizer
from ...errors import UserError
from ...settings.leaves import Count, OneOf, Only, Path, Unset
from ..rows import TOKENS, Rejected, Row, texts_of

Size = Callable[[Mapping[str, Any]], int]


class NoTemplate(UserError):
    """Conversations are to be counted in tokens, and neither the settings nor the tokenizer name a chat template."""


@dataclass(frozen=True)
class SplitLong:
    """Splits conversations that are longer than a budget into parts of whole pairs of turns.

    Texts, prompts and preferences, of which no part could stand for the whole, are not split: they stay if they fit,
    and texts stay always.

    Columns: `tokens`, if there is a tokenizer; `part`, from 1, and `parts`, in rows that are a part of a conversation.
    The columns of the step `length` become those of the part.
    """

    reasons: ClassVar[tuple[str, ...]] = ("pair_too_long", "too_long", "not_rendered")

    budget: Count = 2048
    """The most tokens of a part, or characters if there is no tokenizer. For training: its sequence length."""

    tokenizer: Annotated[Path | None, Unset("a count of characters")] = None
    """A tokenizer.model or tokenizer.json, or the folder with one, by which tokens are counted."""

    template: Annotated[str | None, Unset("the tokenizer's own"), Only("tokenizer")] = None
    """The chat template of training: a name such as vicuna, or a path; a conversation is counted as it writes it."""

    too_long: Annotated[str, OneOf("keep", "reject")] = "keep"
    """What happens to a pair of turns that is longer than the budget by itself: it is kept whole, as a part of its own,
    or its conversation is rejected. Prompts and preferences over the budget follow the same setting."""

    def __call__(self, row: Row) -> Row | list[Row] | Rejected:
        """The row, the rows of its parts, or why it is rejected.

        Raises UserError if there is no such tokenizer or template.
        """
        record = row.record
        if record.get("kind") == "text":
            return row
        size = size_by(self.tokenizer, self.template)
        try:
            whole = size(record)
            if whole <= self.budget:
                return self._counted(row, record, whole)
            if record["kind"] != "chat":
                problem = Rejected("too_long", f"{self._amount(whole)} in a record of kind {record['kind']}")
                return self._counted(row, record, whole) if self.too_long == "keep" else problem
            parts = split(record, self.budget, size)
            sizes = [size(part) for part in parts]
        except NoTemplate:
            raise
        except UserError as error:
            return Rejected("not_rendered", str(error))
        if self.too_long == "reject" and max(sizes) > self.budget:
            number = sizes.index(max(sizes)) + 1
            return Rejected("pair_too_long", f"part {number} of {len(parts)} is one pair of {self._amount(max(sizes))}")
        if len(parts) == 1:
            return self._counted(row, record, whole)
        found = []
        for number, (part, count) in enumerate(zip(row.split(parts, parts=len(parts)), sizes, strict=True), 1):
            lengths = {name: size for name, size in lengths_of(part.record).items() if name in row.columns}
            found.append(self._counted(part, part.record, count, part=number, **lengths))
        return found

    def _amount(self, size: int) -> str:
        return f"{size:,} {'tokens' if self.tokenizer else 'characters'}"

    def _counted(self, row: Row, record: Mapping[str, Any], size: int, **columns: Any) -> Row:
        """The row with its number of tokens, if these are what is counted."""
        return row.with_(record, **({TOKENS: size} if self.tokenizer else {}), **columns)


def split(record: Mapping[str, Any], budget: int, size: Size) -> list[dict[str, Any]]:
    """The parts of a conversation, each with as many pairs of turns as fit the budget, and at least one.

    A record's `label` is of its last answer, so only the last part keeps it.

    Args:
      record: a record of kind "chat".
      budget: the largest size of a part.
      size: the size of a record; it never shrinks when turns are added.
    """
    system, pairs = pairs_of(record["messages"])
    unlabelled = {name: value for name, value in record.items() if name != "label"}

    def part(start: int, stop: int) -> dict[str, Any]:
        around = record if stop == len(pairs) else unlabelled
        return {**around, "messages": [*system, *itertools.chain.from_iterable(pairs[start:stop])]}

    parts, start = [], 0
    while start < len(pairs):
        stop, step = start + 1, 1
        while step:
            if stop + step <= len(pairs) and size(part(start, stop + step)) <= budget:
                stop, step = stop + step, step * 2
            else:
                step //= 2
        parts.append(part(start, stop))
        start = stop
    return parts


def pairs_of(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """The system turns at the beginning of a conversation, and its pairs of turns.

    A pair begins with the user turns that follow an answer, and ends where the next one begins. The last pair of a
    conversation without a last answer has no answer.
    """
    system = list(itertools.takewhile(lambda message: message["role"] == "system", messages))
    pairs: list[list[Message]] = []
    before = None
    for message in messages[len(system) :]:
        if not pairs or (message["role"] == "user" and before != "user"):
            pairs.append([])
        pairs[-1].append(message)
        before = message["role"]
    return system, pairs


def lengths_of(record: Mapping[str, Any]) -> dict[str, int]:
    """The number of "characters" of all texts of a parsed record, and of its "turns", which a text does not have.

    Turns are those of users and of the assistant; of a preference the chosen answer counts.
    """
    found = {"characters": _characters(record)}
    if record.get("kind") != "text":
        chosen = record.get("chosen", [])
        turns = [*record["messages"], *(chosen if isinstance(chosen, list) else [chosen])]
        found["turns"] = sum(turn["role"] in ("user", "assistant") for turn in turns)
    return found


def size_by(tokenizer: str | None, template: str | None) -> Size:
    """A function from a parsed record to its length: in tokens as training counts them, or in characters of its texts.

    Of a preference the longer of its two conversations counts. The function raises UserError for a conversation that
    the template refuses, and NoTemplate for any conversation if there is no template.

    Args:
      tokenizer: path of the tokenizer; None counts characters.
      template: name or path of the chat template; None for the tokenizer's own.

    Raises:
      UserError: there is no such tokenizer or template.
    """
    if tokenizer is None:
        return _characters
    loaded = _tokenizer(tokenizer)
    return functools.partial(_tokens, tokenizer=loaded, template=_template(tokenizer, template))


def _characters(record: Mapping[str, Any]) -> int:
    return sum(map(len, texts_of(record)))


def _tokens(record: Mapping[str, Any], *, tokenizer: Tokenizer, template: ChatTemplate | None) -> int:
    if record.get("kind") == "text":
        return len(encode_text(record["text"], tokenizer).tokens)
    if template is None:
        raise NoTemplate("the tokenizer has no chat template, so conversations cannot be counted: name one in template")
    around = {name: record.get(name) for name in ("tools", "documents")}
    answers = [record[side] for side in ("chosen", "rejected") if side in record] or [[]]
    conversations = ([*record["messages"], *(side if isinstance(side, list) else [side])] for side in answers)
    return max(len(template.encode(messages, tokenizer, **around).tokens) for messages in conversations)


@functools.cache
def _tokenizer(path: str) -> Tokenizer:
    return Tokenizer.load(path)


@functools.cache
def _template(tokenizer: str, template: str | None) -> ChatTemplate | None:
    """The template with this name or path, or the tokenizer's own; None if it has none."""
    if template is not None:
        return load_template(template)
    source = _tokenizer(tokenizer).chat_template
    return None if source is None else ChatTemplate("of the tokenizer", source)
