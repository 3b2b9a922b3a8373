"""Filters of conversations: by length, by who the assistant says it is, and by refusals."""

import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

from ...data.messages import Message
from ...errors import UserError
from ...settings.leaves import Count, OneOf, Only, Path, Unset
from ..rows import TOKENS, Rejected, Row, answers_of
from .phrases import own_words, pattern, sentences, tables
from .splitting import NoTemplate, lengths_of, pairs_of, size_by

_NO_LIMIT = Unset("no limit")


@dataclass(frozen=True)
class Length:
    """Rejects records that are too short or too long. A limit that is not set does not apply.

    Columns: `characters`, of all texts; `turns`, of users and of the assistant; `tokens`, if there is a tokenizer.
    """

    reasons: ClassVar[tuple[str, ...]] = (
        "few_characters",
        "many_characters",
        "few_turns",
        "many_turns",
        "few_tokens",
        "many_tokens",
        "not_rendered",
    )

    least_characters: Annotated[Count | None, _NO_LIMIT] = None
    """The fewest characters of a record that is kept."""

    most_characters: Annotated[Count | None, _NO_LIMIT] = None
    """The most characters of a record that is kept."""

    least_turns: Annotated[Count | None, _NO_LIMIT] = None
    """The fewest turns of users and the assistant together; texts have none, and this limit does not apply to them."""

    most_turns: Annotated[Count | None, _NO_LIMIT] = None
    """The most turns of users and the assistant together."""

    least_tokens: Annotated[Count | None, _NO_LIMIT, Only("tokenizer")] = None
    """The fewest tokens of a record that is kept."""

    most_tokens: Annotated[Count | None, _NO_LIMIT, Only("tokenizer")] = None
    """The most tokens of a record that is kept."""

    tokenizer: Annotated[Path | None, Unset("no count of tokens")] = None
    """A tokenizer.model or tokenizer.json, or the folder with one, by which tokens are counted."""

    template: Annotated[str | None, Unset("the tokenizer's own"), Only("tokenizer")] = None
    """The chat template of training: a name such as vicuna, or a path; a conversation is counted as it writes it."""

    def check(self, where: str) -> None:
        """Raises UserError for a lower limit above the upper one."""
        for unit in ("characters", "turns", "tokens"):
            least, most = getattr(self, f"least_{unit}"), getattr(self, f"most_{unit}")
            if least is not None and most is not None and least > most:
                raise UserError(f"{where}.least_{unit} = {least} is above {where}.most_{unit} = {most}: lower it")

    def __call__(self, row: Row) -> Row | Rejected:
        """The row with its lengths, or why it is rejected. Raises UserError if there is no such tokenizer."""
        found = lengths_of(row.record)
        if self.tokenizer is not None:
            try:
                found[TOKENS] = size_by(self.tokenizer, self.template)(row.record)
            except NoTemplate:
                raise
            except UserError as error:
                return Rejected("not_rendered", str(error))
        for unit, amount in found.items():
            least, most = getattr(self, f"least_{unit}"), getattr(self, f"most_{unit}")
            if least is not None and amount < least:
                return Rejected(f"few_{unit}", f"{amount} {unit}; at least {least} are kept")
            if most is not None and amount > most:
                return Rejected(f"many_{unit}", f"{amount} {unit}; at most {most} are kept")
        return row.with_(**found)


@dataclass(frozen=True)
class Identity:
    """Finds answers that say which assistant speaks and who made it, such as "I am ChatGPT, trained by OpenAI".

    Only what the assistant says of itself counts: not what users say, quotations, code, denials ("I am not ChatGPT")
    or talk about other models. Phrases and names are in identity.toml, in English and Chinese.

    Columns: `identity_turns`, the number of answers that were renamed or left out, in rows that have any.
    """

    reasons: ClassVar[tuple[str, ...]] = ("identity",)

    action: Annotated[str, OneOf("drop", "drop_pair", "rename")] = "drop"
    """What happens: the record is rejected, the pairs of turns with such answers are left out (a record of which no
    pair is left is rejected), or names of the assistant and of its maker are replaced."""

    name: Annotated[str, Only("action", "rename", default="")] = ""
    """The assistant's name, which replaces the names of others."""

    maker: Annotated[str, Only("action", "rename", default="")] = ""
    """The name of its maker, which replaces the names of others."""

    def check(self, where: str) -> None:
        """Raises UserError for renaming without both names."""
        if self.action == "rename" and not (self.name and self.maker):
            raise UserError(f"{where}.action = rename needs {where}.name and {where}.maker: set both")

    def __call__(self, row: Row) -> Row | Rejected:
        """The row as it is or as `action` changes it, or why it is rejected."""
        if self.action != "rename":
            return _drop(row, says_who, "identity_turns", pairs=self.action == "drop_pair")
        if row.record.get("kind") == "text":
            return row

        def renamed(message: Message) -> Message:
            if message["role"] != "assistant":
                return message
            return {**message, "content": rename(message["content"], self.name, self.maker)}

        sides = {side: row.record[side] for side in ("chosen", "rejected") if side in row.record}
        record = {**row.record, "messages": list(map(renamed, row.record["messages"]))}
        record |= {
            s: list(map(renamed, side)) if isinstance(side, list) else renamed(side) for s, side in sides.items()
        }
        before = [*row.record["messages"], *answers_of(row.record)]
        after = [*record["messages"], *answers_of(record)]
        count = sum(a != b for a, b in zip(before, after, strict=True))
        return row.with_(record, identity_turns=count) if count else row


