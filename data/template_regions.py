"""Which part of a rendered conversation is the assistant's to learn: where each of its turns begins and ends.

A turn begins where generation will begin: where the text goes on after what the template writes to ask for an answer.
It ends with the token that ends it. In a template with generation blocks a turn is a block, as far as that: of a block
that holds the end token and a newline after it, the newline is left out, and of one that holds the words alone, the end
token behind it is taken in. In other templates a turn is all that is written for the message, from its first word to
what follows its last one when the conversation ends there.
"""

import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from .added_tokens import Found
from .traced_text import FIRST_TURN, TEMPLATE, Run, runs


class Region(NamedTuple):
    """A stretch of text from `start` to `stop` that an assistant says.

    Attributes:
        turns: the messages whose words stand in it, by their index; none where there is no word in it.
        ends_in: the token at its end, or None if there is none.
        lacks_end: the end of text is to be put at its end.
    """

    start: int
    stop: int
    turns: tuple[int, ...] = ()
    ends_in: int | None = None
    lacks_end: bool = False


class Rendered(NamedTuple):
    """A rendered conversation: its text, the runs of one origin in it, the added tokens that the template wrote, and
    where their spellings begin."""

    text: str
    runs: list[Run]
    found: list[Found]
    firsts: list[int]


class Surroundings(Protocol):
    """What is known of a template beside the text that it wrote, to tell where turns begin and end.

    Attributes:
        ends: tokens that are known to end a turn.
        has_end: a turn ends in one of these even if no other follows; otherwise what begins the next turn ends it.
        blocks_follow_prompts: a generation block of a plain message is known to begin where its prompt ends.
        bos_id: the token that begins the next turn, and ends none; None if there is no such token.
        opening: what the template adds to a plain conversation to ask for an answer; "" if it adds nothing.
    """

    ends: frozenset[int]
    has_end: bool
    blocks_follow_prompts: bool
    bos_id: int | None
    opening: str

    def prompt(self, turn: int) -> str | None:
        """The text that asks for a message, by its index; None where the template refuses to."""

    def asks(self, turn: int) -> int:
        """How many characters of the prompt for a message stand before it asks for the message."""

    def closing(self, turn: int) -> str:
        """What stands behind the last words in the prompt for a message."""

    def ending(self, turn: int) -> Rendered | None:
        """The conversation that ends with a message; None where the template refuses it."""

    def content(self, turn: int) -> str:
        """What a message says."""

    def is_plain(self, turn: int) -> bool:
        """Whether a message says nothing but its content."""


class _Words(NamedTuple):
    """Where the words of a stretch stand: the first that is not blank, after the last one, and with blanks after it."""

    first: int
    last: int
    stop: int


def block_regions(rendered: Rendered, around: Surroundings) -> list[Region]:
    """The turns of a template that writes them in generation blocks."""
    regions = []
    found = [(block, _words(rendered.text, _of_messages(block.runs))) for block in blocks(rendered)]
    for number, (block, words) in enumerate(found):
        if words is None:
            regions.append(Region(block.start, block.stop))
            continue
        turns = _turns(block)
        is_plain = all(map(around.is_plain, turns))
        start = block.start
        if turns and not (is_plain and around.blocks_follow_prompts):
            begins = _beginning(rendered, around, turns[0], start, words)
            start = start if begins is None else begins
        following = next((next_one for next_one, said in found[number + 1 :] if said), None)
        if following is not None and turns and turns[-1] in _turns(following):  # the turn goes on
            regions.append(Region(start, block.stop, turns))
            continue
        limit = len(rendered.text) if following is None else following.start
        end = _end(rendered, words.last, block.stop, limit, around)
        # Without an end: before the template's spelling of one that the tokenizer does not have.
        regions.append(_region(rendered, start, words.stop if is_plain else block.stop, turns, end, around))
    return regions


def word_regions(rendered: Rendered, turns: Iterable[int], around: Surroundings) -> list[Region] | None:
    """The turns of a template without generation blocks; None where the words of one are not together, or were changed
    and do not follow the prompt for them."""
    places: dict[int, list[int]] = {}  # the turns' runs, by their index
    for index, run in enumerate(rendered.runs):
        places.setdefault(run.source - FIRST_TURN, []).append(index)
    regions = []
    for turn in turns:
        is_plain = around.is_plain(turn)
        ending = None if is_plain else around.ending(turn)
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
        before = next((run.stop for run in _of_messages(_from(rendered.runs, own[0] - 1, -1))), 0)
        limit = next((run.start for run in _of_messages(_from(rendered.runs, own[-1] + 1, 1))), len(rendered.text))
        start = _beginning(rendered, around, turn, before, words)
        if start is None:
            if not is_plain or rendered.text[words.first : words.last] != around.content(turn).strip():
                return None
            start = words.first
        stop = words.last
        end = _end(rendered, words.last, stop, limit, around) if is_plain else None
        if end is None or end.id not in around.ends:
            stop = _tail(rendered, words.last, limit, around.ending(turn) if is_plain else ending, turn)
            end = _end(rendered, words.last, stop, limit, around)
        regions.append(_region(rendered, start, words.last if is_plain else stop, (turn,), end, around))
    return sorted(regions)


