"""Finds the assistant's turns in a rendered conversation: where each begins and ends.

A turn begins where generation will begin: behind the text that the template writes to ask for an answer. It ends with
the token that ends a turn.

In a template with generation blocks, a turn is a block up to its end token. If the block goes on behind the end token,
for example with a newline, the rest is left out. If the block holds the words alone, the end token behind it is added.
In other templates, a turn is all text that is written for the message, from its first word on. It ends where the text
ends when the conversation stops after that message.
"""

import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from .added_tokens import AddedTokenMatch
from .traced_text import FIRST_TURN, TEMPLATE, TextRun, runs


class Region(NamedTuple):
    """A turn of the assistant in the rendered text: the characters `start` to `stop`.

    Attributes:
        start: the first character.
        stop: one past the last character.
        turns: indices of the messages whose words are in it; empty if it holds no word of a message.
        ends_in: id of the token at its end, or None if there is no such token.
        lacks_end: whether the end of text must be appended.
    """

    start: int
    stop: int
    turns: tuple[int, ...] = ()
    ends_in: int | None = None
    lacks_end: bool = False


class Rendered(NamedTuple):
    """A rendered conversation."""

    text: str  # plain
    runs: list[TextRun]  # the text cut where the origin changes
    found: list[AddedTokenMatch]  # the added tokens that the template wrote
    spelling_starts: list[int]  # `spelling_start` of each added token


class TurnContext(Protocol):
    """What is known of a template besides the rendered text, to find where turns begin and end.

    Messages are given by their index.

    Attributes:
        ends: ids of the tokens that are known to end a turn.
        has_end: whether every turn ends in one of `ends`. If not, the token that begins the next turn ends it.
        blocks_follow_prompts: whether the generation block of a plain message begins where its prompt ends.
        bos_id: id of bos, which never ends a turn; None if there is no such token.
        opening: what the template adds to a plain conversation to ask for an answer; "" if it adds nothing.
    """

    ends: frozenset[int]
    has_end: bool
    blocks_follow_prompts: bool
    bos_id: int | None
    opening: str

    def prompt(self, turn: int) -> str | None:
        """The text that asks for a message; None if the template refuses to write it."""

    def request_start(self, turn: int) -> int:
        """The number of characters in the prompt for a message before the part that asks for it."""

    def after_last_words(self, turn: int) -> str:
        """The text behind the last words of a message in the prompt for message `turn`."""

    def rendered_up_to(self, turn: int) -> Rendered | None:
        """The rendered conversation that ends with a message; None if the template refuses it."""

    def content(self, turn: int) -> str:
        """The content of a message."""

    def is_plain(self, turn: int) -> bool:
        """Whether a message has content only: no tool calls and no reasoning."""


class _Words(NamedTuple):
    """Where the words of a piece of text are."""

    first: int  # the first character that is not blank
    last: int  # one past the last character that is not blank
    stop: int  # one past the blanks behind it


def block_regions(rendered: Rendered, context: TurnContext) -> list[Region]:
    """The assistant's turns in the output of a template with generation blocks."""
    regions = []
    found = [(block, _words(rendered.text, _message_runs(block.runs))) for block in blocks(rendered)]
    for number, (block, words) in enumerate(found):
        if words is None:
            regions.append(Region(block.start, block.stop))
            continue
        turns = _turns(block)
        is_plain = all(map(context.is_plain, turns))
        start = block.start
        if turns and not (is_plain and context.blocks_follow_prompts):
            begins = _beginning(rendered, context, turns[0], start, words)
            start = start if begins is None else begins
        following = next((next_one for next_one, said in found[number + 1 :] if said), None)
        if following is not None and turns and turns[-1] in _turns(following):  # the turn continues in the next block
            regions.append(Region(start, block.stop, turns))
            continue
        limit = len(rendered.text) if following is None else following.start
        end = _end(rendered, words.last, block.stop, limit, context)
        # Without an end token, a plain turn stops before the template's spelling of one that the tokenizer lacks.
        regions.append(_region(rendered, start, words.stop if is_plain else block.stop, turns, end, context))
    return regions


