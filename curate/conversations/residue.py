"""Removes what the pages of chats leave in exports: labels of buttons, page counters, names of speakers, times.

Such lines are removed only where a page puts them: at the edge of a turn, as a paragraph of their own in an answer, and
in the head of a block of code. They are never removed inside prose or code, nor where a line before them ends with a
colon, as in "Press this button:". The lines are in residue.toml.
"""

import functools
import itertools
import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from ...data.messages import Message
from ..rows import Rejected, Row, answers_of
from .code_blocks import code_blocks, split_fence
from .repair import with_turns

_MARKS = " \t\r#*_\u200b\ufeff"
_FIELD = re.compile(r"[\w ]{1,24}[:：] ?\S")
_LANGUAGE_NAME = r"[A-Za-z][\w+#.-]{0,19}"


class _Lines(NamedTuple):
    """The patterns of residue.toml; each matches a whole line without the marks at its ends."""

    certain: re.Pattern[str]
    certain_anywhere: re.Pattern[str]  # whether a text has such a line at all
    speakers: Mapping[str, re.Pattern[str]]  # by role
    counters: re.Pattern[str]
    bare_counter: re.Pattern[str]  # one that looks like a fraction
    repeated: tuple[re.Pattern[str], ...]
    code_head: re.Pattern[str]  # language, button and what follows, in the first line of a block
    button: re.Pattern[str]  # language and button, in the line above a block
    button_anywhere: re.Pattern[str]  # whether a text has a button at all


@functools.cache
def _patterns() -> _Lines:
    found = tomllib.loads((Path(__file__).parent / "residue.toml").read_text(encoding="utf-8"))
    certain = "|".join([*found["certain"]["en"], *found["certain"]["zh"]])
    heads = "|".join(found["code_heads"]["any"])
    return _Lines(
        re.compile(certain),
        re.compile(rf"^[{_MARKS}]*(?:{certain})[{_MARKS}]*$", re.MULTILINE),
        {role: re.compile("|".join(found["speakers"][role])) for role in ("user", "assistant")},
        re.compile("|".join(found["counters"]["any"])),
        re.compile(found["counters"]["bare"]),
        tuple(map(re.compile, [*found["repeated"]["en"], *found["repeated"]["zh"]])),
        re.compile(rf"(?P<language>(?:{_LANGUAGE_NAME}?)?) ?(?:{heads})(?P<rest>.*)"),
        re.compile(rf"(?P<language>(?:{_LANGUAGE_NAME}?)?) ?(?:{heads})"),
        re.compile(heads),
    )


@dataclass(frozen=True)
class Residue:
    """Removes lines that the page of a chat put into turns, and leaves all other turns as they are.

    An answer of which nothing is left, such as the message of an error, is left out, and the order of turns is repaired
    as in the step `conversation`. Turns of users never become empty.

    Columns: `residue_lines`, the number of lines that were removed, in rows that have any; those of `conversation`.
    """

    reasons: ClassVar[tuple[str, ...]] = ("nothing_left", "no_turns", "no_question", "no_answer")

    def __call__(self, row: Row) -> Row | Rejected:
        """The row without such lines, the row itself if it has none, or why it is rejected."""
        if row.record.get("kind") == "text":
            return row
        turns = [*row.record["messages"], *answers_of(row.record)]
        familiar = _familiar(turns)
        cleaned = [clean(turn["content"], turn["role"], familiar) for turn in turns]
        count = sum(removed for _, removed in cleaned)
        if not count:
            return row
        changed = [
            {**turn, "content": text} if removed else turn for turn, (text, removed) in zip(turns, cleaned, strict=True)
        ]
        return with_turns(row, changed, residue_lines=count)


