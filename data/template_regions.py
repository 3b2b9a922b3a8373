"""Which part of a rendered conversation is the assistant's to learn: where each of its turns begins and ends.

A turn begins where generation will begin: where the text goes on after what the template writes to ask for an answer.
It ends with the token that ends it. In a template with generation blocks a turn is a block, as far as that: of a block
that holds the end token and a newline after it, the newline is left out, and of one that holds the words alone, the end
token behind it is taken in. In other templates a turn is all that is written for the message, from its first word to
what follows its last one when the conversation ends there.
"""

import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from .added_tokens import Found
from .traced_text import FIRST_TURN, TEMPLATE, Run, runs


class Region(NamedTuple):
    """A stretch of text from `start` to `stop` that an assistant says.

    Attributes:
        turns: the messages whose words stand in it, by their index; none where there is no word in it.
        ends_in: the token at its end, or None if the text has none: then the end of text is to be put there.
    """

    start: int
    stop: int
    turns: tuple[int, ...]
    ends_in: int | None


class Rendered(NamedTuple):
    """A rendered conversation: its text, the runs of one origin in it, and the added tokens that the template wrote."""

    text: str
    runs: list[Run]
    found: list[Found]


class Surroundings(NamedTuple):
    """What else the template writes, to tell where turns begin and end.

    Attributes:
        prompt: for a message's index, the text that asks for it; None where the template refuses to.
        ending: for a message's index, the conversation that ends with it; None where the template refuses it.
        content: for a message's index, what it says.
        is_plain: for a message's index, whether it says nothing but its content.
        ends: tokens that are known to end a turn.
        blocks_follow_prompts: a generation block of such a message is known to begin where its prompt ends.
        bos_id: the token that begins the next turn, and ends none.
    """

    prompt: Callable[[int], str | None]
    ending: Callable[[int], Rendered | None]
    content: Callable[[int], str]
    is_plain: Callable[[int], bool]
    ends: frozenset[int]
    blocks_follow_prompts: bool
    bos_id: int | None


class _Words(NamedTuple):
    """Where the words of a stretch stand: the first that is not blank, after the last one, and with blanks after it."""

    first: int
    last: int
    stop: int


def block_regions(rendered: Rendered, around: Surroundings) -> list[Region]:
    """The turns of a template that writes them in generation blocks."""
    regions = []
    blocks = _blocks(rendered)
    for number, (start, stop, inside) in enumerate(blocks):
        words = _words(rendered.text, (run for run in inside if run.source != TEMPLATE))
        if words is None:
            regions.append(Region(start, stop, (), None))
            continue
        turns = tuple(sorted({run.source - FIRST_TURN for run in inside if run.source >= FIRST_TURN}))
        is_plain = all(map(around.is_plain, turns))
        if turns and not (is_plain and around.blocks_follow_prompts):
            begins = _beginning(rendered, around.prompt(turns[0]), start, words)
            start = start if begins is None else begins
        limit = blocks[number + 1].start if number + 1 < len(blocks) else len(rendered.text)
        end = _end(rendered, words.last, stop, limit, around)
        if end is not None:
            regions.append(Region(start, end.last, turns, end.id))
        else:  # without the template's spelling of an end that the tokenizer does not have
            regions.append(Region(start, words.stop if is_plain else stop, turns, None))
    return regions