@dataclass(frozen=True)
class Refusals:
    """Finds answers that begin with a refusal, or with words about being a machine.

    A refusal is such as "I'm sorry, but I can't help with that" or 很抱歉，我无法提供. A disclaimer is such as "As an
    AI language model, ..." or 作为一个人工智能助手. Only the beginnings of the first two sentences of an answer count,
    and not what users say, quotations or code. Of a preference the chosen answer counts. Phrases are in refusals.toml.

    Columns: `refusal_turns`, the number of answers that were left out, in rows that have any.
    """

    reasons: ClassVar[tuple[str, ...]] = ("refusal", "disclaimer")

    action: Annotated[str, OneOf("drop", "drop_pair")] = "drop"
    """What happens: the record is rejected, or the pairs of turns with such answers are left out (a record of which no
    pair is left is rejected)."""

    disclaimers: bool = True
    """Whether words about being a machine count without a refusal: "As an AI assistant, I suggest ...\""""

    def __call__(self, row: Row) -> Row | Rejected:
        """The row as it is or without such answers, or why it is rejected."""
        kinds = self.reasons if self.disclaimers else self.reasons[:1]

        def found(text: str) -> tuple[str, str] | None:
            hit = refusal_of(text)
            return hit if hit and hit[0] in kinds else None

        return _drop(row, found, "refusal_turns", pairs=self.action == "drop_pair")


Finder = Callable[[str], tuple[str, str] | None]
"""From an answer to the reason why it is not wanted, and the words that show it; None for an answer that is."""


def _drop(row: Row, find: Finder, column: str, *, pairs: bool) -> Row | Rejected:
    """The row without answers that `find` finds, or a rejection with the first of its reasons.

    Pairs of turns can be left out of conversations only: not of preferences, nor can the last one of a record with a
    label, which is about the last answer.

    Args:
      row: a row with a parsed record.
      find: finds answers.
      column: name of the column with the number of answers that are left out.
      pairs: whether pairs of turns are left out; otherwise the row is rejected.
    """
    record = row.record
    if record.get("kind") == "text":
        return row
    chosen = record.get("chosen", [])
    system, rounds = pairs_of(record["messages"])
    answers = [[m["content"] for m in each if m["role"] == "assistant"] for each in rounds]
    answers.append([m["content"] for m in (chosen if isinstance(chosen, list) else [chosen])])
    hits = [next(filter(None, map(find, said)), None) for said in answers]
    first = next(filter(None, hits), None)
    if first is None:
        return row
    kept = [each for each, hit in zip(rounds, hits, strict=False) if not hit]
    labelled = "label" in record and hits[len(rounds) - 1]
    if not pairs or not kept or chosen or labelled:
        return Rejected(*first)
    messages = [*system, *itertools.chain.from_iterable(kept)]
    return row.with_({**record, "messages": messages}, **{column: sum(map(bool, hits))})


def refusal_of(answer: str) -> tuple[str, str] | None:
    """Whether an answer begins with a "refusal" or a "disclaimer", with the sentence; None if with neither."""
    text = own_words(answer[:4000])
    found = None
    for start, stop in itertools.islice(sentences(text), 2):
        for reason, phrases in _refusals().items():
            if phrases.match(text, start, min(stop, start + 600)):
                if reason == "refusal":
                    return reason, answer[start:stop][:200]
                found = found or (reason, answer[start:stop][:200])
    return found