def clean(text: str, role: str, familiar: frozenset[tuple[bool, str]] = frozenset()) -> tuple[str, int]:
    """A turn without lines of a page, and the number of lines that were removed.

    Args:
      text: the turn.
      role: its role; only turns of users and of the assistant are changed.
      familiar: ends of turns (True for the first line) with patterns of the table `repeated` of residue.toml, whose
        lines are removed at that end.
    """
    if role not in ("user", "assistant") or not text.strip():
        return text, 0
    lines = text.split("\n")
    top, bottom = _edge(lines, role, True, familiar), _edge(lines[::-1], role, False, familiar)
    if top + bottom >= len(lines):
        said = [line for line in lines if line.strip()]
        is_empty = role == "assistant" and all(_is_certain(_bare(line), role) for line in said)
        return ("", len(said)) if is_empty else (text, 0)
    kept = lines[top : len(lines) - bottom]
    count = sum(bool(line.strip()) for line in [*lines[:top], *lines[len(lines) - bottom :]])
    if _patterns().button_anywhere.search(text):
        kept, buttons = _without_buttons(kept)
        count += buttons
    if role == "assistant" and _patterns().certain_anywhere.search(text):
        kept, paragraphs = _without_paragraphs(kept, role)
        count += paragraphs
    return ("\n".join(kept), count) if count else (text, 0)


def _bare(line: str) -> str:
    """A line without white space and marks at its ends; the line itself if it is indented as code is."""
    return line if line.startswith(("    ", "\t")) else line.strip(_MARKS)


def _is_certain(line: str, role: str) -> bool:
    """Whether a line, without marks, is one that only a page writes."""
    patterns = _patterns()
    return bool(patterns.certain.fullmatch(line) or patterns.speakers[role].fullmatch(line))


def _is_counter(line: str, pattern: re.Pattern[str]) -> bool:
    """Whether a line, without marks, is a counter of that form, such as "1 / 2"."""
    match = pattern.fullmatch(line) if "/" in line and len(line) < 16 else None
    return bool(match) and 1 <= int(match["shown"]) <= int(match["all"])


def _repeated(line: str) -> str | None:
    """The pattern of the table `repeated`, or of a bare counter, that a line without marks matches; or None."""
    if _is_counter(line, _patterns().bare_counter):
        return _patterns().bare_counter.pattern
    return next((p.pattern for p in _patterns().repeated if p.fullmatch(line)), None) if len(line) < 48 else None


def _announces(line: str) -> bool:
    """Whether a line announces what is below it."""
    return line.rstrip(_MARKS).endswith((":", "：", "="))


def _is_in_list(bare: str, beside: str) -> bool:
    """Whether a line such as "Model: GPT-4" stands beside another line with a name and a value."""
    return bool(_FIELD.match(bare) and _FIELD.match(beside.strip(_MARKS)))


def _edge(lines: Sequence[str], role: str, is_top: bool, familiar: frozenset[tuple[bool, str]]) -> int:
    """The number of lines to remove at one end of a turn, with the blank lines behind them. lines: from that end."""
    run: list[str | None] = []  # of each line at this end: its pattern in `repeated`, None for other lines of a page
    places: list[int] = []
    for place, line in enumerate(lines):
        bare = _bare(line)
        if not line.strip():
            continue
        if place + 1 < len(lines) and not _repeated(bare) and _is_in_list(bare, lines[place + 1]):
            break  # a time has a colon too, and is no name with a value
        if _is_certain(bare, role) or _is_counter(bare, _patterns().counters):
            run.append(None)
        elif pattern := _repeated(bare):
            run.append(pattern)
        else:
            break
        places.append(place)
    beside_others = None in run
    counter = _patterns().bare_counter.pattern
    several = run.count(counter) > 1  # a page has one counter, so these are fractions

    def is_removed(pattern: str | None) -> bool:
        if pattern == counter and several:
            return False
        return pattern is None or beside_others or (is_top, pattern) in familiar

    count = len(list(itertools.takewhile(is_removed, run)))
    if not is_top and count == len(run):
        count = _unannounced(lines, places)
    if not count:
        return 0
    stop = places[count - 1] + 1
    while stop < len(lines) and not lines[stop].strip():
        stop += 1
    return stop