def word_regions(rendered: Rendered, turns: Iterable[int], context: TurnContext) -> list[Region] | None:
    """The assistant's turns in the output of a template without generation blocks, in order.

    Args:
        rendered: the rendered conversation.
        turns: indices of the assistant's messages.
        context: what is known of the template.

    Returns:
        The turns, or None if their borders are unknown: the words of a turn are apart, or are changed and do not follow
        its prompt.
    """
    places: dict[int, list[int]] = {}  # indices of the runs of each message
    for index, run in enumerate(rendered.runs):
        places.setdefault(run.source - FIRST_TURN, []).append(index)
    regions = []
    for turn in turns:
        is_plain = context.is_plain(turn)
        ending = None if is_plain else context.rendered_up_to(turn)
        own = places.get(turn, [])
        if ending is not None:
            own = _said(rendered, own, ending, turn)
            if own is None:
                return None
        words = _words(rendered.text, (rendered.runs[index] for index in own))
        if words is None:
            continue
        if any(run.source not in (TEMPLATE, turn + FIRST_TURN) for run in rendered.runs[own[0] : own[-1] + 1]):
            return None
        before = next((run.stop for run in _message_runs(_runs_from(rendered.runs, own[0] - 1, -1))), 0)
        limit = next(
            (run.start for run in _message_runs(_runs_from(rendered.runs, own[-1] + 1, 1))), len(rendered.text)
        )
        start = _beginning(rendered, context, turn, before, words)
        if start is None:
            if not is_plain or rendered.text[words.first : words.last] != context.content(turn).strip():
                return None
            start = words.first
        stop = words.last
        end = _end(rendered, words.last, stop, limit, context) if is_plain else None
        if end is None or end.id not in context.ends:
            stop = _tail(rendered, words.last, limit, context.rendered_up_to(turn) if is_plain else ending, turn)
            end = _end(rendered, words.last, stop, limit, context)
        regions.append(_region(rendered, start, words.last if is_plain else stop, (turn,), end, context))
    return sorted(regions)


def _said(rendered: Rendered, own: list[int], ending: Rendered, turn: int) -> list[int] | None:
    """The runs of a turn that belong to it, without those that the template repeats later, such as the name of a tool.

    Args:
        rendered: the whole conversation.
        own: indices of the runs whose source is the turn.
        ending: the conversation that ends with the turn.
        turn: the index of the message.

    Returns:
        Indices of runs, or None if some of the turn's words come only after a repetition.
    """
    left = [ending.text[run.start : run.stop] for run in ending.runs if run.source == turn + FIRST_TURN]
    said = []
    for index in own:
        run = rendered.runs[index]
        text = rendered.text[run.start : run.stop]
        if text not in left:
            break
        left = left[left.index(text) + 1 :]
        said.append(index)
    return None if said and "".join(left).strip() else said or own


def _region(
    rendered: Rendered,
    start: int,
    otherwise: int,
    turns: tuple[int, ...],
    end: AddedTokenMatch | None,
    context: TurnContext,
) -> Region:
    """The region of a turn.

    Args:
        rendered: the rendered conversation.
        start: its first character.
        otherwise: where it stops if it has no end token.
        turns: indices of its messages.
        end: its end token, or None.
        context: what is known of the template.
    """
    if end is not None:
        return Region(start, end.spelling_stop, turns, end.id)
    # A template that ends its turns has left this one open if text follows.
    is_open = context.has_end and rendered.text[otherwise:].strip() != ""
    return Region(start, otherwise, turns, None, not is_open)


def _message_runs(of: Iterable[TextRun]) -> Iterator[TextRun]:
    """The runs whose source is a message."""
    return (run for run in of if run.source != TEMPLATE)


def _runs_from(of: Sequence[TextRun], index: int, step: int) -> Iterator[TextRun]:
    """The runs from `index` on, forwards (`step` 1) or backwards (-1)."""
    while 0 <= index < len(of):
        yield of[index]
        index += step


class BlockSpan(NamedTuple):
    """What a generation block has written."""

    start: int  # the first character
    stop: int  # one past the last character
    runs: list[TextRun]  # its runs, in order


def _turns(block: BlockSpan) -> tuple[int, ...]:
    """The indices of the assistant's messages with words in a block."""
    return tuple(sorted({run.source - FIRST_TURN for run in block.runs if run.source >= FIRST_TURN}))


def blocks(rendered: Rendered) -> list[BlockSpan]:
    """The generation blocks of a rendered conversation, in order."""
    found: list[BlockSpan] = []
    last = 0
    for run in rendered.runs:
        if run.block and run.block == last:
            found[-1] = BlockSpan(found[-1].start, run.stop, [*found[-1].runs, run])
        elif run.block:
            found.append(BlockSpan(run.start, run.stop, [run]))
        last = run.block
    return found


def _words(text: str, of: Iterable[TextRun]) -> _Words | None:
    """Where the words in the given runs are; None if the runs are blank."""
    first = last = stop = None
    for run in of:
        stretch = text[run.start : run.stop]
        stop = run.stop
        kept = len(stretch.rstrip())
        if kept:
            first = run.start + len(stretch) - len(stretch.lstrip()) if first is None else first
            last = run.start + kept
    return None if first is None else _Words(first, last, stop)