def word_regions(rendered: Rendered, turns: Iterable[int], around: Surroundings) -> list[Region] | None:
    """The turns of a template without generation blocks; None where the words of one are not together, or were changed
    and do not follow the prompt for them."""
    places: dict[int, list[int]] = {}  # the turns' runs, by their index
    for index, run in enumerate(rendered.runs):
        places.setdefault(run.source - FIRST_TURN, []).append(index)
    regions = []
    for turn in turns:
        words = _words(rendered.text, (rendered.runs[index] for index in places.get(turn, ())))
        if words is None:
            continue
        first, last = places[turn][0], places[turn][-1]
        if any(run.source not in (TEMPLATE, turn + FIRST_TURN) for run in rendered.runs[first : last + 1]):
            return None
        before = next((run.stop for run in _from(rendered.runs, first - 1, -1) if run.source != TEMPLATE), 0)
        behind = _from(rendered.runs, last + 1, 1)
        limit = next((run.start for run in behind if run.source != TEMPLATE), len(rendered.text))
        start = _beginning(rendered, around.prompt(turn) if turn else None, before, words)
        if start is None:
            if around.is_plain(turn) and rendered.text[words.first : words.last] != around.content(turn).strip():
                return None
            start = words.first
        stop = words.last
        end = _end(rendered, words.last, stop, limit, around) if around.is_plain(turn) else None
        if end is None:
            stop = _tail(rendered, words.last, around.ending(turn), turn)
            end = _end(rendered, words.last, stop, limit, around)
        if end is not None:
            regions.append(Region(start, end.last, (turn,), end.id))
        else:
            regions.append(Region(start, words.last if around.is_plain(turn) else stop, (turn,), None))
    return sorted(regions)


def _from(of: Sequence[Run], index: int, step: int) -> Iterator[Run]:
    while 0 <= index < len(of):
        yield of[index]
        index += step


class _Block(NamedTuple):
    start: int
    stop: int
    runs: list[Run]


def _blocks(rendered: Rendered) -> list[_Block]:
    """The generation blocks. One without words that follows another at once goes on with it."""
    blocks: list[_Block] = []
    last = 0
    for run in rendered.runs:
        if run.block:
            if run.block == last and blocks[-1].stop == run.start:
                blocks[-1] = _Block(blocks[-1].start, run.stop, [*blocks[-1].runs, run])
            else:
                blocks.append(_Block(run.start, run.stop, [run]))
        last = run.block
    joined: list[_Block] = []
    for block in blocks:
        has_words = any(run.source != TEMPLATE for run in block.runs)
        if joined and not has_words and joined[-1].stop == block.start:
            joined[-1] = _Block(joined[-1].start, block.stop, joined[-1].runs + block.runs)
        else:
            joined.append(block)
    return joined


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


def _beginning(rendered: Rendered, prompt: str | None, lower: int, words: _Words) -> int | None:
    """Where generation would begin; None unless that is after `lower`, and what is written from there leads to the
    words."""
    if prompt is None:
        return None
    shared = _shared(rendered.text, prompt)
    if lower <= shared <= (words.last - 1 if shared == len(prompt) else words.first):
        return max(lower, _outside_tokens(rendered.found, shared))
    return None


def _end(rendered: Rendered, last: int, stop: int, limit: int, around: Surroundings) -> Found | None:
    """The token that ends a turn whose words end at `last` and which is written up to `stop`."""
    found, text = rendered.found, rendered.text
    after = bisect.bisect_left(found, stop, key=lambda token: token.first)
    inside = found[after - 1] if after and found[after - 1].first >= last else None
    if inside is not None and text[inside.last : stop].strip():
        inside = None
    behind = found[after] if after < len(found) and found[after].last <= limit else None
    if behind is not None and text[stop : behind.first].strip():
        behind = None
    for token in (inside, behind):
        if token is not None and token.id in around.ends:
            return token
    if inside is None and behind is not None and behind.id == around.bos_id:
        return None
    return inside or behind


def _tail(rendered: Rendered, last: int, ending: Rendered | None, turn: int) -> int:
    """How far the text goes on after a turn's words as it does where the conversation ends with that turn."""
    words = ending and _words(ending.text, (run for run in ending.runs if run.source == turn + FIRST_TURN))
    if words is None:
        return last
    shared = _shared(rendered.text[last:], ending.text[words.last :])
    return max(last, _outside_tokens(rendered.found, last + shared))


def _outside_tokens(found: Sequence[Found], place: int) -> int:
    """`place`, or the beginning of the added token in whose spelling it lies."""
    k = bisect.bisect_left(found, place, key=lambda token: token.first) - 1
    return found[k].first if k >= 0 and found[k].first < place < found[k].last else place


def _shared(text: str, other: str) -> int:
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
    return Rendered(plain, of_text, found(plain, stretches))