@functools.cache
def _refusals() -> Mapping[str, re.Pattern[str]]:
    """The phrases of refusals.toml by reason, each to be matched where a sentence begins."""
    found = tables("refusals.toml")
    words = found["words"]
    return {
        reason: pattern(
            "|".join(_in(text, language) for language in ("en", "zh") for text in found[reason][language]),
            words,
            re.IGNORECASE,
        )
        for reason in ("refusal", "disclaimer")
    }


def says_who(answer: str) -> tuple[str, str] | None:
    """("identity", the sentence) if an answer says which assistant speaks or who made it; None if it does not."""
    hit = next(_identities(own_words(answer)), None)
    return None if hit is None else ("identity", answer[hit.start : hit.stop][:200])


def rename(answer: str, name: str, maker: str) -> str:
    """An answer with other names where it says which assistant speaks and who made it.

    Only sentences that say so are changed, and in them only names of the assistant and the maker that they name.

    Args:
      answer: the answer.
      name: the assistant's name.
      maker: the name of its maker.
    """
    text = own_words(answer)
    found = {}  # where each name begins: where it ends, and what stands there instead
    for hit in _identities(text):
        family = _families()[hit.family]
        for match in family.any.finditer(text, hit.start, hit.stop):
            found[match.start()] = (match.end(), maker if family.makers.fullmatch(match[0]) else name)
    pieces, place = [], 0
    for start, (stop, other) in sorted(found.items()):
        if start >= place:
            pieces += [answer[place:start], other]
            place = stop
    return "".join([*pieces, answer[place:]])


class _Family(NamedTuple):
    """Names of an assistant and its maker."""

    names: re.Pattern[str]
    common: re.Pattern[str]  # names that are words or names of people too
    makers: re.Pattern[str]
    any: re.Pattern[str]
    phrases: re.Pattern[str]  # the patterns of identity.toml with these names
    beginnings: frozenset[str]  # the letters with which patterns of names begin: a text without any has no name


class _Hit(NamedTuple):
    """A sentence that says who the assistant is."""

    start: int
    stop: int
    family: str


@functools.cache
def _families() -> Mapping[str, _Family]:
    """The families of identity.toml."""
    found = tables("identity.toml")
    nothing = ["(?!)"]
    families = {}
    for title, family in found["families"].items():
        makers = _alternatives(family.get("makers", nothing))
        common = _alternatives(family.get("common", nothing))
        names = _alternatives([*family.get("names", []), *family.get("common", [])])
        phrases = [_in(text, language) for language in ("en", "zh") for text in found["patterns"][language]]
        families[title] = _Family(
            *(re.compile(each, re.IGNORECASE) for each in (names, common, makers, f"{makers}|{names}")),
            pattern("|".join(phrases), {**found["words"], "name": names, "maker": makers}, re.IGNORECASE),
            frozenset(re.match(r"[^\W\d_]+", each)[0].lower() for patterns in family.values() for each in patterns),
        )
    return families


@functools.cache
def _context() -> re.Pattern[str]:
    """Words beside which a common word is the name of an assistant."""
    return re.compile("|".join(tables("identity.toml")["context"].values()))


def _identities(text: str) -> Iterator[_Hit]:
    """The sentences of an assistant's own words that say who it is."""
    lower = text.lower()
    present = {
        title: family
        for title, family in _families().items()
        if any(beginning in lower for beginning in family.beginnings) and family.any.search(text)
    }
    for start, stop in sentences(text) if present else ():
        for title, family in present.items():
            match = family.any.search(text, start, stop) and family.phrases.search(text, start, stop)
            if not match:
                continue
            certain = family.makers.search(match[0]) or not family.common.fullmatch(family.names.search(match[0])[0])
            if certain or _context().search(family.names.sub(" ", text[start:stop])):
                yield _Hit(start, stop, title)


def _alternatives(patterns: Sequence[str]) -> str:
    """A pattern for one of several names; names in Latin letters are whole words."""
    latin, others = [], []
    for each in patterns:
        (latin if each[:1].isascii() else others).append(each)
    bounded = [rf"(?<![A-Za-z0-9])(?:{'|'.join(latin)})(?![A-Za-z0-9])"] if latin else []
    return f"(?:{'|'.join([*bounded, *others])})"


def _in(text: str, language: str) -> str:
    """A pattern of a table in which names of words, such as {filler}, are those of a language, such as {filler_en}."""
    return re.sub(r"\{(?!name\}|maker\})([a-z]+)\}", rf"{{\1_{language}}}", text)