def _said(rendered: Rendered, own: list[int], ending: Rendered, turn: int) -> list[int] | None:
    """Of a turn's runs those that are its own, and not put into what follows it, like the name of the tool.

    None where some of them come only after that.
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
    rendered: Rendered, start: int, otherwise: int, turns: tuple[int, ...], end: Found | None, around: Surroundings
) -> Region:
    """A turn up to its end, or up to `otherwise` where it has none."""
    if end is not None:
        return Region(start, end.last, turns, end.id)
    # In the midst of a conversation, a template that does end turns has left this one open.
    is_open = around.has_end and rendered.text[otherwise:].strip() != ""
    return Region(start, otherwise, turns, None, not is_open)


def _of_messages(of: Iterable[Run]) -> Iterator[Run]:
    return (run for run in of if run.source != TEMPLATE)


def _from(of: Sequence[Run], index: int, step: int) -> Iterator[Run]:
    while 0 <= index < len(of):
        yield of[index]
        index += step


class Block(NamedTuple):
    """What a generation block has written, and its runs."""

    start: int
    stop: int
    runs: list[Run]


def _turns(block: Block) -> tuple[int, ...]:
    return tuple(sorted({run.source - FIRST_TURN for run in block.runs if run.source >= FIRST_TURN}))


def blocks(rendered: Rendered) -> list[Block]:
    """The generation blocks, in order."""
    found: list[Block] = []
    last = 0
    for run in rendered.runs:
        if run.block and run.block == last:
            found[-1] = Block(found[-1].start, run.stop, [*found[-1].runs, run])
        elif run.block:
            found.append(Block(run.start, run.stop, [run]))
        last = run.block
    return found


def _words(text: str, of: Iterable[Run]) -> _Words | None:
    """Where the words of these runs stand; None where they are blank."""
    first = last = stop = None
    for run in of:
        stretch = text[run.start : run.stop]
        stop = run.stop
        kept = len(stretch.rstrip())
        if kept:
            first = run.start + len(stretch) - len(stretch.lstrip()) if first is None else first
            last = run.start + kept
    return None if first is None else _Words(first, last, stop)


def _beginning(rendered: Rendered, around: Surroundings, turn: int, lower: int, words: _Words) -> int | None:
    """Where generation would begin, if that is known to be after `lower`, where what is written leads to the words."""
    prompt = around.prompt(turn) if turn else None
    if prompt is None:
        return None
    shared = shared_length(rendered.text, prompt)
    is_whole = shared == len(prompt)
    asks = 0 if is_whole else around.asks(turn)
    places, openings = [], []
    # Where the text goes on otherwise before the prompt asks, it is not known to have come to the answer. A call may
    # stand in place of all that asks.
    if is_whole or shared > asks or (shared == asks and not around.is_plain(turn)):
        place = shared if is_whole else min(shared, words.first)
        places += [max(lower, _outside_tokens(rendered, place))] if lower <= place < words.last else []
    if not is_whole:  # the conversation before may look different from here
        openings.append(prompt[asks:] if prompt[asks:].strip() else around.closing(turn))
    if not prompt.endswith(around.opening):  # after an answer many a template asks for no other
        openings.append(around.opening)
    for opening in filter(None, openings):
        place = rendered.text.rfind(opening, lower, words.first)
        places += [place + len(opening)] if place >= 0 else []
    return max(places, default=None)


def _end(rendered: Rendered, last: int, stop: int, limit: int, around: Surroundings) -> Found | None:
    """The token that ends a turn whose words end at `last` and which is written up to `stop`."""
    found, text = rendered.found, rendered.text
    after = bisect.bisect_left(rendered.firsts, stop)
    inside = found[after - 1] if after and found[after - 1].first >= last else None
    behind = found[after] if after < len(found) and found[after].last <= limit else None
    if inside is not None and text[inside.last : stop].strip():
        inside = None
    if behind is not None and (text[stop : behind.first].strip() or behind.id == around.bos_id):
        behind = None
    for token in (inside, behind):
        if token is not None and token.id in around.ends:
            return token
    if inside is not None and (inside.special or not around.ends):
        return inside
    return None if around.has_end else behind


def _tail(rendered: Rendered, last: int, limit: int, ending: Rendered | None, turn: int) -> int:
    """How far the text goes on after a turn's words as it does where the conversation ends with that turn."""
    words = ending and _words(ending.text, (run for run in ending.runs if run.source == turn + FIRST_TURN))
    if words is None:
        return last
    shared = shared_length(rendered.text[last:limit], ending.text[words.last :])
    return max(last, _outside_tokens(rendered, last + shared))


def _outside_tokens(rendered: Rendered, place: int) -> int:
    """`place`, or the beginning of the added token in whose spelling it lies."""
    k = bisect.bisect_left(rendered.firsts, place) - 1
    return rendered.firsts[k] if k >= 0 and place < rendered.found[k].last else place


def shared_length(text: str, other: str) -> int:
    """How many characters two texts begin with in common."""
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


def rendered_of(text: str, found: Callable[[str, list[tuple[int, int]]], list[Found]]) -> Rendered:
    """A traced text, read: `found` finds added tokens in the stretches that the template wrote."""
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
    return Rendered(plain, of_text, tokens, [token.first for token in tokens])
