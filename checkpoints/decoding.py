"""From what a caller asks for, and what a checkpoint says, to how an answer is drawn (`model.sampling.Sampling`)."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

from ..data.stop_strings import cut
from ..data.tokenizer import Tokenizer
from ..errors import UserError
from ..model.sampling import Sampling
from ..model.stopping import Stops, stops_of
from .interop.generation_config import GenerationDefaults


def sampling_of(
    tokenizer: Tokenizer,
    rows: int,
    *,
    stop_ids: Iterable[int],
    stop: str | Sequence[str] = (),
    **fields: Any,
) -> Sampling:
    """How answers are drawn from a network of `rows` embeddings, of which those without a token are never drawn.

    stop_ids, stop: ids and strings that end an answer. fields: further ones of `Sampling`. Raises UserError for a value
    out of range, an empty stop string and too long ones.
    """
    try:
        return Sampling(
            stop_ids=tuple(sorted(set(stop_ids))),
            stops=_stops(tokenizer, rows, strings_of(stop)),
            unused=_unused(tokenizer, rows),
            **fields,
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def strings_of(stop: str | Sequence[str], defaults: GenerationDefaults | None = None) -> tuple[str, ...]:
    """All strings that end an answer, each once."""
    given = tuple(stop) if isinstance(stop, (tuple, list)) else (stop,)
    if wrong := [each for each in given if not isinstance(each, str)]:
        raise UserError(f"stop {wrong[0]!r}: give strings")
    return tuple(dict.fromkeys((*given, *(defaults.stop if defaults is not None else ()))))


def text_of(tokenizer: Tokenizer, ids: Sequence[int], sampling: Sampling) -> str:
    """What an answer says, without what ended it: up to a stop string, and without its last token where that is a stop
    id, which may be a token that writes something."""
    said = ids[:-1] if len(ids) and ids[-1] in sampling.stop_ids else ids
    strings = [] if sampling.stops is None else [string.decode() for string in sampling.stops.strings]
    return cut(tokenizer.decode(said), strings)


@functools.lru_cache(maxsize=4)
def _stops(tokenizer: Tokenizer, rows: int, strings: tuple[str, ...]) -> Stops | None:
    if not strings:
        return None
    try:
        as_bytes = [string.encode() for string in strings]
    except UnicodeEncodeError as error:
        raise ValueError(f"stop {error.object!r} is no UTF-8 text") from None
    if any("\N{REPLACEMENT CHARACTER}" in string for string in strings):
        raise ValueError("a stop string with U+FFFD, which stands for bytes that are no character: give text")
    return stops_of(as_bytes, tokenizer.token_bytes[:rows], rows, drops_first_space=tokenizer.drops_first_space)


@functools.lru_cache(maxsize=4)
def _unused(tokenizer: Tokenizer, rows: int) -> tuple[tuple[int, int], ...]:
    return tokenizer.unused(rows)