def _beginning(rendered: Rendered, context: TurnContext, turn: int, lower: int, words: _Words) -> int | None:
    """Where generation would begin in front of `words`; None if that is unknown.

    Args:
        rendered: the rendered conversation.
        context: what is known of the template.
        turn: the index of the message.
        lower: the lowest position that is possible.
        words: where the words of the turn are.
    """
    prompt = context.prompt(turn) if turn else None
    if prompt is None:
        return None
    shared = shared_length(rendered.text, prompt)
    is_whole = shared == len(prompt)
    asks = 0 if is_whole else context.request_start(turn)
    places, openings = [], []
    # If the text departs from the prompt before the prompt asks, the answer may not have begun there. A tool call may
    # replace everything that asks.
    if is_whole or shared > asks or (shared == asks and not context.is_plain(turn)):
        place = shared if is_whole else min(shared, words.first)
        places += [max(lower, _outside_tokens(rendered, place))] if lower <= place < words.last else []
    if not is_whole:  # earlier messages may be written differently in the prompt
        openings.append(prompt[asks:] if prompt[asks:].strip() else context.after_last_words(turn))
    if not prompt.endswith(context.opening):  # many templates do not ask for a second answer in a row
        openings.append(context.opening)
    for opening in filter(None, openings):
        place = rendered.text.rfind(opening, lower, words.first)
        places += [place + len(opening)] if place >= 0 else []
    return max(places, default=None)


def _end(rendered: Rendered, last: int, stop: int, limit: int, context: TurnContext) -> AddedTokenMatch | None:
    """The token that ends a turn; None if there is none.

    Args:
        rendered: the rendered conversation.
        last: one past the last word of the turn.
        stop: one past the last character written for the turn.
        limit: where the words of the next message begin.
        context: what is known of the template.
    """
    found, text = rendered.found, rendered.text
    after = bisect.bisect_left(rendered.spelling_starts, stop)
    inside = found[after - 1] if after and found[after - 1].spelling_start >= last else None
    behind = found[after] if after < len(found) and found[after].spelling_stop <= limit else None
    if inside is not None and text[inside.spelling_stop : stop].strip():
        inside = None
    if behind is not None and (text[stop : behind.spelling_start].strip() or behind.id == context.bos_id):
        behind = None
    for token in (inside, behind):
        if token is not None and token.id in context.ends:
            return token
    if inside is not None and (inside.special or not context.ends):
        return inside
    return None if context.has_end else behind


def _tail(rendered: Rendered, last: int, limit: int, ending: Rendered | None, turn: int) -> int:
    """Where the text written for a turn stops: as far as it agrees with the conversation that ends with the turn.

    Args:
        rendered: the rendered conversation.
        last: one past the last word of the turn.
        limit: where the words of the next message begin.
        ending: the conversation that ends with the turn, or None.
        turn: the index of the message.
    """
    words = ending and _words(ending.text, (run for run in ending.runs if run.source == turn + FIRST_TURN))
    if words is None:
        return last
    shared = shared_length(rendered.text[last:limit], ending.text[words.last :])
    return max(last, _outside_tokens(rendered, last + shared))


def _outside_tokens(rendered: Rendered, place: int) -> int:
    """`place`, or the beginning of the added token's spelling that `place` is inside of."""
    k = bisect.bisect_left(rendered.spelling_starts, place) - 1
    return rendered.spelling_starts[k] if k >= 0 and place < rendered.found[k].spelling_stop else place


def shared_length(text: str, other: str) -> int:
    """The length of the common beginning of two texts."""
    low, high = 0, min(len(text), len(other))
    if text.startswith(other):
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if text.startswith(other[low:middle], low):
            low = middle
        else:
            high = middle - 1
    return low


def rendered_of(text: str, found: Callable[[str, list[tuple[int, int]]], list[AddedTokenMatch]]) -> Rendered:
    """The runs and added tokens of a traced text.

    Args:
        text: the traced text.
        found: finds added tokens in a text, within the given (start, stop) ranges that the template wrote.
    """
    of_text = runs(text)
    stretches: list[tuple[int, int]] = []
    for run in of_text:
        if run.source == TEMPLATE:
            if stretches and stretches[-1][1] == run.start:
                stretches[-1] = (stretches[-1][0], run.stop)
            else:
                stretches.append((run.start, run.stop))
    plain = str.__str__(text)
    tokens = found(plain, stretches)
    return Rendered(plain, of_text, tokens, [token.spelling_start for token in tokens])