def _unannounced(lines: Sequence[str], places: Sequence[int]) -> int:
    """How many lines at the end of a turn remain to be removed without those that the line before them announces.

    Args:
      lines: the lines of the turn, from its end.
      places: where the lines are that look like those of a page, ascending.
    """
    before = next((line for line in lines[places[-1] + 1 :] if line.strip()), "") if places else ""
    count = len(places)
    if _announces(before):
        count -= 1
        while count and places[count - 1] == places[count] - 1:  # the same paragraph
            count -= 1
    return count


def _familiar(turns: Sequence[Message]) -> frozenset[tuple[bool, str]]:
    """The patterns of the table `repeated` that the same end of two turns or more has (True for the first line).

    A bare counter counts as a first line only: many answers end with a fraction.
    """
    count: Counter[tuple[bool, str]] = Counter()
    for turn in turns:
        lines = [line for line in turn["content"].split("\n") if line.strip()]
        for is_top in (True, False) if turn["role"] in ("user", "assistant") and len(lines) > 1 else ():
            pattern = _repeated(_bare(lines[0 if is_top else -1]))
            if pattern and (is_top or pattern != _patterns().bare_counter.pattern):
                count[is_top, pattern] += 1
    return frozenset(end for end, times in count.items() if times > 1)


def _without_buttons(lines: Sequence[str]) -> tuple[list[str], int]:
    """The lines without buttons above blocks of code and in their first lines, and the number of lines changed.

    The name of the language beside a button becomes that of the block, if the block has none.
    """
    found: list[str | None] = list(lines)
    count = 0
    for start, stop in code_blocks(lines):
        fence, info = split_fence(lines[start])
        language, before = "", count
        if match := _patterns().button.fullmatch(info.strip()):
            language, info = match["language"], ""
            count += 1
        first = _patterns().code_head.fullmatch(lines[start + 1]) if start + 1 < stop else None
        if first and (first["language"] or not first["rest"].startswith(" ")):
            rest = [first["rest"]] if first["rest"] else []
            if any(line.strip() for line in [*rest, *lines[start + 2 : stop - 1]]):
                language = language or first["language"]
                found[start + 1] = first["rest"] or None
                count += 1
        above = start - 1 if start and lines[start - 1].strip() else start - 2
        if above >= 0 and (match := _patterns().button.fullmatch(_bare(lines[above]))):
            found[above:start] = [None] * (start - above)
            count += 1
            language = language or match["language"]
            label = _bare(lines[above - 1]) if above and not match["language"] else ""
            if re.fullmatch(_LANGUAGE_NAME, label):
                found[above - 1] = None
                language = language or label
        if count > before:
            found[start] = fence + (info.strip() or language.lower())
    return [line for line in found if line is not None], count


def _without_paragraphs(lines: Sequence[str], role: str) -> tuple[list[str], int]:
    """The lines without paragraphs that only a page writes, and the number of these paragraphs."""
    in_code = [False] * len(lines)
    for start, stop in code_blocks(lines):
        in_code[start:stop] = [True] * (stop - start)
    kept: list[str] = []
    count = 0
    above = ""  # the line above with text
    for place, line in enumerate(lines):
        before = lines[place - 1].strip() if place else ""
        above = before or above
        after = lines[place + 1].strip() if place + 1 < len(lines) else ""
        is_paragraph = not before and not after
        is_button = bool(_patterns().button.fullmatch(_bare(line))) and re.fullmatch(f"(?:{_LANGUAGE_NAME})?", before)
        is_apart = is_button or (is_paragraph and not _announces(above))
        if not in_code[place] and is_apart and line.strip() and _is_certain(_bare(line), role):
            count += 1
        elif line.strip() or not count or not kept or kept[-1].strip() or in_code[place]:
            kept.append(line)
    return kept, count
